"""The model: loading, and the packed forward to hidden states. The one file that imports transformers' models.

A packed forward has no padding: sequences lie back to back in one row of tokens, and attention must not cross from
one into the next. Which attention computes that:
- flash-attn's varlen kernels, where flash-attn is installed and the tensors are on CUDA;
- torch's varlen_attn on other CUDA machines (float16 and bfloat16; float32 takes the exact path below);
- else exact per-sequence attention through torch's SDPA, sequences of one length in one call.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion

from srt_fast.config import ModelConfig, SamplingConfig

PARITY_BAR = (
    1e-4  # relative to the largest logit; float32 models agree to about 1e-6 (tests/test_policy.py)
)


@dataclass(frozen=True, kw_only=True)
class LMHeadParameters:
    """The LM head as the loss kernels take it: logits = softcap(hidden @ weight.T + bias) / temperature_factor."""

    weight: Tensor  # [V, H]
    bias: Tensor | None  # [V]
    softcap: float | None  # Gemma 2: softcap * tanh(logits / softcap)
    temperature_factor: float  # Granite divides logits by this, Cohere multiplies by its inverse


class Policy:
    """A causal LM that maps packed tokens to hidden states.

    Raises ValueError when the model's own logits are not its head applied to its hidden states (an architecture with
    a step between the two that the loss kernels do not know).
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: ModelConfig
    ):
        self.model, self.tokenizer = model, tokenizer
        self.device, self.trust_remote_code = model.device, config.trust_remote_code
        wants_bf16 = config.autocast == "bfloat16" or (
            config.autocast == "auto" and self.device.type == "cuda"
        )
        self._autocast_dtype = (
            torch.bfloat16 if wants_bf16 and model.dtype == torch.float32 else None
        )
        disable_dropout(model)
        if config.gradient_checkpointing:
            model.gradient_checkpointing_enable()
            model.train()  # transformers recomputes activations in training mode only
        self._check_architecture()

    def save(self, folder: Path) -> None:
        """Write model and tokenizer in Hugging Face format (safetensors)."""
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def load(self, folder: Path) -> None:
        """Take the weights that `save` wrote, in place."""
        saved = type(self.model).from_pretrained(
            folder, dtype=self.model.dtype, trust_remote_code=self.trust_remote_code
        )
        self.model.load_state_dict(saved.state_dict())

    def save_config(self, folder: Path) -> None:
        """Write config.json alone: the architecture without weights."""
        self.model.config.save_pretrained(folder)

    @property
    def compute_dtype(self) -> torch.dtype:
        """What a forward pass computes in."""
        return self._autocast_dtype or self.model.dtype

    def weights(self) -> Iterable[tuple[str, Tensor]]:
        """Every weight and saved buffer under its name in a checkpoint, tied ones once, layer by layer; copies only where the
        model does not have the checkpoint's layout (transformers fuses experts)."""
        once = {
            id(tensor): (name, tensor)
            for name, tensor in reversed(self.model.state_dict(keep_vars=True).items())
        }
        return revert_weight_conversion(self.model, dict(reversed(once.values()))).items()

    def autocast(self):
        """The context of every forward pass, training and sampling alike."""
        if self._autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self._autocast_dtype)

    @property
    def head(self) -> LMHeadParameters:
        config, lm_head = self.model.config, self.model.get_output_embeddings()
        scale = getattr(config, "logits_scaling", None) or 1 / (
            getattr(config, "logit_scale", None) or 1.0
        )
        return LMHeadParameters(
            weight=lm_head.weight,
            bias=getattr(lm_head, "bias", None),
            softcap=getattr(config, "final_logit_softcapping", None),
            temperature_factor=float(scale),
        )

    def hidden(self, input_ids: Tensor, position_ids: Tensor, cu_input: Tensor) -> Tensor:
        """Last hidden states [T, H] of packed sequences, in the forward pass's type: input_ids [T], position_ids [T],
        cu_input [r+1] int32."""
        longest = int(cu_input.diff().max())
        no_mask = torch.empty(
            1, 1, 1, 1, device=self.device
        )  # transformers passes a 4D mask on and builds none of [T, T]
        with self.autocast():
            out = self.model.base_model(
                input_ids=input_ids[None],
                position_ids=position_ids[None],
                attention_mask=no_mask,
                use_cache=False,
                cu_seq_lens_q=cu_input,
                cu_seq_lens_k=cu_input,
                max_length_q=longest,
                max_length_k=longest,
            )
        hidden = out.last_hidden_state[0]
        return (
            hidden if self._autocast_dtype is None else hidden.to(self._autocast_dtype)
        )  # final norms give float32

    def _check_architecture(self):
        name = f"model {type(self.model).__name__}: this architecture is not supported: "
        if getattr(self.model.config.get_text_config(), "attention_chunk_size", None):
            raise ValueError(
                name + "expected attention over the whole sequence, got chunked attention"
            )
        try:
            gap, narrow = self._head_gap()
        except (
            TypeError,
            RuntimeError,
            ValueError,
            AttributeError,
        ) as error:  # arguments that it does not take
            raise ValueError(
                f"{name}expected it to take packed sequences, got {type(error).__name__}: {error}"
            ) from error
        bar = 3e-2 if narrow else PARITY_BAR  # bfloat16: 8 bits, over a few layers
        if not gap <= bar:
            raise ValueError(
                f"{name}expected packed hidden states times the LM head to give the model's own logits "
                f"(relative gap at most {bar:g}), got {gap:.3g}"
            )

    def _head_gap(self) -> tuple[float, bool]:
        """Largest difference, relative to the largest logit, between the head on packed hidden states and the model; whether
        those are narrower than float32."""
        ids = torch.arange(8, device=self.device) % self.model.config.vocab_size
        cu = torch.tensor([0, 3, 8], dtype=torch.int32, device=self.device)
        positions = torch.cat([torch.arange(3), torch.arange(5)]).to(self.device)
        was_training = self.model.training
        self.model.eval()
        with torch.no_grad():
            hidden, head = self.hidden(ids, positions, cu), self.head
            ours = (hidden @ head.weight.to(hidden.dtype).T).float()
            if head.bias is not None:
                ours += head.bias.float()
            ours /= head.temperature_factor
            if head.softcap:
                ours = head.softcap * torch.tanh(ours / head.softcap)
            with self.autocast():
                own = torch.cat(
                    [
                        self.model(input_ids=ids[None, a:b], use_cache=False).logits[0].float()
                        for a, b in ((0, 3), (3, 8))
                    ]
                )
        self.model.train(was_training)
        return (
            (ours - own).abs().max() / own.abs().max().clamp_min(1)
        ).item(), hidden.dtype != torch.float32


DROPOUTS = ("attention_dropout", "activation_dropout", "hidden_dropout", "dropout", "layerdrop")
"""Attributes under which modules keep a rate beside nn.Dropout's."""


def disable_dropout(model: nn.Module) -> None:
    """Dropout would make the training pass's log-probs differ from the sampler's: the ratio must be 1 on policy."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in DROPOUTS:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def longest_prompt(policy: Policy, sampling: SamplingConfig) -> int:
    """Most tokens that a prompt may have: sampling.max_prompt_tokens, or what the context leaves beside a completion.

    ValueError where the context is too short for any prompt.
    """
    limit = getattr(
        policy.model.config, "max_position_embeddings", None
    )  # None where the model has no limit
    if limit is not None and sampling.max_new_tokens >= limit:
        raise ValueError(
            f"sampling.max_new_tokens: expected less than the model's context of {limit} tokens, "
            f"got {sampling.max_new_tokens}"
        )
    return min(sampling.max_prompt_tokens, (limit or 2**62) - sampling.max_new_tokens)
