"""bench/gpu.py: a stage that fails or takes too long does not stop the others."""

import sys
from dataclasses import replace

import pytest

pytest.importorskip("triton")
import gpu
from gpu_stages.rehearsal import rehearse_loss
from gpu_stages.stages import Stage, make_stages
from srt_fast.config.arguments import configure, split_arguments


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_stages_after_a_failure_run(tmp_path, monkeypatch, capsys):
    mark = tmp_path / "mark"
    write = python(f"open({str(mark)!r}, 'a').write('x')")
    # Its child would write, too, if it were not ended.
    sleeping = f"import subprocess, time; time.sleep(3); open({str(mark)!r}, 'a').write('y')"
    slow = python(f"import subprocess; subprocess.run({python(sleeping)!r})")
    ok = Stage(name="ok", seconds=60, commands=[write], rehearsals=[])
    stages = [
        ok,
        replace(ok, name="fails", commands=[python("raise SystemExit(3)"), write]),
        replace(ok, name="slow", seconds=1, commands=[slow]),
        replace(ok, name="lacks a package", modules=("no_such_package",)),
        replace(ok, name="lacks a file", file=tmp_path / "absent"),
        replace(ok, name="lacks GPUs", gpus=2),
        replace(ok, name="last"),
    ]
    monkeypatch.setattr(gpu.torch.cuda, "device_count", lambda: 1)
    outcomes = [gpu.run_stage(stage, is_dry=False) for stage in stages]
    assert [outcome.is_failure for outcome in outcomes] == [False, True, True, *[False] * 4]
    results = [outcome.result for outcome in outcomes]
    assert results[:3] == ["ok", "exit status 3", "out of time"]
    assert results[3:] == [
        "not installed: no_such_package",
        f"no file {tmp_path / 'absent'}",
        "needs 2 GPUs, there are 1",
        "ok",
    ]
    assert mark.read_text() == "xx"
    assert gpu.run_stages([ok], is_dry=False) == 0
    assert gpu.run_stages(stages[1:4], is_dry=False) == 1
    assert "needs" not in capsys.readouterr().out.split("Stages")[-1]


def test_budget(tmp_path):
    """Ten minutes, in which all of our scripts exist and the run's arguments are right."""
    stages = make_stages(tmp_path, tmp_path)
    assert sum(stage.seconds for stage in stages) <= 600
    [train] = [command for stage in stages for command in stage.commands if "train" in command]
    arguments = train[train.index("train") + 1 :]
    config = configure(split_arguments(arguments), "train")
    assert (config.recipe, config.train.steps, config.model.device) == ("smollm", 4, "cuda")


def test_rehearsed_report_is_marked(tmp_path, capsys):
    """The GPU's cases with all providers, from made-up figures."""
    rehearse_loss(tmp_path, [])
    out = capsys.readouterr().out
    text = (tmp_path / "made_up_loss.md").read_text()
    titles = [line for line in text.splitlines() if line.startswith("**")]
    assert len(titles) == 9  # two heads with four cases each, and the bars
    assert all("MADE UP, NOT MEASURED" in title for title in titles)
    assert out.count("compile_packed") >= 8


def test_needs_a_gpu(capsys, monkeypatch):
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        gpu.main([])
    assert "expected a GPU" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        gpu.main(["--dry", "--stages", "nothing"])
    assert "expected beginnings of tests, loss" in capsys.readouterr().err
