"""All tasks: the same index gives the same problem, and no held-out prompt is trained on."""

import json
import random
import re
import sys

import pytest

from srt_fast.config import TaskConfig
from srt_fast.tasks.arithmetic import ArithmeticTask, worked_solution
from srt_fast.types import Problem
from support.tasks import ONE_DIGIT_CHAIN_SUM, task_of, write_problems

# {file} stands for a file of 50 sums.
TASKS = {
    "arithmetic, 110 sums": dict(kind="arithmetic", params={"max_digits": 1}),
    "arithmetic": dict(kind="arithmetic", size=300),
    "gym, 200 prompts": ONE_DIGIT_CHAIN_SUM,
    "gym, prepared lists": dict(kind="reasoning_gym", name="list_functions"),
    "file": dict(kind="jsonl", name="{file}", gold_column="answer"),
}
CHAIN = dict(kind="reasoning_gym", name="chain_sum")


def with_file(fields: dict, file: str) -> dict:
    return json.loads(json.dumps(fields).replace("{file}", file))


@pytest.mark.parametrize("fields", TASKS.values(), ids=TASKS.keys())
def test_indexing_is_pure_and_held_out_prompts_are_never_trained_on(fields, tmp_path):
    fields = with_file(fields, write_problems(tmp_path))
    first = task_of(**fields)
    second = task_of(**fields)
    indices = list(range(first.train_size or 500))
    if first.train_size is None:
        indices.append(2**30 + 7)
    second.held_out(32)
    random.seed(1)  # some generators of reasoning-gym draw from the global random generator
    problems = {index: second.train(index) for index in reversed(indices)}
    assert random.random() == random.Random(1).random()
    assert [first.train(index) for index in indices] == [problems[index] for index in indices]
    held_out = first.held_out(32)
    assert held_out == second.held_out(32)
    assert held_out[:3] == first.held_out(3)
    prompts = {problem.prompt for problem in held_out}
    assert 1 <= len(held_out) == len(prompts) <= 32
    assert prompts.isdisjoint(problem.prompt for problem in problems.values())
    ids = {problem.id for problem in [*held_out, *problems.values()]}
    assert len(ids) == len(held_out) + len(indices)
    for problem in held_out:
        assert first.correct(problem.gold, problem)
        assert not first.correct(None, problem)


def test_arithmetic_draws_sums_of_mixed_difficulty_and_works_them_out():
    task = ArithmeticTask(TaskConfig())
    prompts = [task.train(index).prompt for index in range(600)]
    assert all(re.fullmatch(r"\d{3}\+\d{3}=", prompt) for prompt in prompts)
    # A third of the sums has operands below 1000, and 99 % of these have one with three digits:
    # 198 of 600, with a standard deviation of 11.5. The bounds are more than 3 of these away.
    with_three_digits = sum(prompt[2] != "0" or prompt[6] != "0" for prompt in prompts)
    assert 160 <= with_three_digits <= 240
    assert len(task.held_out(256)) == 256
    problem = Problem(id="", prompt="740+580=", gold="132")
    assert worked_solution(problem) == r"2310\boxed{132}"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            dict(kind="arithmetic", params={"digits": 3}),
            "task.params: expected max_digits only, got digits",
        ),
        (
            dict(kind="arithmetic", params={"max_digits": "3"}),
            "max_digits: expected a whole number",
        ),
        (CHAIN | {"name": "chain_sums"}, "got 'chain_sums'; chain_sum"),
        (CHAIN | {"params": {"min_term": 2}}, r"knows min_terms, .* got min_term$"),
        (CHAIN | {"params": {"seed": 2}}, "got seed"),
        (CHAIN | {"params": {"min_terms": "2"}}, "min_terms of type int, got '2'"),
        (
            CHAIN | {"params": {"min_terms": 5, "max_terms": 2}},
            "refuses min_terms=5, max_terms=2: max_terms must be",
        ),
        (
            CHAIN | {"name": "graph_color"},
            "expected 'task', because graph_color has no single answer",
        ),
        (
            dict(kind="jsonl", name="/no/such.jsonl"),
            "expected a file, a folder with data files or a pattern, got '/no/such.jsonl'",
        ),
        (
            dict(kind="jsonl", name="{file}", prompt_column="text"),
            r"line 1: expected a column 'text' .*problem, answer",
        ),
        (
            dict(kind="jsonl", name="{file}", gold_column="gold"),
            r"expected a column 'gold' .* got columns answer, problem",
        ),
        (
            dict(kind="datasets", name="json", params={"data_files": "{file}"}, split="test"),
            "split 'test' of json: Unk",
        ),
        (
            dict(kind="datasets", name="/no/such/folder"),
            "cannot load split 'train' of /no/such/folder",
        ),
        (dict(kind="datasets", name="json", params={"split": "x"}), "task.params: .*'split'"),
    ],
)
def test_bad_settings_are_one_clear_error(fields, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        task_of(**with_file(fields, write_problems(tmp_path)))
    assert "\n" not in str(error.value)


def test_missing_packages_are_named_with_their_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for fields, extra in [
        (CHAIN, "gym"),
        (dict(kind="datasets", name="json"), "data"),
        (dict(kind="arithmetic", verifier="math_verify"), "math"),
    ]:
        with pytest.raises(ValueError, match=rf"pip install 'srt-fast\[{extra}\]'"):
            task_of(**fields)
