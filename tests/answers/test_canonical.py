"""The canonical form and the key: the docstrings' examples, properties, spellings, real answers."""

import doctest
from collections.abc import Iterator
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from srt_kernels.answers import canonical
from srt_kernels.answers.canonical import answer_key, canonical_answer
from support.answers import shared_rows


def test_examples_of_the_docstrings():
    results = doctest.testmod(canonical)
    assert results.attempted > 10
    assert results.failed == 0


def spell(value: Fraction) -> Iterator[str]:
    """Ways to write a rational with a finite decimal expansion of at most nine places."""
    n, d = abs(value).as_integer_ratio()
    sign = "-" if value < 0 else ""
    digits = f"{n * 10**9 // d:010d}"
    whole, places = digits[:-9], digits[-9:]
    decimal = f"{whole}.{places}"
    yield str(value)
    yield f"{sign}{decimal}"
    yield f"{sign}00{decimal}0"
    yield f"${sign}{decimal}$."
    yield f"x = {sign}{decimal}"
    yield f"{sign}{decimal.lstrip('0')}"
    yield f"{sign}{decimal}\\%"
    yield f"{sign}{decimal}\\text{{ cm}}^2"
    yield f"{sign}{decimal} \\times 10^{{0}}"
    yield f"\\text{{{sign}{decimal}}}"
    yield f"{sign}{decimal}^\\circ"
    yield f"{sign}{n * 10**9 // d}e-9"
    yield f"{sign}{n}/{d}"
    yield f"{sign} {2 * n} / {2 * d}"
    yield f"{sign}\\frac{{{n}}}{{{d}}}"
    yield f"\\dfrac{{{sign}{3 * n}}}{{{3 * d}}}"
    grouped = f"{n // d:,}"
    yield f"{sign}{grouped}.{places}"
    yield f"\\${sign}{grouped.replace(',', '{,}')}.{places}"
    thousands = grouped.replace(",", ",\\! ")
    yield f"{sign}{thousands}.{places}"
    if n > d > 1:
        yield f"{sign}{n // d}\\frac{{{n % d}}}{{{d}}}"
        yield f"{sign}{n // d} {n % d}/{d}"


def make_decimal(numerator: int, power: int) -> Fraction:
    return Fraction(numerator, 2**power)


decimals = st.builds(make_decimal, st.integers(-(10**7), 10**7), st.integers(0, 6))


@settings(max_examples=150, deadline=None)
@given(decimals, decimals)
def test_a_rational_has_one_key_and_two_have_two(value: Fraction, other: Fraction):
    forms = {text: canonical_answer(text) for text in spell(value)}
    assert forms == dict.fromkeys(forms, str(value))
    assert (answer_key(str(value)) == answer_key(str(other))) == (value == other)
    assert canonical_answer(f"\\left( {float(value)}, x \\right]") == f"({value},x]"


@pytest.mark.parametrize(
    "texts",
    [
        # A comma in a tuple separates its parts.
        ("(2,220)", "2220", "2,220 and 1", "2, 220", "(2220,1)"),
        ("1 2", "12", "1,2", "1/2", "1.2", "1:2", "-12", "1-2", "3 1/2", "31/2", "3-1/2"),
        ("x^{23}", "x^2 3", "x_{23}", "x23", "x"),
        ("2(x+1)+5", "2(x+1)5", "2(x+1)-5"),
        (r"\pi r", r"\pir", r"\pi R", "p i r"),
        ("[0,1)", "(0,1)", "[0,1]", "0,1"),
        (r"\frac{1}{23}", r"\frac{12}{3}", r"\frac123", r"\frac{1}{0}"),
        ("3R^2", "3r^2"),
        (r"\sqrt{2}", r"\sqrt{20}", r"\sqrt2 x"),
        (r"5\text{ million}", "5"),
        ("x=1,y=2", "1,y=2", "x=1"),
        ("1e999999999", "1e999999998", "0"),
        (r"2\cdot\frac12", r"2\frac12", "1"),
        (r"2 \cdot e3", "2000"),
        ("AA", "Aa", "aa"),
        ("0.333...", "0.333"),
        (r"x<2 \text{ or } x>5", r"x<2 \text{ and } x>5"),
        ("+", "-", ".", ",", "and"),
        (r"\cos km", r"\cos ft"),
        ("0{,}500", "500"),
        ("u2009", "\u2009"),
        ("9" * 40, "9" * 41, "0." + "9" * 40, "0." + "9" * 41),
        ("5" * 30_000, "5" * 30_001, r"\frac" * 30_000, "{" * 30_000),
        ("\ud800", "\ud801", "\0"),
    ],
)
def test_different_answers_have_different_keys(texts: tuple[str, ...]):
    assert len({answer_key(text) for text in texts}) == len(texts)


@pytest.mark.parametrize(
    "texts",
    [
        (r"\text{East}", "east", "EAST", r"\mathrm{east}.", r"\textbf{ East }"),
        (
            r"\left( 3, \frac{\pi}{2} \right)",
            r"(3,\frac{\pi}2)",
            r"$(3,\, \dfrac{\pi}{2})$",
            r"\(\bigl(3.0,\tfrac\pi2\bigr)\)",
        ),
        (
            r"(-\infty, 2]\cup[3.50, \infty)",
            r"\left(-\infty,2\right] \cup \left[\frac72,\infty\right)",
        ),
        (
            r"\begin{pmatrix} -1/3 \\ 0.5 \end{pmatrix}",
            r"\begin{pmatrix}-\frac{1}{3}\\ \frac12\end{pmatrix}",
        ),
        (r"11\sqrt2", r"11 \sqrt{2}", r"11\sqrt 2", r"{11}\sqrt{2}"),
        ("x^{2}+1", "x^2 + 1", "{x}^{ 2 }+1"),
        ("x_{max}", r"x_{\text{max}}", r"x_\text{max}"),
        ("4210_5", "4210_{5}"),
        (r"\text{(C)}", "(C)", "C", "C.", r"\boxed{C}"),
        ("3, 5, 7", "3,5,7", r"3,\ 5,\ 7", "3 , 5 , 7"),
        (r"2 \cdot \sqrt{3}", r"2*\sqrt3", r"2 \times \sqrt 3"),
        ("a b", "ab", r"a \cdot b", "a*b"),
        ("2 R h", "2Rh"),
        (r"\begin{bmatrix} 1 \\ 2 \\ \end{bmatrix}", r"\begin{pmatrix}1\\2\end{pmatrix}"),
        ("(-11/36)", "-11/36"),
        (r"(2, +\infty)", r"(2,\infty)"),
        ("f(x) = x^2", "x^2"),
        ("1, 2, and 3", "1, 2, 3", r"1, 2 \text{ and } 3"),
        ("√10", r"\sqrt{10}", "√ 10"),
        (
            "5\u2009cm",
            r"5\text{ m}",
            "5 km/h",
            r"5\text{ meters per second}",
            "5 sq. ft",
            r"5\text{ m}^2.",
        ),
        ("1000", "10^3", "10^{3}", "1,000"),
        ("1, 2, ...", r"1,2,\ldots"),
        (r"(\frac12)", "(0.5)", "1/2"),
        ("x >= 5", r"x \geq 5"),
        (r"12\pi\text{ cm}", r"12 \pi", r"12\pi\mbox{ square inches}"),
    ],
)
def test_spellings_of_one_answer_have_one_key(texts: tuple[str, ...]):
    forms = [canonical_answer(text) for text in texts]
    assert len({answer_key(text) for text in texts}) == 1, forms


def test_keys_are_the_same_in_every_run():
    assert answer_key(r"\frac12") == 3463872952515240214
    assert answer_key(None) == answer_key("$ $") == 0


def test_every_math500_answer_has_a_form():
    answers = [row["answer"] for row in shared_rows("math500_solutions.jsonl")]
    own_text = canonical.OWN_TEXT.decode()
    assert not any(canonical_answer(answer).startswith(own_text) for answer in answers)


def test_amc_answers_are_integers():
    for row in shared_rows("amc.jsonl"):
        assert canonical_answer(row["answer"]) == str(int(float(row["answer"])))
