"""A causal language model as the trainer uses it: packed forward pass, LM head and weights."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
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
from srt_fast.model.lm_head import LMHeadParameters
from srt_fast.model.lora import head_weight
from srt_fast.model.packing_check import check_packing, sharing_obstacle
from srt_fast.types import Segments

Result = TypeVar("Result")

# Attributes in which modules keep a dropout rate, besides the p of nn.Dropout.
DROPOUTS = ("attention_dropout", "activation_dropout", "hidden_dropout", "dropout", "layerdrop")


class Policy:
    """A causal language model that maps packed tokens to hidden states.

    Switches dropout off, and gradient checkpointing on if the config asks for it.

    model: whole, or sharded over the ranks of `world` (srt_fast/distributed/sharding.py).
    device: where passes run. None: the model's device. A sharded model's weights may be elsewhere.
    share_prompts: passes over rollouts compute the prompt of a group once, if the model can do that
    (shares_prompts). Otherwise sharing_obstacle says why not.

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
        share_prompts: bool = False,
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
        check_packing(self)
        self.sharing_obstacle = sharing_obstacle(self) if share_prompts else None
        self.shares_prompts = share_prompts and self.sharing_obstacle is None

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
        lm_head: Any = self.model.get_output_embeddings()
        bias = getattr(lm_head, "bias", None)
        return LMHeadParameters.of(self.model.config, head_weight(lm_head), bias)

    def hidden(self, input_ids: Tensor, position_ids: Tensor, segments: Segments) -> Tensor:
        """Last hidden states [T, H] of packed tokens, in compute_dtype.

        input_ids [T], position_ids [T], segments: of T tokens.
        """
        # transformers passes a 4D mask on unchanged. Without one it would build a mask of [T, T].
        unused_mask = torch.empty(1, 1, 1, 1, device=self.device)
        with self.autocast():
            output = self.model.base_model(
                input_ids=input_ids[None],
                position_ids=position_ids[None],
                attention_mask=unused_mask,
                use_cache=False,
                segments=segments,
                # Of transformers: layers other than attention may read them.
                cu_seq_lens_q=segments.cu_queries,
                cu_seq_lens_k=segments.cu_keys,
                max_length_q=segments.max_queries,
                max_length_k=segments.max_keys,
            )
        hidden = output.last_hidden_state[0]
        if self._autocast_dtype is None:
            return hidden
        return hidden.to(self._autocast_dtype)  # final norms return float32 under autocast


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


def _context(config: Any) -> int | None:
    """The longest sequence of a model. None: any.

    With "longrope" (Phi-3 of 128k) it is the original length: behind it transformers turns all
    sequences of a row by other angles, so that their log-probs would depend on their neighbours.
    """
    context = getattr(config, "max_position_embeddings", None)
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") != "longrope":
        return context
    name = "original_max_position_embeddings"
    return rope.get(name) or getattr(config, name, None) or context


def longest_prompt(policy: Policy, sampling: SamplingConfig) -> int:
    """The largest number of tokens that a prompt may have.

    This is sampling.max_prompt_tokens, or what a completion leaves of the model's context. Raises
    ValueError if the context is too short for any prompt.
    """
    context = _context(policy.model.config)
    if context is None:  # for example a model with relative positions
        return sampling.max_prompt_tokens
    if sampling.max_new_tokens >= context:
        raise ValueError(
            f"sampling.max_new_tokens: expected less than the model's context of {context} "
            f"tokens, got {sampling.max_new_tokens}"
        )
    return min(sampling.max_prompt_tokens, context - sampling.max_new_tokens)
