"""Settings of TRL's GRPOTrainer: refused ones, and the Objective of the others."""

from __future__ import annotations

from typing import Any

from accelerate import DistributedType
from torch import nn
from transformers import PreTrainedModel
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from srt_fast.integrations.fused_forward import without_peft
from srt_fast.model.policy import DROPOUTS
from srt_kernels import Objective
from srt_kernels.core.checks import expect

# loss_type: the surrogate and the reduction of its Objective. vespo's weights have no surrogate.
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
# Settings that change the forward pass that is replaced, with the value that leaves it alone.
FORWARD_SETTINGS = {"use_liger_kernel": False, "torch_compile": False, "neftune_noise_alpha": None}
WHOLE_MODEL = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)


def check_settings(args: GRPOConfig) -> None:
    """Raise ValueError for a setting that the replaced forward pass and loss cannot follow."""
    loss_type = args.loss_type
    expect(loss_type in LOSSES, "loss_type", f"one of {', '.join(LOSSES)}", repr(loss_type))
    level = args.importance_sampling_level
    is_known = level in ("token", "sequence")
    expect(is_known, "importance_sampling_level", "'token' or 'sequence'", repr(level))
    for name, unset in FORWARD_SETTINGS.items():
        value = getattr(args, name)
        expected = f"{unset}: it changes the forward pass that is replaced here"
        expect(value == unset, name, expected, value)


def check_trainer(trainer: GRPOTrainer) -> None:
    """Raise ValueError for what is known only when TRL has loaded its model."""
    kind = trainer.accelerator.distributed_type
    expected = "one process or DDP: other ways to split a model are not tested"
    expect(kind in WHOLE_MODEL, "distributed_type", expected, kind.value)
    model: Any = trainer.model
    _check_adapters(model)
    if not isinstance(without_peft(model), PreTrainedModel):
        got = type(model).__name__
        raise ValueError(f"model: expected a transformers model, or a PeftModel of one, got {got}")
    reader_type = type(trainer.processing_class).__name__
    expected = "a tokenizer, for prompts of text only"
    expect(not trainer._is_vlm, "processing_class", expected, reader_type)
    _check_checkpointing(trainer)
    for name, module in model.named_modules():
        _check_dropout(name, module)


def _check_checkpointing(trainer: GRPOTrainer) -> None:
    """Refuse reentrant checkpoints with experts: their routers' logits would have no gradient."""
    options: Any = trainer.args.gradient_checkpointing_kwargs or {}
    is_reentrant = trainer.args.gradient_checkpointing and options.get("use_reentrant", False)
    expected = "use_reentrant False with router_aux_loss_coef"
    is_followed = not (trainer.aux_loss_enabled and is_reentrant)
    expect(is_followed, "gradient_checkpointing_kwargs", expected, options)


def _check_adapters(model: Any) -> None:
    """Refuse adapters that change the tokens, or depend on their positions."""
    for name, config in getattr(model, "peft_config", {}).items():
        kind = config.peft_type.value
        is_layer = not config.is_prompt_learning and not config.is_adaption_prompt
        expected = "adapters inside layers, such as LoRA: rows are packed here"
        expect(is_layer, "peft_config", expected, f"{kind} in {name!r}")
        tokens = getattr(config, "alora_invocation_tokens", None)
        expected = "None: an adapter applies to all tokens of packed rows"
        expect(not tokens, "alora_invocation_tokens", expected, tokens)


def _check_dropout(name: str, module: nn.Module) -> None:
    if isinstance(module, nn.Dropout):
        expected = "True, or a model without dropout"
        expect(module.p == 0, "disable_dropout", expected, f"{module.p} in {name}")
    for attribute in DROPOUTS:
        rate = getattr(module, attribute, None)
        if isinstance(rate, float):
            expected = "0.0 (disable_dropout reaches only nn.Dropout)"
            expect(rate == 0, attribute, expected, f"{rate} in {name}")


def objective_of(trainer: GRPOTrainer) -> Objective | None:
    """The Objective of a trainer's settings as they are now. None if there is no such Objective.

    These settings have none:
    - loss_type "vespo";
    - an entropy bonus: TRL takes its mean over tokens, whatever the loss type is;
    - top_entropy_quantile and off_policy_mask_threshold;
    - use_bias_correction_kl with importance_sampling_level "sequence": TRL multiplies each token's
      KL by its completion's ratio;
    - numbers out of an Objective's range, such as loss_type "cispo" with an epsilon_high below 1,
      or a delta of at most 1 + epsilon_high.
    """
    args: Any = trainer.args  # a GRPOConfig
    parts = LOSSES.get(trainer.loss_type)
    if parts is None or _uses_entropy(trainer) or trainer.off_policy_mask_threshold is not None:
        return None
    is_sequence_level = trainer.importance_sampling_level == "sequence"
    if trainer.beta != 0 and args.use_bias_correction_kl and is_sequence_level:
        return None
    surrogate, reduction = parts
    try:
        return Objective(
            ratio="sequence" if is_sequence_level else "token",
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
    except ValueError:  # a number out of range
        return None


def _uses_entropy(trainer: GRPOTrainer) -> bool:
    has_bonus = trainer.entropy_coef != 0 or trainer.use_adaptive_entropy
    return has_bonus or trainer.top_entropy_quantile < 1
