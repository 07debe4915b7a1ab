"""The share of tokens whose sampler correction is over its cap."""

import math

import pytest
import torch

from srt_fast.run.step_metrics import over_cap
from srt_fast.types import MicroBatch
from srt_kernels import Objective


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize("action", ["truncate", "mask"])
def test_over_cap(level, action):
    """Completions of 2, 1 and 3 tokens. A correction is of a token, or of a whole completion."""
    log_corrections = torch.tensor([0.5, 0.5, 0.9, -1.0, 1.2, 0.5])  # sums 1.0, 0.9, 0.7
    objective = Objective.preset(
        "grpo", correction=f"{level}_{action}", correction_cap=math.exp(0.8)
    )
    empty = torch.zeros(0)
    batch = MicroBatch(
        input_ids=empty,
        position_ids=empty,
        cu_input=empty,
        max_length=3,
        row_index=empty,
        targets=empty,
        cu_seqlens=torch.tensor([0, 2, 3, 6], dtype=torch.int32),
        advantages=torch.ones(3),
        sampler_logprobs=torch.full((6,), -3.0),
        rollout_index=torch.arange(3),
        token_index=torch.arange(6),
    )
    expected = {
        "token": [False, False, True, False, True, False],
        "sequence": [True, True, True, False, False, False],
    }
    assert over_cap(objective, log_corrections - 3.0, batch).tolist() == expected[level]
