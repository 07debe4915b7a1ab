"""Reading, canonical form and key of answers: the docstrings' tables, properties, hostile text and real answers."""

import doctest
import itertools
import json
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from srt_kernels.answers import extract as module
from srt_kernels.answers.canonical import answer_key, canonical_answer
from srt_kernels.answers.extract import read_answer
from srt_kernels.answers.reader import AnswerReader
from support.paths import DATA


def rows(name):
    if not (DATA / name).is_file():
        pytest.skip(f"the shared data file {name} is not there (expected at {DATA})")
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


def test_examples_of_the_docstrings():
    assert doctest.testmod(module).attempted > 10
    assert doctest.testmod(module).failed == 0


@pytest.mark.parametrize(
    ("text", "rule", "answer"),
    [
        (r"\boxed{1} then \boxed{2}", "boxed", "2"),
        (r"\boxed{1} then \fbox{ \{1, 2\} }", "boxed", r"\{1, 2\}"),
        (r"\boxed{\boxed{3} cm}", "boxed", "3"),
        (r"\boxed{a{b{c}d}e} }", "boxed", "a{b{c}d}e"),
        (r"\boxed{5} and \boxed{6 {", "boxed", "5"),  # cut by the length limit
        (r"\boxed{\left\{ 1 \right.} {", "boxed", r"\left\{ 1 \right."),
        (r"so $\boxed \frac{1}{2}$, done", "boxed", r"\frac{1}{2}"),
        (r"\boxed 7.", "boxed", "7"),
        (r"\boxed{7} \boxedness{8} \boxed", "boxed", "7"),
        (r"\boxed{7} \boxed{ }", "boxed", None),
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
        (r"2{,}220 of 1,2345", "last_number", "2345"),
        (" 42 ", "whole", "42"),
        (" \n", "whole", None),
    ],
)
def test_read_answer(text, rule, answer):
    assert read_answer(text, rule) == answer


def spellings(value):
    """Ways to write a rational with a finite decimal expansion."""
    n, d, sign = abs(value.numerator), value.denominator, "-" if value < 0 else ""
    decimal = f"{abs(value).numerator * 10**9 // d:010d}"
    decimal = f"{decimal[:-9]}.{decimal[-9:]}"
    yield from (
        str(value),
        f"{sign}{decimal}",
        f"{sign}00{decimal}0",
        f"${sign}{decimal}$.",
        f"x = {sign}{decimal}",
    )
    yield from (
        f"{sign}{decimal.lstrip('0')}",
        f"{sign}{decimal}\\%",
        f"{sign}{decimal}\\text{{ cm}}^2",
    )
    yield from (f"{sign}{n}/{d}", f"{sign} {2 * n} / {2 * d}")
    yield from (f"{sign}\\frac{{{n}}}{{{d}}}", f"\\dfrac{{{sign}{3 * n}}}{{{3 * d}}}")
    yield from (
        f"{sign}{n * 10**9 // d}e-9",
        f"{sign}{decimal} \\times 10^{{0}}",
        f"\\text{{{sign}{decimal}}}",
    )
    whole, rest = divmod(n, d)
    grouped, point = f"{whole:,}", decimal.partition(".")[2]
    yield from (f"{sign}{grouped}.{point}", f"\\${sign}{grouped.replace(',', '{,}')}.{point}")
    yield from (
        f"{sign}{grouped.replace(',', ',' + chr(92) + '! ')}.{point}",
        f"{sign}{decimal}^\\circ",
    )
    if whole and rest:
        yield from (f"{sign}{whole}\\frac{{{rest}}}{{{d}}}", f"{sign}{whole} {rest}/{d}")


decimals = st.builds(
    lambda n, k: Fraction(n, 2**k), st.integers(-(10**7), 10**7), st.integers(0, 6)
)


@settings(max_examples=150, deadline=None)
@given(decimals, decimals)
def test_a_rational_has_one_key_and_two_have_two(value, other):
    assert {text: canonical_answer(text) for text in spellings(value)} == dict.fromkeys(
        spellings(value), str(value)
    )
    assert (answer_key(str(value)) == answer_key(str(other))) == (value == other)
    assert canonical_answer(f"\\left( {float(value)}, x \\right]") == f"({value},x]"


@pytest.mark.parametrize(
    "texts",
    [
        (
            "(2,220)",
            "2220",
            "2,220 and 1",
            "2, 220",
            "(2220,1)",
        ),  # a comma in a tuple separates its parts
        ("1 2", "12", "1,2", "1/2", "1.2", "1:2", "-12", "1-2", "3 1/2", "31/2", "3-1/2"),
        ("x^{23}", "x^2 3", "x_{23}", "x23", "x"),
        ("2(x+1)+5", "2(x+1)5", "2(x+1)-5"),
        (r"\pi r", r"\pir", r"\pi R", "pi r"),
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
def test_different_answers_have_different_keys(texts):
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
def test_spellings_of_one_answer_have_one_key(texts):
    assert len({answer_key(text) for text in texts}) == 1, [
        canonical_answer(text) for text in texts
    ]


def test_keys_are_the_same_in_every_run():
    assert answer_key(r"\frac12") == 3463872952515240214
    assert answer_key(None) == answer_key("$ $") == 0


@pytest.fixture(scope="module")
def tokenizer():
    """Byte-level BPE with an end-of-sequence token, as most models have."""
    tokens = Tokenizer(models.BPE())
    tokens.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokens.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=alphabet, special_tokens=["</s>"]
    )
    tokens.train_from_iterator([r"the answer is \boxed{\frac{1}{2}}"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokens, eos_token="</s>")


def test_answer_reader_reads_a_packed_batch(tokenizer):
    texts = [r"é \boxed{\frac12}", "none", "", r"\boxed{ 0.50 } .", r"\boxed{1} \boxed{2"]
    completions = [
        [*tokenizer.encode(text), tokenizer.eos_token_id] if text else [] for text in texts
    ]
    tokens = torch.tensor(sum(completions, []))
    cu_seqlens = torch.tensor([0, *itertools.accumulate(map(len, completions))], dtype=torch.int32)
    reader = AnswerReader(tokenizer, "boxed")
    assert reader.read(tokens, cu_seqlens) == [r"\frac12", None, None, "0.50", "1"]
    keys = reader.keys(tokens, cu_seqlens)
    assert keys.dtype == torch.int64
    assert keys.tolist() == [answer_key("1/2"), 0, 0, answer_key("1/2"), answer_key("1")]
    assert AnswerReader(tokenizer, "whole").read(tokens, cu_seqlens)[1] == "none"  # no "</s>"
    assert reader.keys(tokens[:0], cu_seqlens[:1]).shape == (0,)
    with pytest.raises(ValueError, match=r"cu_seqlens: expected .* last"):
        reader.read(tokens, cu_seqlens[:-1])
    with pytest.raises(ValueError, match="answer rule: expected one of boxed, .* got 'box'"):
        AnswerReader(tokenizer, "box")


def test_math500_solutions_give_the_gold_keys():
    data = rows("math500_solutions.jsonl")
    read = [read_answer(row["solution"], "boxed") for row in data]
    pairs = [(answer, row["answer"]) for answer, row in zip(read, data, strict=True)]
    assert [pair for pair in pairs if answer_key(pair[0]) != answer_key(pair[1])] == []
    assert not any(canonical_answer(row["answer"]).startswith("\\verb") for row in data)


def test_amc_answers_are_integers():
    assert all(
        canonical_answer(row["answer"]) == str(int(float(row["answer"])))
        for row in rows("amc.jsonl")
    )
