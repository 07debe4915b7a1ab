import torch

from srt_fast.model.packing import active_rollouts, pack
from srt_fast.types import Rollouts


def worked_example() -> Rollouts:
    """The example of srt_fast/rollout.py: completions of 2, 1, 3, 2, 2 tokens, prompts of 3 and 1 tokens."""
    return Rollouts(
        tokens=torch.arange(100, 110),
        cu_seqlens=torch.tensor([0, 2, 3, 6, 8, 10], dtype=torch.int32),
        cu_groups=torch.tensor([0, 3, 5], dtype=torch.int32),
        logprobs=-torch.arange(10.0),
        truncated=torch.zeros(5, dtype=torch.bool),
        prompts=[[1, 2, 3], [9]],
    )


def test_worked_example():
    rollouts, advantages = worked_example(), torch.tensor([1 / 3, 1 / 3, -2 / 3, 0, 0])
    active = active_rollouts(
        advantages, torch.ones(5, dtype=torch.bool), rollouts.cu_seqlens, every_row=False
    )
    assert active.tolist() == [0, 1, 2]  # the unanimous group is gone
    [batch] = pack(
        rollouts, advantages, active, token_budget=100
    )  # longest first: rollouts 2, 0, 1
    assert batch.rollout_index.tolist() == [2, 0, 1]
    assert batch.input_ids.tolist() == [1, 2, 3, 103, 104, 105, 1, 2, 3, 100, 101, 1, 2, 3, 102]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2, 3, 4, 0, 1, 2, 3]
    assert batch.cu_input.tolist() == [0, 6, 11, 15] and batch.cu_seqlens.tolist() == [0, 3, 5, 6]
    assert batch.targets.tolist() == [103, 104, 105, 100, 101, 102]
    assert batch.row_index.tolist() == [2, 3, 4, 8, 9, 13]  # each row predicts the token after it
    assert batch.input_ids[batch.row_index + 1].equal(batch.targets)
    assert batch.advantages.tolist() == advantages[[2, 0, 1]].tolist()
    assert batch.sampler_logprobs.equal(rollouts.logprobs[batch.token_index])


def test_every_rollout_once_within_the_budget():
    rollouts, advantages = worked_example(), torch.ones(5)
    batches = pack(rollouts, advantages, torch.arange(5), token_budget=7)
    assert sorted(torch.cat([b.rollout_index for b in batches]).tolist()) == [0, 1, 2, 3, 4]
    assert sorted(torch.cat([b.token_index for b in batches]).tolist()) == list(range(10))
    assert [len(b.input_ids) for b in batches] == [6, 5, 7, 3]
    assert [
        len(b.input_ids) for b in pack(rollouts, advantages, torch.arange(5), token_budget=1)
    ] == [6, 5, 4, 3, 3]


def test_what_is_active():
    rollouts, keep = worked_example(), torch.tensor([True, False, True, True, True])
    advantages = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0])
    assert active_rollouts(advantages, keep, rollouts.cu_seqlens, every_row=False).tolist() == [0]
    assert active_rollouts(advantages, keep, rollouts.cu_seqlens, every_row=True).tolist() == [
        0,
        2,
        3,
        4,
    ]
