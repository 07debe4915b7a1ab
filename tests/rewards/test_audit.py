"""The audit: what it says of a group, and that nothing stops or delays a run."""

import json
import os
import threading
import time
from pathlib import Path

import pytest

from srt_fast.config import override
from srt_fast.files import read_rows
from srt_fast.rewards import audit
from srt_fast.rewards.audit import Audit, AuditSample, answer_pairs
from srt_fast.tasks import verifiers
from srt_fast.train import Trainer

HANGING = r"9^{9^{9^{9}}}"
NOT_PARSED = "\\"  # math-verify raises
A = 11  # keys
B = 22
C = 33
# By hand: the majority is 1/2, and 0.5 is its most common spelling. 1/2 agrees. x was merged
# falsely, 50/100 was split off falsely, 3 differs.
SAMPLE = AuditSample(
    texts=["0.5", "1/2", None, "x", "0.5", "50/100", "3", "3"],
    keys=[A, A, 0, A, A, B, C, C],
    majority=A,
)


def sample_with(*minority: str) -> AuditSample:
    """A group whose majority is 2. Each other answer has one vote."""
    keys = range(100, 100 + len(minority))
    return AuditSample(texts=["2", "2", *minority], keys=[A, A, *keys], majority=A)


def audit_rows(folder: Path) -> list[dict]:
    """The rows without their time."""
    rows = read_rows(folder / "audit.jsonl")
    for row in rows:
        row.pop("time", None)
    return rows


@pytest.fixture
def make_audit(tmp_path, monkeypatch):
    """Opens an audit of two groups a step. A question has three seconds. Closed at the end."""
    audits = []
    # Waits for every score, on a busy machine too.
    monkeypatch.setattr(audit, "CLOSE_WAIT_S", 60.0)

    def make(resume_step: int | None = None) -> Audit:
        new_audit = Audit(tmp_path / "audit.jsonl", 2, seed=3, limit_s=3)
        new_audit.open(resume_step)
        audits.append(new_audit)
        return new_audit

    yield make
    for open_audit in audits:
        open_audit.close()


def test_pairs_of_a_group():
    assert answer_pairs(SAMPLE) == [
        ("0.5", "1/2", True),
        ("0.5", "x", True),
        ("0.5", "50/100", False),
        ("0.5", "3", False),
    ]
    assert answer_pairs(AuditSample(texts=[None, "7"], keys=[0, 0], majority=0)) == []


def test_agreement_hangs_and_crashes(make_audit, tmp_path, caplog):
    """A question that hangs or cannot be parsed costs its own score, not those after it."""
    not_parsed = AuditSample(texts=[NOT_PARSED, NOT_PARSED, "5"], keys=[A, A, B], majority=A)
    checker = make_audit()
    checker.submit(1, [SAMPLE, AuditSample(texts=[None], keys=[0], majority=0)])
    checker.submit(2, [sample_with(HANGING, "3", "9" * 301), not_parsed, sample_with(r"\sqrt{4}")])
    checker.close()
    step_1 = {"groups": 2, "pairs": 4, "agreement": 0.5, "false_merges": 1, "false_splits": 1}
    step_1 |= {"failures": 0, "dropped": 0}
    step_1_examples = [["false_merges", "0.5", "x"], ["false_splits", "0.5", "50/100"]]
    step_2 = {"groups": 3, "pairs": 2, "agreement": 0.5, "false_merges": 0, "false_splits": 1}
    step_2 |= {"failures": 3, "dropped": 0}
    step_2_examples = [["false_splits", "2", r"\sqrt{4}"]]
    assert audit_rows(tmp_path) == [
        {"step": 1, "kind": "audit", **step_1, "examples": step_1_examples},
        {"step": 2, "kind": "audit", **step_2, "examples": step_2_examples},
    ]
    assert "left out of the audit, not scored (1 so far): no verdict within 3 s" in caplog.text
    totals = {"groups": 5, "pairs": 6, "agreement": 0.5, "false_merges": 1, "false_splits": 2}
    assert checker.totals() == totals | {"failures": 3, "dropped": 0}


def test_a_full_queue_drops_and_counts_and_delays_nothing(make_audit, tmp_path, monkeypatch):
    checker = make_audit()
    checker._scorer._limit_s = 60  # the question hangs for longer than the test
    start = time.monotonic()
    for step in range(1, 40):
        checker.submit(step, [sample_with(HANGING), sample_with("3")])
    assert time.monotonic() - start < 2
    monkeypatch.setattr(audit, "CLOSE_WAIT_S", 0.5)
    start = time.monotonic()
    checker.close()
    assert time.monotonic() - start < 4
    assert not checker._thread.is_alive()
    totals = checker.totals()
    assert totals["groups"] == 0
    assert totals["dropped"] == 2 * 39
    assert sorted({row["step"] for row in audit_rows(tmp_path)}) == [*range(1, 40)]


def test_a_scorer_that_does_not_start_ends_the_audit_only(make_audit, caplog):
    checker = make_audit()
    checker._scorer._scorer = "no such scorer"
    checker.submit(1, [SAMPLE])
    checker._thread.join(60)
    checker.submit(2, [SAMPLE])
    checker.close()
    expected = "the audit has stopped, training goes on: expected the scorer no such scorer"
    assert expected in caplog.text
    assert checker.totals()["dropped"] == 2


def test_a_full_disk_ends_the_audit_only(make_audit, caplog):
    checker = make_audit()
    checker._file.close()
    checker._file = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")
    checker.submit(10, [sample_with("3")])
    checker._thread.join(60)
    assert "No space left on device" in caplog.text


def test_the_choice_of_groups_depends_on_seed_and_step_only(tmp_path):
    checker = Audit(tmp_path / "audit.jsonl", 3, seed=3)
    same_seed = Audit(tmp_path / "x", 3, seed=3)
    choices = [checker.choose_groups(step, 16) for step in range(50)]
    assert choices == [same_seed.choose_groups(step, 16) for step in range(50)]
    assert all(len(set(choice)) == 3 and choice == sorted(choice) for choice in choices)
    assert len(set(map(tuple, choices))) > 30
    assert checker.choose_groups(1, 2) == [0, 1]
    assert Audit(tmp_path / "x", 0, seed=3).choose_groups(1, 16) == []


def test_a_run_with_the_audit_on(tiny_config, tmp_path, monkeypatch):
    """The audit changes no step. Its rows are those of the steps that were run, also resumed."""
    monkeypatch.setattr(audit, "CLOSE_WAIT_S", 60.0)
    config = override(tiny_config, {"train.steps": 2, "task.answer_rule": "last_number"})
    losses = []
    for name, groups in (("without", 0), ("with", 3)):
        folder = tmp_path / name
        changes = {"run_dir": str(folder), "reward.audit_groups": groups}
        Trainer(override(config, changes), quiet=True).train()
        rows = read_rows(folder / "metrics.jsonl")
        losses.append([row.get("loss") for row in rows if row["kind"] == "train"])
    assert losses[0] == losses[1]
    assert not (tmp_path / "without" / "audit.jsonl").exists()
    assert [(row["step"], row["groups"]) for row in audit_rows(folder)] == [(1, 3), (2, 3)]
    [event] = [row for row in rows if row.get("event") == "audit"]
    assert event["audit/groups"] == 6
    assert event["audit/dropped"] == 0
    assert "in 6 groups" in event["message"]
    report = (folder / "report.html").read_text()
    assert "Second opinion on the vote" in report
    assert "damaged" not in report

    # A row of a step that was lost, as after kill -9.
    with open(folder / "audit.jsonl", "a") as file:
        file.write(json.dumps({"step": 3, "kind": "audit", "groups": 99}) + "\n")
    changes = {"run_dir": str(folder), "reward.audit_groups": 1, "train.steps": 3}
    Trainer(override(config, changes), resume=folder, quiet=True).train()
    assert [(row["step"], row["groups"]) for row in audit_rows(folder)] == [(1, 3), (2, 3), (3, 1)]
    assert threading.active_count() < 10
    assert not any(thread.name == "audit" for thread in threading.enumerate())


def test_without_math_verify_the_run_does_not_begin(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(verifiers.importlib.util, "find_spec", lambda name: None)
    message = "reward.audit_groups needs the package math-verify, which is not installed"
    with pytest.raises(ValueError, match=message):
        Trainer(override(tiny_config, {"reward.audit_groups": 1}))
    assert not (tmp_path / "run").exists()
