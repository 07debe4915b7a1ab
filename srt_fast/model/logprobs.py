"""The policy's log-probs and statistics of sampled tokens, without gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypedDict

import torch
from torch import Tensor

from srt_fast.model.packing import pack
from srt_fast.model.policy import LMHeadParameters, Policy
from srt_fast.types import PackedSequences, Rollouts
from srt_kernels import linear_logprob


class HeadOptions(TypedDict):
    """Keyword arguments of srt_kernels' LM head ops."""

    bias: Tensor | None
    softcap: float | None
    row_index: Tensor
    temperature: float


def head_inputs(
    policy: Policy, batch: PackedSequences, temperature: float
) -> tuple[tuple[Tensor, Tensor, Tensor], HeadOptions]:
    """The model's part of the arguments of linear_logprob and linear_policy_loss.

    Returns (hidden [T, H], weight [V, H], targets [n]) and the keyword arguments. The forward pass
    runs here, with gradient if it is enabled.
    """
    head = policy.head
    hidden = policy.hidden(batch.input_ids, batch.position_ids, batch.cu_input)
    # A model divides by the factor before its softcap. srt_kernels divides after the softcap.
    factor = head.temperature_factor
    options = HeadOptions(
        bias=head.bias,
        softcap=None if head.softcap is None else head.softcap * factor,
        row_index=batch.row_index,
        temperature=temperature * factor,
    )
    return (hidden, head.weight, batch.targets), options


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
    """[N] fp32 log-probs in nats of the tokens of the rollouts `indices`. Other tokens have NaN.

    check is called before each micro-batch. It may raise to stop early.
    """
    logprobs = torch.full_like(rollouts.logprobs, float("nan"))
    zero_advantages = torch.zeros(len(rollouts.truncated), device=logprobs.device)
    for batch in pack(rollouts, zero_advantages, indices, token_budget):
        check()
        tensors, options = head_inputs(policy, batch, temperature)
        logprobs[batch.token_index] = linear_logprob(*tensors, **options)[0]
    return logprobs


@torch.no_grad()
def rollout_statistics(
    policy: Policy,
    rollouts: Rollouts,
    *,
    temperature: float,
    token_budget: int,
    check: Callable[[], None] = lambda: None,
) -> tuple[Tensor, Tensor]:
    """Entropies [N] of the policy's distributions, and their certainty [N], in fp32 nats.

    Certainty is KL(U || p) = logsumexp(z) - mean(z) - log V, of the uniform distribution U and
    logits z. The mean of z over the vocabulary is the product of the hidden state with the mean row
    of the head's weight. So certainty costs two dot products a token more than the log-prob. It is
    NaN for a head with a softcap: the mean does not pass through a softcap.

    check is called before each micro-batch. It may raise to stop early.
    """
    head = policy.head
    device = rollouts.tokens.device
    entropies = torch.empty_like(rollouts.logprobs)
    certainty = torch.full_like(rollouts.logprobs, float("nan"))
    mean_row = head.weight.mean(0, dtype=torch.float32)
    all_rollouts = torch.arange(len(rollouts.truncated), device=device)
    zero_advantages = torch.zeros(len(all_rollouts), device=device)
    for batch in pack(rollouts, zero_advantages, all_rollouts, token_budget):
        check()
        tensors, options = head_inputs(policy, batch, temperature)
        logprobs, entropies[batch.token_index] = linear_logprob(*tensors, **options)
        if head.softcap is None:
            hidden = tensors[0][batch.row_index].float()
            logits = _target_logits_above_mean(hidden, batch.targets, head, mean_row)
            centred = logits / options["temperature"]
            certainty[batch.token_index] = centred - logprobs - math.log(len(head.weight))
    return entropies, certainty


def _target_logits_above_mean(
    hidden: Tensor, targets: Tensor, head: LMHeadParameters, mean_row: Tensor
) -> Tensor:
    """[n] fp32: each target's logit minus the mean logit, at temperature 1.

    hidden [n, H] fp32, targets [n], mean_row [H]: the mean of head.weight over the vocabulary.
    """
    target_logits = (hidden * head.weight[targets].float()).sum(1)
    mean_logits = hidden @ mean_row
    if head.bias is None:
        return target_logits - mean_logits
    bias = head.bias.float()
    return target_logits + bias[targets] - mean_logits - bias.mean()
