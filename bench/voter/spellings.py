"""The ways in which a language model writes the value of a gold answer."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator

from voter.number_spellings import Spelling, number_spellings, unit_spellings
from voter.rewritings import REWRITINGS
from voter.values import tidy, value_of

WRAPPINGS = {
    "as it is": "{}",
    "$ $": "${}$",
    "\\( \\)": "\\({}\\)",
    "full stop": "{}.",
    "spaces": " {} ",
    "braces": "{{{}}}",
    "\\boxed": "\\boxed{{{}}}",
    "$ $ and full stop": "${}$.",
}
"""Ways to wrap any answer."""

COMBINATIONS = 4  # of a spelling and a wrapping


def spellings(gold: str, draw: random.Random) -> dict[str, str]:
    """Texts that a model may write for the value of `gold`, each with the name of what was done."""
    plain, made = _plain_spellings(gold, draw)
    made += [(name, pattern.format(plain)) for name, pattern in WRAPPINGS.items()]
    made += _combinations(made, {gold, plain}, draw)
    names: dict[str, str] = {}
    for name, text in made:
        if text != gold and text.strip():
            names.setdefault(text, name)
    return names


def _plain_spellings(gold: str, draw: random.Random) -> tuple[str, list[Spelling]]:
    """The spelling that is wrapped, and the spellings without a wrapping."""
    text = tidy(gold)
    value = value_of(gold)
    word = re.fullmatch(r"\\text\{([A-Za-z]+)\}", text)
    choice = re.fullmatch(r"\\text\{\(([A-E])\)\}", text)
    if value is None:
        if word:
            return text, list(word_spellings(word[1]))
        if choice:
            return text, list(choice_spellings(choice[1]))
        return text, [(name, rewrite(text)) for name, rewrite in REWRITINGS.items()]
    made = list(number_spellings(value))
    plain = dict(made).get("decimal") or dict(made)["\\frac"]
    made += draw.sample(list(unit_spellings(plain)), 5)
    made += [("x =", f"x={plain}"), ("x =", f"x = {plain}"), ("n =", f"n = {plain}")]
    made += [
        (f"{command} of a number", f"{command}{{{plain}}}") for command in ("\\text", "\\mathbf")
    ]
    return plain, made


def _combinations(made: list[Spelling], plain: set[str], draw: random.Random) -> Iterator[Spelling]:
    """Some of the spellings, wrapped."""
    cores = [(name, text) for name, text in made if name not in WRAPPINGS and text not in plain]
    wrappings = [(name, pattern) for name, pattern in WRAPPINGS.items() if name != "as it is"]
    if cores:
        for _ in range(COMBINATIONS):
            name, core = draw.choice(cores)
            wrapping, pattern = draw.choice(wrappings)
            yield f"{name} + {wrapping}", pattern.format(core)


def word_spellings(word: str) -> Iterator[Spelling]:
    for name in ("text", "textbf", "mathrm", "mathbf", "textit", "mbox", "textrm"):
        yield f"\\{name}", f"\\{name}{{{word}}}"
    yield "plain word", word
    for other in (word.lower(), word.capitalize(), word.upper()):
        yield "case of a word", other
        yield "case of a word", f"\\text{{{other}}}"
    yield "spaces inside \\text", f"\\text{{ {word} }}"
    yield "full stop inside \\text", f"\\text{{{word}.}}"


def choice_spellings(letter: str) -> Iterator[Spelling]:
    for name in ("text", "textbf", "mathrm", "mathbf"):
        yield f"\\{name}{{(C)}}", f"\\{name}{{({letter})}}"
        yield f"\\{name}{{C}}", f"\\{name}{{{letter}}}"
    for text in (
        f"({letter})",
        letter,
        f"{letter}.",
        f"(\\text{{{letter}}})",
        f"\\text{{({letter}) }}",
    ):
        yield "choice", text
