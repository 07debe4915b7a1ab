"""group_advantage against its loop twin, and the cases in which formulas divide by zero."""

import math

import pytest
import torch

from srt_kernels import group_advantage, reference
from srt_kernels.groups.group_advantage import KINDS
from support.bounds import UNIT_ROUNDOFF, assert_within

hypothesis = pytest.importorskip("hypothesis")  # not on every machine with a GPU
st = pytest.importorskip("hypothesis.strategies")
given, settings = hypothesis.given, hypothesis.settings

REWARD = st.sampled_from([0.0, 1.0, 0.1, -2.5, 0.3, math.nan])
GROUPS = st.lists(st.lists(REWARD, max_size=7), max_size=6)


@settings(deadline=None, max_examples=100)
@given(
    groups=GROUPS,
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_equals_the_reference(groups, kind, dtype):
    rewards = torch.tensor([r for group in groups for r in group], dtype=dtype)
    cu_groups = torch.tensor([0, *(len(group) for group in groups)]).cumsum(0).int()
    actual = group_advantage(rewards, cu_groups, kind=kind)
    expected = reference.group_advantage(rewards, cu_groups, kind=kind)
    # Both sum up to 7 rewards of at most 2.5 in fp64, and divide by deviations of 0.03 or more.
    # Then both round to rewards' type. Kind "batch" rounds before it divides by the root mean
    # square, too.
    summed = 2 * (7 + 16) * UNIT_ROUNDOFF[torch.float64] * 2.5 / 0.03
    bound = summed + 8 * UNIT_ROUNDOFF[dtype] * expected.double().abs()
    assert_within("advantages", actual, expected, bound)
    for group, part in zip(groups, actual.split([len(g) for g in groups]), strict=True):
        is_unknown = torch.tensor([math.isnan(reward) for reward in group], dtype=torch.bool)
        known = {reward for reward in group if not math.isnan(reward)}
        assert len(known) > 1 or not part.any()  # unanimous, alone or unknown: exact zeros
        assert not part[is_unknown].any()


def test_by_hand():
    rewards = torch.tensor([1.0, 1, 0, 1, 1])
    cu_groups = torch.tensor([0, 3, 5], dtype=torch.int32)
    std = math.sqrt(1 / 3)  # of 1, 1, 0 over n - 1
    rms = math.sqrt((1 / 9 + 1 / 9 + 4 / 9) / 5)
    for kind, scale in (
        ("mean", 1),
        ("grpo", 1 / (std + 1e-4)),
        ("rloo", 1.5),
        ("batch", 1 / (rms + 1e-4)),
    ):
        expected = torch.tensor([1 / 3, 1 / 3, -2 / 3, 0, 0]) * scale
        bound = 8 * UNIT_ROUNDOFF[torch.float32] * expected.abs()  # a few roundings on both sides
        assert_within(kind, group_advantage(rewards, cu_groups, kind=kind), expected, bound)


@pytest.mark.parametrize("kind", KINDS)
def test_equal_rewards_whose_float_mean_is_not_exact(kind):
    tenth = torch.full((3,), 0.1, dtype=torch.float64)
    assert (tenth.sum() / 3 != 0.1).item()  # the trap
    assert torch.equal(
        group_advantage(tenth, torch.tensor([0, 3]), kind=kind), torch.zeros(3, dtype=torch.float64)
    )


@pytest.mark.parametrize(
    "rewards, cu_groups, kind, named",
    [
        (torch.ones(3), torch.tensor([0, 3]), "z", "kind: expected one of grpo, .* got 'z'"),
        (
            torch.ones(3, 1),
            torch.tensor([0, 3]),
            "mean",
            r"rewards: expected shape \[any\], got \[3, 1\]",
        ),
        (
            torch.ones(3).long(),
            torch.tensor([0, 3]),
            "mean",
            "rewards: expected dtype float16.*got torch.int64",
        ),
        (torch.ones(3), torch.tensor([1, 3]), "mean", "cu_groups: expected 0 first, got 1"),
        (torch.ones(3), torch.tensor([0, 2]), "mean", "cu_groups: expected 3 last, got 2"),
        (torch.ones(3), torch.tensor([0, 2, 1, 3]), "mean", "cu_groups: expected no decrease"),
        (torch.ones(3), torch.tensor([0.0, 3]), "mean", "cu_groups: expected dtype"),
        (
            torch.ones(3),
            torch.tensor([0, 3], device="meta"),
            "mean",
            "cu_groups: expected device cpu, got meta",
        ),
    ],
)
def test_bad_input(rewards, cu_groups, kind, named):
    with pytest.raises(ValueError, match=named):
        group_advantage(rewards, cu_groups, kind=kind)
