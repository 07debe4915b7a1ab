"""The majority vote as verl's advantage estimator, and the reward function that feeds it."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

import torch
from torch import Tensor

from srt_fast.integrations.padded import lengths_to_offsets
from srt_kernels import group_advantage, majority_vote
from srt_kernels.answers.canonical import answer_key, canonical_answer
from srt_kernels.answers.extract import read_answer
from srt_kernels.core.checks import expect
from srt_kernels.groups.group_advantage import AdvantageKind

MAX_SCORE = 1 << 24  # verl keeps scores in fp32, where integers below this are exact


def answer_score(
    data_source: str,
    solution_str: str,
    ground_truth: Any,
    extra_info: dict | None = None,
    *,
    rule: str = "boxed",
) -> dict[str, Any]:
    """A reward function for verl. Its score names the answer, for the majority_ advantages.

    verl's advantage estimators see scores and uids, not texts. So verl's critic/score metrics mean
    nothing here, and the vote refuses a KL in the reward (algorithm.use_kl_in_reward).

    Args:
        data_source: not read.
        solution_str: the completion.
        ground_truth: the gold answer, or None.
        extra_info: not read.
        rule: where the final answer is (read_answer). Set it by
            custom_reward_function.reward_kwargs.rule.

    Returns:
        score: an integer from 1 to 2^24 - 1, made of the answer's 64-bit key, or 0 for no answer.
            Equal answers have equal scores. Two different answers share a score in 6 of 10^8 cases.
        pred: the canonical answer. Only logged.
        acc: 1.0 if the answer is the gold one, 0.0 if not, None without gold. Only logged: verl
            makes acc/mean@n and acc/maj@n of validation prompts from it.
    """
    answer = read_answer(solution_str, rule)
    key = answer_key(answer)
    gold = None if ground_truth is None else answer_key(str(ground_truth))
    return {
        "score": float(1 + key % (MAX_SCORE - 1)) if key else 0.0,
        "pred": (canonical_answer(answer) or "") if answer else "",
        "acc": None if gold is None else float(key == gold != 0),
    }


def majority_advantage(
    kind: AdvantageKind,
    token_level_rewards: Tensor,
    response_mask: Tensor,
    index: Iterable[Hashable],
    config: Any = None,
) -> tuple[Tensor, Tensor]:
    """Advantages of agreement with the majority of the same uid. Needs no labels.

    A tie goes to the earlier row. Rows without an answer earn 0. Rows without tokens in the mask,
    for example those that rejection sampling took out, neither vote nor count in their group. See
    majority_vote and group_advantage.

    Args:
        kind: of group_advantage.
        token_level_rewards: [B, T] fp32. In each row one is the score of answer_score, others are
            0.
        response_mask: [B, T].
        index: [B] uids, in any order, with groups of any size.
        config: verl's AlgoConfig or None. Only use_kl_in_reward is read. For
            norm_adv_by_std_in_grpo choose kind "grpo" or "mean".

    Returns:
        Advantages and returns, which are the same: [B, T] fp32, 0 outside the mask.

    Raises:
        ValueError: use_kl_in_reward, and rewards that are not answer_score's.
    """
    has_kl = getattr(config, "use_kl_in_reward", False)
    expect(not has_kl, "algorithm.use_kl_in_reward", "False: scores name answers here", has_kl)
    order, cu_groups = _group_rows(index, token_level_rewards.device)
    is_kept = (response_mask != 0).any(-1)[order]
    keys = _answer_keys(token_level_rewards)[order]
    vote = majority_vote(keys, cu_groups, weights=is_kept.float())
    rewards = vote.rewards.where(is_kept, torch.nan)  # nan: not counted
    advantages = torch.empty_like(rewards)
    advantages[order] = group_advantage(rewards, cu_groups, kind=kind)
    token_advantages = advantages[:, None] * response_mask
    return token_advantages, token_advantages


def _answer_keys(token_level_rewards: Tensor) -> Tensor:
    """[B] int64: the scores. Looks at each reward: what is added to several may sum to a score."""
    dtype = token_level_rewards.dtype
    is_exact = dtype in (torch.float32, torch.float64)
    expect(is_exact, "token_level_rewards", "dtype float32 or float64: scores name answers", dtype)
    is_score = token_level_rewards == token_level_rewards.trunc()
    is_score &= (token_level_rewards >= 0) & (token_level_rewards < MAX_SCORE)
    is_valid = is_score.all(-1) & ((token_level_rewards != 0).sum(-1) <= 1)
    expected = "one score of answer_score in each row, with use_kl_in_reward off"
    got = f"{token_level_rewards[~is_valid][:1].tolist()}"
    expect(bool(is_valid.all()), "token_level_rewards", expected, got)
    return token_level_rewards.sum(-1).long()


def _group_rows(index: Iterable[Hashable], device: torch.device) -> tuple[Tensor, Tensor]:
    """uids [B] -> an order of the rows [B] with those of a uid as neighbours, and cu_groups."""
    numbers: dict[Hashable, int] = {}
    groups = [numbers.setdefault(uid, len(numbers)) for uid in index]
    group = torch.tensor(groups, dtype=torch.int64, device=device)
    sizes = torch.bincount(group, minlength=len(numbers))
    return torch.argsort(group, stable=True), lengths_to_offsets(sizes)
