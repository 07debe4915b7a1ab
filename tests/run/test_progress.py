"""Progress on a terminal, in a log file, and quiet."""

import io

import pytest
from rich.console import Console

from srt_fast.run import progress as progress_module
from srt_fast.run.progress import RunProgress, summary_table


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def show_three_phases(console: Console, **settings: bool) -> None:
    with RunProgress(console, **settings) as progress:
        progress.phase("warm start", None, ["loss"])
        progress.update(3, loss=0.5)
        with progress.phase("cached", 100, ["loss"]):
            pass
        with progress.phase("train", 100, ["pass1", "maj", "tokens_per_second"]):
            progress.update(51, pass1=0.5, lr=1e-6)
            progress.note("step 51: [bold]a note[/bold]\x1b]0;title\x07\r")
            progress.update(52, maj=None, pass1=0.625, tokens_per_second=12345.6)
            progress.update(53)


def test_without_a_terminal_plain_lines(monkeypatch):
    clock = iter(range(0, 1000, 4))  # each call of the clock is 4 s later
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: next(clock))
    file = io.StringIO()
    console = Console(file=file, width=40, force_terminal=True)  # FORCE_COLOR in CI does this
    show_three_phases(console)
    lines = file.getvalue().splitlines()
    assert "\x1b[?25l" not in file.getvalue()  # the cursor is not hidden
    assert lines[0].startswith("warm start 3  0:")
    assert "step 51: [bold]a note[/bold]\\x1b]0;title\\x07\\r" in lines
    assert lines[-1].startswith("train 53/100  ")
    assert lines[-1].endswith("pass@1 0.625  maj -  tok/s 12,346")
    line_of_51 = next(line for line in lines if line.startswith("train 51/100"))
    assert ", -:-- left  pass@1 0.500" in line_of_51
    assert "cached" not in file.getvalue()


def test_a_fast_phase_prints_its_first_and_last_line():
    file = io.StringIO()
    with RunProgress(Console(file=file)) as progress, progress.phase("train", 1000, []):
        for step in range(1, 1001):
            progress.update(step)
    assert len(file.getvalue().splitlines()) == 2


def test_terminal_is_restored_and_lines_do_not_wrap():
    file = Terminal()
    console = Console(
        file=file, force_terminal=True, width=30, height=10, color_system=None, _environ={}
    )
    fields = ["pass1", "maj", "vote_share", "tokens_per_second"]
    with (
        pytest.raises(RuntimeError, match="boom"),
        RunProgress(console) as progress,
        progress.phase("train", 100, fields),
    ):
        progress.update(7, pass1=0.5)
        raise RuntimeError("boom")
    text = file.getvalue()
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is shown again
    assert "7/100" in text
    assert "pass@1 0.500" in text
    assert "tok/s" not in text  # the line is cut
    assert "…" in text


def test_quiet_prints_nothing():
    file = Terminal()
    show_three_phases(Console(file=file, force_terminal=True), quiet=True)
    assert file.getvalue() == ""


def test_summary_table_goes_to_standard_output(capsys):
    rows = [("pass@1", 0.5, 0.82), ("tokens", 12.0, 8.5), ("maj@8", None, 0.9)]
    summary_table("[/red]\x1b[2J held-out", rows)
    output, errors = capsys.readouterr()
    assert "[/red]\\x1b[2J held-out" in output
    [line] = [line for line in output.splitlines() if "pass@1" in line]
    assert line.split() == ["pass@1", "0.500", "0.820", "+0.320"]
    assert "-3.500" in output
    assert errors == ""
