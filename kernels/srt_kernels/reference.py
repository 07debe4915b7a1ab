"""Every public op in plain PyTorch: the specification. For float32 and float64 tensors; builds [N, V]; loops.

Same names, arguments and results as the ops, but for what only says how to compute (chunk_rows, all_rows: here every
row is computed). Arguments are taken as valid. Gradients are autograd's.
"""

from __future__ import annotations

import statistics

import torch
from torch import Tensor

from srt_kernels.groups.majority_vote import Vote
from srt_kernels.objective.objective import Objective
from srt_kernels.objective.policy_loss import PolicyLoss


def linear_logprob(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    temperature=1.0,
    bias=None,
    softcap=None,
    row_index=None,
) -> tuple[Tensor, Tensor]:
    """z = softcap(hidden[row_index] @ weight.T + bias) / temperature; log softmax(z)[target] and -sum p log p."""
    rows = hidden if row_index is None else hidden[row_index]
    z = rows @ weight.T
    if bias is not None:
        z = z + bias
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    logprobs = torch.log_softmax(z / temperature, dim=-1).clamp(
        min=torch.finfo(z.dtype).min
    )  # 0 * -inf is nan
    return logprobs.gather(1, targets[:, None])[:, 0], -(logprobs.exp() * logprobs).sum(-1)


def _policy_term(
    o: Objective, ratio: Tensor, advantage: Tensor, logprob: Tensor
) -> tuple[Tensor, Tensor]:
    """-surrogate of the tokens of a completion, and which of them are clipped."""
    positive, negative = advantage > 0, advantage < 0
    if o.surrogate == "clip":
        high, low = ratio > 1 + o.clip_high, ratio < 1 - o.clip_low
        upper = torch.full_like(ratio, o.delta if o.delta is not None else torch.inf)
        gain_positive = torch.where(high, 1 + o.clip_high, ratio)
        gain_negative = torch.where(low, 1 - o.clip_low, torch.where(ratio > upper, upper, ratio))
        gain = torch.where(positive, gain_positive, gain_negative)
        return -gain * advantage, (positive & high) | (negative & (low | (ratio > upper)))
    if o.surrogate == "sapo":
        tau = torch.where(positive, o.tau_pos, o.tau_neg).to(ratio.dtype)
        return -4 / tau / (1 + torch.exp(-tau * (ratio - 1))) * advantage, torch.zeros_like(
            positive
        )
    cap = o.clip_high if o.surrogate == "cispo" else torch.inf
    return -torch.clamp(ratio.detach(), max=cap) * advantage * logprob, ratio > cap


def _kl_term(o: Objective, logprob: Tensor, ref: Tensor, token_ratio: Tensor) -> Tensor:
    d = logprob - ref
    kl = {
        "k1": d,
        "k2": d**2 / 2,
        "k3": torch.exp(torch.clamp(-d, max=20)) - 1 - torch.clamp(-d, max=20),
    }[o.kl]
    return kl * token_ratio if o.kl_bias_correction else kl


def _correction(o: Objective, old: Tensor, sampler: Tensor | None) -> Tensor:
    if o.correction == "none":
        return torch.ones_like(old)
    level, action = o.correction.split("_")
    difference = old.detach() - sampler
    if level == "sequence":
        difference = difference.sum().expand_as(difference)
    correction = torch.exp(torch.clamp(difference, max=20))
    over = correction > o.correction_cap
    return torch.where(over, o.correction_cap if action == "truncate" else 0.0, correction)


def policy_loss(
    logprobs: Tensor,
    advantages: Tensor,
    cu_seqlens: Tensor,
    objective: Objective,
    *,
    old_logprobs=None,
    ref_logprobs=None,
    sampler_logprobs=None,
    entropies=None,
    normalizer=None,
) -> PolicyLoss:
    """One completion after the other: ratio, surrogate, correction, KL, entropy, then the reduction's weight."""
    o, count, total = objective, len(cu_seqlens) - 1, len(logprobs)
    if normalizer is None:
        normalizer = max(1, total if o.reduction == "token" else count)
    loss = logprobs.sum() * 0
    seen = {"ratio": [], "clip_fraction": [], "kl": [], "correction": []}
    for r in range(count):
        part = slice(int(cu_seqlens[r]), int(cu_seqlens[r + 1]))
        logprob = logprobs[part]
        length = len(logprob)
        if length == 0:
            continue
        advantage = advantages[r].expand(length) if len(advantages) == count else advantages[part]
        old = logprob.detach() if old_logprobs is None else old_logprobs[part]
        token_ratio = torch.exp(torch.clamp(logprob - old, max=20))
        sequence_ratio = torch.exp(torch.clamp((logprob - old).mean(), max=20)).expand(length)
        ratio = {
            "none": torch.ones_like(logprob),
            "token": token_ratio,
            "sequence": sequence_ratio,
        }[o.ratio]
        policy, clipped = _policy_term(o, ratio, advantage, logprob)
        correction = _correction(
            o, old, None if sampler_logprobs is None else sampler_logprobs[part]
        )
        kl = torch.zeros_like(logprob)
        if ref_logprobs is not None:
            kl = _kl_term(o, logprob, ref_logprobs[part], token_ratio)
        per_token = correction * policy + o.kl_coef * kl
        if o.entropy_coef > 0:
            per_token = per_token - o.entropy_coef * entropies[part]
        divisor = {"token": 1, "sequence": length, "fixed": o.max_length}[o.reduction]
        loss = loss + per_token.sum() / divisor / normalizer
        for name, values in zip(seen, (ratio, clipped, kl, correction), strict=True):
            seen[name] += values.tolist()
    means = {
        name: torch.tensor(statistics.fmean(values) if values else 0.0)
        for name, values in seen.items()
    }
    detached = None if entropies is None else entropies.detach()
    return PolicyLoss(
        loss=loss, logprobs=logprobs.detach(), entropies=detached, rows=total, **means
    )


def linear_policy_loss(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    advantages: Tensor,
    cu_seqlens: Tensor,
    objective: Objective,
    *,
    old_logprobs=None,
    ref_logprobs=None,
    sampler_logprobs=None,
    row_index=None,
    temperature=1.0,
    bias=None,
    softcap=None,
    normalizer=None,
) -> PolicyLoss:
    """policy_loss of linear_logprob."""
    head = {"temperature": temperature, "bias": bias, "softcap": softcap, "row_index": row_index}
    logprobs, entropies = linear_logprob(hidden, weight, targets, **head)
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


def group_advantage(rewards: Tensor, cu_groups: Tensor, *, kind: str) -> Tensor:
    """Group after group, in Python floats."""
    values, bounds = rewards.tolist(), cu_groups.tolist()
    advantages = [0.0] * len(values)
    for start, end in zip(bounds, bounds[1:], strict=False):
        known = [i for i in range(start, end) if values[i] == values[i]]
        group = [values[i] for i in known]
        if len(set(group)) < 2:
            continue
        mean, n = statistics.fmean(group), len(group)
        scale = {"grpo": 1 / (statistics.stdev(group) + 1e-4), "rloo": n / (n - 1)}.get(kind, 1.0)
        for i in known:
            advantages[i] = (values[i] - mean) * scale
    if kind == "batch":
        known = sum(value == value for value in values)
        rms = (sum(a * a for a in advantages) / max(1, known)) ** 0.5
        advantages = [a / (rms + 1e-4) for a in advantages]
    return torch.tensor(advantages, dtype=rewards.dtype)


def majority_vote(keys: Tensor, cu_groups: Tensor, *, weights=None, share_over="all") -> Vote:
    """Group after group, with a dict that remembers which answer came first."""
    names, bounds = keys.tolist(), cu_groups.tolist()
    each = [1.0] * len(names) if weights is None else weights.tolist()
    majority, share, runner_up, rewards = [], [], [], []
    for start, end in zip(bounds, bounds[1:], strict=False):
        votes: dict[int, float] = {}
        for key, weight in zip(names[start:end], each[start:end], strict=True):
            votes[key] = votes.get(key, 0.0) + weight
        silent = votes.pop(0, 0.0)
        total = sum(votes.values()) + (silent if share_over == "all" else 0.0)
        ranked = [
            key for key in sorted(votes, key=lambda key: -votes[key]) if votes[key] > 0
        ]  # stable: ties in order
        majority.append(ranked[0] if ranked else 0)
        share.append(votes[ranked[0]] / total if ranked else 0.0)
        runner_up.append(votes[ranked[1]] / total if len(ranked) > 1 else 0.0)
        rewards += [float(key != 0 and key == majority[-1]) for key in names[start:end]]
    return Vote(
        majority=torch.tensor(majority, dtype=torch.int64),
        share=torch.tensor(share, dtype=torch.float32),
        runner_up=torch.tensor(runner_up, dtype=torch.float32),
        rewards=torch.tensor(rewards, dtype=torch.float32),
        valid=keys != 0,
    )
