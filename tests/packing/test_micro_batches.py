"""Micro-batches of the worked example of srt_fast/types.py, with prompts of 3 tokens and 1."""

import itertools
import random
from types import SimpleNamespace

import pytest
import torch

from srt_fast.distributed.balance import KEYS_PER_TOKEN
from srt_fast.distributed.world import ONE_PROCESS
from srt_fast.packing.micro_batches import count_tokens, pack, select_rollouts
from srt_fast.packing.pieces import count_planned_tokens, plan_micro_batches
from srt_fast.types import Layout, MicroBatch, Rollouts

ROLLOUTS = Rollouts(
    tokens=torch.arange(100, 110),
    cu_seqlens=torch.tensor([0, 2, 3, 6, 8, 10], dtype=torch.int32),
    cu_groups=torch.tensor([0, 3, 5], dtype=torch.int32),
    logprobs=-torch.arange(10.0),
    truncated=torch.zeros(5, dtype=torch.bool),
    prompts=[[1, 2, 3], [9]],
    layout=Layout(lengths=[2, 1, 3, 2, 2], group_sizes=[3, 2]),
)


def contexts(batch: MicroBatch) -> list[list[int]]:
    """The tokens that each target's row sees: the keys of its segment up to itself."""
    segments = batch.segments
    key_index = segments.key_index
    if key_index is None:
        key_index = torch.arange(len(batch.input_ids))
    seen: list[list[int]] = []
    for place, queries in enumerate(segments.query_lengths):
        start, stop = segments.cu_keys[place : place + 2].tolist()
        assert stop - start == segments.key_lengths[place]
        keys = batch.input_ids[key_index[start:stop]].tolist()
        seen += [keys[: len(keys) - queries + query + 1] for query in range(queries)]
    assert [len(keys) - 1 for keys in seen] == batch.position_ids.tolist()
    return [seen[row] for row in batch.row_index.tolist()]


def expected_contexts(rollouts: Rollouts, batch: MicroBatch) -> list[list[int]]:
    """The prompt and the completion's tokens before each target."""
    offsets = rollouts.layout.offsets
    expected = []
    for rollout in batch.rollout_index.tolist():
        completion = rollouts.tokens[offsets[rollout] : offsets[rollout + 1]].tolist()
        prompt = rollouts.prompts[rollouts.layout.groups[rollout]]
        expected += [prompt + completion[:place] for place in range(len(completion))]
    return expected


def test_worked_example():
    """The unanimous group is dropped. The longest completion comes first."""
    advantages = torch.tensor([1 / 3, 1 / 3, -2 / 3, 0, 0])
    keep = torch.ones(5, dtype=torch.bool)
    selection = select_rollouts(ROLLOUTS, advantages, keep, every_row=False)
    assert selection.active == [0, 1, 2]
    [batch] = pack(ROLLOUTS, advantages, selection.active, token_budget=100, share_prompts=True)
    assert batch.rollout_index.tolist() == [2, 0, 1]
    assert batch.input_ids.tolist() == [1, 2, 3, 103, 104, 100]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 4, 3]
    segments = batch.segments
    assert segments.query_lengths == [3, 2, 1] and segments.max_queries == 3
    assert segments.key_lengths == [3, 5, 4] and segments.max_keys == 5
    assert segments.cu_queries.tolist() == [0, 3, 5, 6]
    assert segments.cu_keys.tolist() == [0, 3, 8, 12]
    assert segments.key_index.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 0, 1, 2, 5]
    assert batch.cu_seqlens.tolist() == [0, 3, 5, 6]
    assert batch.targets.tolist() == [103, 104, 105, 100, 101, 102]
    assert batch.row_index.tolist() == [2, 3, 4, 2, 5, 2]
    assert not batch.unique_rows
    assert batch.advantages.tolist() == advantages[[2, 0, 1]].tolist()
    assert batch.sampler_logprobs.equal(ROLLOUTS.logprobs[batch.token_index])
    assert count_tokens(ROLLOUTS, selection.active) == 5 + 4 + 3


def random_rollouts(rng: random.Random) -> Rollouts:
    """Ragged groups. Some prompts and some completions have one token, some completions none."""
    group_sizes = [rng.choice([1, 2, 5]) for _ in range(rng.randint(1, 4))]
    lengths = [rng.choice([0, 1, 2, 7, 20]) for _ in range(sum(group_sizes))]
    layout = Layout(lengths=lengths, group_sizes=group_sizes)
    count = sum(lengths)
    return Rollouts(
        tokens=torch.arange(1000, 1000 + count),
        cu_seqlens=torch.tensor(layout.offsets, dtype=torch.int32),
        cu_groups=torch.tensor(layout.group_bounds, dtype=torch.int32),
        logprobs=-torch.arange(float(count)),
        truncated=torch.zeros(len(lengths), dtype=torch.bool),
        prompts=[
            [10 * group + place for place in range(rng.choice([1, 3, 9]))]
            for group in range(len(group_sizes))
        ],
        layout=layout,
    )


@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.parametrize("share_prompts", [False, True])
def test_every_token_once_with_its_context(share_prompts, ranks):
    """Random groups: each target has its own prompt and completion, and budgets hold."""
    rng = random.Random(0)
    for _ in range(200):
        rollouts = random_rollouts(rng)
        count = len(rollouts.truncated)
        indices = [place for place in range(count) if rng.random() < 0.8]
        budget = rng.choice([1, 15, 40, 10**9])
        worlds = [
            SimpleNamespace(rank=rank, size=ranks, is_distributed=ranks > 1)
            for rank in range(ranks)
        ]
        advantages = torch.arange(float(count))
        per_rank = [
            pack(rollouts, advantages, indices, budget, world, share_prompts=share_prompts)
            for world in worlds
        ]
        assert len({len(batches) for batches in per_rank}) == 1
        batches = [batch for batch in itertools.chain(*per_rank) if len(batch.targets)]
        tokens = torch.cat([batch.token_index for batch in batches]) if batches else torch.zeros(0)
        offsets = rollouts.layout.offsets
        expected = [
            token for place in indices for token in range(offsets[place], offsets[place + 1])
        ]
        assert sorted(tokens.tolist()) == expected
        for batch in batches:
            assert contexts(batch) == expected_contexts(rollouts, batch)
            assert batch.targets.equal(rollouts.tokens[batch.token_index])
            assert batch.cu_seqlens.diff().tolist() == [
                rollouts.layout.lengths[rollout] for rollout in batch.rollout_index.tolist()
            ]
            assert batch.advantages.equal(advantages[batch.rollout_index])
            is_alone = len(batch.rollout_index) == 1
            assert len(batch.input_ids) <= budget or is_alone
            assert sum(batch.segments.key_lengths) <= KEYS_PER_TOKEN * budget or is_alone
            rows = batch.row_index.tolist()
            assert not batch.unique_rows or len(set(rows)) == len(rows)
        plan = plan_micro_batches(rollouts, indices, budget, worlds[0], share_prompts=share_prompts)
        packed = count_planned_tokens(plan)
        assert packed == sum(len(batch.input_ids) for batch in batches)
        if not share_prompts:
            assert packed == count_tokens(rollouts, indices)


def test_one_prompt_for_a_group_that_fits():
    """Without other ranks a prompt repeats only where its group is cut."""
    rollouts = ROLLOUTS
    [batch] = pack(rollouts, torch.ones(5), range(5), 100, share_prompts=True)
    assert len(batch.input_ids) == (3 + 1 + 0 + 2) + (1 + 1 + 1)
    batches = pack(rollouts, torch.ones(5), range(5), 5, share_prompts=True)
    assert [len(batch.input_ids) for batch in batches] == [5, 4, 3]


def test_completions_of_one_token_have_no_keys():
    """Their only token is a target: 16 groups are 16 prompts."""
    layout = Layout(lengths=[1] * 64 * 16, group_sizes=[64] * 16)
    rollouts = SimpleNamespace(layout=layout, prompts=[list(range(1000))] * 16)
    [batches] = plan_micro_batches(rollouts, range(64 * 16), 16000, ONE_PROCESS, share_prompts=True)
    assert [sum(piece.tokens for piece in pieces) for pieces in batches] == [16000]


def test_ranks_share_one_group():
    """A whole group would leave three of four ranks idle."""
    lengths = [51] * 8
    rollouts = SimpleNamespace(
        layout=Layout(lengths=lengths, group_sizes=[8]), prompts=[list(range(20))]
    )
    world = SimpleNamespace(rank=0, size=4, is_distributed=True)
    plan = plan_micro_batches(rollouts, range(8), 10**9, world, share_prompts=True)
    assert [sum(piece.tokens for piece in batches[0]) for batches in plan] == [120] * 4


def test_select_rollouts():
    keep = torch.tensor([True, False, True, True, True])
    advantages = torch.tensor([1.0, 1.0, 0.0, 0.0, 0.0])

    def active(every_row):
        return select_rollouts(ROLLOUTS, advantages, keep, every_row=every_row).active

    assert active(every_row=False) == [0]
    assert active(every_row=True) == [0, 2, 3, 4]
