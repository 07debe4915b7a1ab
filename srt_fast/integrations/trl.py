"""TRL's GRPOTrainer with the loss of srt_kernels, and the majority vote as a TRL reward function.

    from srt_fast.integrations.trl import SRTGRPOTrainer as GRPOTrainer, majority_reward
    GRPOTrainer(model, majority_reward(rule="boxed"), args, train_dataset=prompts).train()

SRTGRPOTrainer is a subclass that overrides three methods. TRL keeps sampling, rewards, advantages,
optimizer, checkpoints and every metric: its own _compute_loss runs without gradient on our
log-probs and entropies. So names, values and the adaptive entropy controller are TRL's. Replaced
are
- the forward pass: prompts and completions lie back to back without padding and pass through the
  attention of srt_fast/model/attention.py. Sampling is not packed and runs transformers' SDPA.
  Padded rows are run instead, and their real tokens selected, for a model that was loaded with
  another attention than "sdpa" (eager, flash_attention_2), that cannot pack (linear attention; with
  a warning), or that continuous batching samples from;
- the LM head and the loss: linear_policy_loss over the tokens that TRL's mask counts, in three
  GEMMs. Completions with advantage 0 have no backward pass unless a KL or the auxiliary loss of
  experts needs it.
Settings that have no Objective (objective_of lists them) keep TRL's own arithmetic over
linear_logprob, in four GEMMs. Other settings that cannot be followed are a ValueError at
construction.

Positions count from 0 at a prompt's first token, as in a sampler. TRL's own pass also counts the
padding on the left. The two are the same for rotary embeddings. They differ for learned embeddings,
and for rotary embeddings whose base depends on the length.

The auxiliary loss of a mixture of experts (router_aux_loss_coef) is TRL's: one loss a micro-batch,
over every token of its prompts and completions, padding apart.
"""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
import trl
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from srt_fast.integrations.fused_forward import add_fused_forward, pack_rows
from srt_fast.integrations.majority_reward import majority_reward
from srt_fast.integrations.padded import lengths_to_offsets, scatter_tokens
from srt_fast.integrations.trl_inputs import (
    Inputs,
    Rows,
    add_masked_column,
    loss_mask,
    select_rows,
)
from srt_fast.integrations.trl_settings import check_settings, check_trainer, objective_of
from srt_fast.model.logprobs import HeadOptions, head_inputs
from srt_fast.model.policy import Policy
from srt_fast.model.routers import (
    check_routers,
    experts_per_token,
    load_balancing_loss,
    record_router_logits,
)
from srt_fast.types import PackedSequences
from srt_kernels import Objective, linear_logprob, linear_policy_loss
from srt_kernels.core.checks import check_values_on_cpu, expect

__all__ = ["SRTGRPOTrainer", "check_settings", "majority_reward", "objective_of"]

TESTED_VERSION = "1.16"  # the TRL release that this file is written for and tested with

Scores = tuple[Tensor, Tensor, Tensor | None]  # log-probs, entropies and the auxiliary loss
HeadArguments = tuple[Tensor, Tensor, Tensor]  # hidden, weight and targets


class SRTGRPOTrainer(GRPOTrainer):
    """GRPOTrainer whose loss and log-probs come from srt_kernels; see the top of this file.

    Takes the arguments of GRPOTrainer, and entropy_of. "all" also scores the completions that do
    not train, without gradient: TRL's entropy metric is a mean over them too. "trained" leaves them
    out: entropy and clip ratios are then means over the completions that train. The loss is the
    same.
    """

    # check_trainer refuses other types.
    args: GRPOConfig
    model: PreTrainedModel
    ref_model: PreTrainedModel | None
    processing_class: PreTrainedTokenizerBase

    def __init__(
        self,
        model: str | PreTrainedModel,
        reward_funcs: Any = None,
        args: GRPOConfig | None = None,
        *more_arguments: Any,
        entropy_of: Literal["all", "trained"] = "all",
        **keywords: Any,
    ):
        is_known = entropy_of in ("all", "trained")
        expect(is_known, "entropy_of", "'all' or 'trained'", repr(entropy_of))
        if not trl.__version__.startswith(TESTED_VERSION + "."):
            warnings.warn(
                f"made for TRL {TESTED_VERSION}, not {trl.__version__}: its new settings may not "
                "reach the loss",
                stacklevel=2,
            )
        if args is not None:
            check_settings(args)
        super().__init__(model, reward_funcs, args, *more_arguments, **keywords)
        check_trainer(self)
        self._entropy_of = entropy_of
        # Log-probs and entropies [B, C], and the auxiliary loss, for TRL's metrics.
        self._scores: Scores | None = None
        can_pack = not self.use_transformers_continuous_batching
        add_fused_forward(self.model, self.processing_class, pack=can_pack)
        if self.ref_model is not None:
            add_fused_forward(self.ref_model, self.processing_class, pack=can_pack)
        if self.aux_loss_enabled:
            self.model(fused=lambda policy: check_routers(policy, "router_aux_loss_coef"))

    @property
    def objective(self) -> Objective | None:
        """What linear_policy_loss minimises. None: TRL's own arithmetic is used (objective_of).

        Follows attributes that are changed during training, as TRL does.
        """
        return objective_of(self)

    def _calculate_rewards(
        self, inputs: list[Inputs], prompts: list, completions: list, completion_ids_list: list
    ) -> Tensor:
        """As in TRL. majority_reward also learns which completions the loss will mask."""
        if self.mask_truncated_completions:
            ends = [*self.eos_token_ids, self.processing_class.pad_token_id]
            inputs = add_masked_column(inputs, completion_ids_list, ends)
        return super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)

    def _get_per_token_logps_and_entropies(
        self,
        model: nn.Module,
        input_ids: Tensor,
        attention_mask: Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        compute_entropy: bool = False,
        compute_aux_loss: bool = False,
        **media: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """As in TRL: log-probs and entropies [B, C] of the last C = logits_to_keep tokens.

        They are 0 where attention_mask is 0. Third is the auxiliary loss of all tokens.
        """
        assert all(value is None for value in media.values()), media
        if self._scores is not None:
            return self._scores
        is_target = attention_mask.bool()
        is_target[:, :-logits_to_keep] = False
        size = batch_size or len(input_ids)
        logprobs = []
        entropies = []
        aux_losses = []
        for ids, valid, targets in zip(
            input_ids.split(size), attention_mask.split(size), is_target.split(size), strict=True
        ):
            rows = ids, valid.bool(), targets
            part_logprobs, part_entropies, part_aux_loss = self._score(
                model, rows, compute_aux_loss=compute_aux_loss
            )
            logprobs.append(part_logprobs)
            entropies.append(part_entropies)
            aux_losses.append(part_aux_loss)
        aux_loss = torch.stack(aux_losses).mean() if compute_aux_loss else None
        padded_logprobs = scatter_tokens(is_target, torch.cat(logprobs))[:, -logits_to_keep:]
        if not compute_entropy:
            return padded_logprobs, None, aux_loss
        padded_entropies = scatter_tokens(is_target, torch.cat(entropies))[:, -logits_to_keep:]
        return padded_logprobs, padded_entropies, aux_loss

    def _compute_loss(self, model: nn.Module, inputs: Inputs) -> Tensor:
        """As in TRL: the scalar loss of a micro-batch. Logs its metrics."""
        objective = self.objective
        if objective is None:
            return super()._compute_loss(model, inputs)
        mask = loss_mask(inputs)
        advantages = self._token_advantages(inputs)
        is_answered = mask.any(1)
        trains = is_answered if objective.kl_coef > 0 else (mask & (advantages != 0)).any(1)
        if self.aux_loss_enabled and self._entropy_of == "all":
            trains = is_answered  # all rows have a pass with gradient: no other one for entropies
        if not trains.any():
            # One row with gradient 0 keeps the loss in the graph. DDP needs that: otherwise the
            # other processes wait for this one's gradients.
            trains = torch.arange(len(mask), device=mask.device) == 0
        loss, logprobs, entropies, aux_loss = self._fused_loss(
            model, inputs, objective, advantages, trains
        )
        is_trained = mask & trains[:, None]
        padded_logprobs = scatter_tokens(is_trained, logprobs)
        padded_entropies = scatter_tokens(is_trained, entropies)
        is_left_out = is_answered & ~trains
        if self._entropy_of == "all" and is_left_out.any():
            logprobs, entropies, _ = self._score_left_out(model, inputs, is_left_out)
            is_scored = mask & is_left_out[:, None]
            padded_logprobs += scatter_tokens(is_scored, logprobs)
            padded_entropies += scatter_tokens(is_scored, entropies)
        self._log_metrics(model, inputs, trains, (padded_logprobs, padded_entropies, aux_loss))
        return loss

    def _log_metrics(
        self, model: nn.Module, inputs: Inputs, trains: Tensor, scores: Scores
    ) -> None:
        """Let TRL compute its metrics from scores of shape [B, C]. trains [B] bool."""
        completion_mask = inputs["completion_mask"]
        if self._entropy_of == "trained":
            completion_mask = completion_mask * trains[:, None]
        self._scores = scores
        with torch.no_grad():
            super()._compute_loss(model, inputs | {"completion_mask": completion_mask})
        self._scores = None

    def _token_advantages(self, inputs: Inputs) -> Tensor:
        """[B, C] advantages, times TRL's sampler correction.

        The correction is a factor of the policy term that is at least 0, so it may multiply the
        advantage. That covers its modes, both bounds and missing sampler log-probs.
        """
        advantages = inputs["advantages"]
        if advantages.dim() == 1:
            advantages = advantages[:, None]
        if self.use_vllm and self.vllm_importance_sampling_correction:
            ratio = inputs["importance_sampling_ratio"]
            ratios = ratio.expand(inputs["completion_ids"].shape).flatten()
            is_valid = ratios.isfinite() | ~loss_mask(inputs).flatten()
            check_values_on_cpu("importance_sampling_ratio", is_valid, ratios, "finite values")
            advantages = advantages * ratio
        return advantages.expand(inputs["completion_ids"].shape)

    def _fused_loss(
        self,
        model: nn.Module,
        inputs: Inputs,
        objective: Objective,
        advantages: Tensor,
        trains: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Loss of the rows `trains` [B] bool, and log-probs and entropies [n] of their tokens.

        With an auxiliary loss all rows pass through the model, and the loss has it too. Last is the
        auxiliary loss alone, without gradient.
        """
        in_pass = torch.ones_like(trains) if self.aux_loss_enabled else trains
        ids, valid, is_target = select_rows(inputs, in_pass)
        sequences = pack_rows(ids, valid, is_target & trains[in_pass][:, None])
        is_trained = loss_mask(inputs) & trains[:, None]
        # Of the rows that train: with empty ones there might be as many tokens as completions, and
        # the loss would take the tokens' advantages for the completions'.
        cu_seqlens = lengths_to_offsets(is_trained.sum(1)[trains])
        old_logprobs = inputs.get("old_per_token_logps")
        ref_logprobs = inputs.get("ref_per_token_logps")

        def fused(policy: Policy) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
            tensors, options, aux_loss = self._head_inputs(
                policy, sequences, compute_aux_loss=self.aux_loss_enabled
            )
            result = linear_policy_loss(
                *tensors,
                advantages[is_trained],
                cu_seqlens,
                objective,
                old_logprobs=None if old_logprobs is None else old_logprobs[is_trained],
                ref_logprobs=None if ref_logprobs is None else ref_logprobs[is_trained],
                normalizer=self._normalizer(inputs),
                all_rows=True,
                **options,
            )
            assert result.entropies is not None
            if aux_loss is None:
                return result.loss, result.logprobs, result.entropies, None
            loss = result.loss + self.router_aux_loss_coef * aux_loss / self._accumulated_steps
            return loss, result.logprobs, result.entropies, aux_loss.detach()

        with self.accelerator.autocast():
            return model(fused=fused)

    def _normalizer(self, inputs: Inputs) -> float | Tensor:
        """What TRL divides this micro-batch's sum over tokens, or over completions, by."""
        accumulated = self._accumulated_steps
        if self.loss_type in ("dapo", "cispo"):
            # num_items_in_batch counts the tokens of the generation batch. An optimizer step has a
            # part of it.
            steps = self.args.steps_per_generation
            assert steps is not None  # GRPOConfig sets it
            part = accumulated / steps if self.model.training else 1
            return inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes * part
        if self.loss_type == "bnpo":
            return loss_mask(inputs).sum().clamp(min=1) * accumulated
        return len(inputs["completion_ids"]) * accumulated

    @property
    def _accumulated_steps(self) -> int:
        """Micro-batches of an optimizer step. 1 in evaluation."""
        return self.current_gradient_accumulation_steps if self.model.training else 1

    @torch.no_grad()
    def _score_left_out(self, model: nn.Module, inputs: Inputs, is_left_out: Tensor) -> Scores:
        """Log-probs and entropies [n] of the rows that do not train, is_left_out [B] bool.

        Runs the model without DDP: other processes may have no such rows.
        """
        unwrapped_model = self.accelerator.unwrap_model(model)
        return self._score(unwrapped_model, select_rows(inputs, is_left_out))

    def _score(self, model: nn.Module, rows: Rows, *, compute_aux_loss: bool = False) -> Scores:
        """Log-probs and entropies [n] of the rows' targets, and the rows' auxiliary loss."""
        sequences = pack_rows(*rows)

        def fused(policy: Policy) -> Scores:
            tensors, options, aux_loss = self._head_inputs(
                policy, sequences, compute_aux_loss=compute_aux_loss
            )
            return *linear_logprob(*tensors, **options), aux_loss

        with self.accelerator.autocast():
            return model(fused=fused)

    def _head_inputs(
        self, policy: Policy, sequences: PackedSequences, *, compute_aux_loss: bool
    ) -> tuple[HeadArguments, HeadOptions, Tensor | None]:
        """As head_inputs, with hidden states in the dtype that TRL's LM head would take.

        Last is the auxiliary loss, None if it is not asked for.
        """
        with record_router_logits(policy.model, enabled=compute_aux_loss) as router_logits:
            (hidden, weight, targets), options = head_inputs(policy, sequences, self.temperature)
        aux_loss = None
        if compute_aux_loss:
            aux_loss = load_balancing_loss(router_logits, experts_per_token(policy.model))
        device_type = hidden.device.type
        if self.args.cast_lm_head_to_fp32:
            hidden = hidden.float()
        elif torch.is_autocast_enabled(device_type):  # final norms return float32 under autocast
            hidden = hidden.to(torch.get_autocast_dtype(device_type))
        return (hidden, weight, targets), options, aux_loss
