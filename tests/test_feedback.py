"""Every reward design on one batch whose outcome can be worked out by hand, and in a run."""

import pytest
import torch

from srt_fast.config import DESIGNS, override
from srt_fast.feedback import Groups, make_design
from srt_fast.feedback.base import Feedback
from srt_fast.metrics import read_metrics
from srt_fast.trainer import Trainer
from srt_kernels.majority_vote import majority_vote

A, B, C, D = 11, 22, 33, 44
# Three prompts of 4, 4 and 2 rollouts: majority shares 3/4, 2/4 (a tie, the earlier wins) and 2/2; A is the majority of two.
KEYS, CU_GROUPS = [A, A, A, B, C, 0, D, C, A, A], [0, 4, 8, 10]
CORRECT = [True, True, True, False, False, False, True, False, False, False]
VOTE = [1, 1, 1, 0, 1, 0, 0, 1, 1, 1]


def groups(keys: list[int], cu_groups: list[int], correct=None) -> Groups:
    keys, cu_groups = torch.tensor(keys), torch.tensor(cu_groups, dtype=torch.int32)
    return Groups(keys=keys, cu_groups=cu_groups, cu_seqlens=torch.arange(len(keys) + 1, dtype=torch.int32),
                  logprobs=torch.zeros(len(keys)), vote=majority_vote(keys, cu_groups),
                  correct=None if correct is None else torch.tensor(correct))


# A's base rate for the first prompt is 2/6 (the third's), for the third 3/8; nobody else gives C.
WEIGHTS = [(3 / 4 - 2 / 6) / (3 / 4)] * 4 + [1.0] * 4 + [1 - 3 / 8] * 2
EXPECTED = {  # design, settings -> rewards, which rollouts are kept, weights
    ("majority", ()): (VOTE, [1] * 10, None),
    ("oracle", ()): (CORRECT, [1] * 10, None),
    ("soft", ()): ([.75, .75, .75, .25, .5, 0, .25, .5, 1, 1], [1] * 10, None),
    ("threshold", ()): (VOTE, [1] * 4 + [0] * 4 + [1] * 2, None),
    ("threshold", (("tau", 0.5),)): (VOTE, [1] * 10, None),
    ("easiest", ()): (VOTE, [0] * 8 + [1] * 2, None),
    ("easiest", (("fraction", 0.5),)): (VOTE, [1] * 4 + [0] * 4 + [1] * 2, None),
    ("base_rate", ()): (VOTE, [1] * 10, WEIGHTS),
}


def test_every_design_is_tested_here():
    assert {kind for kind, _ in EXPECTED} == set(DESIGNS)


@pytest.mark.parametrize(("kind", "params"), EXPECTED)
def test_a_batch_worked_out_by_hand(kind, params):
    rewards, keep, weights = EXPECTED[kind, params]
    design: Feedback = make_design(kind, dict(params))
    reward = design(groups(KEYS, CU_GROUPS, CORRECT if design.needs_gold else None))
    assert reward.rewards.dtype == torch.float32 and reward.keep.dtype == torch.bool
    torch.testing.assert_close(reward.rewards, torch.tensor(rewards, dtype=torch.float32))
    assert reward.keep.tolist() == [bool(k) for k in keep]
    if weights is None:
        assert reward.weights is None
    else:
        torch.testing.assert_close(reward.weights, torch.tensor(weights))


@pytest.mark.parametrize("kind", DESIGNS)
def test_groups_without_answers_earn_nothing(kind):
    """Also the only group of a batch."""
    design = make_design(kind, {})
    for keys, cu_groups in (([0, 0, 0, 0], [0, 2, 4]), ([0, 0], [0, 2])):
        reward = design(groups(keys, cu_groups, [False] * len(keys) if design.needs_gold else None))
        assert (reward.rewards == 0).all() and (reward.weights is None or reward.weights.isfinite().all())


def test_the_constant_answer_weighs_nothing_in_base_rate():
    """Nor does it in a group that gives it less often than the others do."""
    reward = make_design("base_rate", {})(groups([A] * 8 + [A, A, A, B], [0, 4, 8, 12]))
    torch.testing.assert_close(reward.weights, torch.tensor([1 - 7 / 8] * 8 + [0.0] * 4))
    assert (make_design("base_rate", {})(groups([A] * 12, [0, 4, 8, 12])).weights == 0).all()


@pytest.mark.parametrize(("kind", "params", "message"), [
    ("majority", {"tau": 0.5}, "expected none for 'majority', got tau"),
    ("threshold", {"rho": 0.5}, "expected tau for 'threshold', got rho"),
    ("threshold", {"tau": 1.5}, "tau: expected 0 to 1, got 1.5"),
    ("easiest", {"fraction": 0}, "fraction: expected more than 0, at most 1, got 0"),
])
def test_settings_that_a_design_does_not_have(tiny_config, kind, params, message):
    with pytest.raises(ValueError, match=f"feedback.params: {message}"):
        Trainer(override(tiny_config, {"feedback": {"kind": kind, "params": params}}))


@pytest.mark.parametrize("kind", DESIGNS)
def test_a_run_with_each_design(tiny_config, tmp_path, kind):
    """Trains, and what a design leaves out of the loss is left out."""
    config = override(tiny_config, {"feedback.kind": kind, "task.answer_rule": "last_number", "train.prompts_per_step": 12})
    Trainer(config, quiet=True).train()
    rows = [row for row in read_metrics(tmp_path / "run" / "metrics.jsonl") if row["kind"] == "train"]
    assert len(rows) == 4 and all(row["updates"] in (0, 1) for row in rows)
