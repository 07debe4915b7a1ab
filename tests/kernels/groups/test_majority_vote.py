"""majority_vote against its dict twin, and the kernel against the sort."""

import pytest
import torch

from srt_kernels import majority_vote, reference
from srt_kernels.core.checks import check_offsets
from srt_kernels.groups.majority_vote import vote_by_sorting
from support.bounds import UNIT_ROUNDOFF, assert_within

hypothesis = pytest.importorskip("hypothesis")  # not on every machine with a GPU
st = pytest.importorskip("hypothesis.strategies")
given, settings = hypothesis.given, hypothesis.settings

# A share is a quotient of fp64 sums, rounded to fp32: on both sides, and perhaps to neighbours.
SHARE_ERROR = 2 * UNIT_ROUNDOFF[torch.float32]
# Few, so that they meet. Both ends of int64.
KEY = st.sampled_from([0, 1, 2, -3, 2**63 - 1, -(2**63)])
GROUPS = st.lists(
    st.lists(st.tuples(KEY, st.sampled_from([0.0, 0.5, 1.0, 0.1, 2.0])), max_size=9), max_size=6
)


@settings(deadline=None, max_examples=100)
@given(
    groups=GROUPS,
    dtype=st.sampled_from([None, torch.float16, torch.float32, torch.float64]),
    offsets=st.sampled_from([torch.int32, torch.int64]),
    share_over=st.sampled_from(["all", "valid"]),
)
def test_equals_the_reference(groups, dtype, offsets, share_over):
    flat = [vote for group in groups for vote in group]
    keys = torch.tensor([key for key, _ in flat], dtype=torch.int64)
    weights = None if dtype is None else torch.tensor([weight for _, weight in flat], dtype=dtype)
    cu_groups = torch.tensor([0, *(len(group) for group in groups)]).cumsum(0).to(offsets)
    options = {"weights": weights, "share_over": share_over}
    actual = majority_vote(keys, cu_groups, **options)
    expected = reference.majority_vote(keys, cu_groups, **options)
    for name in ("majority", "rewards", "valid"):
        assert torch.equal(getattr(actual, name), getattr(expected, name)), name
    for name in ("share", "runner_up"):
        share = getattr(expected, name)
        assert_within(name, getattr(actual, name), share, SHARE_ERROR * share)


def test_by_hand():
    # A A B | a tie goes to the earliest rollout's answer, not to the smaller key | more silence
    # than answers | silence alone | empty
    keys = torch.tensor([7, 7, 5, 9, 2, 2, 9, 0, 0, 4, 0, 0])
    cu_groups = torch.tensor([0, 3, 7, 10, 12, 12], dtype=torch.int32)
    vote = majority_vote(keys, cu_groups)
    assert vote.majority.tolist() == [7, 9, 4, 0, 0]
    assert vote.rewards.tolist() == [1, 1, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0]
    assert vote.valid.tolist() == [True] * 7 + [False, False, True, False, False]
    assert vote.share.equal(torch.tensor([2 / 3, 1 / 2, 1 / 3, 0, 0]))
    assert vote.runner_up.equal(torch.tensor([1 / 3, 1 / 2, 0, 0, 0]))
    of_valid = majority_vote(keys, cu_groups, share_over="valid")
    assert of_valid.share.equal(torch.tensor([2 / 3, 1 / 2, 1, 0, 0]))
    # A weight decides the vote, but every rollout that gave the answer earns.
    heavy = majority_vote(keys[:3], torch.tensor([0, 3]), weights=torch.tensor([0.0, 1.0, 1.5]))
    assert heavy.majority.tolist() == [5] and heavy.rewards.tolist() == [0, 0, 1]
    assert heavy.share.equal(torch.tensor([0.6]))
    assert heavy.runner_up.equal(torch.tensor([0.4]))
    # A rollout without weight decides no tie.
    keys = torch.tensor([2, 1, 2])
    tied = majority_vote(keys, torch.tensor([0, 3]), weights=torch.tensor([0.0, 1.0, 1.0]))
    assert tied.majority.tolist() == [1] and tied.rewards.tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    "sizes, share_over",
    [
        ([90] * 9, "valid"),
        ([1024], "all"),  # the most that a GPU compares
        ([1025], "valid"),  # sorted
        ([7, 1025], "valid"),  # compared, as there are few on average
    ],
)
def test_sums_in_order(sizes, share_over):
    """A group's second half has other answers and the same weights.

    The halves tie to the bit if each sum is in order.
    """
    torch.manual_seed(0)
    answers = torch.tensor([[9, 2**63 - 1, 0], [-9, -(2**63), 0]])
    keys = []
    weights = []
    for size in sizes:
        half = size // 2 - 3  # the halves do not begin at like places of a block
        silence = torch.zeros(size - 2 * half)
        weight = torch.rand(half, dtype=torch.float64)
        first, second = answers[:, torch.randint(3, (half,))]
        keys += [first, silence.long(), second]
        weights += [weight, silence + 1, weight]
    keys = torch.cat(keys)
    weights = torch.cat(weights)
    cu_groups = torch.tensor([0, *sizes]).cumsum(0)
    options = {"weights": weights, "share_over": share_over}
    vote = majority_vote(keys, cu_groups, **options)
    second_vote = majority_vote(keys, cu_groups, **options)
    expected = reference.majority_vote(keys, cu_groups, **options)
    assert torch.equal(vote.share, vote.runner_up)
    assert torch.equal(vote.majority, expected.majority)
    assert torch.equal(vote.rewards, expected.rewards)
    assert_within("share", vote.share, expected.share, SHARE_ERROR * expected.share)
    by_sorting = vote_by_sorting(keys, cu_groups, weights, share_over == "all")
    names = ("majority", "share", "runner_up", "rewards")
    for name, other in zip(names, by_sorting, strict=True):
        assert torch.equal(getattr(vote, name), getattr(second_vote, name)), name
        assert torch.equal(getattr(vote, name), other), name


def test_no_look_at_values():
    """What runs on a GPU does not synchronise with the host.

    Tensors on the meta device have no values, so looking at one would raise.
    """
    keys = torch.empty(9, dtype=torch.int64, device="meta")
    cu_groups = torch.empty(3, dtype=torch.int32, device="meta")
    check_offsets("cu_groups", cu_groups, len(keys), keys.device)
    vote_by_sorting(keys, cu_groups, keys.float(), True)


@pytest.mark.parametrize(
    "keys, cu_groups, options, named",
    [
        (
            torch.ones(3),
            torch.tensor([0, 3]),
            {},
            "keys: expected dtype .*int64.* got torch.float32",
        ),
        (torch.ones(3).long(), torch.tensor([0, 4]), {}, "cu_groups: expected 3 last, got 4"),
        (
            torch.ones(3).long(),
            torch.tensor([0, 3]),
            {"share_over": "some"},
            "share_over: expected .* got 'some'",
        ),
        (
            torch.ones(3).long(),
            torch.tensor([0, 3]),
            {"weights": torch.ones(2)},
            r"weights: expected shape \[3\]",
        ),
        (
            torch.ones(1).long(),
            torch.tensor([0, 1]),
            {"weights": torch.tensor([-1.0])},
            "weights: expected finite",
        ),
    ],
)
def test_bad_input(keys, cu_groups, options, named):
    with pytest.raises(ValueError, match=named):
        majority_vote(keys, cu_groups, **options)
