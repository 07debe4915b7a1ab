"""Every reward function on one batch that was worked out by hand, and in a run."""

import math

import pytest
import torch

from srt_fast.config import REWARD_KINDS, override
from srt_fast.files import read_rows
from srt_fast.rewards import make_reward_function
from srt_fast.rewards.turns import turns_of
from srt_fast.train import Trainer
from support.paths import ROOT
from support.rollouts import make_groups

A, B, C, D = 11, 22, 33, 44
# Three prompts of 4, 4 and 2 rollouts. Majority shares are 3/4, 2/4 (a tie: the earlier answer
# wins) and 2/2. A is the majority of two prompts.
KEYS = [A, A, A, B, C, 0, D, C, A, A]
CU_GROUPS = [0, 4, 8, 10]
CORRECT = [True, True, True, False, False, False, True, False, False, False]
VOTE = [1, 1, 1, 0, 1, 0, 0, 1, 1, 1]
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
"""What a reward function may require beside the vote."""


def gaussian(share: float) -> float:
    """restrain's weight of a share: exp(-0.5 ((share - 1) / 0.5)^2)."""
    return math.exp(-2 * (share - 1) ** 2)


def restrain_advantages() -> list[float]:
    """Each answer of a group is the label in turn. The third prompt is unanimous."""
    advantages = []
    for shares, answers, start_share in (
        ([3 / 4, 1 / 4], [0, 0, 0, 1], 0.5),
        ([2 / 4, 1 / 4], [0, None, 1, 0], 1.0),
    ):
        total = sum(gaussian(share) for share in shares)
        for rollout_answer in answers:
            terms = [
                gaussian(share)
                / total
                * ((rollout_answer == answer) - share)
                / math.sqrt(share * (1 - share))
                for answer, share in enumerate(shares)
            ]
            advantages.append(gaussian(start_share) * sum(terms))
    return [*advantages, 0.0, 0.0]


WEIGHT_A = gaussian(3 / 4) / (gaussian(3 / 4) + gaussian(1 / 4))
WEIGHT_C = gaussian(2 / 4) / (gaussian(2 / 4) + gaussian(1 / 4))
RESTRAIN = [WEIGHT_A] * 3 + [1 - WEIGHT_A, WEIGHT_C, 0, 1 - WEIGHT_C, WEIGHT_C, 1, 1]
# A's base rate is 2/6 for the first prompt (the third prompt's rollouts), 3/8 for the third.
# No other prompt has C.
BASE_RATE_WEIGHTS = [(3 / 4 - 2 / 6) / (3 / 4)] * 4 + [1.0] * 4 + [1 - 3 / 8] * 2
ALL = [1] * 10

# reward function, settings -> rewards, keep, and weights or a dict of other fields
EXPECTED = {
    ("majority", ()): (VOTE, ALL, None),
    ("oracle", ()): (CORRECT, ALL, None),
    ("soft", ()): ([0.75, 0.75, 0.75, 0.25, 0.5, 0, 0.25, 0.5, 1, 1], ALL, None),
    ("threshold", ()): (VOTE, [1] * 4 + [0] * 4 + [1] * 2, None),
    ("threshold", (("tau", 0.5),)): (VOTE, ALL, None),
    ("easiest", ()): (VOTE, [0] * 8 + [1] * 2, None),
    ("easiest", (("fraction", 0.5),)): (VOTE, [1] * 4 + [0] * 4 + [1] * 2, None),
    ("base_rate", ()): (VOTE, ALL, BASE_RATE_WEIGHTS),
    ("frozen", ()): ([1, 1, 1, 0, 0, 0, 1, 0, 0, 0], ALL, None),
    ("ema", ()): ([0, 0, 0, 1, 0, 0, 1, 0, 0, 0], ALL, None),
    # A 3 to B 3: a tie that the policy wins. D 3 to C 2. A.
    ("pool", ()): ([1, 1, 1, 0, 0, 0, 1, 0, 1, 1], ALL, None),
    ("restrain", ()): (RESTRAIN, ALL, {"advantages": restrain_advantages()}),
    # Two answers of equal weight pull against each other.
    ("restrain", (("weak", 0.6), ("sigma", 1e6), ("penalty", 0.5))): (
        [0.5] * 5 + [0] + [0.5] * 2 + [1] * 2,
        ALL,
        {"advantages": [0] * 4 + [-0.5] * 4 + [0] * 2},
    ),
    ("self_certainty", ()): ([2.0] * 10, ALL, None),
    ("entropy", ()): ([-0.5] * 5 + [-7.0] + [-0.5] * 4, ALL, None),
    ("self_judge", ()): ([0.1, 0.2, 0.3, 0.4, 0.5, 0, 0.7, 0.8, 0.9, 1.0], ALL, None),
}

SINGLE_TURN = [kind for kind in REWARD_KINDS if not turns_of(make_reward_function(kind, {}))]
"""tests/rewards/test_turns.py has those of episodes."""


def test_every_reward_function_has_an_expected_batch():
    assert {kind for kind, _ in EXPECTED} == set(SINGLE_TURN)


@pytest.mark.parametrize(("kind", "params"), EXPECTED)
def test_a_batch_worked_out_by_hand(kind, params):
    """Values are exact fractions rounded to fp32 once or twice: assert_close's fp32 default."""
    rewards, keep, optional = EXPECTED[kind, params]
    reward = make_reward_function(kind, dict(params))(make_groups(KEYS, CU_GROUPS, **INPUTS))
    assert reward.rewards.dtype == torch.float32
    assert reward.keep.dtype == torch.bool
    torch.testing.assert_close(reward.rewards, torch.tensor(rewards, dtype=torch.float32))
    assert reward.keep.tolist() == [bool(value) for value in keep]
    fields = optional if isinstance(optional, dict) else {"weights": optional}
    for name in ("weights", "advantages"):
        actual = getattr(reward, name)
        expected = fields.get(name)
        assert (actual is None) == (expected is None)
        if expected is not None:
            torch.testing.assert_close(actual, torch.tensor(expected, dtype=torch.float32))


def test_the_example_of_contributing():
    """The file and the row of CONTRIBUTING.md agree. test_turns.py tests its other example."""
    text = (ROOT / "CONTRIBUTING.md").read_text()
    source, row = [block.split("```")[0] for block in text.split("```python\n")[1:3]]
    module: dict = {"__name__": __name__}
    exec(source, module)
    [(rewards, keep, _)] = eval("{" + row + "}", {"VOTE": VOTE}).values()
    reward = module["RunnerUp"]()(make_groups(KEYS, CU_GROUPS))
    assert reward.rewards.tolist() == rewards
    assert reward.keep.tolist() == [bool(value) for value in keep]


@pytest.mark.parametrize("kind", SINGLE_TURN)
@pytest.mark.parametrize("cu_groups", [[0, 2, 4], [0, 2]])
def test_groups_without_answers_have_no_gradient(kind, cu_groups):
    """The rewards of confidence alone are equal for all rollouts here."""
    count = cu_groups[-1]
    prompts = len(cu_groups) - 1
    groups = make_groups(
        [0] * count,
        cu_groups,
        correct=[False] * count,
        start_labels=[A] * prompts,
        start_shares=[1.0] * prompts,
        teacher_keys=[A] * prompts,
        cu_teacher=list(range(prompts + 1)),
        entropies=[1.0] * 2 * count,
        certainty=[0.0] * 2 * count,
        judge_scores=[1.0] * count,
    )
    reward = make_reward_function(kind, {})(groups)
    assert (reward.rewards == (-7 if kind == "entropy" else 0)).all()
    assert reward.weights is None or reward.weights.isfinite().all()
    assert reward.advantages is None or (reward.advantages == 0).all()


def test_the_constant_answer_has_weight_zero_in_base_rate():
    """So has a group that gives it less often than the others do."""
    base_rate = make_reward_function("base_rate", {})
    reward = base_rate(make_groups([A] * 8 + [A, A, A, B], [0, 4, 8, 12]))
    torch.testing.assert_close(reward.weights, torch.tensor([1 - 7 / 8] * 8 + [0.0] * 4))
    reward = base_rate(make_groups([A] * 12, [0, 4, 8, 12]))
    assert (reward.weights == 0).all()


@pytest.mark.parametrize(
    ("kind", "params", "message"),
    [
        ("majority", {"tau": 0.5}, "expected none for 'majority', got tau"),
        ("threshold", {"rho": 0.5}, "expected tau for 'threshold', got rho"),
        ("threshold", {"tau": 1.5}, "tau: expected 0 to 1, got 1.5"),
        ("threshold", {"tau": "high"}, "tau: expected a valid number.*'high'"),
        ("easiest", {"fraction": 0}, "fraction: expected more than 0, at most 1, got 0"),
        ("frozen", {"samples": 2.5}, "samples: expected a valid integer"),
        (
            "frozen",
            {"samples": 2, "file": "labels.jsonl"},
            "samples: expected at least 0, and 0 with",
        ),
        ("ema", {"decay": 2.0}, "expected decay and final_decay from 0 to 1"),
        ("verify", {"question": "{prompt}"}, "question: expected {completion} exactly once"),
        ("verify", {"samples": 1}, "expected at least 1 solution and 2 samples"),
    ],
)
def test_bad_settings(kind, params, message):
    with pytest.raises(ValueError, match=f"reward.params: {message}"):
        make_reward_function(kind, params)


@pytest.mark.parametrize("kind", REWARD_KINDS)
def test_a_run_with_each_reward_function(tiny_config, tmp_path, kind):
    changes = {
        "reward.kind": kind,
        "task.answer_rule": "last_number",
        "train.prompts_per_step": 12,
    }
    Trainer(override(tiny_config, changes), quiet=True).train()
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "train"]
    assert len(rows) == 4
    assert all(row["updates"] in (0, 1) for row in rows)
