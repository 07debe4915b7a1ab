"""Liger's fused linear GRPO loss over srt_kernels: the constructor, the call and the results of LigerFusedLinearGRPOLoss
(liger-kernel 0.8.5, chunked_loss/grpo_loss.py), so that the import is all that changes:

    from srt_fast.integrations.liger import FusedLinearGRPOLoss as LigerFusedLinearGRPOLoss

The padded batch is unpadded inside: tokens outside of attention_mask are not computed, nor are rollouts with advantage 0
unless a KL gives them a gradient; normalizers and metrics still count them. What they hold (nan, -100) is not read, but
for vllm_is_ratio with "vespo": it sums the ratio's log over the padding, as Liger and TRL do, so pad that with 1.

Where the results are not Liger's:
- "luspo" is TRL's, the masked sum of each completion's losses, averaged over the batch. Liger weighs by lengths and means
  over the padded width, padding included. The two are the same with sequence ratios and neither a KL nor a ratio of
  vLLM's per token, or without padding; else Liger's loss depends on how far the batch is padded. TRL did the same
  until it was fixed as a bug (huggingface/trl#6654).
- Logits are fp32 also for bf16 hidden states, where Liger rounds them to bf16; fp64 hidden states give an fp64 loss.
- Ratios stop at exp(20), and so does what the KL exponentiates: no inf.
- A batch without rollouts has loss 0, not nan. On a CPU nan and inf among the computed hidden states are a ValueError.
- Across ranks, tokens are counted in one all-reduce a call, not one a chunk (ranks with fewer chunks would hang).

Refused at construction, and at each call as the settings are then, with a ValueError that names the setting, beside what
Liger refuses later: a negative beta or epsilon; delta below 1 (it would clip every positive advantage on policy);
use_bias_correction_kl with sequence ratios, where Liger and TRL multiply by the ratio of the sequence and DeepSeek-V3.2
(arXiv 2512.02556, eq. 7) by the token's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor

from srt_kernels.core.checks import check_tensor, check_tensors, expect
from srt_kernels.core.segments import segment_ids, segment_reduce
from srt_kernels.lm_head.linear_logprob import linear_logprob
from srt_kernels.lm_head.linear_policy_loss import linear_policy_loss
from srt_kernels.objective.objective import Objective

CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
LOSS_TYPES = (*CLIPPED, "cispo", "sapo", "vespo")
LEVELS = ("token", "sequence")
AT_LEAST_0, ABOVE_0 = (
    ("beta", "epsilon_low", "epsilon_high"),
    ("temperature", "sapo_temperature_pos", "sapo_temperature_neg"),
)


@dataclass(frozen=True)
class Packed:
    """The tokens of a padded batch that are computed: N of them, of R rollouts that have any.

    Of a mask [[1, 1, 0], [0, 0, 0], [1, 0, 1]]: rows [0, 1, 6, 8], cu_seqlens [0, 2, 4], rollouts [0, 2], segments [0, 0, 1, 1].
    """

    shape: torch.Size  # B, T
    rows: Tensor  # [N] int64, places in the flattened batch [B * T]
    cu_seqlens: Tensor  # [R+1] int64
    rollouts: Tensor  # [R] int64, rows of the batch
    segments: Tensor  # [N] int64, which of the R rollouts each token is of

    @classmethod
    def of(cls, mask: Tensor) -> Packed:
        """mask [B, T] bool. One host sync, for the two sizes."""
        lengths = mask.sum(
            1
        )  # without empty rollouts: with as many tokens as rollouts an op takes [N] advantages for [R]
        tokens, filled = torch.stack([lengths.sum(), (lengths > 0).sum()]).tolist()
        rollouts = (lengths > 0).nonzero_static(size=filled).squeeze(1)
        cu_seqlens = torch.nn.functional.pad(lengths[rollouts].cumsum(0), (1, 0))
        rows = mask.flatten().nonzero_static(size=tokens).squeeze(1)
        segments = segment_ids(cu_seqlens, tokens)
        return cls(
            shape=mask.shape, rows=rows, cu_seqlens=cu_seqlens, rollouts=rollouts, segments=segments
        )

    def tokens(self, padded: Tensor | None) -> Tensor | None:
        """[B, T] or [B, 1] -> [N], detached; None stays None."""
        return None if padded is None else padded.detach().expand(self.shape).flatten()[self.rows]

    def sums(self, values: Tensor) -> Tensor:
        """[N] -> [R] fp64."""
        return segment_reduce(values, "sum", self.cu_seqlens)

    def means(self, values: Tensor) -> Tensor:
        """[N] -> [N] fp64: each token's rollout's mean."""
        return (self.sums(values) / self.cu_seqlens.diff())[self.segments]


@dataclass(eq=False, repr=False)
class FusedLinearGRPOLoss(torch.nn.Module):
    """A loss of padded completions; differentiable once in _input, lin_weight and bias. Settings may be changed later."""

    beta: float = 0.04
    """Weight of the KL to the reference (k3)."""
    compiled: bool = True
    """Ignored: there is nothing to compile."""
    use_ref_model: bool = True
    """Without it there is no KL, whatever beta; its metric is then 0."""
    chunk_size: int = 1
    """Ignored: srt_kernels picks how many rows of logits are there at a time, and results do not depend on it."""
    epsilon_low: float = 0.2
    """How far below 1 the ratio may go."""
    epsilon_high: float = 0.2
    """How far above 1 the ratio may go; with "cispo" the greatest ratio itself."""
    loss_type: str = "dapo"
    """One of LOSS_TYPES."""
    max_completion_length: int | None = None
    """What "dr_grpo" divides a completion's sum by; the others do not read it."""
    importance_sampling_level: str = "token"
    """Ratio of each token, or "sequence": exp of the mean log-ratio of the completion (GSPO); CLIPPED losses only."""
    sapo_temperature_pos: float = 1.0
    """Temperature of sapo's gate where the advantage is positive."""
    sapo_temperature_neg: float = 1.05
    """Temperature of sapo's gate elsewhere."""
    temperature: float = 1.0
    """What logits are divided by."""
    delta: float | None = None
    """Upper bound of the unclipped ratio, for CLIPPED losses."""
    use_bias_correction_kl: bool = False
    """Multiply the KL by the token's ratio."""
    vespo_k_pos: float = 2.0
    """vespo weighs a completion by e^lambda w^k e^(-lambda w), w its summed ratio: k where the advantage is not negative."""
    vespo_lambda_pos: float = 3.0
    """lambda there."""
    vespo_k_neg: float = 3.0
    """k where the advantage is negative."""
    vespo_lambda_neg: float = 2.0
    """lambda there."""

    def __post_init__(self):
        super().__init__()
        self._objective()

    def _check_choices(self) -> None:
        level, loss_type = self.importance_sampling_level, self.loss_type
        expect(
            loss_type in LOSS_TYPES, "loss_type", f"one of {', '.join(LOSS_TYPES)}", repr(loss_type)
        )
        expect(
            level in LEVELS, "importance_sampling_level", f"one of {', '.join(LEVELS)}", repr(level)
        )
        fits = level == "token" or loss_type in CLIPPED
        expect(
            fits, "importance_sampling_level", f"'token' with loss_type {loss_type!r}", repr(level)
        )
        fits = level == "token" or not (self.use_bias_correction_kl and self._has_kl)
        expect(
            fits,
            "use_bias_correction_kl",
            f"False with importance_sampling_level {level!r} and a KL",
            True,
        )

    def _check_numbers(self) -> None:
        for name in (*AT_LEAST_0, *ABOVE_0):
            value, strict = getattr(self, name), name in ABOVE_0
            fits = (
                isinstance(value, int | float)
                and 0 <= value < math.inf
                and not (strict and value == 0)
            )
            expect(
                fits, name, f"a finite number {'above' if strict else 'of at least'} 0", repr(value)
            )
        expect(
            self.delta is None or 1 <= self.delta < math.inf,
            "delta",
            "None or a finite number of at least 1",
            self.delta,
        )
        length, needed = self.max_completion_length, self.loss_type == "dr_grpo"
        expect(
            not needed or (length or 0) > 0,
            "max_completion_length",
            "more than 0 with loss_type 'dr_grpo'",
            length,
        )

    @property
    def _has_kl(self) -> bool:
        return self.beta != 0 and self.use_ref_model

    @property
    def _reweighted(self) -> bool:
        """The policy term is -[c] advantage logprob with a coefficient c that Objective does not have."""
        return self.loss_type == "vespo" or (self.loss_type == "cispo" and self.epsilon_high < 1)

    def _objective(self) -> Objective:
        """Of the settings as they are now. ValueError for one that is refused."""
        self._check_choices()
        self._check_numbers()
        parts = dict(reduction="sequence" if self.loss_type in ("grpo", "sapo") else "token")
        if self._has_kl:
            parts |= dict(kl_coef=self.beta, kl_bias_correction=self.use_bias_correction_kl)
        if self._reweighted:
            return Objective(ratio="none", surrogate="reinforce", **parts)
        if self.loss_type == "cispo":
            return Objective(surrogate="cispo", clip_high=self.epsilon_high, **parts)
        if self.loss_type == "sapo":
            temperatures = dict(
                tau_pos=self.sapo_temperature_pos, tau_neg=self.sapo_temperature_neg
            )
            return Objective(surrogate="sapo", **temperatures, **parts)
        clip_high, delta = self._upper_bounds()
        clip_low = min(self.epsilon_low, 1.0)  # ratios are positive
        level = self.importance_sampling_level
        return Objective(ratio=level, clip_low=clip_low, clip_high=clip_high, delta=delta, **parts)

    def _upper_bounds(self) -> tuple[float, float | None]:
        """clip_high and delta of an Objective: there clip_high bounds ratios of positive advantages only and delta, the
        larger one, those of negative; Liger's min(min(r, delta) A, clip(r) A) takes the smaller and the larger bound."""
        if self.delta is None:
            return self.epsilon_high, None
        clip_high = min(self.epsilon_high, self.delta - 1)
        return clip_high, max(
            self.delta, 1 + self.epsilon_high, math.nextafter(1 + clip_high, math.inf)
        )

    def _normalizer(
        self, mask: Tensor, num_items_in_batch: float | Tensor | None
    ) -> float | Tensor:
        rollouts = max(1, len(mask))
        if self.loss_type in ("grpo", "sapo", "luspo"):
            return rollouts
        if self.loss_type == "dr_grpo":
            return rollouts * self.max_completion_length
        tokens = (
            mask.sum().double()
            if self.loss_type == "bnpo"
            else _tokens_of_a_rank(mask, num_items_in_batch)
        )
        return tokens.clamp(min=1)

    def _reference(
        self, given: Tensor | None, ref_input, ref_weight, ref_bias, packed: Packed, targets: Tensor
    ) -> Tensor:
        """[N] log-probs of the reference."""
        if given is not None:
            return packed.tokens(given)
        expected = "a tensor with beta and use_ref_model, or ref_per_token_logps"
        for name, tensor in (("ref_input", ref_input), ("ref_weight", ref_weight)):
            expect(tensor is not None, name, expected, None)
        with torch.no_grad():
            return linear_logprob(
                ref_input.flatten(0, 1),
                ref_weight,
                targets,
                **self._head_settings(ref_bias, packed),
            )[0]

    def _head_settings(self, bias: Tensor | None, packed: Packed) -> dict:
        return dict(bias=bias, row_index=packed.rows, temperature=self.temperature)

    def _log_ratio(self, logprobs: Tensor, old: Tensor | None, packed: Packed) -> Tensor:
        """[N] fp64, of the token or of its completion; without old log-probs exactly 0."""
        if old is None:
            return torch.zeros(len(packed.rows), dtype=torch.float64, device=packed.rows.device)
        log_ratio = logprobs.double() - old
        return (
            packed.means(log_ratio) if self.importance_sampling_level == "sequence" else log_ratio
        )

    def _scaled(
        self, advantages: Tensor, old, packed: Packed, vllm_is_ratio: Tensor | None, head: Callable
    ) -> Tensor:
        """[N] advantages times what else the policy term is multiplied by. head() -> log-probs [N], entropies."""
        scaled = advantages
        if self._reweighted:
            with torch.no_grad():
                logprobs = None if old is None else head()[0]
            log_ratio = self._log_ratio(logprobs, old, packed)
            scaled = scaled * self._coefficients(log_ratio, advantages, packed, vllm_is_ratio)
        if vllm_is_ratio is not None and self.loss_type != "vespo":
            scaled = scaled * packed.tokens(vllm_is_ratio)
        return scaled

    def _coefficients(
        self, log_ratio: Tensor, advantages: Tensor, packed: Packed, vllm_is_ratio: Tensor | None
    ) -> Tensor:
        """[N], see _reweighted. vespo takes in vLLM's ratio, padding and all."""
        if self.loss_type == "cispo":
            return log_ratio.exp().clamp(max=self.epsilon_high)
        least = math.log(1e-8)  # as in VESPO's own code, says TRL
        log_w = packed.sums(log_ratio.clamp(-20, 20))
        if vllm_is_ratio is not None:
            log_w = (
                log_w
                + vllm_is_ratio.detach().double().log().clamp(least, 20).sum(1)[packed.rollouts]
            )
        log_w = log_w.clamp(least, 20)[packed.segments]
        k = torch.where(advantages < 0, self.vespo_k_neg, self.vespo_k_pos)
        rate = torch.where(advantages < 0, self.vespo_lambda_neg, self.vespo_lambda_pos).clamp(
            min=1e-4
        )
        return (rate + k * log_w - rate * log_w.exp()).exp().nan_to_num(posinf=0.0)

    def _clipped(self, log_ratio: Tensor, advantages: Tensor) -> Tensor:
        """[N] bool, the tokens that Liger counts: delta does not clip, nor do sapo and vespo."""
        up, down, ratio = advantages > 0, advantages < 0, log_ratio.exp()
        if self.loss_type == "cispo":
            return up & (ratio > self.epsilon_high)
        if self.loss_type not in CLIPPED:
            return torch.zeros_like(up)
        return up & (ratio > 1 + self.epsilon_high) | down & (ratio < 1 - self.epsilon_low)

    def forward(
        self,
        _input: Tensor,
        lin_weight: Tensor,
        selected_token_ids: Tensor,
        attention_mask: Tensor,
        advantages: Tensor,
        bias: Tensor | None = None,
        ref_per_token_logps: Tensor | None = None,
        old_per_token_logps: Tensor | None = None,
        ref_input: Tensor | None = None,
        ref_weight: Tensor | None = None,
        ref_bias: Tensor | None = None,
        vllm_is_ratio: Tensor | None = None,
        num_items_in_batch: float | Tensor | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """-> loss (scalar), metrics: mean KL of a token (unless beta is 0), part of the tokens that were clipped.

        _input [B, T, H] hidden states, lin_weight [V, H], bias [V]; selected_token_ids [B, T] integers; attention_mask
        [B, T], 0 or 1 of any dtype, in any order; advantages [B]; log-probs [B, T], of the policy that the ratio is
        against (None: on policy) and of the reference, which else is ref_input [B, T, H'] with ref_weight [V, H'] and
        ref_bias; vllm_is_ratio [B], [B, 1] or [B, T], at least 0; num_items_in_batch: tokens of the step over all ranks,
        for dapo, cispo and vespo, which else divide by those of this call. ValueError for other shapes, dtypes, devices,
        and for settings that construction would refuse.

        Three GEMMs; one more for a reference from ref_input, and one for a vespo (or cispo with epsilon_high below 1)
        that has old log-probs. On a GPU one host sync, for the number of tokens, and those of linear_policy_loss.
        """
        objective = self._objective()
        _check_batch(
            _input,
            selected_token_ids,
            attention_mask,
            advantages,
            ref_per_token_logps=ref_per_token_logps,
            old_per_token_logps=old_per_token_logps,
        )
        vllm_is_ratio = _columns(vllm_is_ratio, attention_mask)
        mask = attention_mask != 0
        packed = Packed.of(mask if self._has_kl else mask & (advantages != 0)[:, None])
        targets, old, ref = (
            packed.tokens(selected_token_ids).long(),
            packed.tokens(old_per_token_logps),
            None,
        )
        if self._has_kl:
            ref = self._reference(
                ref_per_token_logps, ref_input, ref_weight, ref_bias, packed, targets
            )
        head, settings = (
            (_input.flatten(0, 1), lin_weight, targets),
            self._head_settings(bias, packed),
        )
        own = packed.tokens(advantages.double()[:, None])
        scaled = self._scaled(
            own, old, packed, vllm_is_ratio, partial(linear_logprob, *head, **settings)
        )
        out = linear_policy_loss(
            *head,
            scaled,
            packed.cu_seqlens,
            objective,
            old_logprobs=old,
            ref_logprobs=ref,
            **settings,
            normalizer=self._normalizer(mask, num_items_in_batch),
            all_rows=old is not None,  # whose ratios are counted
        )
        clipped = self._clipped(self._log_ratio(out.logprobs, old, packed), own)
        clip_fraction = (clipped.sum() / mask.sum().clamp(min=1)).float()
        return out.loss, (clip_fraction,) if self.beta == 0 else (out.kl, clip_fraction)


def _check_batch(
    hidden: Tensor, ids: Tensor, mask: Tensor, advantages: Tensor, **logprobs: Tensor | None
) -> None:
    for name, tensor in (("_input", hidden), ("attention_mask", mask)):
        expect(isinstance(tensor, Tensor), name, "a tensor", type(tensor).__name__)
    device, shape = hidden.device, tuple(hidden.shape[:2])
    check_tensor("_input", hidden, (None, None, None), "float", device)
    check_tensor("selected_token_ids", ids, shape, (torch.int64, torch.int32), device)
    check_tensor("attention_mask", mask, shape, (mask.dtype,), device)
    _check_all("attention_mask", (mask == 0) | (mask == 1), "0 or 1 everywhere")
    check_tensor("advantages", advantages, shape[:1], "float", device)
    for name, tensor in logprobs.items():
        if tensor is not None:
            check_tensor(name, tensor, shape, "float", device)


def _check_all(name: str, good: Tensor, expected: str) -> None:
    """A ValueError on a CPU; elsewhere, where a look would be a host sync, an assertion on the device."""
    if good.is_cpu:
        expect(bool(good.all()), name, expected, f"{(~good).sum().item()} other values")
    else:
        torch._assert_async(good.all(), f"{name}: expected {expected}")


def _columns(ratio: Tensor | None, mask: Tensor) -> Tensor | None:
    """vllm_is_ratio [B], [B, 1] or [B, T] -> [B, 1] or [B, T]."""
    if ratio is None:
        return None
    shapes = [mask.shape[:1], (len(mask), 1), mask.shape]
    check_tensors(mask.device, vllm_is_ratio=ratio)
    expected = f"one of the shapes {', '.join(str(list(shape)) for shape in shapes)}"
    expect(
        any(ratio.shape == torch.Size(shape) for shape in shapes),
        "vllm_is_ratio",
        expected,
        list(ratio.shape),
    )
    ratio = ratio[:, None] if ratio.dim() == 1 else ratio
    _check_all("vllm_is_ratio", ~((ratio < 0) & (mask != 0)), "at least 0 everywhere")
    return ratio


def _tokens_of_a_rank(mask: Tensor, num_items_in_batch: float | Tensor | None) -> Tensor:
    """0-dim fp64: the tokens of the step, or of this call on all ranks, over the number of ranks."""
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if num_items_in_batch is not None:
        tokens = torch.as_tensor(num_items_in_batch, dtype=torch.float64, device=mask.device)
        expect(
            tokens.numel() == 1, "num_items_in_batch", "one number", f"shape {list(tokens.shape)}"
        )
        return tokens.reshape(()) / world
    tokens = mask.sum().double()
    if world > 1:
        dist.all_reduce(tokens)
    return tokens / world
