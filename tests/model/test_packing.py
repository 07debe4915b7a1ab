"""Micro-batches of the worked example of srt_fast/types.py, with prompts of 3 tokens and 1."""

import torch

from srt_fast.model.packing import pack, select_rollouts
from srt_fast.types import Layout, Rollouts

ROLLOUTS = Rollouts(
    tokens=torch.arange(100, 110),
    cu_seqlens=torch.tensor([0, 2, 3, 6, 8, 10], dtype=torch.int32),
    cu_groups=torch.tensor([0, 3, 5], dtype=torch.int32),
    logprobs=-torch.arange(10.0),
    truncated=torch.zeros(5, dtype=torch.bool),
    prompts=[[1, 2, 3], [9]],
    layout=Layout(lengths=[2, 1, 3, 2, 2], group_sizes=[3, 2]),
)


def test_worked_example():
    """The unanimous group is dropped. The longest rollout comes first."""
    advantages = torch.tensor([1 / 3, 1 / 3, -2 / 3, 0, 0])
    keep = torch.ones(5, dtype=torch.bool)
    selection = select_rollouts(ROLLOUTS, advantages, keep, every_row=False)
    assert selection.active == [0, 1, 2]
    [batch] = pack(ROLLOUTS, advantages, selection.active, token_budget=100)
    assert batch.rollout_index.tolist() == [2, 0, 1]
    assert batch.input_ids.tolist() == [1, 2, 3, 103, 104, 105, 1, 2, 3, 100, 101, 1, 2, 3, 102]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert batch.cu_input.tolist() == [0, 6, 11, 15]
    assert batch.max_length == 6
    assert batch.cu_seqlens.tolist() == [0, 3, 5, 6]
    assert batch.targets.tolist() == [103, 104, 105, 100, 101, 102]
    assert batch.row_index.tolist() == [2, 3, 4, 8, 9, 13]
    assert batch.input_ids[batch.row_index + 1].equal(batch.targets)  # a row predicts the next
    assert batch.advantages.tolist() == advantages[[2, 0, 1]].tolist()
    assert batch.sampler_logprobs.equal(ROLLOUTS.logprobs[batch.token_index])


def test_every_rollout_once_within_the_budget():
    def pack_within(token_budget):
        return pack(ROLLOUTS, torch.ones(5), range(5), token_budget)

    batches = pack_within(7)
    assert sorted(torch.cat([batch.rollout_index for batch in batches]).tolist()) == [0, 1, 2, 3, 4]
    assert sorted(torch.cat([batch.token_index for batch in batches]).tolist()) == list(range(10))
    assert [len(batch.input_ids) for batch in batches] == [6, 5, 7, 3]
    assert [len(batch.input_ids) for batch in pack_within(1)] == [6, 5, 4, 3, 3]


def test_select_rollouts():
    keep = torch.tensor([True, False, True, True, True])
    advantages = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0])

    def active(every_row):
        return select_rollouts(ROLLOUTS, advantages, keep, every_row=every_row).active

    assert active(every_row=False) == [0]
    assert active(every_row=True) == [0, 2, 3, 4]
