"""The input of one training step for every provider, packed and padded, and the right answer.

The truth is fp64, of the operands as rounded to the batch's dtype, and of the call that is timed:
all log-probs, and SAMPLE rows each of dX and dW. It is affordable because only DISTINCT rows differ
and longer batches repeat them. A GEMM takes the same time for any rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from srt_kernels import group_advantage
from srt_kernels.core.segments import even_slices
from srt_kernels.lm_head.lm_head import make_head
from srt_kernels.testing import relative_error

DISTINCT = 1024
SAMPLE = 64
# Logits reach 50 or so, with about a nat of entropy: narrow logits show their rounding there.
OFFSET = 30.0
SPREAD = 5.0
LOGITS_AT_A_TIME = 1 << 26  # in fp64: half a GiB


@dataclass(frozen=True, kw_only=True)
class Case:
    """One size."""

    name: str
    hidden_size: int
    vocab_size: int
    dtype: torch.dtype
    lengths: list[int]  # [R] tokens of each rollout
    group_size: int  # rollouts of a prompt, one after the other
    unanimous: int  # groups whose rollouts all have the same reward, so advantage 0
    seed: int = 0

    @property
    def is_padded(self) -> bool:
        """Lengths differ, so a (rollouts, longest) batch has padding."""
        return len(set(self.lengths)) > 1

    @property
    def active_tokens(self) -> int:
        """Tokens whose advantage is not 0: what costs are divided by."""
        lengths = torch.tensor(self.lengths)
        return int(lengths[make_advantages(self) != 0].sum())

    def describe(self) -> str:
        width = max(self.lengths)
        rollouts = len(self.lengths)
        dtype = str(self.dtype).removeprefix("torch.")
        text = f"{self.name}: H {self.hidden_size}, V {self.vocab_size}, {dtype}, "
        text += f"{sum(self.lengths)} tokens in {rollouts} rollouts"
        if self.is_padded:
            return f"{text} ({rollouts * width} when padded to {width})"
        return f"{text} of {width}"


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """n positions, packed (n = N) or padded (n = R * longest).

    The loss is the sum of weights * their GRPO terms.
    """

    hidden: Tensor  # [n, H], requires grad
    targets: Tensor  # [n] int64
    advantages: Tensor  # [n] fp32
    weights: Tensor  # [n] fp32: 1 / (tokens of the rollout * rollouts), 0 at padding


@dataclass(frozen=True, kw_only=True)
class Truth:
    """fp64 derivatives of log-probs. Row i of the batch is row i % D of the D distinct ones."""

    logprobs: Tensor  # [N]
    rows: Tensor  # [SAMPLE] int64, of the active rows
    by_hidden: Tensor  # [SAMPLE, H]: of those rows' log-probs by their hidden states
    vocab: Tensor  # [SAMPLE] int64, targets and others
    by_logits: Tensor  # [D, SAMPLE]: of the distinct rows' log-probs by the logits of `vocab`
    hidden: Tensor  # [D, H]

    def dhidden(self, grad_logprobs: Tensor) -> Tensor:
        """[SAMPLE, H] gradient by hidden[rows], from that by the log-probs [N]."""
        return grad_logprobs[self.rows, None] * self.by_hidden

    def dweight(self, grad_logprobs: Tensor) -> Tensor:
        """[SAMPLE, H] gradient by weight[vocab], from that by the log-probs [N]."""
        sums = grad_logprobs.new_zeros(len(self.hidden))
        index = torch.arange(len(grad_logprobs), device=sums.device) % len(sums)
        sums.index_add_(0, index, grad_logprobs)
        return (sums[:, None] * self.by_logits).T @ self.hidden


@dataclass(frozen=True, kw_only=True)
class Batch:
    """N packed tokens of R rollouts."""

    weight: Tensor  # [V, H], requires grad
    packed: Tokens
    active_tokens: int
    advantages: Tensor  # [R] fp32
    cu_seqlens: Tensor  # [R+1] int32
    keep: Tensor  # [R, longest] bool, where a padded batch has a token
    truth: Truth

    @property
    def chunk_bytes(self) -> int:
        """Bytes of the fp32 logits that ours has at a time."""
        head = make_head(self.packed.hidden, self.weight, self.packed.targets)
        parts = even_slices(self.active_tokens, head.chunk_rows)
        return 4 * len(self.weight) * max(part.stop - part.start for part in parts)

    @cached_property
    def padded(self) -> Tokens:
        """The same tokens with padding. Padding has hidden states, as in a model's output."""
        keep = self.keep.flatten()
        packed_hidden = self.packed.hidden.detach()
        index = torch.arange(len(keep), device=keep.device) % len(packed_hidden)
        hidden = packed_hidden[index]
        hidden[keep] = packed_hidden

        def pad(vector: Tensor) -> Tensor:
            return vector.new_zeros(len(keep)).masked_scatter_(keep, vector)

        return Tokens(
            hidden=hidden.requires_grad_(),
            targets=pad(self.packed.targets),
            advantages=pad(self.packed.advantages),
            weights=pad(self.packed.weights),
        )

    def errors(
        self,
        objective: str,
        loss: Tensor,
        logprobs: Tensor | None,
        dhidden: Tensor,
        dweight: Tensor,
    ) -> dict[str, float | None]:
        """Errors of a step, packed or padded.

        Of log-probs in nats (None if there are none), of gradients relative, of the loss absolute.
        """
        truth = self.truth
        if len(dhidden) != len(self.packed.hidden):
            dhidden = dhidden[self.keep.flatten()]
        if objective == "grpo":
            grad_logprobs = -(self.packed.advantages * self.packed.weights).double()
            expected_loss = grad_logprobs.sum()
        else:
            grad_logprobs = torch.full_like(truth.logprobs, -1 / len(truth.logprobs))
            expected_loss = (grad_logprobs * truth.logprobs).sum()
        return self._logprob_errors(logprobs) | {
            "dhidden": relative_error(dhidden[truth.rows], truth.dhidden(grad_logprobs)),
            "dweight": relative_error(dweight[truth.vocab], truth.dweight(grad_logprobs)),
            "loss": (loss.double() - expected_loss).abs().item(),
        }

    def _logprob_errors(self, logprobs: Tensor | None) -> dict[str, float | None]:
        if logprobs is None:
            return {"logprob_rms": None, "logprob_max": None}
        if len(logprobs) != len(self.truth.logprobs):
            logprobs = logprobs[self.keep.flatten()]
        errors = logprobs.double() - self.truth.logprobs
        is_left_out = errors.isnan() & (self.packed.advantages == 0)  # allowed without gradient
        errors = errors[~is_left_out]
        return {
            "logprob_rms": errors.square().mean().sqrt().item(),
            "logprob_max": errors.abs().max().item(),
        }


def _logits(hidden: Tensor, weight: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """fp64 logits of hidden [D, H], some rows at a time, with the slice of the rows."""
    rows = max(1, LOGITS_AT_A_TIME // len(weight))
    for start in range(0, len(hidden), rows):
        part = slice(start, min(start + rows, len(hidden)))
        yield part, hidden[part] @ weight.T


def make_batch(case: Case, device: torch.device) -> Batch:
    """Random operands, targets sampled from the head's distributions, rewards 1, 0, 1, 0 ..."""
    generator = torch.Generator(device).manual_seed(case.seed)
    total = sum(case.lengths)
    distinct = min(DISTINCT, total)
    hidden = torch.randn(distinct, case.hidden_size, generator=generator, device=device)
    weight = torch.randn(case.vocab_size, case.hidden_size, generator=generator, device=device)
    weight.mul_(SPREAD / (case.hidden_size - 1) ** 0.5)
    hidden[:, -1] = OFFSET**0.5
    weight[:, -1] = OFFSET**0.5
    hidden = hidden.to(case.dtype)
    weight = weight.to(case.dtype)
    wide_hidden = hidden.double()
    wide_weight = weight.double()
    targets, logprobs, log_sum_exp = _sample_targets(wide_hidden, wide_weight, generator)

    advantages = make_advantages(case).to(device)
    lengths = torch.tensor(case.lengths, device=device)
    index = torch.arange(total, device=device) % distinct
    packed = Tokens(
        hidden=hidden[index].requires_grad_(),
        targets=targets[index],
        advantages=advantages.repeat_interleave(lengths),
        weights=(1 / (lengths * len(lengths))).repeat_interleave(lengths),
    )
    active = packed.advantages.nonzero().squeeze(1)
    rows = active[torch.linspace(0, len(active) - 1, SAMPLE, device=device).long()]
    other_tokens = torch.randint(
        case.vocab_size, (SAMPLE // 2,), generator=generator, device=device
    )
    vocab = torch.cat([targets[: SAMPLE // 2], other_tokens])
    sampled_logits = _logits(wide_hidden[index[rows]], wide_weight)
    probs = torch.cat([logits.softmax(1) for _, logits in sampled_logits])
    vocab_probs = (wide_hidden @ wide_weight[vocab].T - log_sum_exp[:, None]).exp()
    truth = Truth(
        logprobs=logprobs[index],
        rows=rows,
        by_hidden=wide_weight[packed.targets[rows]] - probs @ wide_weight,
        vocab=vocab,
        by_logits=(targets[:, None] == vocab).double() - vocab_probs,
        hidden=wide_hidden,
    )
    return Batch(
        weight=weight.requires_grad_(),
        packed=packed,
        active_tokens=case.active_tokens,
        advantages=advantages,
        cu_seqlens=torch.tensor([0, *case.lengths], device=device).cumsum(0).int(),
        keep=torch.arange(max(case.lengths), device=device) < lengths[:, None],
        truth=truth,
    )


def _sample_targets(
    hidden: Tensor, weight: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Targets [D] int64 drawn from the head's distributions, their log-probs, and log-sum-exps."""
    rows = len(hidden)
    targets = torch.empty(rows, dtype=torch.int64, device=hidden.device)
    logprobs = torch.empty(rows, dtype=torch.float64, device=hidden.device)
    log_sum_exp = torch.empty_like(logprobs)
    for part, logits in _logits(hidden, weight):
        log_sum_exp[part] = logits.logsumexp(1)
        probs = (logits - log_sum_exp[part, None]).exp().float()
        targets[part] = torch.multinomial(probs, 1, generator=generator).squeeze(1)
        logprobs[part] = logits.gather(1, targets[part, None]).squeeze(1) - log_sum_exp[part]
    return targets, logprobs, log_sum_exp


def make_advantages(case: Case) -> Tensor:
    """[R] fp32 GRPO advantages of rewards 1, 0, 1, 0 ... in a group; unanimous groups have 1."""
    rollouts = len(case.lengths)
    groups = rollouts // case.group_size
    rewards = (torch.arange(rollouts) % case.group_size % 2 == 0).float()
    order = torch.randperm(groups, generator=torch.Generator().manual_seed(case.seed))
    rewards.view(groups, -1)[order[: case.unanimous]] = 1
    cu_groups = torch.arange(groups + 1, dtype=torch.int32) * case.group_size
    return group_advantage(rewards, cu_groups, kind="grpo")
