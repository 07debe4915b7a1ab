"""A policy's own log-probs of sampled tokens: what the loss, the KL terms and the check of the sampler compare."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from srt_fast.packing import pack
from srt_fast.policy import Policy
from srt_fast.rollout import PackedBatch, Rollouts
from srt_kernels.linear_logprob import linear_logprob


def head_inputs(policy: Policy, batch: PackedBatch, temperature: float) -> tuple[tuple[Tensor, Tensor, Tensor], dict]:
    """What the loss ops take of a model: hidden states, head and targets; and the head's options at this temperature."""
    head = policy.head
    hidden = policy.hidden(batch.input_ids, batch.position_ids, batch.cu_input)
    return (hidden, head.weight, batch.targets), {
        "bias": head.bias, "softcap": head.softcap, "row_index": batch.row_index,
        "temperature": temperature * head.temperature_factor}


@torch.no_grad()
def rollout_logprobs(policy: Policy, rollouts: Rollouts, indices: Tensor, *, temperature: float, token_budget: int,
                     check: Callable[[], None] = lambda: None) -> Tensor:
    """[N] fp32 log-probs, in nats, of these rollouts' tokens under the policy; other tokens' are NaN."""
    out = torch.full_like(rollouts.logprobs, float("nan"))
    nothing = torch.zeros(len(rollouts.cut), device=out.device)
    for batch in pack(rollouts, nothing, indices, token_budget):
        check()
        tensors, options = head_inputs(policy, batch, temperature)
        out[batch.token_index] = linear_logprob(*tensors, **options)[0]
    return out
