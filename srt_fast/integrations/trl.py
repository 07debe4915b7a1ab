"""TRL's GRPOTrainer with the loss of srt_kernels, and the majority vote as a TRL reward function.

    from srt_fast.integrations.trl import SRTGRPOTrainer as GRPOTrainer, majority_reward
    GRPOTrainer(model, majority_reward(rule="boxed"), args, train_dataset=prompts).train()

A subclass, not a function that patches a trainer: two overridden methods and `super()` are all it takes. TRL keeps
sampling, rewards, advantages, optimizer, checkpoints, and every metric: its own _compute_loss, without gradient, runs on
our log-probs and entropies, so names, values and the adaptive entropy controller are TRL's by construction. Replaced are
- the forward pass: prompts and completions back to back without padding, through the attention of srt_fast/policy.py,
  which for whatever is not packed (sampling) is transformers' SDPA. A model that was loaded with another attention than
  "sdpa" (eager, flash_attention_2), that cannot pack (linear attention; a warning says so) or that continuous batching
  samples from keeps its own and runs padded rows, of which the real tokens are selected;
- the LM head and the loss: linear_policy_loss over the tokens that TRL's mask counts, three GEMMs. Completions whose
  advantage is 0 have no backward pass unless a KL needs it.
Settings that no Objective says (objective_of lists them) keep TRL's own arithmetic, over linear_logprob: four GEMMs.
Everything else that cannot be taken over is a ValueError at construction.

Positions count from 0 at a prompt's first token, as in a sampler. TRL's own pass counts the padding left of it: the same
thing to rotary embeddings, but not to learned ones or to rotary ones whose base depends on the length.
"""

from __future__ import annotations

import warnings
from typing import Literal

import torch
import trl
from accelerate import DistributedType
from torch import Tensor, nn
from transformers import PreTrainedModel

from srt_fast.integrations.fused_forward import add_fused_forward, pack_rows, spread
from srt_fast.integrations.majority_reward import majority_reward
from srt_fast.model.logprobs import head_inputs
from srt_fast.model.policy import DROPOUTS, Policy
from srt_fast.types import PackedSequences
from srt_kernels import Objective, linear_logprob, linear_policy_loss
from srt_kernels.core.checks import expect

__all__ = ["SRTGRPOTrainer", "check_settings", "majority_reward", "objective_of"]

READ = "1.16"  # the TRL that this file was read against and is tested with
# loss_type: the surrogate and the reduction of its Objective. The weights of vespo have none.
LOSSES = {
    "grpo": ("clip", "sequence"),
    "bnpo": ("clip", "token"),
    "dapo": ("clip", "token"),
    "dr_grpo": ("clip", "fixed"),
    "luspo": ("clip", "fixed"),
    "cispo": ("cispo", "token"),
    "sapo": ("sapo", "sequence"),
    "vespo": None,
}
PLAIN = (
    DistributedType.NO,
    DistributedType.MULTI_CPU,
    DistributedType.MULTI_GPU,
)  # one process, or DDP


# ---- settings ----


def check_settings(args: trl.GRPOConfig) -> None:
    """ValueError for a setting that neither linear_policy_loss nor TRL's arithmetic over packed rows can follow."""
    expect(
        args.loss_type in LOSSES, "loss_type", f"one of {', '.join(LOSSES)}", repr(args.loss_type)
    )
    level = args.importance_sampling_level
    expect(
        level in ("token", "sequence"),
        "importance_sampling_level",
        "'token' or 'sequence'",
        repr(level),
    )
    for name, unset in (
        ("use_liger_kernel", False),
        ("torch_compile", False),
        ("neftune_noise_alpha", None),
    ):
        value = getattr(args, name)
        expect(
            value == unset,
            name,
            f"{unset}: it changes the forward pass that is replaced here",
            value,
        )


def _check_trainer(trainer: trl.GRPOTrainer) -> None:
    """ValueError for what shows only once TRL has its model."""
    kind = trainer.accelerator.distributed_type
    expect(
        kind in PLAIN,
        "distributed_type",
        "one process or DDP: other ways to split a model are not tried",
        kind.value,
    )
    model, reader = (type(part).__name__ for part in (trainer.model, trainer.processing_class))
    expect(
        isinstance(trainer.model, PreTrainedModel),
        "model",
        "a transformers model without PEFT",
        model,
    )
    expect(
        not trainer._is_vlm, "processing_class", "a tokenizer, for prompts of text alone", reader
    )
    coef = trainer.router_aux_loss_coef
    expect(
        not trainer.aux_loss_enabled,
        "router_aux_loss_coef",
        "0.0: there is no load-balancing loss over packed rows",
        coef,
    )
    for name, module in trainer.model.named_modules():
        if isinstance(module, nn.Dropout):
            expect(
                module.p == 0,
                "disable_dropout",
                "True, or a model without dropout",
                f"{module.p} in {name}",
            )
        for attribute in DROPOUTS:
            rate = getattr(module, attribute, None)
            if isinstance(rate, float):
                expect(
                    rate == 0,
                    attribute,
                    "0.0 (disable_dropout reaches nn.Dropout alone)",
                    f"{rate} in {name}",
                )


def objective_of(trainer: trl.GRPOTrainer) -> Objective | None:
    """A trainer's settings, as they are now, as an Objective; None where no Objective says them:

    loss_type "vespo"; an entropy bonus, which TRL takes as a mean over tokens whatever the loss type;
    top_entropy_quantile; off_policy_mask_threshold; use_bias_correction_kl with importance_sampling_level "sequence",
    where TRL multiplies each token's KL by its completion's ratio; and numbers out of an Objective's range, such as
    loss_type "cispo" with an epsilon_high below 1 or a delta of at most 1 + epsilon_high.
    """
    args, loss = trainer.args, LOSSES.get(trainer.loss_type)
    biased = (
        trainer.beta != 0
        and args.use_bias_correction_kl
        and trainer.importance_sampling_level == "sequence"
    )
    by_entropy = (
        trainer.entropy_coef != 0
        or trainer.use_adaptive_entropy
        or trainer.top_entropy_quantile < 1
    )
    if loss is None or biased or by_entropy or trainer.off_policy_mask_threshold is not None:
        return None
    surrogate, reduction = loss
    try:
        return Objective(
            ratio=trainer.importance_sampling_level,
            surrogate=surrogate,
            reduction=reduction,
            clip_low=trainer.epsilon_low,
            clip_high=trainer.epsilon_high,
            delta=args.delta if surrogate == "clip" else None,
            tau_pos=args.sapo_temperature_pos,
            tau_neg=args.sapo_temperature_neg,
            kl_coef=trainer.beta,
            kl_bias_correction=args.use_bias_correction_kl,
            max_length=1 if trainer.loss_type == "luspo" else trainer.max_completion_length,
        )
    except ValueError:
        return None


# ---- the trainer ----


class SRTGRPOTrainer(trl.GRPOTrainer):
    """GRPOTrainer whose loss and log-probs come from srt_kernels; see the top of this file.

    Takes what GRPOTrainer takes, and entropy_of: "all" also scores the completions that do not train, without gradient,
    as TRL's entropy metric is a mean over them too; "trained" leaves them out, and entropy and clip ratios are then of
    the completions that train. The loss is the same.
    """

    def __init__(
        self,
        model,
        reward_funcs=None,
        args=None,
        *others,
        entropy_of: Literal["all", "trained"] = "all",
        **keywords,
    ):
        expect(
            entropy_of in ("all", "trained"), "entropy_of", "'all' or 'trained'", repr(entropy_of)
        )
        if not trl.__version__.startswith(READ + "."):
            warnings.warn(
                f"made for TRL {READ}, not {trl.__version__}: its new settings may not reach the loss",
                stacklevel=2,
            )
        if args is not None:
            check_settings(args)
        super().__init__(model, reward_funcs, args, *others, **keywords)
        _check_trainer(self)
        self._entropy_of = entropy_of
        self._scored: tuple[Tensor, Tensor] | None = (
            None  # [B, C] log-probs and entropies, for TRL to make metrics of
        )
        for each in (self.model, self.ref_model):
            if each is not None:
                add_fused_forward(
                    each, self.processing_class, pack=not self.use_transformers_continuous_batching
                )

    @property
    def objective(self) -> Objective | None:
        """What linear_policy_loss minimises, or None where TRL's own arithmetic does (objective_of). Follows attributes
        that are changed during training, as TRL does."""
        return objective_of(self)

    def _get_per_token_logps_and_entropies(
        self,
        model,
        input_ids,
        attention_mask,
        logits_to_keep,
        batch_size=None,
        compute_entropy=False,
        compute_aux_loss=False,
        **media,
    ):
        """As in TRL: log-probs and entropies [B, C] of the last C = logits_to_keep tokens, 0 where attention_mask is."""
        assert not compute_aux_loss and all(value is None for value in media.values()), media
        if self._scored is not None:
            return *self._scored, None
        scored = attention_mask.bool()
        scored[:, :-logits_to_keep] = False
        parts = zip(
            *(t.split(batch_size or len(t)) for t in (input_ids, attention_mask, scored)),
            strict=True,
        )
        packed = [
            torch.cat(results)
            for results in zip(*(self._score(model, *part) for part in parts), strict=True)
        ]
        logps, entropies = (spread(scored, t)[:, -logits_to_keep:] for t in packed)
        return logps, entropies if compute_entropy else None, None

    def _compute_loss(self, model, inputs):
        """As in TRL: the scalar loss of a micro-batch, and its metrics."""
        objective = self.objective
        if objective is None:
            return super()._compute_loss(model, inputs)
        mask, advantages = self._mask(inputs), self._advantages(inputs)
        answered = mask.any(1)
        trains = answered if objective.kl_coef > 0 else (mask & (advantages != 0)).any(1)
        if (
            not trains.any()
        ):  # a row of gradient 0 keeps the loss in the graph, and other processes from waiting
            trains = torch.arange(len(mask), device=mask.device) == 0
        loss, *trained = self._fused_loss(model, inputs, objective, advantages, trains)
        scored = [spread(mask & trains[:, None], t) for t in trained]
        rest = answered & ~trains
        if self._entropy_of == "all" and rest.any():
            others = self._score_rest(model, inputs, rest)
            scored = [
                t + spread(mask & rest[:, None], other)
                for t, other in zip(scored, others, strict=True)
            ]
        seen = (
            inputs["completion_mask"] * trains[:, None]
            if self._entropy_of == "trained"
            else inputs["completion_mask"]
        )
        self._scored = tuple(scored)
        with torch.no_grad():
            super()._compute_loss(model, inputs | {"completion_mask": seen})
        self._scored = None
        return loss

    @staticmethod
    def _mask(inputs: dict) -> Tensor:
        """[B, C] bool: the tokens that count, without padding, masked completions and what tools wrote."""
        return (inputs["completion_mask"] * inputs.get("tool_mask", 1)).bool()

    def _advantages(self, inputs: dict) -> Tensor:
        """[B, C]. TRL's sampler correction, a factor of the policy term that is at least 0, is a factor here: that says
        its modes, both bounds and missing sampler log-probs alike."""
        advantages = inputs["advantages"]
        advantages = advantages[:, None] if advantages.dim() == 1 else advantages
        if self.use_vllm and self.vllm_importance_sampling_correction:
            advantages = advantages * inputs["importance_sampling_ratio"]
        return advantages.expand(inputs["completion_ids"].shape)

    def _rows(self, inputs: dict, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What pack_rows takes, of the chosen [B] rows."""
        parts = [
            (inputs["prompt_ids"], inputs["completion_ids"]),
            (inputs["prompt_mask"], inputs["completion_mask"]),
        ]
        ids, valid = (torch.cat(pair, dim=1)[chosen] for pair in parts)
        return (
            ids,
            valid.bool(),
            nn.functional.pad(self._mask(inputs), (inputs["prompt_ids"].shape[1], 0))[chosen],
        )

    def _fused_loss(
        self, model, inputs: dict, objective: Objective, advantages: Tensor, trains: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Loss of the rows `trains` [B] bool, and log-probs and entropies [n] of their tokens."""
        rows, counted = pack_rows(*self._rows(inputs, trains)), self._mask(inputs) & trains[:, None]
        logprobs = {
            name: inputs[key][counted]
            for name, key in (
                ("old_logprobs", "old_per_token_logps"),
                ("ref_logprobs", "ref_per_token_logps"),
            )
            if inputs.get(key) is not None
        }

        def fused(policy: Policy) -> tuple[Tensor, Tensor, Tensor]:
            tensors, options = self._head_inputs(policy, rows)
            out = linear_policy_loss(
                *tensors,
                advantages[counted],
                rows.cu_seqlens,
                objective,
                **options,
                **logprobs,
                normalizer=self._normalizer(inputs),
                all_rows=True,
            )
            return out.loss, out.logprobs, out.entropies

        with self.accelerator.autocast():
            return model(fused=fused)

    def _normalizer(self, inputs: dict) -> float | Tensor:
        """What TRL divides this micro-batch's sum over tokens, or over completions, by."""
        training = self.model.training
        accumulated = self.current_gradient_accumulation_steps if training else 1
        if self.loss_type in (
            "dapo",
            "cispo",
        ):  # the tokens of one optimizer step, of those of the whole generation batch
            part = accumulated / self.args.steps_per_generation if training else 1
            return inputs["num_items_in_batch"].clamp(min=1) / self.accelerator.num_processes * part
        if self.loss_type == "bnpo":
            return self._mask(inputs).sum().clamp(min=1) * accumulated
        return len(inputs["completion_ids"]) * accumulated

    @torch.no_grad()
    def _score_rest(self, model, inputs: dict, rest: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies [n] of rows that do not train. Not through DDP: other processes may have none."""
        return self._score(self.accelerator.unwrap_model(model), *self._rows(inputs, rest))

    def _score(self, model, ids: Tensor, valid: Tensor, scored: Tensor) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies [n] of the scored tokens; arguments as of pack_rows."""
        rows = pack_rows(ids, valid.bool(), scored)

        def fused(policy: Policy) -> tuple[Tensor, Tensor]:
            tensors, options = self._head_inputs(policy, rows)
            return linear_logprob(*tensors, **options)

        with self.accelerator.autocast():
            return model(fused=fused)

    def _head_inputs(
        self, policy: Policy, rows: PackedSequences
    ) -> tuple[tuple[Tensor, Tensor, Tensor], dict]:
        """Hidden states, head and targets, and the head's options, as srt_kernels takes them."""
        (hidden, *others), options = head_inputs(policy, rows, self.temperature)
        device = hidden.device.type
        if self.args.cast_lm_head_to_fp32:
            hidden = hidden.float()
        elif torch.is_autocast_enabled(device):  # final norms give float32
            hidden = hidden.to(torch.get_autocast_dtype(device))
        return (hidden, *others), options
