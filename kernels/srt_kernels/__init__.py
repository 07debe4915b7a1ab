"""Policy-gradient ops on packed rollouts. Depends on torch and triton only.

reference.py is the specification.
"""

from srt_kernels.answers.reader import AnswerReader
from srt_kernels.groups.group_advantage import group_advantage
from srt_kernels.groups.majority_vote import Vote, majority_vote
from srt_kernels.lm_head.linear_logprob import linear_logprob
from srt_kernels.lm_head.linear_policy_loss import linear_policy_loss
from srt_kernels.objective.objective import Objective
from srt_kernels.objective.policy_loss import PolicyLoss, policy_loss

__all__ = [
    "AnswerReader",
    "Objective",
    "PolicyLoss",
    "Vote",
    "group_advantage",
    "linear_logprob",
    "linear_policy_loss",
    "majority_vote",
    "policy_loss",
]
