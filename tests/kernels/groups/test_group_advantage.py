"""group_advantage against its loop twin, and the corners where formulas divide by zero."""

import math

import pytest
import torch

from srt_kernels import group_advantage, reference
from srt_kernels.groups.group_advantage import KINDS

hypothesis = pytest.importorskip("hypothesis")  # not on every machine with a GPU
st = pytest.importorskip("hypothesis.strategies")
given, settings = hypothesis.given, hypothesis.settings

REWARD = st.sampled_from([0.0, 1.0, 0.1, -2.5, 0.3, math.nan])
GROUPS = st.lists(st.lists(REWARD, max_size=7), max_size=6)


@settings(deadline=None, max_examples=150)
@given(
    groups=GROUPS,
    kind=st.sampled_from(KINDS),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_equals_the_reference(groups, kind, dtype):
    rewards = torch.tensor([r for group in groups for r in group], dtype=dtype)
    cu_groups = torch.tensor([0, *(len(group) for group in groups)]).cumsum(0).int()
    actual, expected = (
        f(rewards, cu_groups, kind=kind) for f in (group_advantage, reference.group_advantage)
    )
    torch.testing.assert_close(actual, expected, rtol=1e-6, atol=1e-6)
    for group, part in zip(groups, actual.split([len(g) for g in groups]), strict=True):
        known = {r for r in group if not math.isnan(r)}
        assert len(known) > 1 or not part.any()  # unanimous, alone or unknown: exact zeros
        assert not part[torch.tensor([math.isnan(r) for r in group], dtype=torch.bool)].any()


def test_by_hand():
    rewards, cu_groups = torch.tensor([1.0, 1, 0, 1, 1]), torch.tensor([0, 3, 5], dtype=torch.int32)
    std = math.sqrt(1 / 3)  # of 1, 1, 0 over n - 1
    rms = math.sqrt((1 / 9 + 1 / 9 + 4 / 9) / 5)
    for kind, scale in (
        ("mean", 1),
        ("grpo", 1 / (std + 1e-4)),
        ("rloo", 1.5),
        ("batch", 1 / (rms + 1e-4)),
    ):
        expected = torch.tensor([1 / 3, 1 / 3, -2 / 3, 0, 0]) * scale
        torch.testing.assert_close(group_advantage(rewards, cu_groups, kind=kind), expected)


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
            "rewards: expected dtype float, got torch.int64",
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
