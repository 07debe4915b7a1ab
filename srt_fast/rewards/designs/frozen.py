"""Labels that never move: r_i = 1[a_i = y].

y is the starting model's vote on the prompt, or an answer from a file.

The paper's "fixed teacher" or offline labels (arXiv 2505.21444, section 3 and appendix I.2). On
DAPO that run stays at 0.31 until step 1000, where the plain vote is at 0. It still collapses beyond
one epoch of MATH. What the policy learns to prefer cannot become its label, so the loop that
collapses is cut. The price is a ceiling: the starting model's vote. A prompt's vote costs one more
sampling when the prompt comes up for the first time. Checkpoints hold the labels. A prompt without
a label gets reward 0.
"""

from __future__ import annotations

from dataclasses import dataclass

from srt_fast.rewards.base import Requirement, StartLabels, keep_all, label_agreement
from srt_fast.types import Groups, Reward


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """Reward 1 for the label.

    `file`: JSON lines with the columns "prompt" (as the task has it) and "label". It replaces the
    starting model's votes. `samples`: completions of a prompt that the starting model votes with.
    0: as many as the policy's.
    """

    file: str | None = None
    samples: int = 0

    @property
    def requires(self) -> tuple[Requirement, ...]:
        return (StartLabels(samples=self.samples, file=self.file),)

    def __call__(self, groups: Groups) -> Reward:
        assert groups.start_labels is not None
        return Reward(rewards=label_agreement(groups, groups.start_labels), keep=keep_all(groups))
