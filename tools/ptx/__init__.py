"""An emulator of the PTX that Triton compiles for NVIDIA GPUs, in numpy. Needs no GPU.

launch.emulated() lets the launchers of srt_kernels run their kernels on CPU tensors: Triton's JIT
compiles for a chip, and the emulator executes the PTX. docs/kernels.md says what that proves.

    program    PTX text -> instructions
    memory     global and shared memory; bounds and alignment of every access
    blocks     the threads of some blocks, their registers and asynchronous work
    schedule   the order in which warps step, and when asynchronous work is done
    operands   registers, numbers and addresses of instructions
    arithmetic, comparison, conversion, transfers, bulk_copies, warps, tensor_cores   what
               instructions do
    kernel     control flow and barriers
    launch     from a launcher's call to a run of the emulator
"""
