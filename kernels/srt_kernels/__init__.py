"""Policy-gradient ops on packed rollouts. Depends on torch and triton only.

reference.py is the specification. A name is imported at its first use: the plain-Python part of
`answers` needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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

_MODULES = {
    "AnswerReader": "answers.reader",
    "Objective": "objective.objective",
    "PolicyLoss": "objective.policy_loss",
    "Vote": "groups.majority_vote",
    "group_advantage": "groups.group_advantage",
    "linear_logprob": "lm_head.linear_logprob",
    "linear_policy_loss": "lm_head.linear_policy_loss",
    "majority_vote": "groups.majority_vote",
    "policy_loss": "objective.policy_loss",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
