"""Labels of a slow teacher: r_i = 1[a_i = m_T].

m_T is the vote of an exponential moving average of the policy.

Co-rewarding-II (arXiv 2508.00410): theta_T <- a theta_T + (1 - a) theta after every step. a goes
from 0.99 to 0.9999 by a cosine over the run. The label is the vote of the teacher's own rollouts.
Reported as stable where the vote collapses (Qwen3-8B on DAPO-14k: MATH500 80.6 against 78.6). The
teacher lags by about 1 / (1 - a) steps. That delays the loop that collapses, and does not cut it.
The cost is a second sampling of every prompt and a copy of the weights.
"""

from __future__ import annotations

from dataclasses import dataclass

from srt_fast.rewards.base import EMATeacher, Requirement, keep_all, label_agreement
from srt_fast.types import Groups, Reward
from srt_kernels import majority_vote


@dataclass(frozen=True, kw_only=True)
class Ema:
    """Reward 1 for the teacher's majority. `decay`, `final_decay`: a at the start and at the end of
    the run.

    `samples`: the teacher's completions of a prompt. 0: as many as the policy's.
    """

    decay: float = 0.99
    final_decay: float = 0.9999
    samples: int = 0

    @property
    def requires(self) -> tuple[Requirement, ...]:
        return (EMATeacher(decay=self.decay, final_decay=self.final_decay, samples=self.samples),)

    def __call__(self, groups: Groups) -> Reward:
        assert groups.teacher_keys is not None and groups.cu_teacher is not None
        labels = majority_vote(groups.teacher_keys, groups.cu_teacher).majority
        return Reward(rewards=label_agreement(groups, labels), keep=keep_all(groups))
