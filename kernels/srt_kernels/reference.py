"""Every public op in plain PyTorch: the specification. For fp32 and fp64 tensors.

Builds [N, V] tensors and loops. Names, arguments and results are those of the ops, without the
arguments that only say how to compute (chunk_rows, unique_rows, all_rows: here every row is
computed). Arguments are taken as valid. Gradients are autograd's.
"""

from __future__ import annotations

import itertools
import statistics

import torch
from torch import Tensor

from srt_kernels.groups.group_advantage import AdvantageKind
from srt_kernels.groups.majority_vote import ShareOver, Vote
from srt_kernels.objective.objective import Objective
from srt_kernels.objective.policy_loss import PolicyLoss


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    softcap: float | None = None,
    row_index: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """log softmax(z)[target] and -sum p log p, z = softcap(hidden[row_index] @ weight.T + bias) /
    T."""
    rows = hidden if row_index is None else hidden[row_index]
    logits = rows @ weight.T
    if bias is not None:
        logits = logits + bias
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    logprobs = torch.log_softmax(logits / temperature, dim=-1)
    logprobs = logprobs.clamp(min=torch.finfo(logits.dtype).min)  # 0 * -inf is nan
    entropies = -(logprobs.exp() * logprobs).sum(-1)
    return logprobs.gather(1, targets[:, None])[:, 0], entropies


def _policy_term(
    objective: Objective, ratio: Tensor, advantage: Tensor, logprob: Tensor
) -> tuple[Tensor, Tensor]:
    """Minus the surrogate of a completion's tokens, and which of them are clipped."""
    is_positive = advantage > 0
    is_negative = advantage < 0
    if objective.surrogate == "clip":
        upper = 1 + objective.clip_high
        lower = 1 - objective.clip_low
        delta = torch.inf if objective.delta is None else objective.delta
        delta = torch.full_like(ratio, delta)
        gain_of_positive = torch.where(ratio > upper, upper, ratio)
        bounded = torch.where(ratio > delta, delta, ratio)
        gain_of_negative = torch.where(ratio < lower, lower, bounded)
        gain = torch.where(is_positive, gain_of_positive, gain_of_negative)
        is_over = is_positive & (ratio > upper)
        is_under = is_negative & ((ratio < lower) | (ratio > delta))
        return -gain * advantage, is_over | is_under
    if objective.surrogate == "sapo":
        tau = torch.where(is_positive, objective.tau_pos, objective.tau_neg).to(ratio.dtype)
        loss = -4 / tau / (1 + torch.exp(-tau * (ratio - 1))) * advantage
        return loss, torch.zeros_like(is_positive)
    cap = objective.clip_high if objective.surrogate == "cispo" else torch.inf
    return -torch.clamp(ratio.detach(), max=cap) * advantage * logprob, ratio > cap


def _kl_term(
    objective: Objective, logprob: Tensor, ref_logprob: Tensor, token_ratio: Tensor
) -> Tensor:
    difference = logprob - ref_logprob
    bounded = torch.clamp(-difference, max=20)
    kl = {
        "k1": difference,
        "k2": difference**2 / 2,
        "k3": torch.exp(bounded) - 1 - bounded,
    }[objective.kl]
    return kl * token_ratio if objective.kl_bias_correction else kl


def _correction(
    objective: Objective, old_logprob: Tensor, sampler_logprob: Tensor | None
) -> Tensor:
    if objective.correction == "none" or sampler_logprob is None:
        return torch.ones_like(old_logprob)
    level, action = objective.correction.split("_")
    difference = old_logprob.detach() - sampler_logprob
    if level == "sequence":
        difference = difference.sum().expand_as(difference)
    correction = torch.exp(torch.clamp(difference, max=20))
    bound = objective.correction_cap if action == "truncate" else 0.0
    return torch.where(correction > objective.correction_cap, bound, correction)


def _completion_terms(
    objective: Objective,
    logprob: Tensor,
    advantage: Tensor,
    old_logprob: Tensor,
    ref_logprob: Tensor | None,
    sampler_logprob: Tensor | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Losses of a completion's tokens without the entropy term, and statistics of them."""
    length = len(logprob)
    log_ratio = logprob - old_logprob
    token_ratio = torch.exp(torch.clamp(log_ratio, max=20))
    ratio = {
        "none": torch.ones_like(logprob),
        "token": token_ratio,
        "sequence": torch.exp(torch.clamp(log_ratio.mean(), max=20)).expand(length),
    }[objective.ratio]
    policy, is_clipped = _policy_term(objective, ratio, advantage, logprob)
    correction = _correction(objective, old_logprob, sampler_logprob)
    kl = torch.zeros_like(logprob)
    if ref_logprob is not None:
        kl = _kl_term(objective, logprob, ref_logprob, token_ratio)
    losses = correction * policy + objective.kl_coef * kl
    figures = dict(ratio=ratio, clip_fraction=is_clipped, kl=kl, correction=correction)
    return losses, figures


def policy_loss(
    logprobs: Tensor,
    advantages: Tensor,
    cu_seqlens: Tensor,
    objective: Objective,
    *,
    old_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    sampler_logprobs: Tensor | None = None,
    entropies: Tensor | None = None,
    normalizer: float | Tensor | None = None,
) -> PolicyLoss:
    """One completion after the other: ratio, surrogate, correction, KL, entropy, weight."""
    rollouts = len(cu_seqlens) - 1
    if normalizer is None:
        normalizer = max(1, len(logprobs) if objective.reduction == "token" else rollouts)
    loss = logprobs.sum() * 0
    values: dict[str, list[float]] = dict(ratio=[], clip_fraction=[], kl=[], correction=[])
    for rollout, (start, stop) in enumerate(itertools.pairwise(cu_seqlens.tolist())):
        if start == stop:
            continue
        part = slice(start, stop)
        length = stop - start
        if len(advantages) == rollouts:
            advantage = advantages[rollout].expand(length)
        else:
            advantage = advantages[part]
        losses, figures = _completion_terms(
            objective,
            logprobs[part],
            advantage,
            logprobs[part].detach() if old_logprobs is None else old_logprobs[part],
            None if ref_logprobs is None else ref_logprobs[part],
            None if sampler_logprobs is None else sampler_logprobs[part],
        )
        if objective.entropy_coef > 0:
            assert entropies is not None
            losses = losses - objective.entropy_coef * entropies[part]
        divisor = {"token": 1, "sequence": length, "fixed": objective.max_length}
        loss = loss + losses.sum() / divisor[objective.reduction] / normalizer
        for name, figure in figures.items():
            values[name] += figure.tolist()
    means = {
        name: torch.tensor(statistics.fmean(numbers) if numbers else 0.0)
        for name, numbers in values.items()
    }
    return PolicyLoss(
        loss=loss,
        logprobs=logprobs.detach(),
        entropies=None if entropies is None else entropies.detach(),
        rows=torch.tensor(len(logprobs)),
        **means,
    )


def linear_policy_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    advantages: Tensor,
    cu_seqlens: Tensor,
    objective: Objective,
    *,
    old_logprobs: Tensor | None = None,
    ref_logprobs: Tensor | None = None,
    sampler_logprobs: Tensor | None = None,
    row_index: Tensor | None = None,
    temperature: float = 1.0,
    bias: Tensor | None = None,
    softcap: float | None = None,
    normalizer: float | Tensor | None = None,
) -> PolicyLoss:
    """policy_loss of linear_logprob."""
    logprobs, entropies = linear_logprob(
        hidden,
        weight,
        targets,
        temperature=temperature,
        bias=bias,
        softcap=softcap,
        row_index=row_index,
    )
    return policy_loss(
        logprobs,
        advantages,
        cu_seqlens,
        objective,
        old_logprobs=old_logprobs,
        ref_logprobs=ref_logprobs,
        sampler_logprobs=sampler_logprobs,
        entropies=entropies,
        normalizer=normalizer,
    )


def group_advantage(rewards: Tensor, cu_groups: Tensor, *, kind: AdvantageKind) -> Tensor:
    """Group after group, in Python floats."""
    values = rewards.tolist()
    advantages = [0.0] * len(values)
    for start, stop in itertools.pairwise(cu_groups.tolist()):
        known = [i for i in range(start, stop) if values[i] == values[i]]
        group = [values[i] for i in known]
        if len(set(group)) < 2:
            continue
        mean = statistics.fmean(group)
        count = len(group)
        scale = 1.0
        if kind == "grpo":
            scale = 1 / (statistics.stdev(group) + 1e-4)
        elif kind == "rloo":
            scale = count / (count - 1)
        for i in known:
            advantages[i] = (values[i] - mean) * scale
    if kind == "batch":
        count = sum(value == value for value in values)
        rms = (sum(advantage * advantage for advantage in advantages) / max(1, count)) ** 0.5
        advantages = [advantage / (rms + 1e-4) for advantage in advantages]
    return torch.tensor(advantages, dtype=rewards.dtype)


def majority_vote(
    keys: Tensor,
    cu_groups: Tensor,
    *,
    weights: Tensor | None = None,
    share_over: ShareOver = "all",
) -> Vote:
    """Group after group, with a dict that keeps answers in the order of their first vote."""
    answers = keys.tolist()
    rollout_weights = [1.0] * len(answers) if weights is None else weights.tolist()
    majority, share, runner_up, rewards = [], [], [], []
    for start, stop in itertools.pairwise(cu_groups.tolist()):
        votes: dict[int, float] = {}
        for i in range(start, stop):
            if rollout_weights[i] > 0:
                votes[answers[i]] = votes.get(answers[i], 0.0) + rollout_weights[i]
        silent_votes = votes.pop(0, 0.0)
        total = sum(votes.values()) + (silent_votes if share_over == "all" else 0.0)
        ranked = sorted(votes, key=lambda key: -votes[key])  # stable: ties stay in order
        majority.append(ranked[0] if ranked else 0)
        share.append(votes[ranked[0]] / total if ranked else 0.0)
        runner_up.append(votes[ranked[1]] / total if len(ranked) > 1 else 0.0)
        rewards += [float(key != 0 and key == majority[-1]) for key in answers[start:stop]]
    return Vote(
        majority=torch.tensor(majority, dtype=torch.int64),
        share=torch.tensor(share, dtype=torch.float32),
        runner_up=torch.tensor(runner_up, dtype=torch.float32),
        rewards=torch.tensor(rewards, dtype=torch.float32),
        valid=keys != 0,
    )
