"""Reward designs by name, one small file each."""

from srt_fast.feedback.base import Feedback, Groups, Reward
from srt_fast.feedback.majority import Majority
from srt_fast.feedback.oracle import Oracle

DESIGNS = {"majority": Majority, "oracle": Oracle}

__all__ = ["DESIGNS", "Feedback", "Groups", "Majority", "Oracle", "Reward"]
