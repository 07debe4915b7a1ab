"""majority_vote against its dict twin: ragged groups, ties, silence, weights."""

import pytest
import torch

from srt_kernels import majority_vote, reference

hypothesis = pytest.importorskip("hypothesis")  # not on every machine with a GPU
st = pytest.importorskip("hypothesis.strategies")
given, settings = hypothesis.given, hypothesis.settings

KEY = st.sampled_from([0, 1, 2, -3, 2**63 - 1, -(2**63)])  # few, so that they meet; both ends of int64
GROUPS = st.lists(st.lists(st.tuples(KEY, st.sampled_from([0.0, 0.5, 1.0, 0.1, 2.0])), max_size=9), max_size=6)


@settings(deadline=None, max_examples=200)
@given(groups=GROUPS, weighted=st.booleans(), share_over=st.sampled_from(["all", "valid"]))
def test_equals_the_reference(groups, weighted, share_over):
    flat = [vote for group in groups for vote in group]
    keys = torch.tensor([key for key, _ in flat], dtype=torch.int64)
    weights = torch.tensor([weight for _, weight in flat], dtype=torch.float64) if weighted else None
    cu_groups = torch.tensor([0, *(len(group) for group in groups)]).cumsum(0).int()
    settings = {"weights": weights, "share_over": share_over}
    actual, expected = (f(keys, cu_groups, **settings) for f in (majority_vote, reference.majority_vote))
    for name in ("majority", "rewards", "valid"):
        assert torch.equal(getattr(actual, name), getattr(expected, name)), name
    for name in ("share", "runner_up"):
        torch.testing.assert_close(getattr(actual, name), getattr(expected, name))


def test_by_hand():
    # A A B | tie: the earliest rollout's answer, not the smaller key | silence outnumbers | silence alone | empty
    keys = torch.tensor([7, 7, 5, 9, 2, 2, 9, 0, 0, 4, 0, 0])
    cu_groups = torch.tensor([0, 3, 7, 10, 12, 12], dtype=torch.int32)
    vote = majority_vote(keys, cu_groups)
    assert vote.majority.tolist() == [7, 9, 4, 0, 0]
    assert vote.rewards.tolist() == [1, 1, 0, 1, 0, 0, 1, 0, 0, 1, 0, 0]
    assert vote.valid.tolist() == [True] * 7 + [False, False, True, False, False]
    torch.testing.assert_close(vote.share, torch.tensor([2 / 3, 1 / 2, 1 / 3, 0, 0]))
    torch.testing.assert_close(vote.runner_up, torch.tensor([1 / 3, 1 / 2, 0, 0, 0]))
    torch.testing.assert_close(
        majority_vote(keys, cu_groups, share_over="valid").share, torch.tensor([2 / 3, 1 / 2, 1, 0, 0])
    )
    # a weight decides the vote, but every rollout that gave the answer earns
    heavy = majority_vote(keys[:3], torch.tensor([0, 3]), weights=torch.tensor([0.0, 1.0, 1.5]))
    assert heavy.majority.tolist() == [5] and heavy.rewards.tolist() == [0, 0, 1]
    assert heavy.share.item() == pytest.approx(0.6) and heavy.runner_up.item() == pytest.approx(0.4)


@pytest.mark.parametrize(
    "keys, cu_groups, options, named",
    [
        (torch.ones(3), torch.tensor([0, 3]), {}, "keys: expected dtype .*int64.* got torch.float32"),
        (torch.ones(3).long(), torch.tensor([0, 4]), {}, "cu_groups: expected 3 last, got 4"),
        (torch.ones(3).long(), torch.tensor([0, 3]), {"share_over": "some"}, "share_over: expected .* got 'some'"),
        (torch.ones(3).long(), torch.tensor([0, 3]), {"weights": torch.ones(2)}, r"weights: expected shape \[3\]"),
        (torch.ones(1).long(), torch.tensor([0, 1]), {"weights": torch.tensor([-1.0])}, "weights: expected finite"),
    ],
)
def test_bad_input(keys, cu_groups, options, named):
    with pytest.raises(ValueError, match=named):
        majority_vote(keys, cu_groups, **options)
