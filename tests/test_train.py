import json
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from srt_fast import learner
from srt_fast.config import Config, override, to_dict
from srt_fast.files import read_rows
from srt_fast.run.checkpoint import CheckpointError
from srt_fast.run.folder import load_config
from srt_fast.train import Trainer


def run(
    config: Config, folder: Path, **changes
) -> tuple[dict, dict[str, torch.Tensor], list[dict]]:
    """Train into `folder`; its summary, final weights and metrics rows."""
    summary = Trainer(override(config, {"run_dir": str(folder), **changes}), quiet=True).train()
    return summary, weights(folder), read_rows(folder / "metrics.jsonl")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def assert_same(first: dict, second: dict, **tolerance) -> None:
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(
            first[name], second[name], **(tolerance or {"rtol": 0, "atol": 0}), msg=name
        )


def differs(first: dict, second: dict) -> bool:
    return any(not first[name].equal(second[name]) for name in first)


def test_a_run_writes_what_it_says(tiny_config, tmp_path):
    summary, _, rows = run(tiny_config, tmp_path / "run")
    assert list(summary) == [
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
    assert [r["step"] for r in rows if r["kind"] == "train"] == [1, 2, 3, 4]
    assert [r["step"] for r in rows if r["kind"] == "eval"] == [0, 4]
    trained = [r for r in rows if r["kind"] == "train" and "loss" in r]
    assert trained and all(
        r["train_mismatch_max"] < 1e-4 for r in trained
    )  # on policy: rounding alone
    for name in (
        "config.json",
        "samples.jsonl",
        "summary.json",
        "report.html",
        "report.png",
        "model/config.json",
    ):
        assert (tmp_path / "run" / name).stat().st_size > 0


def test_gold_answers_change_no_step(tiny_config, tmp_path):
    """The same run with right, wrong and no gold answers ends in the same weights, bit for bit."""
    finals = []
    for name, answer in (("right", lambda i: str(i)), ("wrong", lambda i: "7"), ("none", None)):
        rows = [
            {"problem": f"{i}+0=", **({"answer": answer(i)} if answer else {})} for i in range(40)
        ]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = {
            "kind": "jsonl",
            "name": str(tmp_path / f"{name}.jsonl"),
            "params": {},
            "gold_column": "answer" if answer else None,
        }
        finals.append(run(override(tiny_config, {"task": task}), tmp_path / name))
    assert_same(finals[0][1], finals[1][1])
    assert_same(finals[0][1], finals[2][1])
    assert finals[2][0]["pass1_end"] is None and finals[0][0]["pass1_end"] is not None


def test_dropping_rollouts_without_gradient_changes_no_update(tiny_config, tmp_path, monkeypatch):
    """Parameters agree to rounding with and without the drop, and over any micro-batch size."""
    config = override(
        tiny_config,
        {
            "train.steps": 2,
            "train.lr": 1e-4,
            "train.prompts_per_step": 12,
            "task.answer_rule": "last_number",
        },
    )  # random bytes: some groups have no answer at all
    _, dropped, rows = run(config, tmp_path / "dropped")
    assert any(row["tokens_saved"] > 0 and row["updates"] for row in rows if row["kind"] == "train")
    _, small, _ = run(config, tmp_path / "small", **{"train.token_budget": 20})
    monkeypatch.setattr(
        learner, "active_rollouts", lambda advantages, keep, cu, every_row: torch.arange(len(keep))
    )
    _, everything, _ = run(config, tmp_path / "everything")
    # Adam divides by the gradient's size, so rounding in a near-zero gradient may move a weight by up to lr a step.
    assert_same(dropped, everything, rtol=0, atol=2e-5)
    assert_same(dropped, small, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "changes",
    [{"sampling.temperature": 1e-4}, {"reward.truncated": "mask"}],
    ids=["unanimous", "all cut"],
)
def test_steps_without_gradient_are_logged_and_skipped(tiny_config, tmp_path, tiny_model, changes):
    """No gradient, no crash, weights as they were."""
    _, final, rows = run(tiny_config, tmp_path / "run", **changes)
    assert_same(final, load_file(Path(tiny_model) / "model.safetensors"))
    events = [row for row in rows if row["kind"] == "event"]
    assert [event["step"] for event in events if event["event"] == "step_skipped"] == [1, 2, 3, 4]
    steps = [row for row in rows if row["kind"] == "train"]
    assert all(
        row["tokens_saved"] == round(24 * (5 + row["completion_tokens"])) for row in steps
    )  # 24 rollouts, prompts of 5


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
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_settings_train(tiny_config, tmp_path, tiny_model, changes):
    _, final, rows = run(
        tiny_config, tmp_path / "run", **{"task.answer_rule": "last_number", **changes}
    )
    steps = [row for row in rows if row["kind"] == "train" and "loss" in row]
    assert steps and all(
        row[name] is not None for row in steps for name in ("loss", "grad_norm", "entropy")
    )
    assert differs(final, load_file(Path(tiny_model) / "model.safetensors"))
    if "train.reward_kl_coef" in changes:
        assert abs(steps[0]["kl"]) < 1e-5 and steps[-1]["kl"] > 0


def start(*arguments: str) -> subprocess.Popen:
    """`srt-fast train ARGUMENTS` in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-m", "srt_fast.cli", "train", *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )


def wait_for(path: Path, text: str, process: subprocess.Popen) -> None:
    """Until the file says `text`, at most a minute."""
    for _ in range(1200):
        if path.exists() and text in path.read_text():
            return
        assert process.poll() is None, "the run ended early"
        time.sleep(0.05)
    raise AssertionError(f"{path} never said {text!r}")


def test_stopped_killed_and_resumed_is_bit_for_bit_the_whole_run(tiny_config, tmp_path):
    """10 steps = some steps + SIGTERM + resume + some steps + kill -9 + resume + the rest."""
    changes = {
        "train.steps": 10,
        "checkpoint.every": 5,
        "evaluation.every": 3,
        "train.lr_schedule": "cosine",
        "train.weight_decay": 0.1,
    }
    _, whole, whole_rows = run(tiny_config, tmp_path / "whole", **changes)
    folder = tmp_path / "broken"
    file = tmp_path / "run.yaml"
    file.write_text(json.dumps(to_dict(override(tiny_config, {**changes, "run_dir": str(folder)}))))

    process = start(str(file))
    wait_for(folder / "metrics.jsonl", '"step": 2, "kind": "train"', process)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signal.SIGTERM
    assert (
        output.splitlines()[-1].startswith("Stopped by SIGTERM. Saved at")
        and f"--resume {folder}" in output
    )

    process = start("--resume", str(folder))
    wait_for(folder / "metrics.jsonl", '"step": 6, "kind": "train"', process)
    process.kill()
    process.communicate(timeout=60)

    process = start("--resume", str(folder))
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 0 and json.loads(output.splitlines()[-1])["steps"] == 10
    assert_same(whole, weights(folder))
    told = [
        [
            {k: v for k, v in row.items() if k != "time" and "second" not in k}
            for row in rows
            if row["kind"] != "event"
        ]
        for rows in (whole_rows, read_rows(folder / "metrics.jsonl"))
    ]
    assert told[0] == told[1]


def test_a_checkpoint_of_another_format_is_an_error(tiny_config, tmp_path):
    run(tiny_config, tmp_path / "run", **{"train.steps": 2, "checkpoint.every": 1})
    file = tmp_path / "run" / "checkpoints" / "step-000002" / "state.pt"
    state = torch.load(file, weights_only=True)
    assert state["format"] == 1
    config = override(load_config(tmp_path / "run"), {"train.steps": 3})
    for other in ({"format": 2}, {}):
        torch.save({name: state[name] for name in state if name != "format"} | other, file)
        with pytest.raises(ValueError, match="expected a checkpoint of format 1, got"):
            Trainer(config, resume=tmp_path / "run", quiet=True).train()


def test_a_resume_may_not_become_another_run(tiny_config, tmp_path):
    run(tiny_config, tmp_path / "run", **{"train.steps": 1})
    config = override(tiny_config, {"run_dir": str(tmp_path / "run"), "train.steps": 1})
    with pytest.raises(ValueError, match="train.lr from 0.001 to 0.5"):
        Trainer(override(config, {"train.lr": 0.5}), resume=tmp_path / "run")
    with pytest.raises(ValueError, match="already holds a run"):
        Trainer(config)
    longer = Trainer(
        override(config, {"train.steps": 2}), resume=tmp_path / "run", quiet=True
    ).train()
    assert longer["steps"] == 2


def test_a_model_that_is_not_there_leaves_no_folder(tiny_config, tmp_path):
    with pytest.raises(ValueError, match="model.path: .*does not exist"):
        Trainer(override(tiny_config, {"model.path": "./nowhere"}))
    assert not (tmp_path / "run").exists()


def test_a_second_process_on_the_folder_is_refused(tiny_config):
    first = Trainer(tiny_config, quiet=True)
    second = Trainer(tiny_config, quiet=True)
    with first.run, pytest.raises(ValueError, match="another process is using"):
        second.train()


def test_a_full_disk_costs_a_checkpoint_not_the_run(tiny_config, tmp_path):
    """Checkpoints at step 1 and 2; then files may not grow past 20 kB, so those of step 3 and 4 fail for real."""
    trainer = Trainer(
        override(tiny_config, {"checkpoint.every": 1, "checkpoint.keep": 1}), quiet=True
    )
    train_step, limits = trainer.train_step, resource.getrlimit(resource.RLIMIT_FSIZE)

    def limited_step():
        if trainer.step == 2:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        train_step()

    trainer.train_step = limited_step
    try:
        with pytest.raises(CheckpointError, match="could not write .*step-000004"):
            trainer.train()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    folder = tmp_path / "run"
    events = [row for row in read_rows(folder / "metrics.jsonl") if row["kind"] == "event"]
    assert [event["event"] for event in events if event["event"] == "checkpoint_failed"] == [
        "checkpoint_failed"
    ]
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-000002"]
    assert "step-000002" in trainer.run.where_saved() and weights(folder)


def test_prompts_longer_than_the_context(tiny_config, tmp_path):
    """Long prompts are replaced and counted; when there is nothing else, that is an error."""
    rows = [{"problem": "1" * (80 if i % 3 == 0 else 3) + f"+{i}="} for i in range(60)]
    (tmp_path / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"kind": "jsonl", "name": str(tmp_path / "mixed.jsonl"), "params": {}, "test_time": True}
    _, _, told = run(
        override(tiny_config, {"task": task, "evaluation.prompts": 2, "train.steps": 2}),
        tmp_path / "mixed",
    )
    assert any(row.get("event") == "prompts_dropped" and row["count"] > 0 for row in told)
    with pytest.raises(
        ValueError, match="max_prompt_tokens: expected held-out prompts of at most 2 tokens"
    ):
        run(
            override(tiny_config, {"task": task, "sampling.max_prompt_tokens": 2}),
            tmp_path / "none",
        )
    (tmp_path / "long.jsonl").write_text(
        "".join(json.dumps({"problem": "1" * 80 + f"+{i}="}) + "\n" for i in range(9))
    )
    task |= {
        "name": str(tmp_path / "long.jsonl"),
        "eval_name": str(tmp_path / "mixed.jsonl"),
        "test_time": False,
    }
    with pytest.raises(
        ValueError, match="max_prompt_tokens: expected prompts of at most 61 tokens"
    ):
        run(override(tiny_config, {"task": task, "evaluation.prompts": 60}), tmp_path / "all")
    with pytest.raises(ValueError, match="context of 64 tokens"):
        run(override(tiny_config, {"sampling.max_new_tokens": 64}), tmp_path / "long")
