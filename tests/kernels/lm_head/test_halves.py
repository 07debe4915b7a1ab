"""fp16 and bf16 operands: gradients have the error of rounding, whatever their size."""

from dataclasses import replace

import pytest
import torch

from srt_kernels import Objective, linear_logprob, linear_policy_loss
from srt_kernels.core.backend import use_triton
from support.bounds import HeadBounds, assert_rounded, assert_within
from support.loss_bounds import Sensitivity
from support.ops import cpu_path, exact_rollouts

preset = Objective.preset


# Tiny, middling and large gradients.
@pytest.mark.parametrize("name, normalizer", [("grpo", 1e5), ("gspo", None), ("rloo", 1e-2)])
def test_fp16(name, normalizer):
    """fp16 operands: logits and sums are fp32. Gradients have the error of rounding dlogits.

    No gradient is lost or infinite in fp16's small range: backward scales before it rounds. One
    rollout is longer than a chunk.
    """
    batch = exact_rollouts([20, 13], with_bias=False)
    hidden = batch.hidden.half().requires_grad_()
    weight = batch.weight.half().requires_grad_()
    clips = {"clip_low": 1.0, "clip_high": 9.0} if name == "gspo" else {}
    objective = preset(name, **clips)
    batch = replace(batch, advantages=torch.tensor([1.0, -0.5]))
    old_logprobs = batch.old_logprobs
    scale = 2.0**12 * (normalizer or 1)  # as a gradient scaler's
    out = linear_policy_loss(
        hidden,
        weight,
        batch.targets,
        batch.advantages,
        batch.cu_seqlens,
        objective,
        old_logprobs=old_logprobs,
        normalizer=normalizer,
        chunk_rows=16,
    )
    (scale * out.loss).backward()
    head_bounds = HeadBounds(hidden, weight, batch.targets)
    sensitivity = Sensitivity(
        head_bounds, batch, objective, normalizer=normalizer, old_logprobs=old_logprobs
    )
    bounds = sensitivity.bounds(head_bounds, scale)
    assert_within("logprobs", out.logprobs, head_bounds.logprobs, bounds.logprobs)
    gradients = head_bounds.rounded_gradients(torch.float16, scale * sensitivity.grad_logprob)
    for leaf, gradient, bound in zip(
        (hidden, weight), gradients, bounds.gradients[:2], strict=True
    ):
        assert leaf.grad.dtype == torch.float16
        assert_rounded("gradient", leaf.grad, *gradient, bound)


@pytest.mark.parametrize("dtype", [torch.float16, pytest.param(torch.bfloat16, marks=cpu_path)])
def test_gradients_of_linear_logprob_in_halves(dtype):
    """Sums over tokens, which a mean's scale would send to infinity, and shared rows."""
    batch = exact_rollouts([200], shared=True, with_bias=False)
    hidden = batch.hidden.to(dtype).requires_grad_()
    weight = batch.weight.to(dtype).requires_grad_()
    logprobs, entropies = linear_logprob(hidden, weight, batch.targets, row_index=batch.row_index)
    (100 * logprobs.sum() + entropies.sum()).backward()
    head_bounds = HeadBounds(hidden, weight, batch.targets, row_index=batch.row_index)
    ones = torch.ones(200, dtype=torch.float64)
    bounds = head_bounds.gradients(100 * ones, ones)
    gradients = head_bounds.rounded_gradients(dtype, 100 * ones, ones)
    for leaf, gradient, bound in zip((hidden, weight), gradients, bounds[:2], strict=True):
        assert_rounded("gradient", leaf.grad, *gradient, bound)


# Dlogits of token ratios and of sequence ratios are written by different kernels.
@pytest.mark.parametrize("ratio, temperature", [("token", 1.0), ("sequence", 0.25)])
def test_large_ratios_in_fp16(ratio, temperature):
    """With A < 0 and no dual clip ratios are large. Kernels saturate gradients at 16384 w |A|."""
    ratios = torch.tensor([0.0, 9.0, 11.0], dtype=torch.float64).exp()
    batch = exact_rollouts([1, 1, 1], with_bias=False, temperature=temperature)
    hidden = batch.hidden.half().requires_grad_()
    weight = batch.weight.half().requires_grad_()
    bounds = HeadBounds(hidden, weight, batch.targets, temperature=temperature)
    old_logprobs = (bounds.logprobs - ratios.log()).float()
    token_weight = temperature / 16
    linear_policy_loss(
        hidden,
        weight,
        batch.targets,
        -torch.ones(3),
        batch.cu_seqlens,
        preset("bnpo", ratio=ratio),
        old_logprobs=old_logprobs,
        normalizer=1 / token_weight,
        temperature=temperature,
    ).loss.backward()
    grad_logprob = token_weight * (ratios.clamp(max=2.0**14) if use_triton(hidden) else ratios)
    # Relative errors: of log-prob and old log-prob, and of a few operations.
    error = bounds.logprob_error + bounds.u * (old_logprobs.abs() + 32)
    _, dweight = bounds.rounded_gradients(torch.float16, grad_logprob)
    dhidden_bound, dweight_bound, _ = bounds.gradients(grad_logprob, None, grad_logprob * error)
    assert_rounded("dweight", weight.grad, *dweight, dweight_bound)
    for row, one in enumerate(torch.eye(3, dtype=torch.float64)):
        (exact, rounding), _ = bounds.rounded_gradients(torch.float16, grad_logprob * one)
        assert_rounded(f"dhidden {row}", hidden.grad[row], exact[row], rounding, dhidden_bound[row])
