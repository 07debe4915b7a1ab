"""Labels of a slow teacher: r_i = 1[a_i = m_T].

m_T is the vote of an exponential moving average of the policy.

Co-rewarding-II (arXiv 2508.00410): theta_T <- a theta_T + (1 - a) theta after every step. a goes
from 0.99 to 0.9999 by a cosine over the run. The label is the vote of the teacher's own rollouts.
Reported as stable where the vote collapses (Qwen3-8B on DAPO-14k: MATH500 80.6 against 78.6). The
teacher lags by about 1 / (1 - a) steps. That delays the loop that collapses, and does not cut it.
The cost is a copy of the weights, and a second sampling of the prompts on which the policy's
rollouts differ. A group whose rollouts all give one answer, or all give none, has equal rewards
under any label. So its advantages are exactly 0, and the teacher is not asked. With a KL penalty in
the reward they are not 0, but the same under any label, up to rounding. `samples` lowers the cost
further.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from srt_fast.rewards.base import EMATeacher, Requirement, keep_all, label_agreement
from srt_fast.types import Groups, Reward
from srt_kernels import majority_vote


@dataclass(frozen=True, kw_only=True)
class Ema:
    """Reward 1 for the teacher's majority. `decay`, `final_decay`: a at the start and at the end of
    the run.

    `samples`: the teacher's completions of a prompt. 0: as many as the policy's. `ask`: the teacher
    votes on the prompts on which the policy's rollouts differ ("undecided"), or on all. The
    policy's own answer is the label of the others. With train.objective "sft" it votes on all,
    because a group of equal rewards trains there.
    """

    decay: float = 0.99
    final_decay: float = 0.9999
    samples: int = 0
    ask: Literal["all", "undecided"] = "undecided"

    @property
    def requires(self) -> tuple[Requirement, ...]:
        teacher = EMATeacher(
            decay=self.decay,
            final_decay=self.final_decay,
            samples=self.samples,
            ask=self.ask,
        )
        return (teacher,)

    def __call__(self, groups: Groups) -> Reward:
        assert groups.teacher_keys is not None and groups.cu_teacher is not None
        votes = majority_vote(groups.teacher_keys, groups.cu_teacher).majority
        is_asked = groups.cu_teacher.diff() > 0
        labels = votes.where(is_asked, groups.vote.majority)
        return Reward(rewards=label_agreement(groups, labels), keep=keep_all(groups))
