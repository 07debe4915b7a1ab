"""A policy's own log-probs of sampled tokens: what the loss, the KL terms and the check of the sampler compare."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from srt_fast.model.packing import pack
from srt_fast.model.policy import Policy
from srt_fast.types import MicroBatch, Rollouts
from srt_kernels.lm_head.linear_logprob import linear_logprob


def head_inputs(
    policy: Policy, batch: MicroBatch, temperature: float
) -> tuple[tuple[Tensor, Tensor, Tensor], dict]:
    """What the loss ops take of a model: hidden states, head and targets; and the head's options at this temperature.

    batch: a MicroBatch, or whatever else has its input_ids, position_ids, cu_input, targets and row_index.
    """
    head = policy.head
    hidden = policy.hidden(batch.input_ids, batch.position_ids, batch.cu_input)
    scale = (
        head.temperature_factor
    )  # models divide by it before their softcap, srt_kernels' temperature comes after
    return (hidden, head.weight, batch.targets), {
        "bias": head.bias,
        "softcap": None if head.softcap is None else head.softcap * scale,
        "row_index": batch.row_index,
        "temperature": temperature * scale,
    }


@torch.no_grad()
def rollout_logprobs(
    policy: Policy,
    rollouts: Rollouts,
    indices: Tensor,
    *,
    temperature: float,
    token_budget: int,
    check: Callable[[], None] = lambda: None,
) -> Tensor:
    """[N] fp32 log-probs, in nats, of these rollouts' tokens under the policy; other tokens' are NaN."""
    out = torch.full_like(rollouts.logprobs, float("nan"))
    nothing = torch.zeros(len(rollouts.truncated), device=out.device)
    for batch in pack(rollouts, nothing, indices, token_budget):
        check()
        tensors, options = head_inputs(policy, batch, temperature)
        out[batch.token_index] = linear_logprob(*tensors, **options)[0]
    return out


@torch.no_grad()
def rollout_statistics(
    policy: Policy,
    rollouts: Rollouts,
    *,
    temperature: float,
    token_budget: int,
    check: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """[N] entropies of the policy's distributions and [N] their certainty KL(U || p) = logsumexp(z) - mean(z) - log V, fp32 nats.

    The mean of z over the vocabulary is the hidden state's product with the head's mean row, so certainty costs two dot products
    a token beside the log-prob. It is NaN for a head with a softcap, through which means do not pass.
    """
    head = policy.head
    everything = torch.arange(len(rollouts.truncated), device=rollouts.tokens.device)
    entropies, certainty = (
        torch.empty_like(rollouts.logprobs),
        torch.full_like(rollouts.logprobs, float("nan")),
    )
    mean_row = head.weight.mean(0, dtype=torch.float32)
    bias = torch.zeros(1, device=mean_row.device) if head.bias is None else head.bias.float()
    for batch in pack(
        rollouts, torch.zeros(len(everything), device=everything.device), everything, token_budget
    ):
        check()
        (hidden, weight, targets), options = head_inputs(policy, batch, temperature)
        logprobs, entropies[batch.token_index] = linear_logprob(hidden, weight, targets, **options)
        if head.softcap is None:
            rows = hidden[batch.row_index].float()
            chosen = (rows * weight[targets].float()).sum(1) + (
                bias[targets] if head.bias is not None else 0.0
            )
            centred = (chosen - rows @ mean_row - bias.mean()) / options["temperature"]
            certainty[batch.token_index] = centred - logprobs - math.log(weight.shape[0])
    return entropies, certainty
