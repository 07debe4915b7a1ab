"""What a reward design is to the trainer: a step's groups in, rewards, a mask and weights out."""

from __future__ import annotations

from typing import ClassVar, Protocol

from srt_fast.types import Groups, Reward

REQUIREMENTS = ("gold", "start", "teacher", "entropies", "certainty", "judgement", "verification")
"""What a design may ask for beside the vote; evidence.py gets it. "verification" is a second task on the design's rewards."""

QUESTION = "{prompt}\n{completion}\nIs this solution correct? Answer 1 for yes or 0 for no."
"""What a policy is asked about its own rollout; the task's template and chat template are put around it."""


class RewardFunction(Protocol):
    """A reward design: a dataclass whose fields are its settings (reward.params). A pure function of what it is given: what
    has to be remembered (labels, a teacher's weights) is evidence, and travels with the checkpoint. Nothing in a call may
    wait for the device."""

    requires: ClassVar[frozenset[str]]  # of REQUIREMENTS

    def __call__(self, groups: Groups) -> Reward: ...


def check_teacher(decay: float, final_decay: float, samples: int) -> None:
    """ValueError for settings that no moving-average teacher can have."""
    if not (0 <= decay <= 1 and 0 <= final_decay <= 1 and samples >= 0):
        raise ValueError(
            "reward.params: expected decay and final_decay from 0 to 1 and samples at least 0, got "
            f"decay={decay}, final_decay={final_decay}, samples={samples}"
        )


def check_question(question: str) -> None:
    """ValueError for a question that does not show the solution."""
    if question.count("{prompt}") > 1 or question.count("{completion}") != 1:
        raise ValueError(
            "reward.params: question: expected {completion} exactly once and {prompt} at most once, "
            f"got {question!r}"
        )
