"""Tasks from files and `datasets` sets: repeated and held-out prompts, gold, errors with a line."""

import logging

import pytest

from srt_fast.tasks.base import Task
from support.tasks import task_of, write_jsonl, write_problems


def training_pairs(task: Task, count: int) -> list[tuple[str, str | None]]:
    """(prompt, gold) of the first training problems."""
    problems = [task.train(index) for index in range(count)]
    return [(problem.prompt, problem.gold) for problem in problems]


def held_out_prompts(task: Task) -> list[str]:
    return [problem.prompt for problem in task.held_out(9)]


@pytest.fixture
def train_file(tmp_path):
    """Five rows. The third repeats the first prompt."""
    rows = [
        {"problem": "a", "answer": 0.5},
        {"problem": "b", "answer": r"So \boxed{\frac12}."},
        {"problem": "a", "answer": 9},
        {"problem": "c", "answer": "12\n#### 12"},
        {"problem": "d", "answer": "7"},
    ]
    return write_jsonl(tmp_path / "train.jsonl", rows)


def test_files_drop_repeated_and_held_out_prompts_and_read_gold(train_file, tmp_path, caplog):
    rows = [{"problem": "d", "answer": 7}, {"problem": "e", "answer": 8}]
    test_file = write_jsonl(tmp_path / "test.jsonl", rows)
    fields = dict(kind="jsonl", name=train_file, eval_name=test_file)
    with caplog.at_level(logging.WARNING):
        task = task_of(**fields, gold_column="answer")
    assert task.train_size == 3
    assert training_pairs(task, 3) == [("a", "0.5"), ("b", r"\frac12"), ("c", "12")]
    assert held_out_prompts(task) == ["d", "e"]
    assert task.has_gold
    assert "dropped 1 of 5 rows" in caplog.text
    assert "1 prompts are also in" in caplog.text
    assert not task_of(**fields).has_gold


def test_a_missing_gold_answer_takes_only_the_held_out_accuracy(train_file, tmp_path):
    rows = [{"problem": "d", "answer": None}, {"problem": "e", "answer": 8}]
    test_file = write_jsonl(tmp_path / "test.jsonl", rows)
    task = task_of(kind="jsonl", name=train_file, eval_name=test_file, gold_column="answer")
    assert not task.has_gold
    assert task.train_has_gold


def test_size_and_test_time(train_file):
    assert task_of(kind="jsonl", name=train_file, size=2).train_size == 2
    task = task_of(kind="jsonl", name=train_file, test_time=True)
    assert held_out_prompts(task) == [prompt for prompt, _ in training_pairs(task, 4)]


def test_parquet_and_datasets_read_what_jsonl_reads(tmp_path):
    import pyarrow.json
    import pyarrow.parquet

    jsonl = write_problems(tmp_path)
    parquet = str(tmp_path / "problems.parquet")
    pyarrow.parquet.write_table(pyarrow.json.read_json(jsonl), parquet)
    data_files = {"train": jsonl, "test": jsonl}
    dataset = dict(kind="datasets", name="json", params={"data_files": data_files})
    problems = []
    for fields in (dict(kind="jsonl", name=jsonl), dict(kind="parquet", name=parquet), dataset):
        task = task_of(gold_column="answer", **fields)
        pairs = [(problem.prompt, problem.gold) for problem in task.held_out(9)]
        problems.append(training_pairs(task, 45) + pairs)
    assert problems[0] == problems[1] == problems[2]
    assert len(problems[0]) == 50
    assert task_of(**dataset | {"split": "train[:9]"}, eval_name="test[20:30]").train_size == 9


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"problem": "b"', "line 3: expected a JSON object, got"),
        ('{"problem": ' + "[" * 2000, "line 3: expected a JSON object, got"),
        ('["b"]', "line 3: expected an object with the column 'problem', got"),
        ('{"problem": 3}', "line 3: expected non-empty text in column 'problem', got 3"),
        ('{"problem": " "}', "line 3: expected non-empty text"),
        (
            '{"problem": "b", "answer": [1]}',
            r"line 3: expected text or a number in column 'answer', got \[1\]",
        ),
        ('{"problem": "\xff"}', "line 3: expected a JSON object.*utf-8"),
        ('{"problem": "a", "answer": 1}', "expected prompts besides the 1 held-out ones"),
    ],
)
def test_bad_rows_are_named_by_file_and_line(line, message, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b'{"problem": "a", "answer": 1}\n\n' + line.encode("latin-1"))
    with pytest.raises(ValueError, match=message) as error:
        task_of(kind="jsonl", name=str(path), gold_column="answer")
    assert "bad.jsonl" in str(error.value)


def test_an_empty_file_is_an_error(tmp_path):
    path = tmp_path / "empty.jsonl"
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"expected prompts in .*empty.jsonl, got an empty set"):
        task_of(kind="jsonl", name=str(path), gold_column="answer")
