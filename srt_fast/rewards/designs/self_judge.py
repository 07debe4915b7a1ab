"""The policy grades its own rollouts: r_i = P(yes) / (P(yes) + P(no)).

The question about prompt and completion is `question`.

RLSR (arXiv 2505.08827) samples a verdict and gives reward 1 for "correct". Here the reward is the
probability of the verdict, as in generative verifiers (arXiv 2408.15240). That needs one short
forward pass and no sampling, and no lucky verdict decides. Reported close to a formal verifier on
Countdown: about 65 % against the oracle's 70 % (arXiv 2603.08660). A model that cannot grade gives
no useful reward. A policy that trains on its own verdicts can learn to please its judge. A rollout
without an answer gets 0.
"""

from __future__ import annotations

from dataclasses import dataclass

from srt_fast.rewards.base import QUESTION, Requirement, SelfJudgement, keep_all
from srt_fast.types import Groups, Reward


@dataclass(frozen=True, kw_only=True)
class SelfJudge:
    """Reward in [0, 1].

    `question`: text with {prompt} and {completion}. The verdicts are 1 and 0, worded as
    task.answer_rule asks.
    """

    question: str = QUESTION

    @property
    def requires(self) -> tuple[Requirement, ...]:
        return (SelfJudgement(question=self.question),)

    def __call__(self, groups: Groups) -> Reward:
        assert groups.judge_scores is not None
        return Reward(
            rewards=groups.judge_scores.where(groups.keys != 0, 0.0), keep=keep_all(groups)
        )
