import json
from dataclasses import asdict
from html.parser import HTMLParser

import pytest

from srt_fast.config import Config, LogConfig
from srt_fast.run.metrics import MetricsWriter
from srt_fast.run.report import write_report

EVIL = "<script>alert('1')</script> & \udcff 1\u2028\x00"


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.links += [value for name, value in attrs if name in ("src", "href", "xlink:href")]

    def handle_data(self, data):
        self.text += data


def write_run(run_dir, steps, gold):
    writer = MetricsWriter(run_dir, LogConfig(tensorboard=False), None)
    for step in range(steps + 1):
        true = 0.5 + 0.004 * step if gold else None
        if step % 20 == 0 and gold:
            scores = {"pass1": true, "pass1_se": 0.02, "pass@2": 0.7, "maj": true, "gap": 0.0}
            writer.log(step, scores | {"coverage@0.5": 0.75, "maj@0.5": true + 0.1}, kind="eval")
        entropy = 1.0 if step % 9 else float("nan")
        writer.log(
            step, {"pseudo_reward": 0.7, "pass1": true, "entropy": entropy, "truncated": 0.25}
        )
        completion = {
            "prompt": EVIL,
            "completion": EVIL,
            "answer": EVIL,
            "majority": True,
            "correct": None,
        }
        writer.samples(step, [completion] if step in (3, steps) else [])
    writer.log(steps, {"event": EVIL, "message": EVIL, "extra": EVIL}, kind="event")
    writer.close()


def test_full_run(tmp_path):
    write_run(tmp_path, 60, gold=True)
    (tmp_path / "config.json").write_text(json.dumps(asdict(Config(recipe=EVIL, run_dir=EVIL))))
    summary = {
        "recipe": EVIL,
        "seed": 7,
        "pass1_start": 0.5,
        "pass1_end": 0.74,
        "maj_start": 0.6,
        "seconds": 61,
    }
    (tmp_path / "summary.json").write_text(json.dumps(summary))
    html, png = write_report(tmp_path)
    page = Tags(html.read_text(encoding="utf-8"))
    assert "script" not in page.tags and "link" not in page.tags and "img" not in page.tags
    assert all(link.startswith("#") for link in page.links)
    assert page.tags.count("svg") == 11 and "no data" in page.text
    for shown in (
        "seed 7",
        "1 min 1 s",
        "50.0 ± 2.0 %",
        "74.0 ± 2.0 %",
        "+24.0 points",
        "after (step 60)",
        "60.0 % of 75.0 %",
        "84.0 % of 75.0 %",
    ):
        assert shown in page.text
    for shown in (
        "25.0 % of training completions",
        "alert('1')",
        "Step 3",
        "Step 60",
        "group_size",
    ):
        assert shown in page.text
    assert "Step 4" not in page.text
    assert png.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("steps", [0, 2])
def test_run_without_gold_or_evaluations(tmp_path, steps):
    write_run(tmp_path, steps, gold=False)
    html, _ = write_report(tmp_path)
    assert "no evaluations" in html.read_text(encoding="utf-8")


def test_run_that_has_just_begun(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("")
    html, png = write_report(tmp_path)
    text = html.read_text(encoding="utf-8")
    assert text.count("no data") == 11 and png.is_file()
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 0, "kind": "eval", "time": 1.0, "pass1": 0.5}\n'
    )
    assert "points" not in write_report(tmp_path)[0].read_text(
        encoding="utf-8"
    )  # one evaluation is no change


def test_step_time(tmp_path):
    parts = {
        "seconds_sample": 2.0,
        "seconds_reward": 0.5,
        "seconds_train": 6.0,
        "seconds_sync": 1.0,
    }
    steps = [
        {name: 50 * value for name, value in parts.items()},
        parts,
        parts,
        parts | {"seconds_train": 60.0},
    ]  # 1st: warm-up
    old = [{name: step[name] for name in ("seconds_sample", "seconds_train")} for step in steps]
    for run, timed in (("new", steps), ("old", old)):
        writer = MetricsWriter(tmp_path / run, LogConfig(tensorboard=False), None)
        for step, (values, all_parts) in enumerate(zip(timed, steps, strict=True), start=1):
            writer.log(
                step,
                values | {"seconds": sum(all_parts.values()) + 0.5, "tokens_per_second": 1234.5},
            )
        writer.close()
    new, old = (
        Tags(write_report(tmp_path / run)[0].read_text(encoding="utf-8")).text
        for run in ("new", "old")
    )
    for shown in (
        "sampling: 2.00 s, 20.0 %",
        "voting: 0.50 s, 5.0 %",
        "training: 6.00 s, 60.0 %",
        "syncing: 1.00 s, 10.0 %",
        "the rest: 0.50 s, 5.0 %",
        "10.00 s a step, 1,234 tokens per second",
    ):
        assert shown in new
    assert (
        "training: 6.00 s, 60.0 %" in old
        and "the rest: 2.00 s, 20.0 %" in old
        and "voting:" not in old
    )


def test_refuses_what_is_no_run(tmp_path):
    with pytest.raises(ValueError, match="expected a run's folder, found none"):
        write_report(tmp_path / "missing")
    with pytest.raises(ValueError, match="metrics.jsonl"):
        write_report(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="config.json: expected a JSON document"):
        write_report(tmp_path)
