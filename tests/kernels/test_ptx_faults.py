"""The emulator of tools/ptx: what it computes, what it refuses, and the faults that it finds.

A kernel without one of its barriers or waits must give other results under some schedule.
"""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton")
if triton.knobs.runtime.interpret:
    pytest.skip("TRITON_INTERPRET=1: the interpreter compiles nothing", allow_module_level=True)

from compiled.chips import CHIPS  # noqa: E402
from ptx.kernel import Kernel  # noqa: E402
from ptx.launch import emulated  # noqa: E402
from ptx.memory import Fault, GlobalMemory  # noqa: E402
from ptx.operands import bf16_to_float32, float32_to_bf16  # noqa: E402
from ptx.schedule import LOCKSTEP, SCHEDULES  # noqa: E402
from srt_kernels import Objective, linear_logprob, linear_policy_loss, policy_loss  # noqa: E402
from support.emulation import has_same_bits  # noqa: E402
from support.ops import LENGTHS, exact_rollouts  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:TRITON_DEFAULT_FP_FUSION")

PROBE = """
.visible .entry probe(
	.param .u64 .ptr .global .align 1 probe_param_0
)
.reqntid 64
{{
	ld.param.b64 	%rd1, [probe_param_0];
	mov.u32 	%r1, %tid.x;
	mad.wide.u32 	%rd2, %r1, 8, %rd1;
{body}
	ret;
}}
"""
BYTES = 64 * 8  # of the tensor: 8 for each thread
BARRIER = r"bar\.sync\s+0;"


def run(body: str) -> np.ndarray:
    """The 64 numbers of 64 bits that the threads of one block store at %rd2."""
    memory = GlobalMemory([(0, np.zeros(BYTES, np.uint8))])
    kernel = Kernel(PROBE.format(body=body), "probe", shared_bytes=128)
    kernel.run((1, 1, 1), [np.uint64(memory.address(0, 0))], memory, LOCKSTEP)
    return memory.bytes_of(0).view(np.int64)


@pytest.mark.parametrize(
    "body, named",
    [
        ("	add.rz.f32 	%r2, %r1, %r1;", "add.rz.f32"),
        ("	atom.global.add.u32 	%r2, [%rd1], 1;", "atom.global.add.u32"),
        ("	ld.volatile.global.b32 	%r2, [%rd1];", "ld.volatile"),
        ("	cvt.rzi.s32.f32 	%r2, %r1;", "cvt.rzi"),
        ("	bar.sync 	1, 64;", "bar.sync 1, 64"),
        ("	mov.u32 	%r2, %clock;", "%clock"),
        ("	shfl.sync.up.b32 	%r2, %r1, 1, 0, -1;", "shfl.sync.up"),
        ("	setp.lt.and.f32 	%p1, %r1, %r1, %p2;", "setp.lt.and"),
    ],
)
def test_unknown_instructions_are_named(body, named):
    with pytest.raises(NotImplementedError, match=re.escape(named)):
        run(body)


@pytest.mark.parametrize(
    "body, named",
    [
        (
            "	st.global.b64 	[%rd2 + 8], %rd1;",
            "out of bounds: 8 bytes at 0x[0-9a-f]+: st.global",
        ),
        ("	ld.global.b32 	%r2, [%rd2 + -4];", "out of bounds: 4 bytes"),
        ("	ld.global.v2.b64 	{%rd3, %rd4}, [%rd2];", "misaligned: 16 bytes"),
        ("	st.shared.b32 	[%r1 + 125], %r1;", "misaligned: 4 bytes"),
        (
            "	shl.b32 	%r2, %r1, 2;\n	st.shared.b32 	[%r2], %r1;",
            "out of bounds: 4 shared",
        ),
        ("	add.s32 	%r2, %r3, 1;", "read before it is written: %r3"),
        (
            "	setp.lt.u32 	%p1, %r1, 40;\n	@%p1 bra 	$L1;\n	bar.sync 	0;\n$L1:",
            "only some threads of a block",
        ),
        (
            "	setp.lt.u32 	%p1, %r1, 40;\n	@%p1 bra 	$L1;\n"
            "	redux.sync.max.u32 	%r2, %r1, -1;\n$L1:",
            "only some lanes of a warp are at redux",
        ),
    ],
)
def test_faults(body, named):
    with pytest.raises(Fault, match=named):
        run(body)


@pytest.mark.parametrize(
    "instruction, expected",
    [
        ("div.s64 %rd3, -7, 2", -3),
        ("rem.s64 %rd3, -7, 2", -1),
        ("mul.hi.s64 %rd3, -4611686018427387904, 8", -2),
        ("mad.wide.s32 %rd3, -3, 4, 5", -7),
        ("shl.b64 %rd3, 1, 64", 0),
        ("shr.s64 %rd3, -8, 70", -1),
        ("shr.u64 %rd3, -1, 63", 1),
        ("bfe.u64 %rd3, 0xF5, 2, 4", 13),
        ("cvt.s64.s32 %rd3, -5", -5),
        ("cvt.u64.u32 %rd3, -5", 2**32 - 5),
        ("mov.b64 %rd3, {%r1, %r1}", None),  # thread + thread * 2^32
        ("max.f64 %rd3, 0d7FF8000000000000, 0d3FF0000000000000", 0x3FF0000000000000),
        ("fma.rn.f64 %rd3, 0d4000000000000000, 0d4008000000000000, 0dC018000000000000", 0),
    ],
)
def test_values(instruction, expected):
    stored = run(f"	{instruction};\n	st.global.b64 	[%rd2], %rd3;")
    threads = np.arange(64)
    assert (stored == (threads * (2**32 + 1) if expected is None else expected)).all()


def test_divergent_threads_meet_again():
    """Threads below 40 take a branch that lies behind; a sum of the warp needs all of them."""
    stored = run(
        "	mov.u32 	%r2, 1;\n	setp.lt.u32 	%p1, %r1, 40;\n	@%p1 bra 	$L2;\n"
        "$L1:\n	redux.sync.add.s32 	%r3, %r2, -1;\n	cvt.u64.u32 	%rd3, %r3;\n"
        "	st.global.b64 	[%rd2], %rd3;\n	ret;\n"
        "$L2:\n	mov.u32 	%r2, 100;\n	bra 	$L1;"
    )
    assert stored.tolist() == [3200] * 32 + [824] * 32


def test_bf16_is_rounded_as_torch_rounds():
    bits = np.random.default_rng(0).integers(0, 2**32, 1 << 16, np.uint32)
    floats = np.concatenate([bits, [0x3F808000, 0x3F818000, 0x7F7FFFFF]]).astype(np.uint32)
    floats = floats.view(np.float32)
    expected = torch.from_numpy(floats).bfloat16().float().numpy()
    np.testing.assert_array_equal(bf16_to_float32(float32_to_bf16(floats)), expected)


def loss_op(objective: Objective, **options):
    batch = exact_rollouts(LENGTHS, **options)
    hidden, weight = batch.hidden.bfloat16(), batch.weight.bfloat16()

    def op():
        leaves = [leaf.clone().requires_grad_() for leaf in (hidden, weight)]
        arguments = (batch.targets, batch.advantages, batch.cu_seqlens, objective)
        out = linear_policy_loss(*leaves, *arguments, old_logprobs=batch.old_logprobs)
        out.loss.backward()
        return [out.logprobs, out.entropies, *(leaf.grad for leaf in leaves)]

    return op


def logprob_op():
    batch = exact_rollouts(LENGTHS, vocab_size=300, hidden_size=208)
    hidden, weight = batch.hidden.bfloat16(), batch.weight.bfloat16()
    return lambda: list(linear_logprob(hidden, weight, batch.targets))


def policy_op():
    batch = exact_rollouts(LENGTHS)
    arguments = (batch.sampler_logprobs, batch.advantages, batch.cu_seqlens)

    def op():
        out = policy_loss(*arguments, Objective.preset("gspo"), old_logprobs=batch.old_logprobs)
        return [out.loss, out.ratio]

    return op


# Op and chip. The loss in bf16 writes dlogits over logits that other threads may have to read.
OPS = {
    "fused_kernel": (loss_op(Objective.preset("dapo")), "90"),
    "dlogits_kernel": (loss_op(Objective.preset("gspo")), "90"),
    "tiles_kernel, wgmma": (logprob_op(), "90"),
    "tiles_kernel, mma.sync": (logprob_op(), "80"),
    "policy_kernel": (policy_op(), "90"),
}


def count_matches(op, arch: str, kernel: str, pattern: str) -> int:
    """How often a pattern occurs in the PTX of a kernel that the op launches."""
    found = SimpleNamespace(count=0)

    def count(ptx: str) -> str:
        if f".entry {kernel}(" in ptx:
            found.count = len(re.findall(pattern, ptx))
        return ptx

    with emulated(CHIPS[arch], mutate=count):
        op()
    return found.count


def is_detected(op, arch: str, kernel: str, pattern: str, place: int | None) -> bool:
    """Whether a schedule gives other results without the pattern's occurrence at `place`.

    place: None is all of them.
    """

    def remove(ptx: str) -> str:
        if f".entry {kernel}(" not in ptx:
            return ptx
        matches = list(re.finditer(pattern, ptx))
        for match in reversed(matches if place is None else matches[place : place + 1]):
            ptx = ptx[: match.start()] + ptx[match.end() :]
        return ptx

    with emulated(CHIPS[arch]):
        expected = op()
    for schedule in reversed(SCHEDULES):
        try:
            with emulated(CHIPS[arch], schedule, remove):
                results = op()
        except (Fault, ValueError):  # ValueError: nan, which no thread had written yet
            return True
        if not all(map(has_same_bits, results, expected)):
            return True
    return False


@pytest.mark.parametrize("name", ["fused_kernel", "dlogits_kernel"])
def test_each_barrier_of_a_row_is_needed(name):
    """Those around the sums, and the one between reading logits and writing dlogits over them."""
    op, arch = OPS[name]
    places = range(count_matches(op, arch, name, BARRIER))
    assert places
    assert [place for place in places if not is_detected(op, arch, name, BARRIER, place)] == []


@pytest.mark.parametrize(
    "name, pattern",
    [
        ("tiles_kernel, wgmma", BARRIER),
        ("tiles_kernel, wgmma", r"wgmma\.wait_group\.sync\.aligned \d+;"),
        ("tiles_kernel, wgmma", r"mbarrier\.try_wait[^;]*;\s*@!complete[^;]*;"),
        ("tiles_kernel, mma.sync", BARRIER),
        ("tiles_kernel, mma.sync", r"cp\.async\.wait_group\s+\d+;"),
        ("policy_kernel", BARRIER),
    ],
)
def test_barriers_and_waits_are_needed(name, pattern):
    op, arch = OPS[name]
    kernel = name.partition(",")[0]
    assert count_matches(op, arch, kernel, pattern)
    assert is_detected(op, arch, kernel, pattern, place=None)
