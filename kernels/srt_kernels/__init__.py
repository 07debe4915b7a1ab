"""Policy-gradient ops on packed rollouts. Depends on torch and triton only; reference.py is the specification."""

from .answer_key import AnswerReader
from .group_advantage import group_advantage
from .linear_logprob import linear_logprob
from .linear_policy_loss import linear_policy_loss
from .majority_vote import Vote, majority_vote
from .objective import Objective
from .policy_loss import PolicyLoss, policy_loss

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
