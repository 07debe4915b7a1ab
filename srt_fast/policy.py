"""The model: loading, and the packed forward to hidden states. The one file that imports transformers' models.

A packed forward has no padding: sequences lie back to back in one row of tokens, and attention must not cross from
one into the next. Which attention computes that:
- flash-attn's varlen kernels, where flash-attn is installed and the tensors are on CUDA;
- torch's varlen_attn on other CUDA machines (float16 and bfloat16; float32 takes the exact path below);
- else exact per-sequence attention through torch's SDPA, sequences of one length in one call.
"""

from __future__ import annotations

import contextlib
import importlib.util
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.core_model_loading import revert_weight_conversion
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from srt_fast.config import ModelConfig, SamplingConfig

ATTENTION = "srt_varlen"
PARITY_BAR = 1e-4  # relative to the largest logit; float32 models agree to about 1e-6 (tests/test_policy.py)


@dataclass(frozen=True, kw_only=True)
class Head:
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

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: ModelConfig):
        self.model, self.tokenizer = model, tokenizer
        self.device, self.trust_remote_code = model.device, config.trust_remote_code
        wants_bf16 = config.autocast == "bfloat16" or (config.autocast == "auto" and self.device.type == "cuda")
        self._autocast_dtype = torch.bfloat16 if wants_bf16 and model.dtype == torch.float32 else None
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
        saved = type(self.model).from_pretrained(folder, dtype=self.model.dtype, trust_remote_code=self.trust_remote_code)
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
        once = {id(tensor): (name, tensor) for name, tensor in reversed(self.model.state_dict(keep_vars=True).items())}
        return revert_weight_conversion(self.model, dict(reversed(once.values()))).items()

    def autocast(self):
        """The context of every forward pass, training and sampling alike."""
        if self._autocast_dtype is None:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self._autocast_dtype)

    @property
    def head(self) -> Head:
        config, lm_head = self.model.config, self.model.get_output_embeddings()
        scale = getattr(config, "logits_scaling", None) or 1 / (getattr(config, "logit_scale", None) or 1.0)
        return Head(weight=lm_head.weight, bias=getattr(lm_head, "bias", None),
                    softcap=getattr(config, "final_logit_softcapping", None), temperature_factor=float(scale))

    def hidden(self, input_ids: Tensor, position_ids: Tensor, cu_input: Tensor) -> Tensor:
        """Last hidden states [T, H] of packed sequences, in the forward pass's type: input_ids [T], position_ids [T],
        cu_input [r+1] int32."""
        longest = int(cu_input.diff().max())
        no_mask = torch.empty(1, 1, 1, 1, device=self.device)  # transformers passes a 4D mask on and builds none of [T, T]
        with self.autocast():
            out = self.model.base_model(
                input_ids=input_ids[None], position_ids=position_ids[None], attention_mask=no_mask, use_cache=False,
                cu_seq_lens_q=cu_input, cu_seq_lens_k=cu_input, max_length_q=longest, max_length_k=longest)
        hidden = out.last_hidden_state[0]
        return hidden if self._autocast_dtype is None else hidden.to(self._autocast_dtype)  # final norms give float32

    def _check_architecture(self):
        name = f"model {type(self.model).__name__}: this architecture is not supported: "
        if getattr(self.model.config.get_text_config(), "attention_chunk_size", None):
            raise ValueError(name + "expected attention over the whole sequence, got chunked attention")
        try:
            gap, narrow = self._head_gap()
        except (TypeError, RuntimeError, ValueError, AttributeError) as error:  # arguments that it does not take
            raise ValueError(f"{name}expected it to take packed sequences, got {type(error).__name__}: {error}") from error
        bar = 3e-2 if narrow else PARITY_BAR  # bfloat16: 8 bits, over a few layers
        if not gap <= bar:
            raise ValueError(f"{name}expected packed hidden states times the LM head to give the model's own logits "
                             f"(relative gap at most {bar:g}), got {gap:.3g}")

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
                own = torch.cat([self.model(input_ids=ids[None, a:b], use_cache=False).logits[0].float()
                                 for a, b in ((0, 3), (3, 8))])
        self.model.train(was_training)
        return ((ours - own).abs().max() / own.abs().max().clamp_min(1)).item(), hidden.dtype != torch.float32


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


def pick_device(name: str) -> torch.device:
    """"auto", "cpu" or "cuda" to a device. ValueError for "cuda" without one."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("model.device: expected a CUDA device for 'cuda', got none (torch.cuda.is_available() is False)")
    return torch.device("cuda" if name == "auto" and torch.cuda.is_available() else "cpu" if name == "auto" else name)


def load_policy(path: str, config: ModelConfig) -> Policy:
    """Load a local Hugging Face folder, a .gguf file or a hub id (safetensors only) with its tokenizer.

    Raises ValueError for a missing folder, a folder without config.json, a GGUF file without the gguf package, or a
    model that the hub or transformers refuses.
    """
    source, kwargs = _source(path)
    trust = config.trust_remote_code
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=trust, **_tokenizer_kwargs(kwargs))
        model = AutoModelForCausalLM.from_pretrained(
            source, dtype=getattr(torch, config.dtype), trust_remote_code=trust, attn_implementation=ATTENTION,
            **({} if "gguf_file" in kwargs else {"use_safetensors": True}), **kwargs)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise ValueError(f"model.path: could not load {path!r}: {(str(error).strip() or repr(error)).splitlines()[0]}") from error
    if tokenizer.eos_token_id is None:
        raise ValueError(f"model.path: expected a tokenizer with an end-of-sequence token, got none in {path!r}")
    return Policy(model.to(pick_device(config.device)), tokenizer, config)


def load_reference(path: str, config: ModelConfig) -> Policy:
    """A frozen second copy of the starting model, for KL terms."""
    reference = load_policy(path, config)
    reference.model.requires_grad_(False)
    reference.model.eval()
    return reference


def quiet_transformers() -> None:
    """Keep transformers' own progress bars and warnings off the terminal that our progress is drawn on."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    warnings.filterwarnings("ignore", "`gradient_checkpointing_enable` is deprecated", FutureWarning)


def check_path(path: str) -> None:
    """Raise ValueError at once for a path that cannot be a model, before anything loads."""
    _source(path)


def _source(path: str) -> tuple[str, dict]:
    local = Path(path).expanduser()
    if local.suffix == ".gguf":
        if not local.is_file():
            raise ValueError(f"model.path: expected a GGUF file, got {path!r}, which does not exist")
        if importlib.util.find_spec("gguf") is None:
            raise ValueError(f"model.path: reading {local.name} needs the gguf package, which is not installed: pip install gguf")
        kwargs = {"gguf_file": local.name}
        if hasattr(transformers, "GgufConfig"):  # newer transformers leave weights in GGUF blocks unless told
            kwargs["quantization_config"] = transformers.GgufConfig(dequantize=True)
        return str(local.parent), kwargs
    if local.is_dir():
        if not (local / "config.json").is_file():
            raise ValueError(f"model.path: expected a Hugging Face model folder with config.json, got {path!r} without one")
        return str(local), {}
    looks_local = path.startswith((".", "/", "~")) or path.count("/") > 1
    if local.exists() or looks_local:
        raise ValueError(f"model.path: expected a model folder, a .gguf file or a hub id, got {path!r}, "
                         + ("which is a file" if local.exists() else "which does not exist"))
    return path, {}


def _tokenizer_kwargs(kwargs: dict) -> dict:
    return {key: value for key, value in kwargs.items() if key == "gguf_file"}


def longest_prompt(policy: Policy, sampling: SamplingConfig) -> int:
    """Most tokens that a prompt may have: sampling.max_prompt_tokens, or what the context leaves beside a completion.

    ValueError where the context is too short for any prompt.
    """
    limit = getattr(policy.model.config, "max_position_embeddings", None)  # None where the model has no limit
    if limit is not None and sampling.max_new_tokens >= limit:
        raise ValueError(f"sampling.max_new_tokens: expected less than the model's context of {limit} tokens, "
                         f"got {sampling.max_new_tokens}")
    return min(sampling.max_prompt_tokens, (limit or 2**62) - sampling.max_new_tokens)


def _attention(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask, *, scaling=None, dropout=0.0,
               cu_seq_lens_q=None, max_length_q=None, sliding_window=None, softcap=None, s_aux=None, **kwargs):
    """Attention interface of transformers: query [1, heads, T, D], key and value [1, kv_heads, T, D] -> [1, T, heads, D].

    Without cu_seq_lens_q (sampling, with padding and a KV cache) this is transformers' own SDPA attention.
    """
    if cu_seq_lens_q is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, dropout=dropout,
                                      sliding_window=sliding_window, softcap=softcap, s_aux=s_aux, **kwargs)
    if softcap is not None or s_aux is not None or dropout:
        raise ValueError(f"{type(module).__name__}: packed attention has no attention softcap, sinks or dropout; "
                         f"got softcap={softcap}, sinks={s_aux is not None}, dropout={dropout}")
    if torch.is_autocast_enabled(query.device.type):  # rotary embeddings give float32 queries and keys, values stay narrow
        query, key, value = (x.to(torch.get_autocast_dtype(query.device.type)) for x in (query, key, value))
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [T, heads, D]
    window = (-1, 0) if sliding_window is None else (sliding_window - 1, 0)
    if q.is_cuda and q.dtype != torch.float32:
        out = _varlen_cuda(q, k, v, cu_seq_lens_q, max_length_q, scaling, window)
    else:
        out = _per_sequence(q, k, v, cu_seq_lens_q, scaling, sliding_window)
    return out[None], None


def _varlen_cuda(q, k, v, cu, longest, scaling, window):
    if importlib.util.find_spec("flash_attn") is not None:
        from flash_attn import flash_attn_varlen_func
        return flash_attn_varlen_func(q, k, v, cu, cu, longest, longest, softmax_scale=scaling, causal=True,
                                      window_size=window if window[0] >= 0 else (-1, -1))
    from torch.nn.attention.varlen import varlen_attn
    return varlen_attn(q.contiguous(), k.contiguous(), v.contiguous(), cu, cu, longest, longest, scale=scaling,
                       window_size=window, enable_gqa=q.shape[1] != k.shape[1])


def _per_sequence(q, k, v, cu, scaling, sliding_window):
    """Exact causal attention of each sequence alone. Sequences of one length share a call: they need no padding."""
    lengths = cu.diff()
    pieces, order = [], []
    for length in lengths.unique().tolist():
        if length == 0:
            continue
        starts = cu[:-1][lengths == length].long()
        rows = starts[:, None] + torch.arange(length, device=q.device)  # [sequences, length]
        # index_select: its backward is an index_add, several times faster on a CPU than that of advanced indexing
        batch = [x.index_select(0, rows.flatten()).view(*rows.shape, *x.shape[1:]).transpose(1, 2) for x in (q, k, v)]
        mask = None
        if sliding_window is not None and length > sliding_window:
            distance = torch.arange(length, device=q.device)[:, None] - torch.arange(length, device=q.device)
            mask = (distance >= 0) & (distance < sliding_window)
        out = scaled_dot_product_attention(*batch, attn_mask=mask, is_causal=mask is None, scale=scaling,
                                           enable_gqa=q.shape[1] != k.shape[1])
        pieces.append(out.transpose(1, 2).flatten(0, 1))
        order.append(rows.flatten())
    inverse = torch.empty(len(q), dtype=torch.long, device=q.device)
    order = torch.cat(order)
    inverse[order] = torch.arange(len(order), device=q.device)
    return torch.cat(pieces).index_select(0, inverse)


transformers.AttentionInterface.register(ATTENTION, _attention)
transformers.AttentionMaskInterface.register(ATTENTION, sdpa_mask)
