"""reasoning-gym tasks: sets that are too small, and the datasets' own scorers."""

import re

import pytest

from srt_fast.config import TaskConfig
from srt_fast.tasks.reasoning_gym import GymTask
from support.tasks import ONE_DIGIT_CHAIN_SUM, task_of


def task_with_own_scorer(name: str) -> GymTask:
    config = TaskConfig(kind="reasoning_gym", name=name, verifier="task")
    return GymTask(config, held_out_count=1)


def test_a_set_that_is_smaller_than_its_held_out_part_is_an_error():
    task = task_of(held_out=1000, **ONE_DIGIT_CHAIN_SUM)
    with pytest.raises(ValueError, match="lower evaluation.prompts"):
        task.train(0)


def test_partial_credit_is_not_correct():
    import reasoning_gym

    task = task_with_own_scorer("knights_knaves")
    problem = task.train(0)
    [(name, role), (other_name, other_role)] = re.findall(r"(\w+) is an? (\w+)", problem.gold)
    reordered = f"{other_name} is a {other_role}, and {name} is a {role}."
    assert task.correct(reordered, problem)
    terms = problem.row["metadata"]["knight_knave_terms"]
    wrong_role = terms["knave"] if other_role == terms["knight"] else terms["knight"]
    half_right = f"{name} is a {role}, and {other_name} is a {wrong_role}."
    score = reasoning_gym.create_dataset("knights_knaves").score_answer(half_right, problem.row)
    assert 0 < score < 1
    assert not task.correct(half_right, problem)


def test_failures_of_a_scorer_are_counted_as_wrong(caplog):
    task = task_with_own_scorer("prime_factorization")
    problem = task.train(0)
    assert not task.correct("seven", problem)  # its scorer raises for text
    assert "counted as wrong, not scored (1 so far): ValueError" in caplog.text
    assert task.correct(problem.gold, problem)
