"""The loop on a tiny model: what a run writes, resumes, skips and refuses."""

import json
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

from srt_fast import learner
from srt_fast.config import Config, override, to_dict
from srt_fast.errors import CheckpointError
from srt_fast.files import read_rows
from srt_fast.model import policy
from srt_fast.packing.micro_batches import Selection
from srt_fast.run.folder import load_config
from srt_fast.run.progress import RunProgress
from srt_fast.run.records import read_record
from srt_fast.train import Trainer

Weights = dict[str, torch.Tensor]
SUMMARY_FIELDS = [
    "recipe",
    "seed",
    "steps",
    "pass1_start",
    "pass1_end",
    "maj_start",
    "maj_end",
    "seconds",
    "run_dir",
]


def run(config: Config, folder: Path, **changes) -> tuple[dict, Weights, list[dict]]:
    """Train into `folder`. Returns summary, weights at the end and metrics rows."""
    config = override(config, {"run_dir": str(folder), **changes})
    summary = Trainer(config, quiet=True).train()
    return summary, weights(folder), read_rows(folder / "metrics.jsonl")


def weights(folder: Path) -> Weights:
    return load_file(folder / "model" / "model.safetensors")


def assert_equal(actual: Weights, expected: Weights, atol: float = 0.0) -> None:
    assert actual.keys() == expected.keys()
    for name in actual:
        torch.testing.assert_close(actual[name], expected[name], rtol=0, atol=atol, msg=name)


def rows_of(rows: list[dict], kind: str) -> list[dict]:
    return [row for row in rows if row["kind"] == kind]


def write_jsonl(file: Path, rows: list[dict]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def test_a_run_writes_its_files(tiny_config, tmp_path):
    summary, _, rows = run(tiny_config, tmp_path / "run")
    assert list(summary) == SUMMARY_FIELDS
    assert [row["step"] for row in rows_of(rows, "train")] == [1, 2, 3, 4]
    assert [row["step"] for row in rows_of(rows, "eval")] == [0, 4]
    updates = [row for row in rows_of(rows, "train") if "loss" in row]
    assert updates
    # On policy the mismatch is rounding: a few fp32 roundings of logits of size 1.
    assert all(row["train_mismatch_max"] < 1e-4 for row in updates)
    for name in (
        "config.json",
        "samples.jsonl",
        "summary.json",
        "report.html",
        "report.png",
        "model/config.json",
    ):
        assert (tmp_path / "run" / name).stat().st_size > 0
    assert read_record(tmp_path / "run").damage == []


@pytest.mark.parametrize(
    "changes",
    [{}, {"train.objective": "dpo", "train.rounds": 2}],
    ids=["policy gradient", "offline rounds"],
)
def test_gold_answers_change_no_step(tiny_config, tmp_path, changes):
    """Right, wrong and no gold answers give the same weights, bit for bit."""
    summaries = {}
    final_weights = {}
    for name in ("right", "wrong", "none"):
        answers = {"right": str, "wrong": lambda number: "7"}.get(name)
        rows: list[dict] = [{"problem": f"{number}+0="} for number in range(40)]
        if answers:
            for number, row in enumerate(rows):
                row["answer"] = answers(number)
        task = {
            "kind": "jsonl",
            "name": write_jsonl(tmp_path / f"{name}.jsonl", rows),
            "params": {},
            "gold_column": "answer" if answers else None,
        }
        config = override(tiny_config, {"task": task, **changes})
        summaries[name], final_weights[name], _ = run(config, tmp_path / name)
    assert_equal(final_weights["right"], final_weights["wrong"])
    assert_equal(final_weights["right"], final_weights["none"])
    assert summaries["none"]["pass1_end"] is None
    assert summaries["right"]["pass1_end"] is not None


def test_dropping_rollouts_without_gradient_changes_no_update(tiny_config, tmp_path, monkeypatch):
    """Weights agree with and without the drop, and over any micro-batch size.

    Adam divides a gradient by its size. So the rounding of a gradient near zero may move a weight
    by up to lr = 1e-4 a step; with other weights it is far less.
    """
    changes = {
        "train.steps": 2,
        "train.lr": 1e-4,
        "train.prompts_per_step": 12,
        "task.answer_rule": "last_number",  # random bytes: some groups have no answer
    }
    config = override(tiny_config, changes)
    _, dropped, rows = run(config, tmp_path / "dropped")
    assert any(row["tokens_saved"] > 0 and row["updates"] for row in rows_of(rows, "train"))
    _, small_batches, _ = run(config, tmp_path / "small", **{"train.token_budget": 20})

    def keep_all_rollouts(rollouts, advantages, keep, *, every_row):
        return Selection(keep.tolist(), list(range(len(keep))))

    monkeypatch.setattr(learner, "select_rollouts", keep_all_rollouts)
    _, complete, _ = run(config, tmp_path / "complete")
    assert_equal(dropped, complete, atol=2e-5)
    assert_equal(dropped, small_batches, atol=2e-5)


def test_shared_prompts_change_no_update(tiny_config, tmp_path, monkeypatch):
    """Ten steps with a KL term, token statistics and several mini-batches. They save tokens."""
    changes = {
        "train": {"steps": 10, "lr": 1e-5, "minibatches": 2, "token_budget": 60},
        "train.objective_overrides": {"kl": "k3", "kl_coef": 0.1, "entropy_coef": 0.01},
        "reward.kind": "entropy",
    }
    config = override(tiny_config, changes)
    _, shared, rows = run(config, tmp_path / "shared")
    assert all(row["tokens_shared"] > 0 for row in rows_of(rows, "train") if row["updates"])
    _, apart, rows = run(config, tmp_path / "apart", **{"train.shared_prompt": False})
    assert {row["tokens_shared"] for row in rows_of(rows, "train")} == {0}
    # Adam moves a weight whose gradient is near zero by up to lr a step.
    assert_equal(shared, apart, atol=1e-5)

    obstacle = "expected completions to see their prompt, got none"
    monkeypatch.setattr(policy, "sharing_obstacle", lambda _: obstacle)
    notes = []
    monkeypatch.setattr(RunProgress, "note", lambda _, line: notes.append(line))
    _, alone, _ = run(config, tmp_path / "alone")
    assert [obstacle in note for note in notes].count(True) == 1
    assert_equal(alone, apart)


def test_a_step_logs_its_distance_to_the_limit(tiny_config, tmp_path):
    """Training takes three forward passes, old and reference log-probs take one each. Measuring
    moves no weight.
    """
    kl = {"train.objective_overrides": {"kl": "k3", "kl_coef": 0.1}, "train.minibatches": 2}
    changes = {"train.steps": 2, "task.answer_rule": "last_number"} | kl
    _, plain, _ = run(tiny_config, tmp_path / "plain", **changes)
    _, measured, rows = run(tiny_config, tmp_path / "measured", **{"log.mfu": True} | changes)
    assert_equal(measured, plain)
    assert [row["event"] for row in rows_of(rows, "event")] == ["device_rates"]
    for row in rows_of(rows, "train"):
        assert row["train_flops"] > 0
        assert row["score_flops"] == pytest.approx(row["train_flops"] * 2 / 3)
        for name in ("sample_mfu", "score_mfu", "train_mfu", "limit_share"):
            assert row[name] > 0
    assert "Distance to the limit" in (tmp_path / "measured" / "report.html").read_text()


def test_passes_for_the_reward_are_counted(tiny_config, tmp_path):
    """A teacher's sampling doubles that of the step. Statistics score every rollout once: that is
    one token more than sampling computes, of five to eight.
    """
    steps = {}
    for kind in ("majority", "ema", "entropy"):
        changes = {"train.steps": 1, "log.mfu": True, "reward.kind": kind}
        _, _, rows = run(tiny_config, tmp_path / kind, **changes)
        [steps[kind]] = rows_of(rows, "train")
    plain = steps["majority"]["sample_flops"]
    assert 1.5 * plain < steps["ema"]["sample_flops"] < 2.5 * plain
    assert plain < steps["entropy"]["score_flops"] < 1.25 * plain
    assert steps["majority"]["score_flops"] == 0


@pytest.mark.parametrize(
    "changes",
    [{"sampling.temperature": 1e-4}, {"reward.truncated": "mask"}],
    ids=["unanimous", "all truncated"],
)
def test_steps_without_gradient_are_skipped(tiny_config, tmp_path, tiny_model, changes):
    """They are logged, and the weights stay."""
    _, final_weights, rows = run(tiny_config, tmp_path / "run", **changes)
    assert_equal(final_weights, load_file(Path(tiny_model) / "model.safetensors"))
    skipped = [row for row in rows if row.get("event") == "step_skipped"]
    assert [row["step"] for row in skipped] == [1, 2, 3, 4]
    for row in rows_of(rows, "train"):  # 24 rollouts, prompts of 5 tokens
        assert row["tokens_saved"] == round(
            24 * (5 + row["completion_tokens"] - 1)
        )  # the last predicts nothing


@pytest.mark.parametrize(
    "changes",
    [
        {"train.minibatches": 3, "train.objective": "gspo"},
        {"train.reward_kl_coef": 0.1, "train.objective": "srt", "train.advantage": "rloo"},
        {
            "train.objective": "dapo",
            "train.objective_overrides": {"kl": "k3", "kl_coef": 0.1, "entropy_coef": 0.01},
        },
        {
            "reward.kind": "oracle",
            "train.objective": "dr_grpo",
            "train.advantage": "mean",
            "train.prompts_per_step": 32,
        },
        {
            "model.gradient_checkpointing": True,
            "train.lr_schedule": "cosine",
            "train.warmup_steps": 1,
        },
        {"model.autocast": "bfloat16"},
        {"model.compile": True, "model.gradient_checkpointing": True, "train.steps": 2},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_settings_train(tiny_config, tmp_path, tiny_model, changes):
    changes = {"task.answer_rule": "last_number"} | changes
    _, final_weights, rows = run(tiny_config, tmp_path / "run", **changes)
    steps = [row for row in rows_of(rows, "train") if "loss" in row]
    assert steps
    for row in steps:
        assert all(row[name] is not None for name in ("loss", "grad_norm", "entropy"))
    start_weights = load_file(Path(tiny_model) / "model.safetensors")
    assert any(not final_weights[name].equal(start_weights[name]) for name in start_weights)
    if "train.reward_kl_coef" in changes:
        # At the start both models are one: k3 of a log-ratio of a few fp32 roundings, squared.
        assert abs(steps[0]["kl"]) < 1e-5
        assert steps[-1]["kl"] > 0


def start_train(*arguments: str) -> subprocess.Popen:
    """`srt-fast train ARGUMENTS` in a process of its own."""
    command = [sys.executable, "-m", "srt_fast.cli", "train", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def wait_for(file: Path, text: str, process: subprocess.Popen) -> None:
    """Wait until the file holds the text, at most a minute."""
    for _ in range(1200):
        if file.exists() and text in file.read_text():
            return
        assert process.poll() is None, "the run ended early"
        time.sleep(0.05)
    raise AssertionError(f"{file} never had {text!r}")


def without_times(rows: list[dict]) -> list[dict]:
    """The rows of steps and evaluations, without their times."""
    return [
        {name: row[name] for name in row if name != "time" and "second" not in name}
        for row in rows
        if row["kind"] != "event"
    ]


def test_stopped_killed_and_resumed_is_bit_for_bit_the_whole_run(tiny_config, tmp_path):
    """10 steps = some steps + SIGTERM + resume + some steps + kill -9 + resume + the others."""
    changes = {
        "train.steps": 10,
        "checkpoint.every": 5,
        "evaluation.every": 3,
        "train.lr_schedule": "cosine",
        "train.weight_decay": 0.1,
    }
    _, whole, whole_rows = run(tiny_config, tmp_path / "whole", **changes)
    folder = tmp_path / "resumed"
    metrics = folder / "metrics.jsonl"
    file = tmp_path / "run.yaml"
    config = override(tiny_config, {**changes, "run_dir": str(folder)})
    file.write_text(json.dumps(to_dict(config)))

    process = start_train(str(file))
    wait_for(metrics, '"step": 2, "kind": "train"', process)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert output.splitlines()[-1].startswith("Stopped by SIGTERM. Saved at")
    assert f"--resume {folder}" in output

    process = start_train("--resume", str(folder))
    wait_for(metrics, '"step": 6, "kind": "train"', process)
    process.kill()
    process.communicate(timeout=60)

    process = start_train("--resume", str(folder))
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert json.loads(output.splitlines()[-1])["steps"] == 10
    assert_equal(whole, weights(folder))
    assert without_times(whole_rows) == without_times(read_rows(metrics))


def flip_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_is_used(tiny_config, tmp_path):
    """The run takes the lost steps again, and its end is that of the undisturbed run."""
    folder = tmp_path / "run"
    changes = {"train.steps": 3, "checkpoint.every": 1, "checkpoint.keep": 2}
    _, whole, _ = run(tiny_config, folder, **changes)
    checkpoints = folder / "checkpoints"
    flip_byte(checkpoints / "step-000003" / "optimizer" / "model.safetensors")
    config = load_config(folder)
    Trainer(config, resume=folder, quiet=True).train()
    assert_equal(whole, weights(folder))
    rows = read_rows(folder / "metrics.jsonl")
    refused = [row for row in rows if row.get("event") == "checkpoint_refused"]
    assert [row["step"] for row in refused] == [2]
    assert "step-000003: damaged: optimizer/model.safetensors: expected" in refused[0]["message"]
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step-000002", "step-000003"]

    for step in (2, 3):
        flip_byte(checkpoints / f"step-00000{step}" / "state.pt")
    message = "got 2, none of them intact: .*step-000003: .*state.pt.*step-000002: .*state.pt"
    with pytest.raises(ValueError, match=message):
        Trainer(config, resume=folder, quiet=True).train()


def test_an_ema_teacher_is_resumed(tiny_config, tmp_path):
    folder = tmp_path / "run"
    changes = {"reward.kind": "ema", "train.steps": 1, "run_dir": str(folder)}
    first = Trainer(override(tiny_config, changes), quiet=True)
    train_step = first.train_step

    def step_that_moves_the_teacher():
        train_step()
        for weight in first.parts.rewards.teacher_weights().values():
            weight += 0.01

    first.train_step = step_that_moves_the_teacher
    first.train()
    resumed = Trainer(load_config(folder), resume=folder, quiet=True)
    resumed.train()
    assert_equal(resumed.parts.rewards.teacher_weights(), first.parts.rewards.teacher_weights())


def test_a_background_checkpoint_is_that_of_its_step(tiny_config, tmp_path):
    """Each is byte for byte the checkpoint that a run writes at once."""
    changes = {"checkpoint.every": 1, "checkpoint.keep": 9}
    run(tiny_config, tmp_path / "at once", **changes)
    run(tiny_config, tmp_path / "background", **changes, **{"checkpoint.asynchronous": True})
    for step in (1, 2, 3, 4):
        for name in ("model", "optimizer"):
            file = f"checkpoints/step-00000{step}/{name}/model.safetensors"
            content = (tmp_path / "background" / file).read_bytes()
            assert content == (tmp_path / "at once" / file).read_bytes(), file
    first, last = (tmp_path / "background/checkpoints" / f"step-00000{step}" for step in (1, 4))
    assert not weights(first)["lm_head.weight"].equal(weights(last)["lm_head.weight"])


def test_a_resume_may_not_become_another_run(tiny_config, tmp_path):
    run(tiny_config, tmp_path / "run", **{"train.steps": 1})
    config = override(tiny_config, {"run_dir": str(tmp_path / "run"), "train.steps": 1})
    with pytest.raises(ValueError, match="train.lr from 0.001 to 0.5"):
        Trainer(override(config, {"train.lr": 0.5}), resume=tmp_path / "run")
    with pytest.raises(ValueError, match="already holds a run"):
        Trainer(config)
    longer = override(config, {"train.steps": 2})
    assert Trainer(longer, resume=tmp_path / "run", quiet=True).train()["steps"] == 2


def test_a_moved_run_goes_on_where_it_is(tiny_config, tmp_path):
    """The old place stays empty, and the link to the model holds."""
    run(tiny_config, tmp_path / "old", **{"train.steps": 1})
    moved = (tmp_path / "old").rename(tmp_path / "new place")
    config = override(load_config(moved), {"train.steps": 2})
    summary = Trainer(config, resume=moved, quiet=True).train()
    assert (summary["steps"], summary["run_dir"]) == (2, str(moved))
    assert weights(moved)
    assert not (tmp_path / "old").exists()


def test_weights_that_are_not_finite_are_refused(tiny_config, tiny_model, tmp_path):
    """At the start, and after a step whose gradient is not finite. One of two is named."""
    model = Path(shutil.copytree(tiny_model, tmp_path / "nan"))
    broken = load_file(model / "model.safetensors")
    broken["model.norm.weight"][:] = float("nan")
    save_file(broken, model / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="expected finite weights, got logits of nan"):
        run(tiny_config, tmp_path / "from nan", **{"model.path": str(model)})

    changes = {"task.answer_rule": "last_number", "checkpoint.every": 1}
    config = override(tiny_config, changes | {"run_dir": str(tmp_path / "gradient")})
    trainer = Trainer(config, quiet=True)
    train_step = trainer.train_step

    def step_with_nan():
        if trainer.step == 1:
            for name in ("model.norm.weight", "model.layers.0.mlp.up_proj.weight"):
                weight = trainer.parts.policy.model.get_parameter(name)
                weight.register_hook(lambda gradient: gradient * float("nan"))
        train_step()

    trainer.train_step = step_with_nan
    message = r"gradient of model\.layers\.0\.mlp\.up_proj\.weight: expected finite values"
    with pytest.raises(ValueError, match=message):
        trainer.train()
    assert all(weight.isfinite().all() for weight in weights(tmp_path / "gradient").values())


def test_a_tokenizer_without_padding_trains(tiny_config, tiny_model, tmp_path):
    model = Path(shutil.copytree(tiny_model, tmp_path / "no padding"))
    for name, field in (("tokenizer_config.json", "pad_token"), ("config.json", "pad_token_id")):
        values = json.loads((model / name).read_text())
        values[field] = None
        (model / name).write_text(json.dumps(values))
    assert AutoTokenizer.from_pretrained(model).pad_token is None
    summary, _, _ = run(tiny_config, tmp_path / "run", **{"model.path": str(model)})
    assert summary["steps"] == 4


def test_a_missing_model_leaves_no_folder(tiny_config, tmp_path):
    with pytest.raises(ValueError, match="model.path: .*does not exist"):
        Trainer(override(tiny_config, {"model.path": "./nowhere"}))
    assert not (tmp_path / "run").exists()


def test_a_second_process_on_the_folder_is_refused(tiny_config):
    first = Trainer(tiny_config, quiet=True)
    second = Trainer(tiny_config, quiet=True)
    with first.run, pytest.raises(ValueError, match="another process is using"):
        second.train()


def test_a_full_disk_costs_a_checkpoint_not_the_run(tiny_config, tmp_path):
    """The checkpoints of steps 1 and 2 are written.

    From then on files may not grow past 20 kB, so the checkpoints of steps 3 and 4 fail.
    """
    changes = {"checkpoint.every": 1, "checkpoint.keep": 1}
    trainer = Trainer(override(tiny_config, changes), quiet=True)
    train_step = trainer.train_step
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def step_with_limit():
        if trainer.step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        train_step()

    trainer.train_step = step_with_limit
    try:
        with pytest.raises(CheckpointError, match="could not write .*step-000004"):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    folder = tmp_path / "run"
    rows = read_rows(folder / "metrics.jsonl")
    failed = [row["step"] for row in rows if row.get("event") == "checkpoint_failed"]
    assert failed == [3]
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-000002"]
    assert "step-000002" in trainer.run.where_saved()
    assert weights(folder)


def test_prompts_that_are_too_long(tiny_config, tmp_path):
    """They are replaced and counted. It is an error if there are no others."""
    mixed = [
        {"problem": "1" * (80 if number % 3 == 0 else 3) + f"+{number}="} for number in range(60)
    ]
    long = [{"problem": "1" * 80 + f"+{number}="} for number in range(9)]
    mixed_file = write_jsonl(tmp_path / "mixed.jsonl", mixed)
    long_file = write_jsonl(tmp_path / "long.jsonl", long)
    task = {"kind": "jsonl", "name": mixed_file, "params": {}, "test_time": True}
    changes = {"task": task, "evaluation.prompts": 2, "train.steps": 2}
    _, _, rows = run(override(tiny_config, changes), tmp_path / "mixed")
    assert any(row.get("event") == "prompts_dropped" and row["count"] > 0 for row in rows)

    changes = {"task": task, "sampling.max_prompt_tokens": 2}
    message = "max_prompt_tokens: expected held-out prompts of at most 2 tokens"
    with pytest.raises(ValueError, match=message):
        run(override(tiny_config, changes), tmp_path / "no held-out prompt")

    task |= {"name": long_file, "eval_name": mixed_file, "test_time": False}
    changes = {"task": task, "evaluation.prompts": 60}
    message = "max_prompt_tokens: expected prompts of at most 61 tokens"
    with pytest.raises(ValueError, match=message):
        run(override(tiny_config, changes), tmp_path / "no training prompt")

    with pytest.raises(ValueError, match="context of 64 tokens"):
        run(override(tiny_config, {"sampling.max_new_tokens": 64}), tmp_path / "no room")
