"""The policy grades its own rollouts: r_i = P(yes) / (P(yes) + P(no)), asked `question` about prompt and completion.

RLSR (arXiv 2505.08827) samples a verdict and rewards 1 for "correct"; here its probability is read off the two verdicts, as
in generative verifiers (arXiv 2408.15240): no sampling, one short forward pass, and no vote that a lucky verdict decides.
Reported close to a formal verifier on Countdown; about 65 % there against the oracle's 70 % (arXiv 2603.08660). A model that
cannot grade is asked in vain, and a policy that is trained on its verdicts can learn to please its judge. A rollout without
an answer earns 0.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from srt_fast.rewards.base import QUESTION, check_question
from srt_fast.types import Groups, Reward


@dataclass(frozen=True, kw_only=True)
class SelfJudge:
    """Reward in [0, 1]. `question`: with {prompt} and {completion}; the verdicts are 1 and 0, worded as task.answer_rule asks."""

    requires: ClassVar[frozenset[str]] = frozenset({"judgement"})
    question: str = QUESTION

    def __post_init__(self):
        check_question(self.question)

    def __call__(self, groups: Groups) -> Reward:
        return Reward(rewards=groups.judged.where(groups.keys != 0, 0.0), keep=groups.everyone())
