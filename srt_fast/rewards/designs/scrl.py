"""Positive labels from clear votes, negative ones from rare and uncertain answers.

r_i = 1 if a_i = m, f_m >= tau_pos and f_m - f_2 > tau_margin: the vote is clear.
r_i = -1 if f_a < tau_low and H_a >= H, for another answer a: it is rare and uncertain.
r_i = 0 otherwise.

f_a is the share of answer a, f_2 that of the second answer. H_a is the mean over the rollouts with
answer a of their mean token entropy, H the same over the whole group. SCRL (arXiv 2603.19880; code
at Jasper-Yan/SCRL, its binary mode). A group without a clear vote still learns what is probably
wrong. It needs no labels; the source needs none either. The defaults are those of the source's
script, with 32 votes a prompt: then tau_low is "at most three votes". With eight votes or fewer it
is never met: raise it.

Ours: a rollout without an answer has reward 0 (in the source's code -1). Left out: the source's
continuous mode, which scales the rewards by share and entropy. The entropies cost a forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from srt_fast.rewards.base import (
    Requirement,
    TokenEntropies,
    answer_share,
    answer_votes,
    group_index,
    keep_all,
    mean_over_tokens,
)
from srt_fast.types import Groups, Reward
from srt_kernels.core.segments import segment_reduce
from srt_kernels.groups.majority_vote import votes_per_key


@dataclass(frozen=True, kw_only=True)
class Scrl:
    """Reward 1, 0 or -1.

    `tau_pos`, `tau_margin`: least share of a clear majority, and what its lead must exceed.
    `tau_low`: an answer with a smaller share is rare.
    """

    requires: ClassVar[tuple[Requirement, ...]] = (TokenEntropies(),)

    tau_pos: float = 0.375
    tau_margin: float = 0.125
    tau_low: float = 0.125

    def __post_init__(self) -> None:
        if not all(0 <= tau <= 1 for tau in (self.tau_pos, self.tau_margin, self.tau_low)):
            raise ValueError(
                "reward.params: expected tau_pos, tau_margin and tau_low from 0 to 1, got "
                f"tau_pos={self.tau_pos}, tau_margin={self.tau_margin}, tau_low={self.tau_low}"
            )

    def __call__(self, groups: Groups) -> Reward:
        assert groups.entropies is not None
        group = group_index(groups)
        vote = groups.vote
        lead = vote.share - vote.runner_up
        is_clear = (vote.share >= self.tau_pos) & (lead > self.tau_margin)
        is_positive = vote.rewards.bool() & is_clear[group]
        entropies = mean_over_tokens(groups, groups.entropies).double()
        sizes = groups.cu_groups.diff().clamp_min(1)
        group_mean = segment_reduce(entropies, "sum", groups.cu_groups) / sizes
        answer_sum = votes_per_key(groups.keys, group, entropies)
        answer_mean = answer_sum / answer_votes(groups).clamp_min(1)
        is_uncertain = answer_mean >= group_mean[group]
        is_rare = (groups.keys != 0) & (answer_share(groups) < self.tau_low)
        is_negative = is_rare & is_uncertain & ~is_positive
        return Reward(rewards=is_positive.float() - is_negative.float(), keep=keep_all(groups))
