"""The audit: what it says of a group, and that nothing it meets stops or delays a run."""

import json
import os
import threading
import time

import pytest

from srt_fast.config import override
from srt_fast.files import read_rows
from srt_fast.rewards import audit
from srt_fast.rewards.audit import Audit, AuditSample, pairs
from srt_fast.tasks import verifiers as verify
from srt_fast.train import Trainer

HANG = r"9^{9^{9^{9}}}"
UNPARSED = "\\"  # math-verify raises
A, B, C, D = 11, 22, 33, 44  # keys
# By hand: majority 1/2, spelled 0.5 twice; 1/2 agrees; x was merged with it falsely; 50/100 was split off falsely; 3 differs.
GROUP = AuditSample(
    texts=["0.5", "1/2", None, "x", "0.5", "50/100", "3", "3"],
    keys=[A, A, 0, A, A, B, C, C],
    majority=A,
)


def group_of(*others: str) -> AuditSample:
    return AuditSample(
        texts=["2", "2", *others], keys=[A, A, *range(100, 100 + len(others))], majority=A
    )


def told(folder) -> list[dict]:
    return [
        {name: value for name, value in row.items() if name != "time"}
        for row in read_rows(folder / "audit.jsonl")
    ]


@pytest.fixture
def make(tmp_path, monkeypatch):
    """An open audit of two groups per step, whose questions have three seconds; closed at the end."""
    audits = []
    monkeypatch.setattr(
        audit, "CLOSE_WAIT_S", 60.0
    )  # wait for every verdict, on a busy machine too

    def make(groups=2, resume_step=None):
        audits.append(Audit(tmp_path / "audit.jsonl", groups, seed=3, limit_s=3))
        audits[-1].open(resume_step)
        return audits[-1]

    yield make
    for each in audits:
        each.close()


def test_pairs_of_a_group():
    assert pairs(GROUP) == [
        ("0.5", "1/2", True),
        ("0.5", "x", True),
        ("0.5", "50/100", False),
        ("0.5", "3", False),
    ]
    assert pairs(AuditSample(texts=[None, "7"], keys=[0, 0], majority=0)) == []


def test_agreement_hangs_and_crashes(make, tmp_path, caplog):
    """A hanging question and one that math-verify cannot parse cost their own verdicts, not those after them."""
    checker = make()
    checker.submit(1, [GROUP, AuditSample(texts=[None], keys=[0], majority=0)])
    checker.submit(
        2,
        [
            group_of(HANG, "3", "9" * 301),
            AuditSample(texts=[UNPARSED, UNPARSED, "5"], keys=[A, A, B], majority=A),
            group_of(r"\sqrt{4}"),
        ],
    )
    checker.close()
    assert told(tmp_path) == [
        {
            "step": 1,
            "kind": "audit",
            "groups": 2,
            "pairs": 4,
            "agreement": 0.5,
            "false_merges": 1,
            "false_splits": 1,
            "failures": 0,
            "dropped": 0,
            "examples": [["false_merges", "0.5", "x"], ["false_splits", "0.5", "50/100"]],
        },
        {
            "step": 2,
            "kind": "audit",
            "groups": 3,
            "pairs": 2,
            "agreement": 0.5,
            "false_merges": 0,
            "false_splits": 1,
            "failures": 3,
            "dropped": 0,
            "examples": [["false_splits", "2", r"\sqrt{4}"]],
        },
    ]
    assert "left out of the audit, not scored (1 so far): no verdict within 3 s" in caplog.text
    assert checker.totals() == {
        "groups": 5,
        "pairs": 6,
        "agreement": 0.5,
        "false_merges": 1,
        "false_splits": 2,
        "failures": 3,
        "dropped": 0,
    }


def test_a_full_queue_drops_and_counts_and_nobody_waits(make, tmp_path, monkeypatch):
    checker, begun = make(), time.monotonic()
    checker._judge._start_with = (
        60,
        *checker._judge._start_with[1:],
    )  # a hang that would outlast the test
    for step in range(1, 40):
        checker.submit(step, [group_of(HANG), group_of("3")])
    assert time.monotonic() - begun < 2
    monkeypatch.setattr(audit, "CLOSE_WAIT_S", 0.5)
    begun = time.monotonic()
    checker.close()
    assert time.monotonic() - begun < 4 and not checker._thread.is_alive()
    figures = checker.totals()
    assert figures["groups"] == 0 and figures["dropped"] == 78
    assert sorted({row["step"] for row in told(tmp_path)}) == [*range(1, 40)]


def test_a_scorer_that_does_not_start_and_a_full_disk_end_the_audit_only(make, tmp_path, caplog):
    checker = make()
    checker._judge._start_with = (1, "no such scorer", ())
    checker.submit(1, [GROUP])
    checker._thread.join(60)
    checker.submit(2, [GROUP])
    checker.close()
    assert (
        "the audit has stopped, training goes on: expected the scorer no such scorer to start"
        in caplog.text
    )
    assert checker.totals()["dropped"] == 2
    again = make(resume_step=9)
    again._file.close()
    again._file = os.fdopen(os.open("/dev/full", os.O_WRONLY), "w")
    again.submit(10, [group_of("3")])
    again._thread.join(60)
    assert "No space left on device" in caplog.text


def test_the_choice_depends_on_seed_and_step_alone(tmp_path):
    checker = Audit(tmp_path / "audit.jsonl", 3, seed=3)
    choices = [checker.chosen(step, 16) for step in range(50)]
    assert choices == [Audit(tmp_path / "x", 3, seed=3).chosen(step, 16) for step in range(50)]
    assert (
        all(len(set(choice)) == 3 and choice == sorted(choice) for choice in choices)
        and len(set(map(tuple, choices))) > 30
    )
    assert checker.chosen(1, 2) == [0, 1] and Audit(tmp_path / "x", 0, seed=3).chosen(1, 16) == []


def test_a_run_with_the_audit_on(tiny_config, tmp_path, monkeypatch):
    """Two steps on; the same steps as without it, and its rows are those of the steps that were run, after a resume too."""
    monkeypatch.setattr(audit, "CLOSE_WAIT_S", 60.0)
    config = override(tiny_config, {"train.steps": 2, "task.answer_rule": "last_number"})
    rows = []
    for name, groups in (("without", 0), ("with", 3)):
        folder = tmp_path / name
        Trainer(
            override(config, {"run_dir": str(folder), "reward.audit_groups": groups}), quiet=True
        ).train()
        rows.append(
            [
                row.get("loss")
                for row in read_rows(folder / "metrics.jsonl")
                if row["kind"] == "train"
            ]
        )
    assert rows[0] == rows[1] and not (tmp_path / "without" / "audit.jsonl").exists()
    assert [(row["step"], row["groups"]) for row in told(folder)] == [(1, 3), (2, 3)]
    (event,) = (row for row in read_rows(folder / "metrics.jsonl") if row.get("event") == "audit")
    assert event["audit/groups"] == 6 and event["audit/dropped"] == 0
    assert (
        "Second opinion on the vote" in (folder / "report.html").read_text()
        and "in 6 groups" in event["message"]
    )

    with open(
        folder / "audit.jsonl", "a"
    ) as file:  # a row of a step that was lost, as after kill -9
        file.write(json.dumps({"step": 3, "kind": "audit", "groups": 99}) + "\n")
    more = override(config, {"run_dir": str(folder), "reward.audit_groups": 1, "train.steps": 3})
    Trainer(more, resume=folder, quiet=True).train()
    assert [(row["step"], row["groups"]) for row in told(folder)] == [(1, 3), (2, 3), (3, 1)]
    assert threading.active_count() < 10 and not any(
        thread.name == "audit" for thread in threading.enumerate()
    )


def test_without_math_verify_the_run_does_not_begin(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(verify.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError,
        match="reward.audit_groups needs the package math-verify, which is not installed",
    ):
        Trainer(override(tiny_config, {"reward.audit_groups": 1}))
    assert not (tmp_path / "run").exists()
