"""A causal language model as the trainer uses it: packed forward pass, LM head and weights."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion

from srt_fast.config import ModelConfig, SamplingConfig
from srt_fast.distributed.sharding import gather_weight, gathered_weights, run_in_forward
from srt_fast.distributed.tensor_files import read_tensors, write_tensors
from srt_fast.distributed.world import ONE_PROCESS, World
from srt_fast.model.architecture import nan_embeddings, trained_beside, without_attention
from srt_fast.model.attention import ATTENTION
from srt_fast.model.lora import head_weight

Result = TypeVar("Result")

# Largest difference of two logits, relative to the largest logit, that _check_architecture allows.
# Float32 models agree to about 1e-6 (tests/model/test_policy.py). Bfloat16 has 8 bits of precision
# and loses some of them in each layer.
PARITY_FLOAT32 = 1e-4
PARITY_BFLOAT16 = 3e-2

# Attributes in which modules keep a dropout rate, besides the p of nn.Dropout.
DROPOUTS = ("attention_dropout", "activation_dropout", "hidden_dropout", "dropout", "layerdrop")


@dataclass(frozen=True, kw_only=True)
class LMHeadParameters:
    """The LM head of a model.

    logits = softcap * tanh(z / softcap) with z = (hidden @ weight.T + bias) / temperature_factor.
    Without a softcap, logits = z.
    """

    weight: Tensor  # [V, H]
    bias: Tensor | None  # [V]
    softcap: float | None  # Gemma 2
    temperature_factor: float  # Granite divides logits by it, Cohere multiplies by its inverse


class Policy:
    """A causal language model that maps packed tokens to hidden states.

    Switches dropout off, and gradient checkpointing on if the config asks for it.

    model: whole, or sharded over the ranks of `world` (srt_fast/distributed/sharding.py).
    device: where passes run. None: the model's device. A sharded model's weights may be elsewhere.

    Raises ValueError if the model's logits differ from its LM head applied to its packed hidden
    states. The loss kernels do not know such an architecture.
    """

    weights_file = "model"
    """Name of a checkpoint's files of weights, without a suffix."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        config: ModelConfig,
        *,
        world: World = ONE_PROCESS,
        device: torch.device | None = None,
    ):
        self.model = model
        self.tokenizer = tokenizer
        self.world = world
        self.device = device or model.device
        self.trust_remote_code = config.trust_remote_code
        self.cache_argument = _cache_argument(model)
        self._autocast_dtype = autocast_dtype(self.device, config)
        disable_dropout(model)
        if config.gradient_checkpointing:
            _enable_checkpointing(model)
        self._check_architecture()

    def run(self, function: Callable[[], Result]) -> Result:
        """function(), which calls `hidden` and reads `head`. Collective.

        In a sharded model the head's weight is whole only inside.
        """
        return run_in_forward(self.model, function)

    def gathered_weights(self) -> contextlib.AbstractContextManager[None]:
        """Inside, all weights are whole on every rank, for passes that ranks make alone."""
        return gathered_weights(self.model, self.world)

    def save(self, folder: Path) -> None:
        """Write model and tokenizer in Hugging Face format (safetensors)."""
        if not self.world.is_distributed:
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)
            return
        write_tensors(folder, dict(self.named_weights()), self.world, merge=True)
        with self.world.agreement():
            if self.world.is_main:
                self.save_without_weights(folder)

    def load(self, folder: Path) -> None:
        """Copy the weights in a checkpoint's model folder into this model."""
        if self.world.is_distributed:
            read_tensors(folder, saved_tensors(self.model), self.world)
            return
        saved_model = type(self.model).from_pretrained(
            folder, dtype=self.model.dtype, trust_remote_code=self.trust_remote_code
        )
        self.model.load_state_dict(saved_model.state_dict())

    def save_without_weights(self, folder: Path) -> None:
        """Write what a Hugging Face model has beside its weights, the tokenizer included."""
        self.model.save_pretrained(folder, state_dict={})
        self.tokenizer.save_pretrained(folder)

    def save_config(self, folder: Path) -> None:
        """Write config.json only: the architecture without weights."""
        self.model.config.save_pretrained(folder)

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of matrix products in a forward pass."""
        return self._autocast_dtype or self.model.dtype

    def named_weights(self) -> Iterator[tuple[str, Tensor]]:
        """All weights and saved buffers by their names in a whole model's files. Tied weights come
        once.

        A weight of a sharded model is a DTensor. A weight is copied only if the files have another
        layout than the model: transformers fuses the experts of mixture models.
        """
        weights = revert_weight_conversion(self.model, saved_tensors(self.model))
        for name, tensor in weights.items():
            yield name, tensor.detach()

    def checkpoint_weights(self) -> dict[str, Tensor]:
        """What a checkpoint's model folder holds, by name. `load` reads it."""
        return dict(self.named_weights())

    def own_weights(self) -> dict[str, Tensor]:
        """The weights that training changes, and saved buffers, by name. Not copied."""
        return saved_tensors(self.model)

    def weights(self, gather_dtype: torch.dtype | None = None) -> Iterator[tuple[str, Tensor]]:
        """named_weights, whole. Iterating is collective: a sharded weight is cast to `gather_dtype`
        and then gathered, one at a time.
        """
        for name, tensor in self.named_weights():
            yield name, gather_weight(tensor, gather_dtype)

    def autocast(self) -> contextlib.AbstractContextManager:
        """The context of every forward pass, in training and in sampling."""
        if self._autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self._autocast_dtype)

    @property
    def head(self) -> LMHeadParameters:
        """The LM head's parameters. Not copied, but for a weight with an adapter."""
        config = self.model.config
        lm_head: Any = self.model.get_output_embeddings()
        granite_scale = getattr(config, "logits_scaling", None)
        cohere_scale = getattr(config, "logit_scale", None) or 1.0
        return LMHeadParameters(
            weight=head_weight(lm_head),
            bias=getattr(lm_head, "bias", None),
            softcap=getattr(config, "final_logit_softcapping", None),
            temperature_factor=float(granite_scale or 1 / cohere_scale),
        )

    def hidden(
        self, input_ids: Tensor, position_ids: Tensor, cu_input: Tensor, max_length: int
    ) -> Tensor:
        """Last hidden states [T, H] of packed sequences, in compute_dtype.

        input_ids [T], position_ids [T], cu_input [r+1] int32: where each sequence begins.
        max_length: tokens of the longest sequence.
        """
        # transformers passes a 4D mask on unchanged. Without one it would build a mask of [T, T].
        unused_mask = torch.empty(1, 1, 1, 1, device=self.device)
        with self.autocast():
            output = self.model.base_model(
                input_ids=input_ids[None],
                position_ids=position_ids[None],
                attention_mask=unused_mask,
                use_cache=False,
                cu_seq_lens_q=cu_input,
                cu_seq_lens_k=cu_input,
                max_length_q=max_length,
                max_length_k=max_length,
            )
        hidden = output.last_hidden_state[0]
        if self._autocast_dtype is None:
            return hidden
        return hidden.to(self._autocast_dtype)  # final norms return float32 under autocast

    def _check_architecture(self) -> None:
        name = f"model {type(self.model).__name__}: this architecture is not supported: "
        if getattr(self.model.config.get_text_config(), "attention_chunk_size", None):
            raise ValueError(
                f"{name}expected attention over the whole sequence, got chunked attention"
            )
        try:
            difference = self._logit_difference()
        except (TypeError, RuntimeError, ValueError, AttributeError) as error:
            # A model that does not pack raises one of these for arguments that it does not take.
            raise ValueError(
                f"{name}expected it to take packed sequences, got {type(error).__name__}: {error}"
            ) from error
        if math.isnan(difference):
            raise ValueError(
                f"model {type(self.model).__name__}: expected finite weights, got logits of nan"
            )
        is_float32 = self.compute_dtype == torch.float32
        tolerance = PARITY_FLOAT32 if is_float32 else PARITY_BFLOAT16
        if difference > tolerance:
            raise ValueError(
                f"{name}expected packed hidden states times the LM head to give the model's own "
                f"logits (relative difference at most {tolerance:g}), got {difference:.3g}"
            )
        self._check_structure(name)

    def _check_structure(self, name: str) -> None:
        """Raise ValueError for what _logit_difference cannot see: parts whose weights are small."""
        was_training = self.model.training
        self.model.eval()
        with self.gathered_weights():
            beside_head = self._trained_beside_head()
            mixes_sequences = self._mixes_sequences()
        self.model.train(was_training)
        if beside_head:
            raise ValueError(
                f"{name}expected logits of the LM head on the last hidden states alone, got some "
                f"that also depend on {', '.join(beside_head[:3])}"
            )
        if mixes_sequences:
            raise ValueError(
                f"{name}expected that only attention mixes positions, got another layer that "
                "carries one packed sequence into the next"
            )

    def _trained_beside_head(self) -> list[str]:
        """Names of parameters that make logits, and would get no gradient from the loss."""
        ids = torch.arange(3, device=self.device)
        with torch.enable_grad():
            head = self.head
            with self.autocast():
                logits = self.model(input_ids=ids[None], use_cache=False).logits
            hidden = torch.zeros(1, head.weight.shape[1], device=self.device)
            return trained_beside(self.model, logits, _head_logits(hidden, head))

    @torch.no_grad()
    def _mixes_sequences(self) -> bool:
        """Whether a layer other than attention carries one packed sequence into another."""
        if self.model.config._attn_implementation != ATTENTION:
            return False  # its rows are padded
        ids = torch.arange(9, device=self.device) % self.model.config.vocab_size
        cu_input = torch.tensor([0, 3, 6, 9], dtype=torch.int32, device=self.device)
        position_ids = torch.arange(3, device=self.device).repeat(3)
        with without_attention(self.model), nan_embeddings(self.model, slice(3, 6)):
            hidden = self.hidden(ids, position_ids, cu_input, 3)
        return bool(hidden[:3].isnan().any() or hidden[6:].isnan().any())

    @torch.no_grad()
    def _logit_difference(self) -> float:
        """Largest difference between the head on packed hidden states and the model's own logits.

        Relative to the largest logit, of two sequences of three and five tokens.
        """
        ids = torch.arange(8, device=self.device) % self.model.config.vocab_size
        cu_input = torch.tensor([0, 3, 8], dtype=torch.int32, device=self.device)
        position_ids = torch.cat([torch.arange(3), torch.arange(5)]).to(self.device)
        was_training = self.model.training
        self.model.eval()
        with self.gathered_weights():
            packed_logits = _head_logits(self.hidden(ids, position_ids, cu_input, 5), self.head)
            with self.autocast():
                first = self.model(input_ids=ids[None, :3], use_cache=False).logits[0]
                second = self.model(input_ids=ids[None, 3:], use_cache=False).logits[0]
        self.model.train(was_training)
        model_logits = torch.cat([first.float(), second.float()])
        difference = (packed_logits - model_logits).abs().max()
        return (difference / model_logits.abs().max().clamp_min(1)).item()


def _head_logits(hidden: Tensor, head: LMHeadParameters) -> Tensor:
    """[T, H] -> [T, V] fp32 logits."""
    logits = (hidden @ head.weight.to(hidden.dtype).T).float()
    if head.bias is not None:
        logits += head.bias.float()
    logits /= head.temperature_factor
    if head.softcap:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    return logits


def autocast_dtype(device: torch.device, config: ModelConfig) -> torch.dtype | None:
    """The dtype of autocast, None without autocast. Only float32 weights are autocast."""
    on_cuda = device.type == "cuda"
    wants_bfloat16 = config.autocast == "bfloat16" or (config.autocast == "auto" and on_cuda)
    return torch.bfloat16 if wants_bfloat16 and config.dtype == "float32" else None


def _cache_argument(model: PreTrainedModel) -> str:
    """The argument of model.forward that takes a KV cache. transformers 5.24 renamed it."""
    has_new_name = "cache" in inspect.signature(model.forward).parameters
    return "cache" if has_new_name else "past_key_values"


def _enable_checkpointing(model: PreTrainedModel) -> None:
    """Recompute activations in backward. transformers does that in training mode only."""
    enable = getattr(model, "activation_checkpointing_enable", None)
    if enable is None:  # before transformers 5.23
        enable = model.gradient_checkpointing_enable
    enable()
    model.train()


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout rate to 0.

    With dropout the training pass's log-probs would differ from the sampler's. On policy the ratio
    must be 1.
    """
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in DROPOUTS:
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def saved_tensors(model: nn.Module) -> dict[str, Tensor]:
    """A model's own weights and saved buffers by name, not copied. Tied weights come once."""
    first_names: dict[int, str] = {}
    return {
        name: tensor
        for name, tensor in model.state_dict(keep_vars=True).items()
        if first_names.setdefault(id(tensor), name) == name
    }


def longest_prompt(policy: Policy, sampling: SamplingConfig) -> int:
    """The largest number of tokens that a prompt may have.

    This is sampling.max_prompt_tokens, or what a completion leaves of the model's context. Raises
    ValueError if the context is too short for any prompt.
    """
    context = getattr(policy.model.config, "max_position_embeddings", None)
    if context is None:  # for example a model with relative positions
        return sampling.max_prompt_tokens
    if sampling.max_new_tokens >= context:
        raise ValueError(
            f"sampling.max_new_tokens: expected less than the model's context of {context} "
            f"tokens, got {sampling.max_new_tokens}"
        )
    return min(sampling.max_prompt_tokens, context - sampling.max_new_tokens)
