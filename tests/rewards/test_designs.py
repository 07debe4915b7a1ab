"""Every reward design on one batch whose outcome can be worked out by hand, and in a run."""

import math

import pytest
import torch
from support.paths import ROOT

from srt_fast.config import REWARD_KINDS, override
from srt_fast.files import read_rows
from srt_fast.rewards import make_reward_function
from srt_fast.rewards.base import RewardFunction
from srt_fast.train import Trainer
from srt_fast.types import Groups
from srt_kernels.groups.majority_vote import majority_vote

A, B, C, D = 11, 22, 33, 44
# Three prompts of 4, 4 and 2 rollouts: majority shares 3/4, 2/4 (a tie, the earlier wins) and 2/2; A is the majority of two.
KEYS, CU_GROUPS = [A, A, A, B, C, 0, D, C, A, A], [0, 4, 8, 10]
CORRECT = [True, True, True, False, False, False, True, False, False, False]
VOTE = [1, 1, 1, 0, 1, 0, 0, 1, 1, 1]


def groups(keys: list[int], cu_groups: list[int], **inputs) -> Groups:
    """Rollouts of two tokens each."""
    keys, cu_groups = torch.tensor(keys), torch.tensor(cu_groups, dtype=torch.int32)
    return Groups(
        keys=keys,
        cu_groups=cu_groups,
        cu_seqlens=2 * torch.arange(len(keys) + 1, dtype=torch.int32),
        logprobs=torch.zeros(2 * len(keys)),
        vote=majority_vote(keys, cu_groups),
        **{name: torch.tensor(value) for name, value in inputs.items()},
    )


# What a design may ask for. The starting model voted A, D and nothing; the teacher's rollouts, two a prompt, say B B, D D, none.
INPUTS = {
    "correct": CORRECT,
    "start_labels": [A, D, 0],
    "start_shares": [0.5, 1.0, 0.0],
    "teacher_keys": [B, B, D, D, 0, 0],
    "cu_teacher": [0, 2, 4, 6],
    "entropies": [0.25, 0.75] * 10,
    "certainty": [1.0, 3.0] * 10,
    "judge_scores": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0],
}


def restrained() -> list[float]:
    """Each answer of a group as the label in turn, weighed by exp(-0.5 ((f - 1) / 0.5)^2); the third prompt's is unanimous."""

    def gaussian(share):
        return math.exp(-2 * (share - 1) ** 2)

    out = []
    for shares, own, agreement in (
        ([3 / 4, 1 / 4], [0, 0, 0, 1], 0.5),
        ([2 / 4, 1 / 4], [0, None, 1, 0], 1.0),
    ):
        total = sum(map(gaussian, shares))
        for mine in own:
            terms = [
                gaussian(f) / total * ((mine == a) - f) / math.sqrt(f * (1 - f))
                for a, f in enumerate(shares)
            ]
            out.append(gaussian(agreement) * sum(terms))
    return [*out, 0.0, 0.0]


WEIGHT_OF_A, WEIGHT_OF_C = (
    1 / (1 + math.exp(-2 * ((1 - y) ** 2 - (1 - x) ** 2))) for x, y in ((0.75, 0.25), (0.5, 0.25))
)


# A's base rate for the first prompt is 2/6 (the third's), for the third 3/8; nobody else gives C.
WEIGHTS = [(3 / 4 - 2 / 6) / (3 / 4)] * 4 + [1.0] * 4 + [1 - 3 / 8] * 2
EXPECTED = {  # design, settings -> rewards, which rollouts are kept, weights, or advantages where the design makes its own
    ("majority", ()): (VOTE, [1] * 10, None),
    ("oracle", ()): (CORRECT, [1] * 10, None),
    ("soft", ()): ([0.75, 0.75, 0.75, 0.25, 0.5, 0, 0.25, 0.5, 1, 1], [1] * 10, None),
    ("threshold", ()): (VOTE, [1] * 4 + [0] * 4 + [1] * 2, None),
    ("threshold", (("tau", 0.5),)): (VOTE, [1] * 10, None),
    ("easiest", ()): (VOTE, [0] * 8 + [1] * 2, None),
    ("easiest", (("fraction", 0.5),)): (VOTE, [1] * 4 + [0] * 4 + [1] * 2, None),
    ("base_rate", ()): (VOTE, [1] * 10, WEIGHTS),
    ("frozen", ()): ([1, 1, 1, 0, 0, 0, 1, 0, 0, 0], [1] * 10, None),
    ("ema", ()): ([0, 0, 0, 1, 0, 0, 1, 0, 0, 0], [1] * 10, None),
    ("pool", ()): (
        [1, 1, 1, 0, 0, 0, 1, 0, 1, 1],
        [1] * 10,
        None,
    ),  # A 3 to B 3, a tie the policy wins; D 3 to C 2; A
    ("restrain", ()): (
        [WEIGHT_OF_A] * 3 + [1 - WEIGHT_OF_A, WEIGHT_OF_C, 0, 1 - WEIGHT_OF_C, WEIGHT_OF_C, 1, 1],
        [1] * 10,
        {"advantages": restrained()},
    ),
    ("restrain", (("weak", 0.6), ("sigma", 1e6), ("penalty", 0.5))): (
        [0.5] * 5 + [0] + [0.5] * 2 + [1] * 2,
        [1] * 10,
        {"advantages": [0] * 4 + [-0.5] * 4 + [0] * 2},
    ),  # two answers of equal weight pull against each other
    ("self_certainty", ()): ([2.0] * 10, [1] * 10, None),
    ("entropy", ()): ([-0.5] * 5 + [-7.0] + [-0.5] * 4, [1] * 10, None),
    ("self_judge", ()): ([0.1, 0.2, 0.3, 0.4, 0.5, 0, 0.7, 0.8, 0.9, 1.0], [1] * 10, None),
    ("verify", ()): (VOTE, [1] * 10, None),
}


def test_every_design_is_tested_here():
    assert {kind for kind, _ in EXPECTED} == set(REWARD_KINDS)


@pytest.mark.parametrize(("kind", "params"), EXPECTED)
def test_a_batch_worked_out_by_hand(kind, params):
    rewards, keep, more = EXPECTED[kind, params]
    design: RewardFunction = make_reward_function(kind, dict(params))
    reward = design(groups(KEYS, CU_GROUPS, **INPUTS))
    assert reward.rewards.dtype == torch.float32 and reward.keep.dtype == torch.bool
    torch.testing.assert_close(reward.rewards, torch.tensor(rewards, dtype=torch.float32))
    assert reward.keep.tolist() == [bool(k) for k in keep]
    more = more if isinstance(more, dict) else {"weights": more}
    for name in ("weights", "advantages"):
        got, expected = getattr(reward, name), more.get(name)
        assert (got is None) == (expected is None)
        if expected is not None:
            torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float32))


def test_the_example_of_contributing():
    """Its file and its row agree."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    design, row = (block.split("```")[0] for block in text.split("```python\n")[1:3])
    made: dict = {"__name__": __name__}
    exec(design, made)
    [(rewards, keep, _)] = eval("{" + row + "}", {"VOTE": VOTE}).values()
    reward = made["RunnerUp"]()(groups(KEYS, CU_GROUPS))
    assert reward.rewards.tolist() == rewards and reward.keep.tolist() == [bool(k) for k in keep]


@pytest.mark.parametrize("kind", REWARD_KINDS)
def test_groups_without_answers_earn_nothing(kind):
    """Also the only group of a batch. Designs that reward confidence alone give all rollouts the same here."""
    design = make_reward_function(kind, {})
    for keys, cu_groups in (([0, 0, 0, 0], [0, 2, 4]), ([0, 0], [0, 2])):
        rollouts, prompts = len(keys), len(cu_groups) - 1
        reward = design(
            groups(
                keys,
                cu_groups,
                correct=[False] * rollouts,
                start_labels=[A] * prompts,
                start_shares=[1.0] * prompts,
                teacher_keys=[A] * prompts,
                cu_teacher=list(range(prompts + 1)),
                entropies=[1.0] * 2 * rollouts,
                certainty=[0.0] * 2 * rollouts,
                judge_scores=[1.0] * rollouts,
            )
        )
        assert (reward.rewards == reward.rewards[0]).all()
        assert reward.rewards[0] == (-7 if kind == "entropy" else 0)
        for values in (reward.weights, reward.advantages):
            assert values is None or values.isfinite().all()
        assert reward.advantages is None or (reward.advantages == 0).all()


def test_the_constant_answer_weighs_nothing_in_base_rate():
    """Nor does it in a group that gives it less often than the others do."""
    reward = make_reward_function("base_rate", {})(groups([A] * 8 + [A, A, A, B], [0, 4, 8, 12]))
    torch.testing.assert_close(reward.weights, torch.tensor([1 - 7 / 8] * 8 + [0.0] * 4))
    assert (
        make_reward_function("base_rate", {})(groups([A] * 12, [0, 4, 8, 12])).weights == 0
    ).all()


@pytest.mark.parametrize(
    ("kind", "params", "message"),
    [
        ("majority", {"tau": 0.5}, "expected none for 'majority', got tau"),
        ("threshold", {"rho": 0.5}, "expected tau for 'threshold', got rho"),
        ("threshold", {"tau": 1.5}, "tau: expected 0 to 1, got 1.5"),
        ("easiest", {"fraction": 0}, "fraction: expected more than 0, at most 1, got 0"),
    ],
)
def test_settings_that_a_design_does_not_have(tiny_config, kind, params, message):
    with pytest.raises(ValueError, match=f"reward.params: {message}"):
        Trainer(override(tiny_config, {"reward": {"kind": kind, "params": params}}))


@pytest.mark.parametrize("kind", REWARD_KINDS)
def test_a_run_with_each_design(tiny_config, tmp_path, kind):
    """Trains, and what a design leaves out of the loss is left out."""
    config = override(
        tiny_config,
        {"reward.kind": kind, "task.answer_rule": "last_number", "train.prompts_per_step": 12},
    )
    Trainer(config, quiet=True).train()
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "train"]
    assert len(rows) == 4 and all(row["updates"] in (0, 1) for row in rows)
