"""The input of one training step for every provider, packed and padded, and what the step's answer should be.

The truth is fp64, of the operands as rounded to the batch's dtype, and of the very call that is timed: all log-probs,
and SAMPLE rows each of dX and dW. It is affordable because only DISTINCT rows differ and longer batches repeat them:
a GEMM takes the same time whatever is in its rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from srt_kernels import group_advantage
from srt_kernels.lm_head.lm_head import make_head
from srt_kernels.testing import relative_error

DISTINCT, SAMPLE = 1024, 64
OFFSET, SPREAD = (
    30.0,
    5.0,
)  # logits up to 50 or so, about a nat of entropy: where narrow logits show their rounding


@dataclass(frozen=True, kw_only=True)
class Case:
    """One size. `padded` says that lengths differ, so that a (rollouts, longest) batch has padding."""

    name: str
    hidden_size: int
    vocab_size: int
    dtype: torch.dtype
    lengths: list[int]  # [R] tokens of each rollout
    group_size: int  # rollouts of a prompt, one after the other
    unanimous: int  # groups whose rollouts all have the same reward, so advantage 0
    seed: int = 0

    @property
    def padded(self) -> bool:
        return len(set(self.lengths)) > 1

    def describe(self) -> str:
        width = max(self.lengths)
        text = f"{self.name}: H {self.hidden_size}, V {self.vocab_size}, {str(self.dtype).removeprefix('torch.')}, "
        text += f"{sum(self.lengths)} tokens in {len(self.lengths)} rollouts"
        return text + (
            f" ({len(self.lengths) * width} when padded to {width})"
            if self.padded
            else f" of {width}"
        )


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """n positions, packed (n = N) or padded (n = R * longest). The loss is sum of weights * their GRPO terms."""

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

    def dhidden(self, g: Tensor) -> Tensor:
        """dL/dhidden[rows], with g = dL/dlogprob [N]."""
        return g[self.rows, None] * self.by_hidden

    def dweight(self, g: Tensor) -> Tensor:
        """dL/dweight[vocab], with g = dL/dlogprob [N]."""
        total = g.new_zeros(len(self.hidden))
        total.index_add_(0, torch.arange(len(g), device=g.device) % len(total), g)
        return (total[:, None] * self.by_logits).T @ self.hidden


@dataclass(frozen=True, kw_only=True)
class Batch:
    """N packed tokens of R rollouts."""

    weight: Tensor  # [V, H], requires grad
    packed: Tokens
    advantages: Tensor  # [R] fp32
    cu_seqlens: Tensor  # [R+1] int32
    keep: Tensor  # [R, longest] bool, where a padded batch has a token
    truth: Truth

    @property
    def active(self) -> int:
        """Tokens whose advantage is not 0: what costs are divided by."""
        return int((self.packed.advantages != 0).sum())

    @property
    def chunk_bytes(self) -> int:
        """Of the fp32 logits that ours has at a time."""
        head = make_head(self.packed.hidden, self.weight, self.packed.targets)
        return 4 * len(self.weight) * min(head.chunk_rows, self.active)

    @cached_property
    def padded(self) -> Tokens:
        """The same tokens and padding in between. Padding has hidden states too, as in a model's output."""
        keep, packed = self.keep.flatten(), self.packed
        hidden = packed.hidden.detach()[
            torch.arange(len(keep), device=keep.device) % len(packed.hidden)
        ]
        hidden[keep] = packed.hidden.detach()
        vectors = {name: getattr(packed, name) for name in ("targets", "advantages", "weights")}
        vectors = {
            name: v.new_zeros(len(keep)).masked_scatter_(keep, v) for name, v in vectors.items()
        }
        return Tokens(hidden=hidden.requires_grad_(), **vectors)

    def errors(
        self,
        objective: str,
        loss: Tensor,
        logprobs: Tensor | None,
        dhidden: Tensor,
        dweight: Tensor,
    ) -> dict:
        """Of a step, packed or padded: log-probs in nats (None without), gradients relative, loss absolute."""
        t, packed, keep = self.truth, self.packed, self.keep.flatten()
        if len(dhidden) != len(packed.hidden):
            dhidden = dhidden[keep]
        if objective == "grpo":
            g = -(packed.advantages * packed.weights).double()
            expected_loss = g.sum()
        else:
            g = torch.full_like(t.logprobs, -1 / len(t.logprobs))
            expected_loss = (g * t.logprobs).sum()
        found = {"logprob_rms": None, "logprob_max": None}
        if logprobs is not None:
            off = (
                logprobs[keep] if len(logprobs) != len(t.logprobs) else logprobs
            ).double() - t.logprobs
            off = off[
                ~(off.isnan() & (packed.advantages == 0))
            ]  # a row without gradient may be left out
            found = {
                "logprob_rms": off.square().mean().sqrt().item(),
                "logprob_max": off.abs().max().item(),
            }
        return found | {
            "dhidden": relative_error(dhidden[t.rows], t.dhidden(g)),
            "dweight": relative_error(dweight[t.vocab], t.dweight(g)),
            "loss": (loss.double() - expected_loss).abs().item(),
        }


def _logits(hidden: Tensor, weight: Tensor):
    """fp64 logits of hidden [D, H], half a GiB at a time, with the slice of rows."""
    rows = max(1, 2**26 // len(weight))
    for start in range(0, len(hidden), rows):
        part = slice(start, min(start + rows, len(hidden)))
        yield part, hidden[part] @ weight.T


def make_batch(case: Case, device: torch.device) -> Batch:
    """Random operands, targets sampled from the head's own distribution, rewards 1, 0, 1, 0 ... in a group."""
    generator = torch.Generator(device).manual_seed(case.seed)
    total, size = sum(case.lengths), min(DISTINCT, sum(case.lengths))
    hidden = torch.randn(size, case.hidden_size, generator=generator, device=device)
    weight = torch.randn(case.vocab_size, case.hidden_size, generator=generator, device=device)
    weight.mul_(SPREAD / (case.hidden_size - 1) ** 0.5)
    hidden[:, -1], weight[:, -1] = OFFSET**0.5, OFFSET**0.5
    hidden, weight = hidden.to(case.dtype), weight.to(case.dtype)

    wide, wide_weight = hidden.double(), weight.double()
    targets = torch.empty(size, dtype=torch.int64, device=device)
    logprobs, lse = torch.empty(2, size, dtype=torch.float64, device=device)
    for part, z in _logits(wide, wide_weight):
        lse[part] = z.logsumexp(1)
        targets[part] = torch.multinomial(
            (z - lse[part, None]).exp().float(), 1, generator=generator
        ).squeeze(1)
        logprobs[part] = z.gather(1, targets[part, None]).squeeze(1) - lse[part]

    groups = len(case.lengths) // case.group_size
    rewards = (torch.arange(len(case.lengths)) % case.group_size % 2 == 0).float()
    silent = torch.randperm(groups, generator=torch.Generator().manual_seed(case.seed))[
        : case.unanimous
    ]
    rewards.view(groups, -1)[silent] = 1
    cu_groups = torch.arange(groups + 1, dtype=torch.int32) * case.group_size
    advantages = group_advantage(rewards, cu_groups, kind="grpo").to(device)

    lengths = torch.tensor(case.lengths, device=device)
    index = torch.arange(total, device=device) % size
    packed = Tokens(
        hidden=hidden[index].requires_grad_(),
        targets=targets[index],
        advantages=advantages.repeat_interleave(lengths),
        weights=(1 / (lengths * len(lengths))).repeat_interleave(lengths),
    )
    active = packed.advantages.nonzero().squeeze(1)
    rows = active[torch.linspace(0, len(active) - 1, SAMPLE, device=device).long()]
    others = torch.randint(case.vocab_size, (SAMPLE // 2,), generator=generator, device=device)
    vocab = torch.cat([targets[: SAMPLE // 2], others])
    p_rows = torch.cat([z.softmax(1) for _, z in _logits(wide[index[rows]], wide_weight)])
    p_vocab = (wide @ wide_weight[vocab].T - lse[:, None]).exp()
    truth = Truth(
        logprobs=logprobs[index],
        rows=rows,
        by_hidden=wide_weight[packed.targets[rows]] - p_rows @ wide_weight,
        vocab=vocab,
        by_logits=(targets[:, None] == vocab).double() - p_vocab,
        hidden=wide,
    )
    return Batch(
        weight=weight.requires_grad_(),
        packed=packed,
        advantages=advantages,
        cu_seqlens=torch.tensor([0, *case.lengths], device=device).cumsum(0).int(),
        keep=torch.arange(max(case.lengths), device=device) < lengths[:, None],
        truth=truth,
    )
