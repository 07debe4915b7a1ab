"""linear_policy_loss beside Liger's fused linear GRPO loss, on the same rollouts padded."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from srt_kernels import linear_policy_loss
from srt_kernels.testing import assert_close, packed_rollouts
from support.parity import ADVANTAGES, CASES, CU_SEQLENS, KL, LENGTHS, MASK, grid, pad

# Left out is luspo with a KL: Liger sums the KL over padding too, so its loss grows with the width
# of the batch. TRL's does not.
GRID = [(case, kl) for case, kl in grid(CASES) if (case, kl) != ("luspo", "k3")]


@pytest.mark.parametrize("case, kl", GRID)
@pytest.mark.parametrize("temperature, with_bias", [(1.0, False), (0.7, True)])
def test_liger(case, kl, temperature, with_bias):
    liger = pytest.importorskip("liger_kernel.chunked_loss")
    loss_type, objective = CASES[case]
    objective = replace(objective, **KL[kl])
    batch = packed_rollouts(LENGTHS, with_bias=with_bias, temperature=temperature)
    old = batch.old_logprobs.double()
    ref = batch.ref_logprobs.double()
    normalizer = 40 if loss_type in ("dapo", "cispo") else None  # the other losses have none
    hidden = batch.hidden.double().requires_grad_()
    weight = batch.weight.double().requires_grad_()
    bias = batch.bias.double().requires_grad_()
    ours = linear_policy_loss(
        hidden,
        weight,
        batch.targets,
        ADVANTAGES,
        CU_SEQLENS,
        objective,
        old_logprobs=old,
        ref_logprobs=ref,
        bias=bias,
        temperature=temperature,
        normalizer=normalizer,
    )
    liger_loss = liger.LigerFusedLinearGRPOLoss(
        compiled=False,
        use_ref_model=objective.kl_coef > 0,
        chunk_size=3,
        loss_type=loss_type,
        temperature=temperature,
        importance_sampling_level="sequence" if objective.ratio == "sequence" else "token",
        max_completion_length=objective.max_length,
        epsilon_low=objective.clip_low,
        epsilon_high=objective.clip_high,
        delta=objective.delta,
        beta=objective.kl_coef,
        use_bias_correction_kl=objective.kl_bias_correction,
        sapo_temperature_pos=objective.tau_pos,
        sapo_temperature_neg=objective.tau_neg,
    )
    loss, metrics = liger_loss(
        pad(hidden, 1.0),
        weight,
        pad(batch.targets, 0),
        MASK.long(),
        ADVANTAGES,
        bias if with_bias else None,
        pad(ref, -3.0),
        pad(old, -2.0),
        num_items_in_batch=normalizer,
    )
    # Liger's log-probs are fp32 even from fp64: at most 7 roundings of logits. The slopes of these
    # losses by log-probs add up to less than 2. A gradient takes the error of a log-prob and that
    # of the probabilities.
    logits = (batch.hidden @ batch.weight.T + batch.bias) / temperature
    tolerance = 2 * 7 * 2**-24 * logits.abs().max().item()
    assert_close("loss", loss.detach().double(), ours.loss.detach(), atol=tolerance)
    leaves = {"dhidden": hidden, "dweight": weight} | ({"dbias": bias} if with_bias else {})
    expected = torch.autograd.grad(ours.loss, list(leaves.values()))
    actual = torch.autograd.grad(loss, list(leaves.values()))
    for name, grad, expected_grad in zip(leaves, actual, expected, strict=True):
        assert_close(name, grad, expected_grad, rtol=tolerance)
    if objective.kl_coef > 0:  # without a KL our means are over fewer rows
        assert metrics[0].item() == pytest.approx(ours.kl.item(), abs=tolerance)
        if objective.surrogate == "clip" and objective.delta is None:
            assert metrics[1].item() == pytest.approx(ours.clip_fraction.item(), rel=1e-6)
