"""The report: figures of the run, escaped text, one file without scripts."""

import json
import math
import resource
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srt_fast.config import Config, LogConfig
from srt_fast.run.curves import panel_svg
from srt_fast.run.metrics import MetricsWriter
from srt_fast.run.panels import PANELS, panels_of
from srt_fast.run.records import LARGEST, read_record
from srt_fast.run.report import write_report
from srt_fast.run.score_tables import score_tables

HOSTILE = "<script>alert('1')</script> & \udcff 1\u2028\x00\x1b]0;title\x07\r"
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
    assert page.tags.count("svg") == len(PANELS) - 1  # no look of the monitor
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
    assert not {"\x00", "\x1b", "\x07", "\r"} & set(html.read_text(encoding="utf-8"))
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
    assert Page(html).text.count("no data") == len(PANELS) - 1
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


def test_distance_to_the_limit(tmp_path):
    """Medians of the steps after the first. Without scoring there is no bar of it."""
    write_run(tmp_path / "plain", 2, gold=True)
    assert "Distance to the limit" not in Page(write_report(tmp_path / "plain")[0]).text
    writer = MetricsWriter(tmp_path, FILES_ONLY, None)
    writer.log(0, {"event": "device_rates", "message": "measured on CPU: 7"}, kind="event")
    for step, slower in enumerate((9, 1, 1, 3), 1):
        seconds = {"sample": 4.0 * slower, "score": 0.0, "train": 2.0 * slower}
        mfu = {"sample": 0.02, "score": None, "train": 0.25}
        flops = {"sample": 5e9, "score": 0.0, "train": 1e12}
        row: dict[str, float | None] = {"sample_limit_seconds": 1.0}
        for name in seconds:
            row[f"seconds_{name}"] = seconds[name]
            row[f"{name}_mfu"] = mfu[name]
            row[f"{name}_flops"] = flops[name]
        writer.log(step, row)
    writer.log(5, {"train_mfu": 0.9, "train_flops": 1.0})  # a part of a row is missing
    writer.close()
    text = Page(write_report(tmp_path)[0]).text
    for part in ("Distance to the limit", "sampling412.0 %5.0", "training20.525.0 %1,000.0"):
        assert part in text
    assert "measured on CPU: 7" in text and "above the limit" in text
    assert "scoring0" not in text


def test_refuses_what_is_no_run(tmp_path):
    with pytest.raises(ValueError, match="expected a run's folder, got none"):
        write_report(tmp_path / "missing")
    with pytest.raises(ValueError, match="metrics.jsonl"):
        write_report(tmp_path)


DAMAGED = {
    "metrics.jsonl": [
        "7",
        '{"kind": "train", "time": 1}',
        '{"step": 1, "kind": "trai',
        '{"step": true, "kind": "train", "time": 1}',
        '{"step": 1, "kind": ["train"], "time": 1}',
        '{"step": 1, "kind": "train", "time": null}',
        '{"step": 1, "kind": "train", "time": 1, "loss": "low"}',
        '{"step": 1, "kind": "train", "time": 1, "loss": {"a": 1}}',
        '{"step": 1, "kind": "train", "time": 1, "loss": 1e308}',
        '{"step": 1, "kind": "train", "time": 1, "loss": ' + "9" * 5000 + "}",
        '{"step": 1, "kind": "train", "time": 1, "seconds": -3}',
        '{"step": 1, "kind": "eval", "time": 1, "pass1": NaN}',
        '{"step": 1, "kind": "event", "time": 1}',
    ],
    "samples.jsonl": [
        "[]",
        '{"step": 1, "prompt": "p"}',
        '{"step": 1, "prompt": ["p"], "completion": "c"}',
        '{"prompt": "p", "completion": "c"}',
    ],
    "audit.jsonl": [
        "null",
        '{"step": 1, "groups": 1}',
        '{"step": 1, "groups": 1, "pairs": 1, "false_merges": 0, "false_splits": 0, "failures": 0,'
        ' "dropped": 0, "examples": [["false_merges", "1"]]}',
    ],
}


def test_damaged_rows_and_fields_are_left_out_and_counted_once(tmp_path, caplog):
    write_run(tmp_path, 2, gold=True)
    assert read_record(tmp_path).damage == []
    for name, lines in DAMAGED.items():
        with open(tmp_path / name, "a") as file:
            file.write("\n".join(lines) + "\n")
    (tmp_path / "config.json").write_text('{"recipe": ["x"], "train": 3, "vllm": {}}')
    (tmp_path / "summary.json").write_text('{"recipe": "mine", "seconds": {}, "pass1_end": "x"}')
    html, _ = write_report(tmp_path)
    notice = (
        "damaged and left out: 13 rows of metrics.jsonl, 4 rows of samples.jsonl, 3 rows of "
        "audit.jsonl, recipe of config.json, train of config.json, pass1_end of summary.json, "
        "seconds of summary.json"
    )
    page = Page(html)
    assert notice in page.text
    assert [record.getMessage() for record in caplog.records] == [f"{tmp_path}: {notice}"]
    assert "mine, seed unknown" in page.text
    assert "Step 2" in page.text  # what is whole is shown
    for text in ("{", "[1]", "\xff"):
        (tmp_path / "config.json").write_text(text, encoding="latin-1")
        (tmp_path / "summary.json").write_text(text, encoding="latin-1")
        assert read_record(tmp_path).damage[-2:] == ["config.json", "summary.json"]


def test_the_panel_of_the_monitor_needs_a_look():
    look = {"step": 0, "kind": "monitor", "time": 1, "probe_score": 0.5}
    assert panels_of([look]) == PANELS
    without = panels_of([{"step": 0, "kind": "eval", "time": 1, "pass1": 0.5}])
    assert without == tuple(panel for panel in PANELS if "Held-out agreement" not in panel.title)
    assert len(without) == len(PANELS) - 1


@pytest.mark.parametrize("panel", [PANELS[3], PANELS[-1]], ids=["linear", "logarithmic"])
def test_the_largest_numbers_can_be_drawn(panel):
    rows = []
    for step, value in enumerate((LARGEST, -LARGEST, 5e-324, 0, 2**53)):
        for kind, name, _ in panel.series:
            rows.append({"step": step, "kind": kind, "time": 1, name: value})
    rows.append({"step": 2**53, "kind": "event", "time": 1, "event": "alarm"})
    assert "no data" not in panel_svg(panel, rows)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda values: st.lists(values, max_size=2) | st.dictionaries(st.text(max_size=2), values),
    max_leaves=3,
)


@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_whatever_a_row_holds_only_sound_ones_are_read(tmp_path_factory, data):
    """Any field of a row may be missing or hold any JSON. The tables of the report still hold."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "metrics.jsonl").write_text("")
    names = ["step", "kind", "time", "pass1", "seconds", "maj_end", "run_dir", "examples", "prompt"]
    for name in ("metrics.jsonl", "samples.jsonl", "audit.jsonl", "config.json", "summary.json"):
        values = st.dictionaries(st.sampled_from(names), JSON) | JSON
        (folder / name).write_text(json.dumps(data.draw(values)))
    record = read_record(folder)
    for row in record.metrics:
        assert type(row["step"]) is int
        assert all(value is None or math.isfinite(value) for value in figures(row))
    score_tables(record.metrics, record.summary)


def figures(row: dict) -> list:
    return [] if row["kind"] == "event" else [row[name] for name in row if name != "kind"]


def test_a_clock_that_was_set_back_changes_no_duration(tmp_path):
    rows = [
        {"step": step, "kind": "train", "time": time, "seconds": 20.0}
        for step, time in ((1, 2e9), (2, 1e9), (3, 3e9))
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert "3 steps in 1 min 0 s" in Page(write_report(tmp_path)[0]).text


def test_a_full_disk_leaves_the_old_report(tmp_path):
    write_run(tmp_path, 2, gold=True)
    html, png = write_report(tmp_path)
    old = html.read_bytes(), png.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(OSError, match=r"report\.html"):
            write_report(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (html.read_bytes(), png.read_bytes()) == old
