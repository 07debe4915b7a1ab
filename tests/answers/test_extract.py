"""Where the answer of a completion is: the docstrings' examples, rules by hand, real solutions."""

import doctest

import pytest

from srt_kernels.answers import extract
from srt_kernels.answers.canonical import answer_key
from srt_kernels.answers.extract import read_answer
from support.answers import shared_rows


def test_examples_of_the_docstrings():
    results = doctest.testmod(extract)
    assert results.attempted >= 5
    assert results.failed == 0


@pytest.mark.parametrize(
    ("text", "rule", "answer"),
    [
        (r"\boxed{1} then \boxed{2}", "boxed", "2"),
        (r"\boxed{1} then \fbox{ \{1, 2\} }", "boxed", r"\{1, 2\}"),
        (r"\boxed{\boxed{3} cm}", "boxed", "3"),
        (r"\boxed{a{b{c}d}e} }", "boxed", "a{b{c}d}e"),
        (r"\boxed{5} and \boxed{6 {", "boxed", "5"),  # truncated
        (r"\boxed{\left\{ 1 \right.} {", "boxed", r"\left\{ 1 \right."),
        (r"so $\boxed \frac{1}{2}$, done", "boxed", r"\frac{1}{2}"),
        (r"\boxed 7.", "boxed", "7"),
        (r"\boxed{7} \boxedness{8} \boxed", "boxed", "7"),
        (r"\boxed{7} \boxed{ }", "boxed", "7"),
        (r"\boxed{5}. I used \boxed to mark it.", "boxed", "5"),
        (r"\boxed 5 and \boxed 6", "boxed", "6"),
        (r"x = \frac{-3}{4}", "last_number", r"\frac{-3}{4}"),
        ("x = –5", "last_number", "–5"),
        ("", "boxed", None),
        ("<answer>\n4 </answer></answer>", "tag", "4"),
        ("</answer><answer>5", "tag", None),
        ("costs $1,234.50, or 2/3 of 1.5.", "last_number", "1.5"),
        ("(3)-4 a-5 -- x = -6", "last_number", "-6"),
        ("(3)-4", "last_number", "4"),
        (r"2{,}220 of 1,234,5", "last_number", "5"),
        (" 42 ", "whole", "42"),
        (" \n", "whole", None),
    ],
)
def test_read_answer(text: str, rule: str, answer: str | None):
    assert read_answer(text, rule) == answer


SPELLINGS = [  # of a whole number n of four digits, grouped as g and h
    "{n}", "{n}.0", "{g},{h}", r"{g}\,{h}", "{g}{{,}}{h}", "{g} {h}", r"{g},\! {h}", "+{n}",
    r"\frac{{{n}}}{{1}}", r"\dfrac{{{n}}}1", "{n}/1", "{n} / 1", "{n}e0", r"{n} \times 10^0",
    r"{n} \cdot 10^{{0}}", "{n}×10⁰", r"\\frac{{{n}}}{{1}}", "1 {n}/9999",
]  # fmt: skip
FRAMES_OF_NUMBERS = ["It is {}.", "${}$", r"so x = {} \text{{ cm}}^2", "{} m^2", "({})", "a_1: {}"]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_number_is_found_as_the_form_reads_it(spelling: str):
    for n in (1234, 7050, 9998):
        text = spelling.format(n=n, g=n // 1000, h=f"{n % 1000:03}")
        expected = answer_key(text)
        assert spelling == SPELLINGS[-1] or expected == answer_key(str(n))
        for frame in FRAMES_OF_NUMBERS:
            found = read_answer(frame.format(text), "last_number")
            assert answer_key(found) == expected, (frame.format(text), found)


def test_math500_solutions_give_the_gold_keys():
    rows = shared_rows("math500_solutions.jsonl")
    pairs = [(read_answer(row["solution"], "boxed"), row["answer"]) for row in rows]
    assert [pair for pair in pairs if answer_key(pair[0]) != answer_key(pair[1])] == []
