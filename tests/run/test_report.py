"""The report: figures of the run, escaped text, one file without scripts."""

import json
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import pytest

from srt_fast.config import Config, LogConfig
from srt_fast.run.metrics import MetricsWriter
from srt_fast.run.report import write_report

HOSTILE = "<script>alert('1')</script> & \udcff 1\u2028\x00"
FILES_ONLY = LogConfig(tensorboard=False)


class Page(HTMLParser):
    """The tags, links and text of an HTML file."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags = []
        self.links = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data):
        self.text += data


def write_run(run_dir: Path, steps: int, gold: bool) -> None:
    writer = MetricsWriter(run_dir, FILES_ONLY, None)
    for step in range(steps + 1):
        pass1 = 0.5 + 0.004 * step if gold else None
        if step % 20 == 0 and pass1 is not None:
            scores = {"pass1": pass1, "pass1_se": 0.02, "pass@2": 0.7, "maj": pass1, "gap": 0.0}
            scores |= {"coverage@0.5": 0.75, "maj@0.5": pass1 + 0.1}
            writer.log(step, scores, kind="eval")
        entropy = 1.0 if step % 9 else float("nan")
        values = {"pseudo_reward": 0.7, "pass1": pass1, "entropy": entropy, "truncated": 0.25}
        writer.log(step, values)
        sample = {"prompt": HOSTILE, "completion": HOSTILE, "answer": HOSTILE}
        sample |= {"majority": True, "correct": None}
        writer.log_samples(step, [sample] if step in (3, steps) else [])
    writer.log(steps, {"event": HOSTILE, "message": HOSTILE, "extra": HOSTILE}, kind="event")
    writer.close()


def test_full_run(tmp_path):
    write_run(tmp_path, 60, gold=True)
    config = asdict(Config(recipe=HOSTILE, run_dir=HOSTILE))
    (tmp_path / "config.json").write_text(json.dumps(config))
    summary = {"recipe": HOSTILE, "seed": 7, "seconds": 61}
    summary |= {"pass1_start": 0.5, "pass1_end": 0.74, "maj_start": 0.6}
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    html, png = write_report(tmp_path)
    page = Page(html)
    assert {"script", "link", "img"}.isdisjoint(page.tags)
    assert all(link.startswith("#") for link in page.links)
    assert page.tags.count("svg") == 11
    for text in (
        "no data",
        "seed 7",
        "1 min 1 s",
        "50.0 ± 2.0 %",
        "74.0 ± 2.0 %",
        "+24.0 points",
        "after (step 60)",
        "60.0 % of 75.0 %",
        "84.0 % of 75.0 %",
        "25.0 % of training completions",
        "alert('1')",
        "Step 3",
        "Step 60",
        "group_size",
    ):
        assert text in page.text
    assert "Step 4" not in page.text
    assert png.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("steps", [0, 2])
def test_run_without_gold_or_evaluations(tmp_path, steps):
    write_run(tmp_path, steps, gold=False)
    html, _ = write_report(tmp_path)
    assert "no evaluations" in html.read_text(encoding="utf-8")


def test_run_that_has_just_begun(tmp_path):
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text("")
    html, png = write_report(tmp_path)
    assert Page(html).text.count("no data") == 11
    assert png.is_file()
    metrics.write_text('{"step": 0, "kind": "eval", "time": 1.0, "pass1": 0.5}\n')
    html, _ = write_report(tmp_path)
    assert "points" not in Page(html).text  # one evaluation has no change


def test_step_time(tmp_path):
    """Medians of the steps after the first: a slow first and a slow last step change none."""
    parts = {"seconds_sample": 2, "seconds_reward": 0.5, "seconds_train": 6, "seconds_sync": 1}
    warm_up = {name: 50 * seconds for name, seconds in parts.items()}
    steps = [warm_up, parts, parts, parts | {"seconds_train": 60}]
    writer = MetricsWriter(tmp_path, FILES_ONLY, None)
    for step, seconds in enumerate(steps, start=1):
        total = sum(seconds.values()) + 0.5
        writer.log(step, seconds | {"seconds": total, "tokens_per_second": 1234.5})
    writer.close()
    html, _ = write_report(tmp_path)
    for text in (
        "sampling: 2.00 s, 20.0 %",
        "voting: 0.50 s, 5.0 %",
        "training: 6.00 s, 60.0 %",
        "syncing: 1.00 s, 10.0 %",
        "the rest: 0.50 s, 5.0 %",
        "10.00 s a step, 1,234 tokens per second",
    ):
        assert text in Page(html).text


def test_refuses_what_is_no_run(tmp_path):
    with pytest.raises(ValueError, match="expected a run's folder, got none"):
        write_report(tmp_path / "missing")
    with pytest.raises(ValueError, match="metrics.jsonl"):
        write_report(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json: expected a JSON document"):
        write_report(tmp_path)
