"""What the formulas read of a run: model, GPUs and configuration, checked."""

from __future__ import annotations

import math
from dataclasses import dataclass

from srt_fast.config import Config
from srt_fast.distributed.balance import KEYS_PER_TOKEN
from srt_fast.distributed.plan.devices import Device
from srt_fast.distributed.plan.shape import ModelShape

KINDS_WITH_START_LABELS = ("frozen", "restrain")
"""The reward functions that need the starting model. A test compares them with their `requires`."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """GPUs in nodes. One rank has one GPU."""

    device: Device
    gpus: int
    gpus_per_node: int = 8

    def __post_init__(self) -> None:
        _check_positive(gpus=self.gpus, gpus_per_node=self.gpus_per_node)
        if self.gpus > self.gpus_per_node and self.gpus % self.gpus_per_node:
            raise ValueError(
                f"--gpus: expected a multiple of --gpus-per-node, {self.gpus_per_node}, "
                f"got {self.gpus}"
            )


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Bytes of an element."""

    weight: int
    """Of a stored weight, w."""
    compute: int
    """Of an operand of a matrix product, c."""
    residual: int
    """Of the residual stream."""
    casts_weights: bool = False
    """Autocast casts each weight, because no sharding gathers it in `compute`."""

    @property
    def whole_weight(self) -> int:
        """Of a weight in a forward pass, and of its gradient."""
        return self.weight if self.casts_weights else self.compute


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run on a cluster. Raises ValueError for settings that do not fit together.

    prompt_tokens, completion_tokens: means. active: share of the rollouts that have a gradient.
    """

    shape: ModelShape
    cluster: Cluster
    config: Config
    prompt_tokens: int
    completion_tokens: int
    active: float = 1.0

    def __post_init__(self) -> None:
        _check_positive(prompt_tokens=self.prompt_tokens, completion_tokens=self.completion_tokens)
        if not 0 < self.active <= 1:
            raise ValueError(f"--active: expected more than 0 and at most 1, got {self.active:g}")
        dist, vllm = self.config.dist, self.config.vllm
        if rank := self.config.model.lora.r:
            raise ValueError(
                "model.lora.r: expected 0, because the formulas are for training all weights, "
                f"got {rank}"
            )
        if vllm.mode != "colocate":
            raise ValueError(
                "vllm.mode: expected 'colocate', because the servers' GPUs are not known here, "
                f"got {vllm.mode!r}"
            )
        gpus = self.cluster.gpus
        if self.shard_ranks * dist.replicas != gpus:
            raise ValueError(
                f"dist.shard: expected shard x replicas to be the number of GPUs, {gpus}, "
                f"got {self.shard_ranks} x {dist.replicas}"
            )
        size, heads = self.tensor_parallel, self.shape.heads
        if size < 1 or gpus % size or heads % size:
            raise ValueError(
                "vllm.engine_args: tensor_parallel_size: expected a divisor of the number of GPUs, "
                f"{gpus}, and of the model's heads, {heads}, got {size}"
            )

    @property
    def shard_ranks(self) -> int:
        """Ranks that share one copy of the weights, S."""
        dist = self.config.dist
        return dist.shard or self.cluster.gpus // dist.replicas

    @property
    def tensor_parallel(self) -> int:
        """GPUs of one engine."""
        size = self.config.vllm.engine_args.get("tensor_parallel_size", 1)
        if not isinstance(size, int):
            raise ValueError(
                f"vllm.engine_args: tensor_parallel_size: expected an integer, got {size!r}"
            )
        return size

    @property
    def is_sharded(self) -> bool:
        """A run in one process does without FSDP2."""
        return self.cluster.gpus > 1

    @property
    def longest_sequence(self) -> int:
        """Tokens of the longest prompt with the longest completion."""
        sampling = self.config.sampling
        return sampling.max_prompt_tokens + sampling.max_new_tokens

    @property
    def micro_batch_tokens(self) -> int:
        """T: the budget, or all that a rank has. A longer sequence is a micro-batch alone."""
        of_rank = math.ceil(self.rollouts * self.tokens_per_rollout / self.cluster.gpus)
        return max(self.longest_sequence, min(self.config.train.token_budget, of_rank))

    @property
    def shares_prompts(self) -> bool:
        """Whether a pass computes a prompt once for all completions of its group."""
        return self.config.train.shared_prompt and self.config.sampling.group_size > 1

    @property
    def tokens_per_rollout(self) -> float:
        """Tokens that a pass computes for a rollout, its part of the prompt included."""
        prompts = 1 / self.config.sampling.group_size if self.shares_prompts else 1
        return prompts * self.prompt_tokens + self.completion_tokens

    @property
    def keys_per_token(self) -> float:
        """Keys that the attention gathers for each token of a pass: prompts repeat among them."""
        if not self.shares_prompts:
            return 1.0
        keys = self.tokens_per_rollout + self.prompt_tokens
        return min(KEYS_PER_TOKEN, keys / self.tokens_per_rollout)

    @property
    def rollouts(self) -> int:
        """Rollouts of one step."""
        return self.config.train.prompts_per_step * self.config.sampling.group_size

    @property
    def has_kl(self) -> bool:
        """Whether a reference model scores the rollouts, in the reward or in the loss."""
        return self.config.train.reward_kl_coef > 0 or self.has_loss_kl

    @property
    def has_loss_kl(self) -> bool:
        """Whether the loss has a KL term. No preset has one by itself."""
        return self.config.train.objective_overrides.get("kl_coef", 0) > 0

    @property
    def has_teacher(self) -> bool:
        """Whether a moving average of the policy samples too."""
        return self.config.reward.needs_teacher

    @property
    def copies(self) -> tuple[str, ...]:
        """The models beside the policy."""
        config = self.config
        has_file = config.reward.params.get("file") is not None  # of labels
        asks_start = config.reward.kind in KINDS_WITH_START_LABELS
        asks_start = asks_start or config.reward.params.get("labels") == "frozen"
        needs_labels = asks_start and not has_file
        needs_start = self.has_kl or needs_labels or config.monitor.action == "freeze"
        start = ("starting model",) if needs_start else ()
        return start + (("teacher",) if self.has_teacher else ())

    @property
    def precision(self) -> Precision:
        """Of the passes through the model. Autocast "auto" means bfloat16 on a GPU."""
        model = self.config.model
        if model.dtype == "bfloat16":
            return Precision(weight=2, compute=2, residual=2)
        if model.autocast == "off":
            return Precision(weight=4, compute=4, residual=4)
        if self.is_sharded:
            return Precision(weight=4, compute=2, residual=2)
        return Precision(weight=4, compute=2, residual=4, casts_weights=True)


def _check_positive(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"--{name.replace('_', '-')}: expected at least 1, got {value}")
