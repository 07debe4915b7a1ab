"""Labels that never move: r_i = 1[a_i = y], y the starting model's vote on the prompt, taken once, or an answer from a file.

The paper's "fixed teacher" or offline labels (arXiv 2505.21444, section 3 and appendix I.2): on DAPO 0.31 and flat to step
1000, where the plain vote is at 0; still a collapse beyond one epoch of MATH. What the policy learns to prefer cannot become
its label, so the loop that collapses is cut; the price is a ceiling, the starting model's vote. A prompt's vote costs one
more sampling of it the first time it comes up; the labels travel with the checkpoint. A prompt without a label earns nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from srt_fast.types import Groups, Reward


@dataclass(frozen=True, kw_only=True)
class Frozen:
    """Reward 1 for the label. `file`: JSON lines with the columns "prompt" (as the task has it) and "label", instead of votes of
    the starting model; `samples`: completions that it votes with, 0: as many as the policy's."""

    requires: ClassVar[frozenset[str]] = frozenset({"start"})
    file: str | None = None
    samples: int = 0

    def __post_init__(self):
        if self.samples < 0 or self.samples and self.file:
            raise ValueError(
                f"reward.params: samples: expected at least 0, and 0 with a file, got {self.samples}"
            )

    def __call__(self, groups: Groups) -> Reward:
        return Reward(rewards=groups.agrees_with(groups.start_labels), keep=groups.everyone())
