"""Tasks from files and `datasets` sets: repeated and held-out prompts, gold, errors with a line."""

import gzip
import json
import logging

import pytest

from srt_fast.config import TaskConfig
from srt_fast.tasks.base import Task
from srt_fast.tasks.prompt import chat_messages
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
        ('{"problem": 3}', "line 3: expected non-empty text or a chat in column 'problem', got 3"),
        ('{"problem": " "}', "line 3: expected non-empty text"),
        (
            '{"problem": "b", "answer": {}}',
            "line 3: expected text, a number or a list of them in column 'answer', got {}",
        ),
        ('{"problem": "\xff"}', "line 3: expected UTF-8, got byte 0xff"),
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


CHAT = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": [{"type": "text", "text": "a"}]},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c", "name": None},
]
VERL = [
    {"prompt": CHAT, "reward_model": {"ground_truth": ["1/2"]}},
    {"prompt": CHAT[3:], "reward_model": {"ground_truth": '["0.5"]'}},
    {"prompt": CHAT[3:], "reward_model": {"ground_truth": "2"}},
]
PATHS = dict(prompt_column="prompt", gold_column="reward_model.ground_truth", chat=True)


def chat_task(tmp_path, rows=VERL, name="rows.json", **fields):
    path = tmp_path / name
    path.write_text(json.dumps(rows))
    return task_of(**dict(kind="jsonl", name=str(path), test_time=True) | PATHS | fields)


def test_a_chat_keeps_its_messages_and_a_path_leads_to_its_gold(tmp_path):
    first, second = (chat_task(tmp_path).train(index) for index in range(2))
    assert first.prompt == "system: s\n\nuser: a\n\nassistant: b\n\nuser: c"
    assert second.prompt == "c"
    assert (first.gold, second.gold) == ("1/2", "0.5")
    config = TaskConfig(chat=True, template="Q: {prompt}")
    assert [list(message.values()) for message in chat_messages(first, config)] == [
        ["system", "s"],
        ["user", "a"],
        ["assistant", "b"],
        ["user", "Q: c"],
    ]
    system = TaskConfig(chat=True, system="t")
    assert chat_messages(second, system) == [
        {"role": "system", "content": "t"},
        {"role": "user", "content": "c"},
    ]


def test_several_gold_answers_are_none(tmp_path, caplog):
    rows = [{"prompt": "a", "reward_model": {"ground_truth": gold}} for gold in (["1"], [1, 2])]
    rows[1]["prompt"] = "b"
    with caplog.at_level(logging.WARNING):
        task = chat_task(tmp_path, rows)
    assert [task.train(index).gold for index in range(2)] == ["1", None]
    assert "1 of 2 rows have several different gold answers" in caplog.text


@pytest.mark.parametrize(
    ("prompt", "fields", "message"),
    [
        (CHAT, dict(chat=False), "row 1: column 'prompt' holds a chat: expected task.chat true"),
        (CHAT, dict(system="s"), "row 1: task.system: expected none for a chat with a system"),
        (CHAT[:3], {}, "row 1: expected a chat in column 'prompt' that ends before the answer"),
        (
            [{"role": "user", "content": [{"type": "image", "image": "x"}]}],
            {},
            "row 1, column 'prompt': expected messages of text, got",
        ),
    ],
)
def test_a_chat_that_does_not_fit_is_one_error(prompt, fields, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        chat_task(tmp_path, [VERL[1] | {"prompt": prompt}], **fields)


def test_a_folder_of_compressed_files_has_an_id_for_each_row(tmp_path):
    for name in "ab":
        rows = "".join(json.dumps({"problem": f"{name}{i}"}) + "\n" for i in range(2))
        (tmp_path / f"{name}.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    task = task_of(kind="jsonl", name=str(tmp_path), test_time=True)
    problems = [task.train(index) for index in range(4)]
    assert [problem.prompt for problem in problems] == ["a0", "a1", "b0", "b1"]
    assert len({problem.id for problem in problems}) == 4
