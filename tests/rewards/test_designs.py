"""Every reward function on one batch that was worked out by hand, and in a run."""

import itertools
import json
import math
from dataclasses import replace
from typing import get_args

import pytest
import torch

from srt_fast.config import REWARD_KINDS, override
from srt_fast.files import read_rows
from srt_fast.rewards import make_reward_function
from srt_fast.rewards.base import group_quantile, is_undecided
from srt_fast.train import Trainer
from srt_kernels import group_advantage
from srt_kernels.groups.group_advantage import AdvantageKind
from support.paths import ROOT
from support.rollouts import EPISODES, make_groups, required_params

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
    # A has 0.9, B 0.5 + 0.3. A tie of D and C: the earlier file wins. No vote.
    "peer_labels": [[B, A, B], [D, C, 0], [0, 0, 0]],
    "peer_shares": [[0.5, 0.9, 0.3], [0.5, 0.5, 0.0], [0.0, 0.0, 0.0]],
}
"""What a reward function may require beside the vote."""
PEERS = (("files", ("1.jsonl", "2.jsonl", "3.jsonl")),)


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
    ("soft", (("tau", 0.6),)): (
        [0.75, 0.75, 0.75, 0.25, 0.5, 0, 0.25, 0.5, 1, 1],
        [1] * 4 + [0] * 4 + [1] * 2,
        None,
    ),
    ("raw", ()): (ALL, ALL, None),
    ("sharpen", ()): ([-0.75] * 4 + [-0.5] * 6, ALL, None),
    # The first draws of torch.rand after manual_seed(0), below 1/2:
    # 0.50- 0.77 0.09 0.13 0.31 0.63 0.49 0.90 0.46 0.63
    ("random", ()): ([1, 0, 1, 1, 1, 0, 1, 0, 1, 0], ALL, None),
    ("random", (("probability", 0.1),)): ([0, 0, 1, 0, 0, 0, 0, 0, 0, 0], ALL, None),
    # One of the majority and one of the rarest. No answer is the rarest of all. Of two rollouts
    # one trains, and it is the rarest.
    ("ddrl", ()): (
        VOTE,
        [1, 0, 0, 1, 1, 1, 0, 0, 0, 1],
        {"advantages": [1, 1, 1, -1, 1, -1, -1, 1, 1, 1]},
    ),
    ("ddrl", (("fraction", 1.0),)): (
        VOTE,
        ALL,
        {"advantages": [1, 1, 1, -1, 1, -1, -1, 1, 1, 1]},
    ),
    ("scrl", ()): (VOTE, ALL, None),
    # 2/4 is not clear any more, and 1/4 is rare. All are equally uncertain.
    ("scrl", (("tau_pos", 0.6), ("tau_low", 0.3))): ([1, 1, 1, -1, 0, 0, -1, 0, 1, 1], ALL, None),
    ("scrl", (("tau_margin", 0.5),)): ([0] * 8 + [1, 1], ALL, None),
    ("peers", PEERS): ([1, 1, 1, 0, 0, 0, 1, 0, 0, 0], ALL, None),
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

SINGLE_TURN = [kind for kind in REWARD_KINDS if kind not in EPISODES]
"""tests/rewards/test_turns.py has those of episodes."""


def test_every_reward_function_has_an_expected_batch():
    assert {kind for kind, _ in EXPECTED} == set(SINGLE_TURN)


@pytest.mark.parametrize(("kind", "params"), EXPECTED)
def test_a_batch_worked_out_by_hand(kind, params):
    """Values are exact fractions rounded to fp32 once or twice: assert_close's fp32 default."""
    rewards, keep, optional = EXPECTED[kind, params]
    torch.manual_seed(0)
    groups = make_groups(KEYS, CU_GROUPS, **INPUTS)
    groups = replace(groups, logprobs=torch.tensor([-0.5, -0.25] * 4 + [-0.25] * 12))
    reward = make_reward_function(kind, dict(params))(groups)
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


@pytest.mark.parametrize("kind", get_args(AdvantageKind))
def test_a_teacher_of_undecided_prompts_gives_the_same_advantages(kind):
    """Of 400 groups, many of which agree, some without an answer. Exactly: they are no estimate."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randint(3, (1200,), generator=generator).tolist()
    cu_groups = list(range(0, 1201, 3))
    teacher = torch.randint(3, (400, 2), generator=generator)
    asked = is_undecided(torch.tensor(keys), torch.tensor(cu_groups))
    some = {
        "teacher_keys": teacher[asked].flatten().tolist(),
        "cu_teacher": (2 * torch.tensor([0, *asked.tolist()]).cumsum(0)).tolist(),
    }
    every = {"teacher_keys": teacher.flatten().tolist(), "cu_teacher": list(range(0, 801, 2))}
    assert 200 < asked.sum() < 390
    advantages = []
    for inputs in (every, some):
        groups = make_groups(keys, cu_groups, **inputs)
        rewards = make_reward_function("ema", {})(groups).rewards
        advantages.append(group_advantage(rewards, groups.cu_groups, kind=kind))
    assert advantages[0].equal(advantages[1])


def test_the_policy_labels_what_the_teacher_is_not_asked():
    """The third group, whose rollouts agree. Without an answer there is no reward."""
    inputs = {"teacher_keys": [B, B, D, D], "cu_teacher": [0, 2, 4, 4, 4]}
    groups = make_groups([*KEYS, 0, 0], [*CU_GROUPS, 12], **inputs)
    assert is_undecided(groups.keys, groups.cu_groups).tolist() == [True, True, False, False]
    rewards = make_reward_function("ema", {"ask": "undecided"})(groups).rewards
    assert rewards.tolist() == [0, 0, 0, 1, 0, 0, 1, 0, 1, 1, 0, 0]


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
    """The rewards of confidence alone are equal for all rollouts here. A coin's are not."""
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
        peer_labels=[[A]] * prompts,
        peer_shares=[[1.0]] * prompts,
    )
    reward = make_reward_function(kind, required_params(kind))(groups)
    if kind != "random":
        assert (reward.rewards == {"entropy": -7, "raw": 1}.get(kind, 0)).all()
    assert reward.weights is None or reward.weights.isfinite().all()
    assert reward.advantages is None or (reward.advantages == 0).all()


def test_scrl_prunes_rare_answers_only_if_they_are_uncertain():
    """B and C are rare. The group's mean entropy is (0.6 + 0.1 + 0.9) / 5 = 0.32."""
    entropies = [0.2, 0.2, 0.2, 0.1, 0.9]
    groups = make_groups(
        [A, A, A, B, C], [0, 5], entropies=[value for value in entropies for _ in range(2)]
    )
    reward = make_reward_function("scrl", {"tau_low": 0.3})(groups)
    assert reward.rewards.tolist() == [1, 1, 1, 0, -1]


def test_pool_drops_rollouts_of_low_entropy():
    """First group: quartiles 1 and 1.2, so below 1 - 0.75 x 0.2 = 0.85. Second: 0.4 - 0.3 = 0.1."""
    entropies = [0.84, 1.0, 1.1, 1.2, 1.3, 0.2, 1.0]
    groups = make_groups(
        [A] * 7,
        [0, 5, 7],
        teacher_keys=[A, A],
        cu_teacher=[0, 1, 2],
        entropies=[value for value in entropies for _ in range(2)],
    )
    function = make_reward_function("pool", {"low_entropy": 0.75})
    assert function(groups).keep.tolist() == [False] + [True] * 6
    assert len(function.requires) == len(make_reward_function("pool", {}).requires) + 1


@pytest.mark.parametrize("fraction", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_group_quantile_is_that_of_torch(fraction):
    """Groups of 1 to 5 rollouts. Both interpolate between the same two fp32 values."""
    torch.manual_seed(1)
    cu_groups = [0, 1, 3, 6, 10, 15]
    groups = make_groups([A] * 15, cu_groups)
    values = torch.rand(15)
    expected = [values[a:b].quantile(fraction) for a, b in itertools.pairwise(cu_groups)]
    torch.testing.assert_close(group_quantile(groups, values, fraction), torch.stack(expected))


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
        ("ddrl", {"fraction": 1.5}, "fraction: expected more than 0, at most 1, got 1.5"),
        ("scrl", {"tau_low": -1}, "expected tau_pos, tau_margin and tau_low from 0 to 1, got"),
        ("pool", {"low_entropy": -1}, "low_entropy: expected at least 0 or null, got -1"),
        ("random", {"probability": 2}, "probability: expected 0 to 1, got 2"),
        ("peers", {}, "files: expected at least one file of votes, got none"),
        ("peers", {"files": "votes.jsonl"}, "files: .* valid tuple, got 'votes.jsonl'"),
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
        ("ema", {"ask": "some"}, "ask: expected 'all' or 'undecided', got 'some'"),
        ("verify", {"question": "{prompt}"}, "question: expected {completion} exactly once"),
        ("verify", {"samples": 1}, "expected at least 1 solution and 2 samples"),
    ],
)
def test_bad_settings(kind, params, message):
    with pytest.raises(ValueError, match=f"reward.params: {message}"):
        make_reward_function(kind, params)


@pytest.mark.parametrize("kind", REWARD_KINDS)
def test_a_run_with_each_reward_function(tiny_config, tmp_path, kind):
    params = required_params(kind)
    if kind == "peers":
        params = {"files": [str(tmp_path / "votes.jsonl")]}
        rows = [{"prompt": f"{left}+1=", "label": left + 1} for left in range(10)]
        (tmp_path / "votes.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    changes = {
        "reward": {"kind": kind, "params": params},
        "task.answer_rule": "last_number",
        "train.prompts_per_step": 12,
    }
    Trainer(override(tiny_config, changes), quiet=True).train()
    rows = [row for row in read_rows(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "train"]
    assert len(rows) == 4
    assert all(row["updates"] in (0, 1) for row in rows)
    assert kind != "peers" or all(0 < row["label_coverage"] < 1 for row in rows)
