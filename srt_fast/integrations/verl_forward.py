"""The forward pass of verl's `triton` backend of use_fused_kernels, for models of text.

verl's own passes nothing but the head's weight to linear_cross_entropy. Gemma 2's softcap, the
scale of Granite's and Cohere's logits, and a head's bias are lost there. fused_forward takes them
from the model, and compares its head with the model's own logits at the first pass.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from verl.models.transformers import dense_common, monkey_patch

from srt_fast.model.lm_head import LMHeadParameters
from srt_kernels import linear_logprob
from srt_kernels.core.checks import expect

# Largest difference of two log-probs, relative to the largest logit. Models round logits to the
# operands' type: bfloat16 has 8 bits.
FLOAT32_TOLERANCE = 1e-4
HALF_TOLERANCE = 3e-2
ROWS = 2  # hidden rows at which the head is compared
AMPLIFIED = 64.0  # They are also multiplied by this: a softcap shows at large logits only.

verl_patch = monkey_patch.patch_forward_with_backends


def patch_forward_with_backends(
    model: Any,
    use_fused_kernels: bool = False,
    fused_kernels_backend: Any = None,
) -> None:
    """verl's function of this name: changes the forward() of the model's class.

    model: a PreTrainedModel. Backend `triton` is fused_forward where verl would take its forward
    pass for models of text.
    """
    model_class: Any = type(model)
    if model_class.forward is not fused_forward:
        model_class.own_forward = model_class.forward
    verl_patch(model, use_fused_kernels, fused_kernels_backend)
    if model_class.forward is dense_common.forward_with_triton_backend:
        model_class.forward = fused_forward


def fused_forward(
    self: Any,
    input_ids: Any = None,
    labels: Tensor | None = None,
    return_dict: bool | None = None,
    temperature: float = 1.0,
    shift_labels: Tensor | None = None,
    **inputs: Any,
) -> dense_common.CausalLMOutputForPPO:
    """As verl's forward_with_triton_backend: log-probs and entropies, in the shape of the labels.

    input_ids [..., T]. shift_labels [..., T]: the token after each position. None: labels, or
    input_ids, moved by one. Other inputs are those of the body; verl's forward passes ignore the
    rest.

    Raises:
        ValueError: no return_dict, no labels, and a model whose logits are not those of its head:
            a linear layer, a bias, a scale and a softcap.
    """
    expect(bool(return_dict), "return_dict", "True", return_dict)
    parts = [part for part in ("model", "lm_head") if not hasattr(self, part)]
    got = f"a {type(self).__name__} without {', '.join(parts)}"
    expect(not parts, "model", "a body `model` and a head `lm_head`, as verl's forward pass", got)
    labels = input_ids if labels is None else labels
    if shift_labels is None:
        expect(labels is not None, "shift_labels", "a tensor without labels and input_ids", None)
        assert labels is not None
        shift_labels = labels.roll(-1, dims=-1)
    names = inspect.signature(dense_common.forward_base_model).parameters
    inputs = {name: value for name, value in inputs.items() if name in names}
    outputs = dense_common.forward_base_model(self, input_ids=input_ids, return_dict=True, **inputs)
    hidden = outputs[0].flatten(0, -2)
    if not getattr(self, "has_checked_head", False):
        _check_head(self, outputs, hidden)
        self.has_checked_head = True
    scores = _score(self, hidden, shift_labels.flatten().long(), temperature)
    # A view would be unsafe to change in place behind FSDP2, which warns of it.
    logprobs, entropies = [score.view_as(shift_labels).clone() for score in scores]
    return dense_common.CausalLMOutputForPPO(
        log_probs=logprobs,  # pyright: ignore[reportArgumentType]
        entropy=entropies,  # pyright: ignore[reportArgumentType]
        past_key_values=outputs.past_key_values,
        hidden_states=outputs.hidden_states,
        attentions=outputs.attentions,
    )


def _score(
    model: Any, hidden: Tensor, targets: Tensor, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-probs and entropies [N] of targets [N] at hidden rows [N, H].

    The head is called as a module: verl shards an untied head on its own, and FSDP2 gathers its
    weight for the call.
    """
    lm_head = model.lm_head

    def score(hidden: Tensor) -> tuple[Tensor, Tensor]:
        head = LMHeadParameters.of(model.config, lm_head.weight, lm_head.bias)
        return linear_logprob(
            hidden,
            head.weight,
            targets,
            temperature=temperature * head.temperature_factor,
            bias=head.bias,
            softcap=head.op_softcap,
        )

    own_forward = lm_head.forward
    lm_head.forward = score
    try:
        return lm_head(hidden)
    finally:
        lm_head.forward = own_forward


class _Given(nn.Module):
    """A body that has computed its hidden states already. Other attributes are the real body's."""

    def __init__(self, outputs: Any, body: nn.Module):
        super().__init__()
        self.outputs = outputs
        self.__dict__["body"] = body  # not as a child: its parameters are no others

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["body"], name)

    def forward(self, *_: Any, **__: Any) -> Any:
        return self.outputs


def _own_logits(model: Any, outputs: Any) -> Tensor:
    """[T, V] of the model's own forward(), for a body that returns outputs of [1, T, H]."""
    [hidden] = outputs.last_hidden_state
    ids = torch.zeros(1, len(hidden), dtype=torch.int64, device=hidden.device)
    body = model._modules[model.base_model_prefix]
    model._modules[model.base_model_prefix] = _Given(outputs, body)
    try:
        return type(model).own_forward(model, input_ids=ids, use_cache=False).logits[0]
    finally:
        model._modules[model.base_model_prefix] = body


@torch.no_grad()
def _check_head(model: Any, outputs: Any, hidden: Tensor) -> None:
    """Raise ValueError if the head at some of the rows hidden [N, H] has not the model's logits."""
    name = f"model {type(model).__name__}"
    beside = [
        parameter
        for parameter, _ in model.lm_head.named_parameters()
        if parameter not in ("weight", "bias") and not parameter.startswith("parametrizations.")
    ]
    is_linear = isinstance(model.lm_head, nn.Linear) and not beside
    got = f"{type(model.lm_head).__name__} with {', '.join(beside[:3]) or 'no weights beside'}"
    expect(is_linear, name, "an lm_head that is a linear layer with weight and bias alone", got)
    rows = hidden.detach()[:ROWS]
    rows = torch.cat([rows, AMPLIFIED * rows])
    logits = _own_logits(model, type(outputs)(last_hidden_state=rows[None]))
    targets = logits.argmin(-1)
    expected = logits.float().log_softmax(-1).gather(1, targets[:, None])[:, 0]
    difference = (_score(model, rows, targets)[0] - expected).abs().max()
    relative = (difference / logits.abs().max().clamp(min=1)).item()
    tolerance = FLOAT32_TOLERANCE if logits.dtype == torch.float32 else HALF_TOLERANCE
    is_known = relative <= tolerance
    expected_head = f"logits of its head within {tolerance:g} (a bias, a scale and a softcap)"
    expect(is_known, name, expected_head, f"a relative difference of {relative:.3g}")
