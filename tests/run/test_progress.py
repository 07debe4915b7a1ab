import io

import pytest
from rich.console import Console

from srt_fast.run import progress
from srt_fast.run.progress import RunProgress, summary_table


class Terminal(io.StringIO):
    def isatty(self):
        return True


def train(console, **settings):
    with RunProgress(console, **settings) as run:
        run.phase("warm start", None, ["loss"])
        run.update(3, loss=0.5)
        with run.phase("cached", 100, ["loss"]):
            pass
        with run.phase("train", 100, ["pass1", "maj", "tokens_per_second"]):
            run.update(51, pass1=0.5, lr=1e-6)
            run.note("step 51: [bold]a note[/bold]")
            run.update(52, maj=None, pass1=0.625, tokens_per_second=12345.6)
            run.update(53)


def test_without_a_terminal_plain_lines(monkeypatch):
    clock = iter(range(0, 1000, 4))  # each look at the clock is 4 s later
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    file = io.StringIO()
    train(Console(file=file, width=40, force_terminal=True))  # FORCE_COLOR in CI does this
    lines = file.getvalue().splitlines()
    assert "\x1b[?25l" not in file.getvalue()
    assert lines[0].startswith("warm start 3  0:")
    assert "step 51: [bold]a note[/bold]" in lines
    assert lines[-1].startswith("train 53/100  ") and lines[-1].endswith(
        "pass@1 0.625  maj -  tok/s 12,346"
    )
    assert any(
        line.startswith("train 51/100") and ", -:-- left  pass@1 0.500" in line for line in lines
    )
    assert "cached" not in file.getvalue()


def test_lines_keep_their_distance():
    file = io.StringIO()
    with RunProgress(Console(file=file)) as run, run.phase("train", 1000, []):
        for step in range(1, 1001):
            run.update(step)
    assert len(file.getvalue().splitlines()) == 2  # the first and the last


def test_terminal_is_restored_and_lines_do_not_wrap():
    file = Terminal()
    console = Console(
        file=file, force_terminal=True, width=30, height=10, color_system=None, _environ={}
    )
    fields = ["pass1", "maj", "vote_share", "tokens_per_second"]
    with (
        pytest.raises(RuntimeError, match="boom"),
        RunProgress(console) as run,
        run.phase("train", 100, fields),
    ):
        run.update(7, pass1=0.5)
        raise RuntimeError("boom")
    text = file.getvalue()
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is shown again
    assert "7/100" in text and "pass@1 0.500" in text
    assert "tok/s" not in text and "…" in text  # cut, not wrapped


def test_quiet_prints_nothing():
    file = Terminal()
    train(Console(file=file, force_terminal=True), quiet=True)
    assert file.getvalue() == ""


def test_summary_table_goes_to_standard_output(capsys):
    summary_table(
        "Held-out accuracy", [("pass@1", 0.5, 0.82), ("tokens", 12.0, 8.5), ("maj@8", None, 0.9)]
    )
    out, err = capsys.readouterr()
    assert [line.split() for line in out.splitlines() if "pass@1" in line] == [
        ["pass@1", "0.500", "0.820", "+0.320"]
    ]
    assert "-3.500" in out and err == ""
