"""Settings of a run on several devices. torchrun starts the processes."""

from __future__ import annotations

from srt_fast.config.fields import NonNegative, Positive, PositiveFloat, section


@section("dist.")
class DistConfig:
    """How the model is sharded over the ranks of torchrun. Without effect in one process. A resumed
    run may change every setting, and the number of ranks."""

    shard: NonNegative = 0
    """Ranks that share one copy of the weights (FSDP2). 0: all ranks, divided by replicas."""
    replicas: Positive = 1
    """Copies of the sharded weights (HSDP): shard x replicas is the number of ranks. Ranks that
    share a copy should be on one node."""
    timeout: PositiveFloat = 600.0
    """Seconds that a rank waits for the others before it ends with an error. It must be longer than
    the sampling of a step may differ between ranks."""
    cpu_offload: bool = False
    """Keep weights, gradients and the optimizer's state in host memory. The optimizer's step then
    runs on the CPU."""
    reshard_after_forward: bool = True
    """Free a block's gathered weights after its forward pass, and gather them again for its
    backward pass. False: more memory, fewer transfers."""
