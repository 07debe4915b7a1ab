"""Accuracy of vote and labels, repeated text, and tokens whose correction is over its cap."""

import math

import pytest
import torch

from srt_fast.run.step_metrics import WINDOW_TOKENS, over_cap, repetition, vote_metrics
from srt_fast.sampling.base import Completion, pack_completions
from srt_fast.types import MicroBatch, Segments
from srt_kernels import Objective, majority_vote


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
        segments=Segments.of_sequences([2, 1, 3], empty),
        row_index=empty,
        unique_rows=True,
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


def test_the_vote_and_the_labels_have_accuracies_of_their_own():
    """Vote right and label wrong, the reverse, vote right and no rollout with the label, and no
    answers.
    """
    keys = torch.tensor([1, 1, 2, 3, 3, 4, 5, 5, 0, 0])
    cu_groups = torch.tensor([0, 3, 6, 8, 10], dtype=torch.int32)
    correct = torch.tensor([1, 1, 0, 0, 0, 1, 1, 1, 0, 0]).bool()
    rewards = torch.tensor([0, 0, 1, 0, 0, 1, 0, 0, 0, 0]).float()
    keep = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1, 1, 1]).bool()
    vote = majority_vote(keys, cu_groups)
    values = vote_metrics(vote, correct, cu_groups, rewards, keep)
    assert values["vote_accuracy"] == pytest.approx(2 / 3)
    assert values["label_accuracy"] == 1 / 2
    assert values["kept_label_accuracy"] == 1
    of_vote = vote_metrics(vote, correct, cu_groups, rewards / 2, keep)
    assert of_vote["label_accuracy"] == of_vote["vote_accuracy"]


def repetition_of(completions: list[list[int]]) -> float | None:
    packed = [Completion(torch.tensor(ids), torch.zeros(len(ids)), False) for ids in completions]
    value = repetition(pack_completions(packed, [[1]] * len(packed), samples=1))
    return None if value is None else value.item()


def test_repetition_counts_windows_of_each_completion():
    """The same as sets of windows. A window over the end of a completion is none."""
    torch.manual_seed(0)
    lengths = torch.randint(1, 40, (60,)).tolist()
    completions = [torch.randint(0, 2, (length,)).tolist() for length in lengths]
    completions[7] = completions[8] = [3] * 20
    windows = [
        [tuple(ids[place : place + WINDOW_TOKENS]) for place in range(len(ids) - WINDOW_TOKENS + 1)]
        for ids in completions
    ]
    distinct = sum(len(set(own)) for own in windows)
    # Sums of at most 2000 terms of size 1 in fp64.
    assert repetition_of(completions) == pytest.approx(
        1 - distinct / sum(map(len, windows)), abs=2000 * 2**-53
    )
    assert repetition_of([[1] * (WINDOW_TOKENS - 1)] * 3) is None
