"""Seconds of each phase of a step, and what bounds it. A roofline: nothing of it has been measured.

Symbols as in memory.py, and s: tokens of a sequence.

Sampling. One decoding step of an engine reads its weights, c P, and the KV cache of its sequences,
2 L k c bytes a token. A sequence has its prompt and half a completion on average. Or the step is
bound by 2 FLOP a sequence and weight of the matrices. With tensor parallelism each GPU has its part
of both, and two all-reduces of c H bytes a sequence and block. A group's prompt is read once.
An engine takes ceil(prompts / engines) prompts, because groups are not split. Sequences that find
no room in the KV cache, or beyond sampling.max_sequences, wait. A teacher is taken to sample as
much again, the most that it can.

Training. The matrices of a block take 2 FLOP a weight and token forward, 4 backward, and 2 more if
they are recomputed; but for the MLP's last, H I, whose output no backward pass reads, so that torch
stops before it. Attention takes 4 q FLOP a query and key forward (causal: half of the keys), and
2.5 times that backward (FlashAttention-2, arXiv 2307.08691, section 3.3: five products, not two).
With train.shared_prompt a group's prompt counts once, and all completions attend to it. The head
takes 6 V H a target: three products, because the loss forms its gradient where the logits are.
Passes for log-probs of the old policy and of the reference take the forward part, 2 V H in the
head. Rollouts without a gradient are left out of all but the passes for a KL in the reward.

Communication. Ring collectives send (S - 1)/S of a tensor over each rank's link. A micro-batch
gathers c P forward and c (P - R) backward, and reduces gradients of 4 P; a pass for log-probs
gathers c P. Within a node the ring runs over NVLink. Between nodes all adapters of a node carry it
together, up to the bandwidth of NVLink. HSDP adds an all-reduce between replicas: 2 (r - 1)/r of
4 P/S over one adapter. Offload moves 3 w P/S over PCIe a micro-batch: weights twice, gradients
once. FSDP2 hides communication behind computation, so a step takes the longer of the two.

Weight sync. Weights c P are gathered, and written to the engine. A teacher borrows the engine, so
it is filled three times.

Not counted: later turns of episodes, prompts sampled a second time, latencies, evaluation,
checkpoints, AdamW (with offload it runs on the CPU), uneven ranks, and the tail of long
completions.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from srt_fast.distributed.plan.memory import Memory, kv_bytes
from srt_fast.distributed.plan.run import Cluster, Run

COMPUTE_EFFICIENCY = 0.4
"""Assumed share of the peak FLOP/s. What FSDP users publish is by these formulas 0.33 (fms-fsdp, 7B
on 96 H100), 0.51 (fms-fsdp, 7B on 128 A100) and 0.60 (torchtitan, 70B on 64 A100)."""
MEMORY_EFFICIENCY = 0.7  # assumed share of the memory bandwidth
LINK_EFFICIENCY = 0.7  # assumed share of the bandwidth of NVLink, network and PCIe


@dataclass(frozen=True, kw_only=True)
class Phase:
    """The duration of a phase, and what bounds it."""

    seconds: float
    bound: str


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """The phases of a step, one after the other. Communication overlaps with training."""

    sampling: Phase
    training: Phase
    communication: Phase
    weight_sync: Phase
    engines: int
    busy_engines: int
    """Engines that have prompts."""
    sequences: int
    """Of an engine in a step."""
    sequences_at_once: int
    """What the KV cache and sampling.max_sequences let an engine sample at a time."""
    micro_batches: int
    """Of a rank in a step."""

    @property
    def step(self) -> float:
        training = max(self.training.seconds, self.communication.seconds)
        return self.sampling.seconds + training + self.weight_sync.seconds


def seconds(run: Run, memory: Memory) -> Seconds:
    """The durations of a step. memory: of the same run."""
    engines = run.cluster.gpus // run.tensor_parallel
    prompts = run.config.train.prompts_per_step
    trained_tokens = run.active * run.rollouts * run.tokens_per_rollout
    micro_batches = math.ceil(trained_tokens / run.cluster.gpus / run.micro_batch_tokens)
    return Seconds(
        sampling=_sampling(run, memory),
        training=Phase(
            seconds=training_flops(run) / run.cluster.gpus / _flops(run.cluster), bound="compute"
        ),
        communication=_communication(run, micro_batches),
        weight_sync=_weight_sync(run),
        engines=engines,
        busy_engines=min(engines, prompts),
        sequences=_sequences(run),
        sequences_at_once=_sequences_at_once(run, memory),
        micro_batches=micro_batches,
    )


def training_flops(run: Run) -> float:
    """FLOP of a step's passes with and without gradient, on all GPUs."""
    train, checkpointing = run.config.train, run.config.model.gradient_checkpointing
    last = 2 * run.shape.layers * run.shape.hidden * run.shape.intermediate
    matrices = run.rollouts * run.tokens_per_rollout * _matrix_flops(run)
    attention = _attention_flops(run)
    targets = run.rollouts * run.completion_tokens
    forward = matrices + attention
    recomputed = forward - run.rollouts * run.tokens_per_rollout * last if checkpointing else 0
    head = 2 * run.shape.vocabulary * run.shape.hidden * targets
    scored = 2.0 if train.reward_kl_coef else 0.0  # all rollouts, by policy and reference
    scored += run.active * ((train.minibatches > 1) + run.has_loss_kl)
    trained = forward + 2 * matrices + 2.5 * attention + recomputed + 3 * head
    return run.active * trained + scored * (forward + head)


def _matrix_flops(run: Run) -> float:
    """Of all blocks, for one token, forward."""
    return 2 * run.shape.layers * run.shape.block_matrix_size


def _attention_flops(run: Run) -> float:
    """Of all blocks, for all rollouts of the mean length, forward."""
    prompt, completion = run.prompt_tokens, run.completion_tokens
    if run.shares_prompts:
        group_size = run.config.sampling.group_size
        keys = prompt**2 / 2 / group_size + completion * (prompt + completion / 2)
    else:
        keys = (prompt + completion) ** 2 / 2
    return 4 * run.shape.layers * run.shape.query * run.rollouts * keys


def _sampling(run: Run, memory: Memory) -> Phase:
    shape, device, size = run.shape, run.cluster.device, run.tensor_parallel
    context = _context(run)
    sequences, at_once = _sequences(run), _sequences_at_once(run, memory)
    flops = _matrix_flops(run) + 2 * shape.vocabulary * shape.hidden
    weights = run.precision.compute * shape.size
    reduced = 2 * shape.layers * run.precision.compute * shape.hidden * at_once
    steps = run.completion_tokens * sequences / at_once
    bandwidth = MEMORY_EFFICIENCY * device.memory_bandwidth
    prompts = sequences / run.config.sampling.group_size
    prefill = prompts * run.prompt_tokens * flops / size / _flops(run.cluster)
    phase = _longest(
        {
            "memory bandwidth": steps
            * (weights + at_once * context * kv_bytes(run))
            / size
            / bandwidth,
            "compute": steps * at_once * flops / size / _flops(run.cluster) + prefill,
            "network": steps * 2 * (size - 1) / size * reduced / _ring_bandwidth(run.cluster, size),
        }
    )
    passes = 2 if run.has_teacher else 1
    return Phase(seconds=passes * phase.seconds, bound=phase.bound)


def _sequences(run: Run) -> int:
    """Of the fullest engine."""
    engines = run.cluster.gpus // run.tensor_parallel
    prompts = math.ceil(run.config.train.prompts_per_step / engines)
    return prompts * run.config.sampling.group_size


def _sequences_at_once(run: Run, memory: Memory) -> int:
    room = max(1, memory.kv_tokens // _context(run))
    return min(_sequences(run), room, run.config.sampling.max_sequences)


def _context(run: Run) -> int:
    """Tokens of a sequence in the KV cache, on average."""
    return run.prompt_tokens + run.completion_tokens // 2


def _communication(run: Run, micro_batches: int) -> Phase:
    shape, precision, ranks = run.shape, run.precision, run.shard_ranks
    if not run.is_sharded:
        return Phase(seconds=0.0, bound="none")
    blocks = shape.layers * shape.block_size
    gathered = precision.compute * shape.size
    if run.config.dist.reshard_after_forward:
        gathered += precision.compute * blocks
    scored = 2.0 / run.active if run.config.train.reward_kl_coef else 0.0
    scored += (run.config.train.minibatches > 1) + run.has_loss_kl
    moved = gathered + 4 * shape.size + scored * precision.compute * shape.size
    network = moved * (ranks - 1) / ranks / _ring_bandwidth(run.cluster, ranks)
    replicas = run.config.dist.replicas
    if replicas > 1:
        reduced = 4 * shape.size / ranks * 2 * (replicas - 1) / replicas
        network += reduced / _replica_bandwidth(run.cluster)
    times = {"network": micro_batches * network}
    if run.config.dist.cpu_offload:
        host = 3 * precision.weight * shape.size / ranks
        bandwidth = LINK_EFFICIENCY * run.cluster.device.host_bandwidth
        times["host link"] = micro_batches * host / bandwidth
    return _longest(times)


def _weight_sync(run: Run) -> Phase:
    weights = run.precision.compute * run.shape.size
    ranks, cluster = run.shard_ranks, run.cluster
    written = 2 * weights / (MEMORY_EFFICIENCY * cluster.device.memory_bandwidth)
    gathered = weights * (ranks - 1) / ranks / _ring_bandwidth(cluster, ranks)
    phase = _longest({"memory bandwidth": written, "network": gathered})
    syncs = 3 if run.has_teacher else 1
    return Phase(seconds=syncs * phase.seconds, bound=phase.bound)


def _longest(times: Mapping[str, float]) -> Phase:
    bound = max(times, key=lambda name: times[name])
    return Phase(seconds=times[bound], bound=bound)


def _flops(cluster: Cluster) -> float:
    return COMPUTE_EFFICIENCY * cluster.device.flops


def _ring_bandwidth(cluster: Cluster, ranks: int) -> float:
    """Bytes/s that pass each of so many neighbouring ranks in a ring."""
    device = cluster.device
    network = cluster.gpus_per_node * device.network_bandwidth
    within_node = ranks <= cluster.gpus_per_node
    return LINK_EFFICIENCY * (
        device.link_bandwidth if within_node else min(device.link_bandwidth, network)
    )


def _replica_bandwidth(cluster: Cluster) -> float:
    """Bytes/s of a rank's ring over the replicas: ranks of other nodes, each over its adapter."""
    device = cluster.device
    within_node = cluster.gpus <= cluster.gpus_per_node
    return LINK_EFFICIENCY * (device.link_bandwidth if within_node else device.network_bandwidth)
