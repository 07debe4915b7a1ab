"""What tests of answers share: fragments of texts, a vocabulary of them, the shared data."""

from __future__ import annotations

import json
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from support.paths import DATA, TESTS

SYMBOLS = [*"0123456789" * 2, *".,-+/()[]{}^_= $%°π∞−xAbe&<>\\\n\0"]
LATEX = [
    *("{1}", "000", "1/2", "2,220", "1e5", "{,}", ",\\!", r"\,", r"\!", r"\{", r"\}", "\\\\"),
    *(r"\frac", r"\dfrac", r"\frac{1}{2}", r"\sqrt", r"\text{", r"\left", r"\right", r"\circ"),
    *(r"\pi", r"\times 10^", r"\times ", r"\cdot ", r"\in ", r"+\infty"),
    *(r"\begin{bmatrix}", r"\end{bmatrix}", "x=", "f(x)=", "(2)", "(C)"),
    *(" and ", "cm", "degrees.", "Word "),
]
FRAMES = [
    *(r"\boxed{", r"\boxed{5}", r"\boxed ", r"\boxed", r"\fbox{", "boxed", "fbox"),
    *("<answer>", "</answer>", "</", "−4", "<think>", "</think>", "\nQ:", "Question:", "\n"),
    *("The answer is ", "Answer:", "#### ", "(B)", "\nC\n", r"\boxed{...}", " and ", ", ", "cm^2"),
    *("12 000", "3 1/2", "2,74", r"\times 10^5", "x_1", "apples ", "Friday", "**", "[0, 1)"),
]
BYTES = [bytes([byte]) for byte in range(256)]
VOCABULARY = [
    *BYTES,
    *(text.encode() for text in LATEX + FRAMES),
    *(b"\\bo", b"xed", b"oxed", b"\\box", b"ed{1", b"d{", b"ed", b"d", b"x)", b"d.", b" the"),
    *(b"<th", b"ink", b"k>", b"Ques", b"tion", b"Q", b":", b"swer is ", b"##", b"# 1"),
    *(b"does", b"ans", b"<ans", b"wer>", b"12", b"  (", b"\xe2\x88", b""),
]
"""The bytes of each token. Some end inside a command, a tag or a character. The last is empty."""


def box(answer: bytes) -> bytes:
    return b"\\boxed{" + answer + b"}"


def pack_bytes(texts: list[bytes]) -> tuple[Tensor, Tensor]:
    """Tokens and cu_seqlens of texts, with a token for each byte."""
    tokens = torch.tensor(list(b"".join(texts)), dtype=torch.int64)
    return tokens, torch.tensor([0, *map(len, texts)]).cumsum(0)


class Case(NamedTuple):
    """Completions that were read wrongly somewhere, with the value that each has.

    Equal values must have one key, and different ones different keys. None: no answer.
    """

    name: str
    rule: str
    completions: list[tuple[str, str | None]]


def cases(rule: str | None = None) -> list[Case]:
    """The cases of tests/answers/cases.jsonl; only those of a rule."""
    lines = (TESTS / "answers" / "cases.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [
        Case(row["name"], row["rule"], [(c["text"], c["value"]) for c in row["completions"]])
        for row in rows
        if rule in (None, row["rule"])
    ]


def shared_rows(name: str) -> list[dict]:
    """The rows of a JSONL file of the shared data. Skips the test if the file is missing."""
    if not (DATA / name).is_file():
        pytest.skip(f"the shared data file {name} is not there (expected at {DATA})")
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]
