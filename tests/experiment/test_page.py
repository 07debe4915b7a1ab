import json
from html.parser import HTMLParser

import pytest

from srt_fast.experiment.document import Document, Table
from srt_fast.experiment.grid import Arm, Grid, collapse_grid
from srt_fast.experiment.page import write_page
from support.experiment import FALLING, RISING, WARNINGS, make_run, save_run

SCORES = {2 * look: 0.8 if look < 5 else 0.4 for look in range(12)}
"""Probe scores by step: a fall at step 10."""


def test_the_page_shows_finished_runs_and_names_missing_ones(tmp_path):
    grid = collapse_grid()
    runs = [
        make_run("majority", FALLING, events=WARNINGS, probe_scores=SCORES),
        make_run("oracle", RISING, probe_scores=dict.fromkeys(range(0, 31, 2), 0.9)),
        make_run("majority_long", FALLING, events=WARNINGS),
    ]
    for run in runs:
        save_run(tmp_path / "runs", run)
    numbers_file, page, html, *figures = write_page(grid, [0], tmp_path / "runs", tmp_path / "out")
    text = page.read_text()
    assert "| `majority` | the plain vote | 1 | 70.0 (70.0 to 70.0) | 40.0 (40.0 to 40.0) |" in text
    assert text.count("| not run |") == len(grid.arms) - len(runs)
    assert "Rise: not run." in text
    assert "1 of 1 long runs of the plain vote (at step 30)" in text
    assert "rule `10,000 looks` it came before the fall in 1 of 1 runs that fell" in text
    numbers = json.loads(numbers_file.read_text())
    assert [run["fall_step"] for run in numbers["runs"]] == [20, None, 20]
    assert numbers["winner"]["arm"] == "majority"
    assert html.read_text().count("<svg") == len(figures) == 2
    for figure in figures:
        assert figure.read_bytes().startswith(b"\x89PNG")


def test_a_task_with_the_name_of_a_section(tmp_path):
    arms = (Arm("majority", "", {}, "", place="Alarm"),)
    grid = Grid(name="grid", page="arms", arms=arms, title="A grid")
    save_run(tmp_path, make_run("majority", FALLING, place="Alarm", probe_scores=SCORES))
    text = write_page(grid, [0], tmp_path, tmp_path)[1].read_text()
    assert "## Task Alarm\n" in text and "## Alarm\n" in text


def test_the_page_of_a_file(tmp_path):
    """Two tasks. One arm was not run on the second."""
    arms = [
        Arm(name, "", {}, f"note of {name}", place=place)
        for place in ("gcd", "lcm")
        for name in ("majority", "ema")
    ]
    grid = Grid(name="grid", page="arms", arms=tuple(arms), title="A grid", values={"a": 1})
    looks = {"probe_scores": {0: 0.9, 2: 0.9, 4: 0.6}}
    for run in (
        make_run("majority", FALLING, place="gcd", events=WARNINGS, probe_scores=SCORES),
        make_run("ema", RISING, place="gcd", seconds=2.0, **looks),
        make_run("majority", FALLING, place="lcm"),
    ):
        save_run(tmp_path, run)
    numbers_file, page, html, figure = write_page(grid, [0], tmp_path, tmp_path)
    text = page.read_text()
    ema = "90.0 (90.0 to 90.0)"
    rise = "40.0 (40.0 to 40.0)"
    start = "50.0 (50.0 to 50.0)"
    maj = "95.0 (95.0 to 95.0)"
    row = f"| `ema` | note of ema | 1 | {start} | {rise} | {ema} | {ema} | {maj} |"
    assert f"{row} 0/1 | 0/1 | 2.00 | 116 |" in text
    assert "| `ema` | note of ema | not run |" in text.split("## lcm")[1]
    assert "| `majority` | - | 45.5 | 55.5 | 65.5 | - | 50.0 | 50.0 | 50.0 |" in text
    assert "| `majority` | 2 | 2/2 | 2/2 |" in text.split("## All models and tasks")[1]
    assert "| best look | 1 | 1 | 0 | 0 | 10 | 10 to 10 | 1 | 3 | 1 |" in text
    assert text.startswith("# A grid\n")
    numbers = json.loads(numbers_file.read_text())
    assert (numbers["grid"], numbers["reference"]) == ({"a": 1}, "majority")
    assert [row["false_alarms"] for row in numbers["alarm"]] == [0, 0, 1]
    assert html.read_text().count("<svg") == 1
    assert figure.read_bytes().startswith(b"\x89PNG")


def test_the_page_of_runs_with_later_turns(tmp_path):
    """Two seeds of verdicts and of a second answer, and an arm of single completions."""
    arms = [Arm(name, "", {}, "") for name in ("majority", "coverl", "verify")]
    grid = Grid(name="grid", page="arms", arms=tuple(arms), title="A grid", values={})
    verdicts = {0: {"verdict_accuracy": 0.6, "gv_gap": 0.0}}
    for seed, final in ((0, 0.95), (1, 0.90)):
        scores = {"acc@first": 0.9, "acc@final": final, "verdict_accuracy": 0.8, "gv_gap": 0.05}
        first = verdicts[0] | {"acc@first": 0.5, "acc@final": 0.5}
        run = make_run("coverl", RISING, seed, turns={0: first, 30: scores})
        for row in run.rows_of("train"):
            row["kept_label_accuracy"] = 0.7
        save_run(tmp_path, run)
    only_verdicts = {0: verdicts[0], 30: {"verdict_accuracy": 0.7, "gv_gap": None}}
    save_run(tmp_path, make_run("verify", RISING, turns=only_verdicts))
    save_run(tmp_path, make_run("majority", RISING))
    _, page, *_ = write_page(grid, [0, 1], tmp_path, tmp_path)
    table = page.read_text().split("The later turns:")[1]
    gain = "2.5 (0.0 to 5.0)"
    assert (
        f"| `coverl` | 2 | 60.0 | 80.0 | 0.0 | 5.0 | 90.0 | 92.5 | {gain} | 50.0 | 70.0 |" in table
    )
    assert "| `verify` | 1 | 60.0 | 70.0 | - | - | - | - | - | 50.0 | - |" in table
    assert "`majority` |" not in table.split("##")[0]


class Texts(HTMLParser):
    """The texts of each kind of element."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[tuple[str, str]] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)

    def handle_endtag(self, tag):
        self.open.pop()

    def handle_data(self, data):
        self.texts.append((self.open[-1], data))


def test_a_page_shows_texts_as_texts():
    """Of a title, a heading, a paragraph, a list, a head and cells. `code` and **bold** are marked.

    A Markdown cell may hold no bar and no line break.
    """
    hostile = "<script>a|b\n\x1b</script>"
    document = Document(
        hostile,
        hostile,
        {hostile: [hostile, f"- {hostile}\n- `x` **y**", Table([hostile], [[hostile], [None]])]},
    )
    texts = Texts(document.html().partition("<body>")[2].partition("</body>")[0]).texts
    assert not [text for tag, text in texts if tag == "script"]
    assert {"h1", "h2", "p", "li", "th", "td"} <= {tag for tag, text in texts if "script" in text}
    assert ("code", "x") in texts and ("b", "y") in texts and ("td", "-") in texts
    table = document.markdown().rpartition("\n\n")[2].splitlines()
    assert [line.replace("\\|", "").count("|") for line in table] == [2] * 4


def test_without_finished_runs_there_is_no_page(tmp_path):
    with pytest.raises(ValueError, match="expected finished runs of the grid, got none"):
        write_page(collapse_grid(), [0], tmp_path / "runs", tmp_path / "out")
    assert not (tmp_path / "out").exists()
