"""The policy's log-probs and statistics of sampled tokens, without gradient."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypedDict

import torch
from torch import Tensor

from srt_fast.model.lm_head import LMHeadParameters
from srt_fast.model.policy import Policy
from srt_fast.packing.micro_batches import pack
from srt_fast.transfer import send
from srt_fast.types import MicroBatch, PackedSequences, Rollouts
from srt_kernels import linear_logprob
from srt_kernels.core.segments import segment_ids


class HeadOptions(TypedDict):
    """Keyword arguments of srt_kernels' LM head ops."""

    bias: Tensor | None
    softcap: float | None
    row_index: Tensor
    unique_rows: bool
    temperature: float


def head_inputs(
    policy: Policy, batch: PackedSequences, temperature: float
) -> tuple[tuple[Tensor, Tensor, Tensor], HeadOptions]:
    """The model's part of the arguments of linear_logprob and linear_policy_loss.

    Returns (hidden [T, H], weight [V, H], targets [n]) and the keyword arguments. The forward pass
    runs here, with gradient if it is enabled. Call it inside Policy.run.
    """
    hidden = policy.hidden(batch.input_ids, batch.position_ids, batch.segments)
    head = policy.head  # after the forward pass: a sharded model's head is whole now
    options = HeadOptions(
        bias=head.bias,
        softcap=head.op_softcap,
        row_index=batch.row_index,
        unique_rows=batch.unique_rows,
        temperature=temperature * head.temperature_factor,
    )
    return (hidden, head.weight, batch.targets), options


@torch.no_grad()
def rollout_logprobs(
    policy: Policy,
    rollouts: Rollouts,
    indices: Sequence[int],
    *,
    temperature: float,
    token_budget: int,
    check: Callable[[], None] = lambda: None,
) -> Tensor:
    """[N] fp32 log-probs in nats of the tokens of the rollouts `indices`. Other tokens have NaN.

    Collective: the ranks share the work, and all get the whole result. check is called before each
    micro-batch. It may raise to stop early.
    """
    logprobs = torch.zeros_like(rollouts.logprobs)
    for batch in _pack(policy, rollouts, indices, token_budget):
        check()

        def score(batch: PackedSequences = batch) -> Tensor:
            tensors, options = head_inputs(policy, batch, temperature)
            return linear_logprob(*tensors, **options)[0]

        logprobs[batch.token_index] = policy.run(score)
    policy.world.sum(logprobs)
    scored = torch.zeros(len(rollouts.truncated), dtype=torch.bool)
    scored[list(indices)] = True
    [is_scored] = send([scored], logprobs.device)
    rollout = segment_ids(rollouts.cu_seqlens, len(logprobs))
    return logprobs.masked_fill(~is_scored[rollout], float("nan"))


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

    Collective: the ranks share the work, and all get the whole result. check is called before each
    micro-batch. It may raise to stop early.
    """
    mean_row = policy.run(lambda: policy.head.weight.mean(0, dtype=torch.float32))
    entropies = torch.zeros_like(rollouts.logprobs)
    certainty = torch.zeros_like(rollouts.logprobs)
    for batch in _pack(policy, rollouts, range(len(rollouts.truncated)), token_budget):
        check()

        def score(batch: PackedSequences = batch) -> tuple[Tensor, Tensor]:
            return _statistics(policy, batch, temperature, mean_row)

        tokens = batch.token_index
        entropies[tokens], certainty[tokens] = policy.run(score)
    return policy.world.sum(entropies), policy.world.sum(certainty)


def _pack(
    policy: Policy, rollouts: Rollouts, indices: Sequence[int], token_budget: int
) -> list[MicroBatch]:
    """This rank's micro-batches of a pass without gradient, which needs no advantages."""
    return pack(
        rollouts,
        torch.zeros(len(rollouts.truncated), device=rollouts.tokens.device),
        indices,
        token_budget,
        policy.world,
        share_prompts=policy.shares_prompts,
    )


def _statistics(
    policy: Policy, batch: PackedSequences, temperature: float, mean_row: Tensor
) -> tuple[Tensor, Tensor]:
    """[n] entropies and [n] certainty of a micro-batch's targets, fp32 nats.

    mean_row [H]: the mean of the head's weight over the vocabulary.
    """
    tensors, options = head_inputs(policy, batch, temperature)
    logprobs, entropies = linear_logprob(*tensors, **options)
    head = policy.head
    if head.softcap is not None:
        return entropies, torch.full_like(entropies, float("nan"))
    hidden = tensors[0][batch.row_index].float()
    logits = _target_logits_above_mean(hidden, batch.targets, head, mean_row)
    centred = logits / options["temperature"]
    return entropies, centred - logprobs - math.log(len(head.weight))


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
