"""Tasks, streams, verifiers and wording: pure indexing, no leak from held-out to training, errors that help."""

import json
import logging
import random
import re
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from srt_fast.config import Config, EvalConfig, ModelConfig, TaskConfig
from srt_fast.tasks import make_task
from srt_fast.tasks.arithmetic import ArithmeticTask, worked_solution
from srt_fast.tasks.prompt import prompt_ids
from srt_fast.tasks.reasoning_gym import GymTask
from srt_fast.tasks.stream import PromptStream
from srt_fast.tasks.verifiers import MathVerifier, exact
from srt_fast.types import Problem


def task_of(held_out=32, **fields):
    evaluation = EvalConfig(prompts=held_out)
    return make_task(
        Config(model=ModelConfig(path="unused"), task=TaskConfig(**fields), evaluation=evaluation)
    )


def write_jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def problems_file(tmp_path):
    return write_jsonl(
        tmp_path / "problems.jsonl", [{"problem": f"{i}+1=", "answer": i + 1} for i in range(50)]
    )


TASKS = {
    "arithmetic, 110 sums": dict(kind="arithmetic", params={"max_digits": 1}),
    "arithmetic": dict(kind="arithmetic", size=300),
    "gym, 200 prompts": dict(
        kind="reasoning_gym",
        name="chain_sum",
        params=dict(min_terms=2, max_terms=2, min_digits=1, max_digits=1),
    ),
    "gym, prepared lists": dict(kind="reasoning_gym", name="list_functions"),
    "file": dict(kind="jsonl", gold_column="answer"),
}


@pytest.mark.parametrize("fields", TASKS.values(), ids=TASKS.keys())
def test_indexing_is_pure_and_held_out_prompts_are_never_trained_on(fields, problems_file):
    fields = (
        fields
        if "name" in fields or fields["kind"] == "arithmetic"
        else fields | {"name": problems_file}
    )
    one, two = task_of(**fields), task_of(**fields)
    indices = list(range(one.train_size or 500)) + ([2**30 + 7] if one.train_size is None else [])
    two.held_out(32)
    random.seed(1)  # some generators of reasoning-gym draw from the global random numbers
    second = {index: two.train(index) for index in reversed(indices)}
    assert random.random() == random.Random(1).random()
    assert [one.train(index) for index in indices] == [second[index] for index in indices]
    held_out = one.held_out(32)
    prompts = {problem.prompt for problem in held_out}
    assert held_out == two.held_out(32) and held_out[:3] == one.held_out(3)
    assert 1 <= len(held_out) == len(prompts) <= 32
    assert prompts.isdisjoint(problem.prompt for problem in second.values())
    assert len({problem.id for problem in [*held_out, *second.values()]}) == len(held_out) + len(
        indices
    )
    assert all(
        one.correct(problem.gold, problem) and not one.correct(None, problem)
        for problem in held_out
    )


class Numbers:
    """A task whose problem i has the prompt str(i)."""

    def __init__(self, train_size):
        self.train_size = train_size

    def train(self, index):
        return Problem(id=str(index), prompt=str(index))


@settings(max_examples=60, deadline=None)
@given(
    st.none() | st.integers(1, 7),
    st.integers(0, 3),
    st.lists(st.integers(0, 9), max_size=6),
    st.integers(1, 9),
)
def test_a_stream_resumes_exactly(size, seed, before, count):
    stream = PromptStream(Numbers(size), seed)
    for n in before:
        assert len(stream.next(n)) == n
    resumed = PromptStream(Numbers(size), seed)
    resumed.load_state_dict(json.loads(json.dumps(stream.state_dict())))
    assert resumed.next(count) == stream.next(count)


def test_a_stream_meets_every_problem_once_per_epoch_in_another_order():
    orders = [
        [int(problem.prompt) for problem in PromptStream(Numbers(40), seed).next(80)]
        for seed in (0, 1)
    ]
    epochs = [orders[0][:40], orders[0][40:], orders[1][:40]]
    assert all(sorted(epoch) == list(range(40)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    endless = [
        {problem.id for problem in PromptStream(Numbers(None), seed).next(1000)} for seed in (0, 1)
    ]
    assert len(endless[0]) == 1000 and endless[0].isdisjoint(endless[1])


def test_arithmetic_draws_sums_of_mixed_difficulty_and_works_them_out():
    task = ArithmeticTask(TaskConfig())
    prompts = [task.train(index).prompt for index in range(600)]
    assert all(re.fullmatch(r"\d{3}\+\d{3}=", prompt) for prompt in prompts)
    assert (
        160 <= sum(prompt[2] != "0" or prompt[6] != "0" for prompt in prompts) <= 240
    )  # a third has three digits
    assert len(task.held_out(256)) == 256
    problem = Problem(id="", prompt="740+580=", gold="132")
    assert worked_solution(problem) == r"2310\boxed{132}"


def test_files_drop_repeated_and_held_out_prompts_and_read_gold(tmp_path, caplog):
    train = write_jsonl(
        tmp_path / "train.jsonl",
        [
            {"problem": "a", "answer": 0.5},
            {"problem": "b", "answer": r"So \boxed{\frac12}."},
            {"problem": "a", "answer": 9},
            {"problem": "c", "answer": "12\n#### 12"},
            {"problem": "d", "answer": "7"},
        ],
    )
    test = write_jsonl(
        tmp_path / "test.jsonl", [{"problem": "d", "answer": 7}, {"problem": "e", "answer": 8}]
    )
    fields = dict(kind="jsonl", name=train, eval_name=test)
    with caplog.at_level(logging.WARNING):
        task = task_of(**fields, gold_column="answer")
    assert [(p.prompt, p.gold) for p in map(task.train, range(task.train_size))] == [
        ("a", "0.5"),
        ("b", r"\frac12"),
        ("c", "12"),
    ]
    assert [p.prompt for p in task.held_out(9)] == ["d", "e"] and task.has_gold
    assert "dropped 1 of 5 rows" in caplog.text and "1 prompts are also in" in caplog.text
    assert not task_of(**fields).has_gold
    write_jsonl(
        tmp_path / "test.jsonl", [{"problem": "d", "answer": None}, {"problem": "e", "answer": 8}]
    )
    unlabelled = task_of(**fields, gold_column="answer")
    assert not unlabelled.has_gold and unlabelled.train_has_gold
    assert task_of(kind="jsonl", name=train, size=2).train_size == 2
    at_test_time = task_of(kind="jsonl", name=train, test_time=True)
    assert [p.prompt for p in at_test_time.held_out(9)] == [
        at_test_time.train(i).prompt for i in range(4)
    ]


def test_parquet_and_datasets_read_what_jsonl_reads(tmp_path, problems_file):
    import pyarrow.json
    import pyarrow.parquet

    parquet = str(tmp_path / "problems.parquet")
    pyarrow.parquet.write_table(pyarrow.json.read_json(problems_file), parquet)
    builder = dict(
        kind="datasets",
        name="json",
        params={"data_files": {"train": problems_file, "test": problems_file}},
    )
    tasks = [
        task_of(gold_column="answer", **fields)
        for fields in (
            dict(kind="jsonl", name=problems_file),
            dict(kind="parquet", name=parquet),
            builder,
        )
    ]
    seen = [
        [(p.prompt, p.gold) for p in [*map(task.train, range(45)), *task.held_out(9)]]
        for task in tasks
    ]
    assert seen[0] == seen[1] == seen[2] and len(seen[0]) == 50
    assert task_of(**builder | {"split": "train[:9]"}, eval_name="test[20:30]").train_size == 9


CHAIN = dict(kind="reasoning_gym", name="chain_sum")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            dict(kind="arithmetic", params={"digits": 3}),
            "arithmetic knows max_digits only, got digits",
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
        (CHAIN | {"name": "graph_color"}, "graph_color has no single answer: expected 'task'"),
        (
            dict(kind="jsonl", name="/no/such.jsonl"),
            "expected a file, found none at /no/such.jsonl",
        ),
        (dict(kind="parquet", name="{file}"), "expected a Parquet file"),
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
def test_bad_settings_are_one_clear_error(fields, message, problems_file):
    fields = json.loads(json.dumps(fields).replace("{file}", problems_file))
    with pytest.raises(ValueError, match=message) as error:
        task_of(**fields)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"problem": "b"', "line 3: expected a JSON object, got"),
        ('["b"]', "line 3: expected an object with the column 'problem', got"),
        ('{"problem": 3}', "line 3: expected non-empty text in column 'problem', got 3"),
        ('{"problem": " "}', "line 3: expected non-empty text"),
        (
            '{"problem": "b", "answer": [1]}',
            r"line 3: expected text or a number in column 'answer', got \[1\]",
        ),
        ('{"problem": "\xff"}', "line 3: expected a JSON object.*utf-8"),
        ('{"problem": "a", "answer": 1}', "expected prompts besides the 1 held-out ones"),
        (None, "expected prompts in .*, got an empty set"),
    ],
)
def test_bad_rows_are_named_by_file_and_line(line, message, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(
        b"" if line is None else b'{"problem": "a", "answer": 1}\n\n' + line.encode("latin-1")
    )
    with pytest.raises(ValueError, match=message) as error:
        task_of(kind="jsonl", name=str(path), gold_column="answer")
    assert "bad.jsonl" in str(error.value)


def test_missing_packages_are_named_with_their_extra(monkeypatch, problems_file):
    monkeypatch.setitem(sys.modules, "reasoning_gym.factory", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for fields, extra in [
        (CHAIN, "gym"),
        (dict(kind="parquet", name=problems_file), "data"),
        (dict(kind="arithmetic", verifier="math_verify"), "math"),
    ]:
        with pytest.raises(ValueError, match=rf"pip install 'srt-fast\[{extra}\]'"):
            task_of(**fields)


def test_a_gym_set_that_is_smaller_than_its_held_out_part_is_an_error():
    task = task_of(held_out=1000, **TASKS["gym, 200 prompts"])
    with pytest.raises(ValueError, match="lower evaluation.prompts"):
        task.train(0)


def test_gym_scorer_wants_full_score_and_its_failures_are_counted(caplog):
    import reasoning_gym

    task = GymTask(
        TaskConfig(kind="reasoning_gym", name="knights_knaves", verifier="task"), held_out_count=1
    )
    problem = task.train(0)
    (first, role), (second, other_role) = re.findall(r"(\w+) is an? (\w+)", problem.gold)
    assert task.correct(f"{second} is a {other_role}, and {first} is a {role}.", problem)
    terms = problem.row["metadata"]["knight_knave_terms"]
    wrong = terms["knave"] if other_role == terms["knight"] else terms["knight"]
    half = f"{first} is a {role}, and {second} is a {wrong}."
    assert 0 < reasoning_gym.create_dataset("knights_knaves").score_answer(half, problem.row) < 1
    assert not task.correct(half, problem)
    factors = GymTask(
        TaskConfig(kind="reasoning_gym", name="prime_factorization", verifier="task"),
        held_out_count=1,
    )
    problem = factors.train(0)
    assert not factors.correct("seven", problem)  # its scorer raises on what is no number
    assert "counted as wrong, not scored (1 so far): ValueError" in caplog.text
    assert factors.correct(problem.gold, problem)


def test_math_verify_judges_off_the_main_thread_and_survives_a_hang(caplog):
    verdicts = []
    verifier = MathVerifier(limit_s=3)

    pairs = [
        ("x+1", "1+x"),
        ("x+1", "x+2"),
        (r"\frac12", "0.5"),
        ("5", r"9^{9^{9^{9}}}"),
        ("2", r"\sqrt{4}"),
    ]

    def judge():
        for gold, answer in pairs:
            verdicts.append(verifier(answer, Problem(id="", prompt="", gold=gold)))

    thread = threading.Thread(target=judge)
    thread.start()
    thread.join()
    assert verdicts == [True, False, True, False, True]
    assert (
        verifier.judge.failures == 1
        and "not scored (1 so far): no verdict within 3 s" in caplog.text
    )


def test_exact_compares_canonical_forms():
    problem = Problem(id="", prompt="", gold=r"\frac{1}{2}")
    assert exact("0.50", problem) and not exact("2", problem) and not exact(None, problem)
    assert not exact(None, Problem(id="", prompt="")) and not exact(
        "$ $", Problem(id="", prompt="", gold="$ $")
    )


@pytest.fixture
def tokenizer():
    """Characters as tokens; adds a beginning and, as some do, an end of sequence."""
    vocabulary = {
        token: i
        for i, token in enumerate(["<s>", "</s>", "<unk>", *"0123456789+=QuserAaistnym:{} "])
    }
    tokens = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    special = [("<s>", 0), ("</s>", 1)]
    tokens.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=special
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokens, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def test_prompt_wording(tokenizer):
    problem = Problem(id="", prompt="{1}+2=")
    plain = prompt_ids(problem, TaskConfig(template="Q: {prompt} {}"), tokenizer)
    assert [tokenizer.convert_ids_to_tokens(i) for i in plain] == ["<s>", *"Q: {1}+2= {}"]
    chat = TaskConfig(chat=True, system="s")
    with pytest.raises(ValueError, match="task.chat: expected a tokenizer with a chat template"):
        prompt_ids(problem, chat, tokenizer)
    turns = "{% for m in messages %}{{ m.role[0] }}:{{ m.content }} {% endfor %}"
    tokenizer.chat_template = turns + "{% if add_generation_prompt %}a:{% endif %}"
    ids = prompt_ids(problem, chat, tokenizer)
    assert "".join(tokenizer.convert_ids_to_tokens(ids)) == "s:s u:{1}+2= a:"
    assert all(type(i) is int for i in ids)
