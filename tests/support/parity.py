"""Rollouts and objectives on which TRL's and Liger's losses are compared with ours."""

from __future__ import annotations

import torch
from torch import Tensor

from srt_kernels import Objective

preset = Objective.preset

LENGTHS = [3, 1, 5, 0, 7, 1, 9, 2]  # the empty one is a truncated completion, which TRL masks
REWARDS = [1.0, 0.0, 1.0, 0.0, 0.0, 0.5, 1.0, 0.5]  # two groups of four; two advantages are 0
ADVANTAGES = torch.tensor(REWARDS) - 0.5
MASK = torch.arange(9) < torch.tensor(LENGTHS)[:, None]  # [B, T]
CU_SEQLENS = torch.tensor([0, *LENGTHS]).cumsum(0)
SEQUENCE = dict(ratio="sequence", clip_low=0.05, clip_high=0.01)

# loss_type of TRL and Liger, and the Objective that it is. Each row is a preset or a path of its
# own. Ratios lie on both sides of every bound.
CASES = {
    "grpo": ("grpo", preset("grpo")),
    "bnpo": ("bnpo", preset("bnpo")),
    "dr_grpo": ("dr_grpo", preset("dr_grpo", max_length=16)),
    "dapo": ("dapo", preset("dapo")),
    "srt": ("bnpo", preset("srt", delta=1.25)),
    "cispo": ("cispo", preset("cispo", clip_high=1.1)),
    # The cap is out of reach.
    "reinforce, importance weighted": ("cispo", preset("reinforce", ratio="token", clip_high=1e3)),
    # TRL rounds the default of tau_neg, 1.05, to fp32.
    "sapo": ("sapo", preset("sapo", tau_pos=2.0, tau_neg=3.0)),
    "gspo": ("grpo", preset("gspo")),
    "gspo, delta": ("grpo", preset("gspo", delta=1.05)),
    "bnpo, sequence ratio": ("bnpo", preset("bnpo", **SEQUENCE)),
    "dapo, sequence ratio": ("dapo", preset("dapo", **SEQUENCE)),
    "dr_grpo, sequence ratio": ("dr_grpo", preset("dr_grpo", max_length=16, **SEQUENCE)),
    # arXiv 2602.05261: a sequence's loss times its length
    "luspo": ("luspo", preset("dr_grpo", max_length=1, **SEQUENCE)),
}
KL = {
    "no KL": dict(),
    "k3": dict(kl_coef=0.04),
    "k3, bias corrected": dict(kl_coef=0.04, kl_bias_correction=True),
}


def grid(cases: dict[str, tuple[str, Objective]]) -> list[tuple[str, str]]:
    """Names of a case and of a KL.

    Left out is the corrected KL of sequence ratios. TRL and Liger multiply it by the sequence's
    ratio. Ours takes the token's, as DeepSeek-V3.2 (eq. 7) does.
    """
    return [
        (case, kl)
        for case, (_, objective) in cases.items()
        for kl in KL
        if "bias" not in kl or objective.ratio == "token"
    ]


def pad(packed: Tensor, value: float) -> Tensor:
    """[N, ...] -> [B, T, ...], `value` outside of MASK."""
    padded = torch.full((*MASK.shape, *packed.shape[1:]), value, dtype=packed.dtype)
    padded[MASK] = packed
    return padded
