"""Which kernels compute a model's layers (model.kernels), and how liger-kernel's are applied.

liger-kernel patches a loaded model in two ways. It binds new `forward` methods to the model's own
modules, and it replaces classes and functions in transformers' module of the architecture. The
second way would change every model of that architecture in the process, so it is undone here: only
the given model is patched. RoPE is a function of that module, so each attention layer gets a copy
of its `forward` that calls Liger's function (liger-kernel 0.8.5, transformers/monkey_patch.py).
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import types
from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from srt_fast.model.attention import attention_path
from srt_fast.model.policy import Policy
from srt_kernels.core.backend import use_triton

# Dense models whose RMSNorm, RoPE and SwiGLU Liger replaces in every layer. (It does not replace
# the query and key norms of olmo2, olmo3 and hunyuan_v1_dense.) Hidden states and gradients of two
# packed sequences agree with PyTorch's in float32, in Triton's interpreter. Not run on a GPU.
ARCHITECTURES = (
    "exaone4",
    "granite",
    "llama",
    "ministral",
    "mistral",
    "phi3",
    "qwen2",
    "qwen3",
    "smollm3",
)
ROTARY = "apply_rotary_pos_emb"  # the name of the RoPE function in transformers' modules


def apply_layer_kernels(
    model: PreTrainedModel, kernels: str, device: torch.device | None = None
) -> None:
    """Patch this model with the kernels of model.kernels.

    device: where the model's passes will run. None: where the model is.

    "torch": changes nothing. "liger": liger-kernel's RMSNorm, RoPE and SwiGLU; raises ValueError
    where that is not possible. "auto": liger-kernel's where possible.
    """
    if kernels == "torch":
        return
    obstacle = _obstacle_for_liger(model, device or model.device)
    if obstacle is None:
        _apply_liger(model)
    elif kernels == "liger":
        expected, got = obstacle
        raise ValueError(f"model.kernels: expected {expected} for 'liger', got {got}")


def describe_kernels(policy: Policy) -> str:
    """One line: which kernels serve which layers in the packed forward pass and in the loss.

    For example "kernels: attention flash-attn varlen, RMSNorm/RoPE/SwiGLU liger, LM head and loss
    srt_kernels (triton)".
    """
    attention = attention_path(policy.device, policy.compute_dtype)
    layers = "RMSNorm/RoPE/SwiGLU liger" if uses_liger(policy.model) else "other layers torch"
    head = "triton" if use_triton(policy.head.weight) else "torch"
    return f"kernels: attention {attention}, {layers}, LM head and loss srt_kernels ({head})"


def uses_liger(model: nn.Module) -> bool:
    """Whether apply_layer_kernels bound Liger's methods to the model's modules."""
    return any(_has_liger_forward(module) for module in model.modules())


def _has_liger_forward(module: nn.Module) -> bool:
    forward = vars(module).get("forward")  # only of this instance: Liger binds methods there
    return getattr(forward, "__module__", "").startswith("liger_kernel.")


def _obstacle_for_liger(model: PreTrainedModel, device: torch.device) -> tuple[str, str] | None:
    """What Liger's kernels expect, and what there is instead. None if they can serve the model."""
    if device.type != "cuda":
        return "a CUDA device (its kernels are Triton kernels)", device.type
    if importlib.util.find_spec("liger_kernel") is None:
        return "the package liger-kernel", "none: pip install 'srt-fast[liger]'"
    architecture = model.config.model_type
    is_transformers_own = type(model).__module__.startswith("transformers.models.")
    if architecture not in ARCHITECTURES or not is_transformers_own:
        return f"one of the architectures {', '.join(ARCHITECTURES)}", architecture
    activation = model.config.hidden_act
    if activation not in ("silu", "swish"):
        return "hidden_act 'silu' (SwiGLU)", repr(activation)
    return None


def _apply_liger(model: PreTrainedModel) -> None:
    # Imported here because the package is optional and its import takes seconds.
    from liger_kernel.transformers import _apply_liger_kernel_to_instance
    from liger_kernel.transformers.rope import liger_rotary_pos_emb

    modeling = sys.modules[type(model).__module__]
    original_names = dict(vars(modeling))
    _apply_liger_kernel_to_instance(
        model,
        rms_norm=True,
        swiglu=True,
        rope=False,  # see _bind_rotary
        cross_entropy=False,
        fused_linear_cross_entropy=False,
    )
    vars(modeling).update(original_names)
    _bind_rotary(model, _packed_rotary(liger_rotary_pos_emb, original_names[ROTARY]))


def _packed_rotary(liger_rotary: Callable, torch_rotary: Callable) -> Callable:
    """A RoPE function that calls Liger's for a batch of one row, and PyTorch's otherwise.

    A packed forward pass has one row, and its cos and sin are [1, T, head_dim]. Liger compiles its
    kernel once for each batch size. The hf sampler's batch gets smaller whenever sequences end: it
    would compile hundreds of kernels.
    """

    def rotary(
        query: Tensor, key: Tensor, cos: Tensor, sin: Tensor, unsqueeze_dim: int = 1
    ) -> tuple[Tensor, Tensor]:
        function = liger_rotary if len(query) == 1 else torch_rotary
        return function(query, key, cos, sin, unsqueeze_dim=unsqueeze_dim)

    return rotary


def _bind_rotary(model: nn.Module, rotary: Callable) -> None:
    """Let the attention layers of this model call `rotary`.

    Their `forward` finds RoPE by its name among the globals of transformers' module. Each layer
    gets a copy of `forward` with other globals.
    """
    for module in model.modules():
        forward = inspect.unwrap(type(module).forward)
        if not isinstance(forward, types.FunctionType):
            continue
        if ROTARY not in forward.__code__.co_names:
            continue
        scope = forward.__globals__ | {ROTARY: rotary}
        copy = types.FunctionType(
            forward.__code__, scope, forward.__name__, forward.__defaults__, forward.__closure__
        )
        copy.__kwdefaults__ = forward.__kwdefaults__
        module.forward = types.MethodType(copy, module)
