"""Other spellings of a gold answer: trivial ones, and those that a model writes."""

from __future__ import annotations

import random
import re
from collections.abc import Callable

from srt_kernels.answers.extract import read_answer
from voter.rewritings import REWRITINGS
from voter.spellings import WRAPPINGS, spellings
from voter.values import value_of

_WORD = r"[A-Za-z]{2,}"
_FUNCTION = "(?:sqrt|sin|cos|tan|exp|log|binom|sum)(?![A-Za-z])"
_PROSE = rf"(?<![A-Za-z\\])(?!{_FUNCTION})[A-Za-z]{{3,}}|0x|[:#]|[0-9]e[-+]?[0-9]"
"""Words, hexadecimal digits, times of day and e notation. Their letters are no variables."""
_BOX = "So the answer is $\\boxed{{{}}}$."


def model_spellings(gold: str, is_maths: bool, seed: int) -> dict[str, str]:
    """What a model writes for a gold answer -> the name of what was done.

    Only numbers, words and formulas have spellings of their own. Others are wrapped.
    """
    if re.fullmatch(_WORD, gold):
        made = spellings(f"\\text{{{gold}}}", random.Random(f"{seed} {gold}"))
    elif value_of(gold) is None and not (is_maths and _is_formula(gold)):
        made = {pattern.format(gold): name for name, pattern in WRAPPINGS.items()}
    else:
        made = spellings(gold, random.Random(f"{seed} {gold}"))
    return {text: name for text, name in made.items() if text != gold}


def _is_formula(gold: str) -> bool:
    return "\\" in gold or not re.search(_PROSE, gold)


def trivial_respellings(gold: str) -> dict[str, str]:
    """The name of what was done -> the text. None of them can change what the gold says.

    "\\boxed" is what the rule finds in a box around the gold.
    """
    texts = {name: respell(gold) for name, respell in RESPELLINGS.items()}
    changed = {name: text for name, text in texts.items() if text != gold}
    return {"\\boxed": read_answer(_BOX.format(gold), "boxed") or ""} | changed


def _wrap(pattern: str, unless: str = "") -> Callable[[str], str]:
    """The respelling of golds without a match of `unless`."""
    return lambda gold: gold if unless and re.search(unless, gold) else pattern.format(gold)


def _write_as_text(gold: str) -> str:
    return f"\\text{{{gold}}}" if re.fullmatch(_WORD, gold) else gold


def _size_brackets(gold: str) -> str:
    return gold if "\\left" in gold else REWRITINGS["\\left \\right"](gold)


def _space_commas(gold: str) -> str:
    """Spaces after the commas of a list. The comma of `1,000` is none."""
    return re.sub(r",(?=[^\s\\])", ", ", gold) if value_of(gold) is None else gold


RESPELLINGS: dict[str, Callable[[str], str]] = {
    "spaces": _wrap(" {} "),
    "new line": _wrap("{}\n"),
    "$ $": _wrap("${}$", unless=r"\$"),
    "\\( \\)": _wrap("\\({}\\)", unless=r"\$"),
    "full stop": _wrap("{}.", unless=r"[.!?]$"),
    "$ $ and full stop": _wrap("${}$.", unless=r"\$|[.!?]$"),
    "** **": _wrap("**{}**", unless=r"\*"),
    "\\text": _write_as_text,
    "\\left \\right": _size_brackets,
    "\\dfrac": REWRITINGS["\\dfrac"],
    "\\tfrac": REWRITINGS["\\tfrac"],
    "spaces after commas": _space_commas,
}
"""The name of what is done -> the respelling. A gold that it does not apply to stays as it is."""
