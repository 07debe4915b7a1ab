"""Liger's fused linear GRPO loss, computed by srt_kernels.

The constructor, the call and the results are those of LigerFusedLinearGRPOLoss (liger-kernel 0.8.5,
chunked_loss/grpo_loss.py). Only the import changes:

    from srt_fast.integrations.liger import FusedLinearGRPOLoss as LigerFusedLinearGRPOLoss

The padded batch is unpadded inside. Tokens outside of attention_mask are not computed. Rollouts
with advantage 0 are not computed unless a KL gives them a gradient. Normalizers and metrics still
count them. Their values (NaN, -100) are not read, with one exception: "vespo" sums the log of
vllm_is_ratio over the padding, as Liger and TRL do. Pad that with 1.

Where the results differ from Liger's:
- "luspo" is TRL's: the masked sum of each completion's losses, averaged over the batch. Liger
  weighs by lengths and averages over the padded width, padding included. The two agree without
  padding, and with sequence ratios if there is neither a KL nor a vllm_is_ratio per token.
  Otherwise Liger's loss depends on the width of the batch. TRL had the same bug (huggingface/trl
  #6654). Of 8 x 128 tokens, a quarter masked, fp32 gradients with sequence ratios and beta 0.1 are
  5e-4 apart; without a KL 3e-7.
- Logits are fp32 also for bf16 hidden states. Liger rounds them to bf16. "luspo" multiplies that
  error by the length: its bf16 loss of 8 x 128 tokens, 3.6 to 31, is 0.13 to 0.43 off the fp64 loss
  of the same numbers, and its gradients 1.1e-2 to 1.4e-2. Ours are off by at most 0.03 and 2e-3.
  fp64 hidden states give an fp64 loss.
- Ratios, and the exponential in the KL, stop at exp(20). There is no inf.
- A batch without rollouts has loss 0, not NaN. On a CPU, NaN and inf among the computed hidden
  states are a ValueError.
- Tokens of all ranks are counted in one all-reduce per call. Liger has one per chunk: ranks with
  fewer chunks would hang.

Refused with a ValueError, at construction and at each call: what Liger refuses at a call only
(sequence ratios with "cispo", "sapo" and "vespo": a wrong setting ends a run at its start, and the
words are those of our other errors); a negative beta or epsilon; delta below 1, which would clip
every positive advantage on policy; and use_bias_correction_kl with sequence ratios. For the last,
Liger and TRL multiply by the ratio of the sequence, DeepSeek-V3.2 (arXiv 2512.02556, eq. 7) by the
token's.

In Liger's own tests (test/chunked_loss/test_grpo_loss.py of 0.8.5, without a GPU) 30 fail and 1,013
pass: 16 of "luspo" with a KL in fp32, 8 of "luspo" in bf16, 4 of the two refusals above, and 2 that
need a GPU.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from srt_fast.integrations.liger_inputs import (
    ComputedTokens,
    as_columns,
    check_batch,
    check_logprobs,
    tokens_per_rank,
)
from srt_fast.integrations.liger_objective import (
    CLIPPED,
    LOSS_TYPES,
    MAX_LOG_WEIGHT,
    MIN_LOG_WEIGHT,
    LigerSettings,
    clipped_tokens,
    objective_of,
    vespo_coefficients,
)
from srt_fast.integrations.padded import completion_means
from srt_kernels import linear_logprob, linear_policy_loss
from srt_kernels.core.segments import segment_reduce

__all__ = ["CLIPPED", "LOSS_TYPES", "FusedLinearGRPOLoss"]


@dataclass(eq=False, repr=False)
class FusedLinearGRPOLoss(LigerSettings, torch.nn.Module):
    """A loss of padded completions. Differentiable once in _input, lin_weight and bias.

    Settings (LigerSettings) may be changed between calls.
    """

    def __post_init__(self) -> None:
        torch.nn.Module.__init__(self)
        objective_of(self)

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
        """The loss (scalar) and the metrics: mean KL of a token, fraction of clipped tokens.

        Without beta the metrics have no KL.

        Three GEMMs. A reference from ref_input takes one more. So does vespo, or cispo with
        epsilon_high below 1, if there are old log-probs. On a GPU the call synchronises with the
        host once, for the number of tokens, and as often as linear_policy_loss does.

        Args:
            _input: [B, T, H] hidden states.
            lin_weight: [V, H].
            selected_token_ids: [B, T] int64 or int32.
            attention_mask: [B, T], 0 or 1 of any dtype, in any order.
            advantages: [B].
            bias: [V].
            ref_per_token_logps: [B, T] log-probs of the reference. None: from ref_input.
            old_per_token_logps: [B, T] log-probs of the policy that the ratio is against. None: on
                policy.
            ref_input: [B, T, H'].
            ref_weight: [V, H'].
            ref_bias: [V].
            vllm_is_ratio: [B], [B, 1] or [B, T], at least 0.
            num_items_in_batch: tokens of the step over all ranks, for dapo, cispo and vespo. None:
                those of this call.

        Raises:
            ValueError: other shapes, dtypes or devices, and settings that construction refuses.
        """
        objective = objective_of(self)
        check_batch(_input, selected_token_ids, attention_mask, advantages)
        check_logprobs(_input, ref_per_token_logps, old_per_token_logps)
        if self.use_ref_model and ref_per_token_logps is not None and ref_input is not None:
            # As Liger does.
            warnings.warn(
                "Both ref_per_token_logps and ref_input are provided. Using ref_per_token_logps.",
                stacklevel=2,
            )
        vllm_is_ratio = as_columns(vllm_is_ratio, attention_mask)
        mask = attention_mask != 0
        tokens = ComputedTokens.of(mask if self.has_kl else mask & (advantages != 0)[:, None])
        targets = tokens.gather(selected_token_ids).long()
        token_advantages = tokens.gather(advantages.double()[:, None])
        old_logprobs = None if old_per_token_logps is None else tokens.gather(old_per_token_logps)
        ref_logprobs = None
        if self.has_kl and ref_per_token_logps is not None:
            ref_logprobs = tokens.gather(ref_per_token_logps)
        elif self.has_kl:
            ref_logprobs = self._score(ref_input, ref_weight, ref_bias, targets, tokens)
        logprobs = None
        if self.has_coefficients and old_logprobs is not None:
            logprobs = self._score(_input, lin_weight, bias, targets, tokens)
        log_ratio = self._log_ratio(logprobs, old_logprobs, tokens)
        result = linear_policy_loss(
            _input.flatten(0, 1),
            lin_weight,
            targets,
            self._scaled_advantages(token_advantages, log_ratio, vllm_is_ratio, tokens),
            tokens.packed.cu_seqlens,
            objective,
            old_logprobs=old_logprobs,
            ref_logprobs=ref_logprobs,
            normalizer=self._normalizer(mask, num_items_in_batch),
            all_rows=old_logprobs is not None,  # the metrics count the ratio of every token
            **self._head_options(bias, tokens),
        )
        log_ratio = self._log_ratio(result.logprobs, old_logprobs, tokens)
        clipped = clipped_tokens(self, log_ratio, token_advantages).sum()
        clip_fraction = (clipped / mask.sum().clamp(min=1)).float()
        return result.loss, (clip_fraction,) if self.beta == 0 else (result.kl, clip_fraction)

    def _head_options(self, bias: Tensor | None, tokens: ComputedTokens) -> dict[str, Any]:
        return {
            "bias": bias,
            "row_index": tokens.packed.row_index,
            "unique_rows": True,
            "temperature": self.temperature,
        }

    @torch.no_grad()
    def _score(
        self,
        hidden: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        targets: Tensor,
        tokens: ComputedTokens,
    ) -> Tensor:
        """[N] log-probs of the policy or of the reference."""
        expected = "a tensor with beta and use_ref_model, or ref_per_token_logps"
        if hidden is None:
            raise ValueError(f"ref_input: expected {expected}, got None")
        if weight is None:
            raise ValueError(f"ref_weight: expected {expected}, got None")
        options = self._head_options(bias, tokens)
        return linear_logprob(hidden.flatten(0, 1), weight, targets, **options)[0]

    def _log_ratio(
        self, logprobs: Tensor | None, old_logprobs: Tensor | None, tokens: ComputedTokens
    ) -> Tensor:
        """[N] fp64, of each token or of its completion. Exactly 0 on policy."""
        if logprobs is None or old_logprobs is None:
            return torch.zeros_like(tokens.packed.row_index, dtype=torch.float64)
        log_ratio = logprobs.double() - old_logprobs
        if self.importance_sampling_level == "sequence":
            return completion_means(log_ratio, tokens.packed.cu_seqlens)
        return log_ratio

    def _scaled_advantages(
        self,
        advantages: Tensor,
        log_ratio: Tensor,
        vllm_is_ratio: Tensor | None,
        tokens: ComputedTokens,
    ) -> Tensor:
        """[N] advantages times the factors of the policy term that Objective does not have.

        log_ratio [N]: read only with has_coefficients.
        """
        if self.loss_type == "vespo":
            log_weights = self._log_weights(log_ratio, vllm_is_ratio, tokens)
            return advantages * vespo_coefficients(self, log_weights, advantages)
        if self.has_coefficients:
            advantages = advantages * log_ratio.exp().clamp(max=self.epsilon_high)
        if vllm_is_ratio is not None:
            advantages = advantages * tokens.gather(vllm_is_ratio)
        return advantages

    def _log_weights(
        self, log_ratio: Tensor, vllm_is_ratio: Tensor | None, tokens: ComputedTokens
    ) -> Tensor:
        """[N] fp64: vespo's log w of each token's completion. Includes vllm_is_ratio's padding."""
        log_ratio = log_ratio.clamp(-MAX_LOG_WEIGHT, MAX_LOG_WEIGHT)
        sums = segment_reduce(log_ratio, "sum", tokens.packed.cu_seqlens)
        log_weights = sums[tokens.completion_index]
        if vllm_is_ratio is not None:
            log_vllm = vllm_is_ratio.detach().double().log().clamp(MIN_LOG_WEIGHT, MAX_LOG_WEIGHT)
            log_weights = log_weights + log_vllm.sum(1)[tokens.completion_index]
        return log_weights.clamp(MIN_LOG_WEIGHT, MAX_LOG_WEIGHT)

    def _normalizer(
        self, mask: Tensor, num_items_in_batch: float | Tensor | None
    ) -> float | Tensor:
        completions = max(1, len(mask))
        if self.loss_type in ("grpo", "sapo", "luspo"):
            return completions
        if self.loss_type == "dr_grpo":
            assert self.max_completion_length is not None
            return completions * self.max_completion_length
        if self.loss_type == "bnpo":
            return mask.sum().double().clamp(min=1)
        return tokens_per_rank(mask, num_items_in_batch).clamp(min=1)
