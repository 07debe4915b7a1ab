r"""The canonical form of an answer, and the key: a hash of the form. Equal keys are one vote.

The form is made by five stages in a row, in form/. Each is a lexer (stage.py), of which Python and
a GPU read the same tables.

    spelling    `\dfrac` is `\frac`, `\left(` is `(`, `$` is a space, `\text{` is an invisible `{`
    structure   `\frac12` is `\frac{1}{2}`, `{x}+1` is `x+1`, `2{,}220` is `2220`; spaces go
    trimming    `AB=5` is `5`, `5 apples` is `5`, `2,74` is `2.74`, `2,220` is `2220`
    quotients   `\pi/2` is `\frac{\pi}{2}`, `\ln(2)` is `\ln2`
    numbers     `\frac{2}{4}` is `1/2`, alone or as a part of a tuple, set or matrix

The form is defined over bytes of UTF-8. Left out on purpose: algebra (`x+1` and `1+x` are two
answers), nested fractions, the order in a set. docs/answers.md has the rules.
"""

from __future__ import annotations

from functools import cache, lru_cache

from srt_kernels.answers.form.numbers import numbers_stage
from srt_kernels.answers.form.quotients import quotients_stage
from srt_kernels.answers.form.spelling import spelling_stage
from srt_kernels.answers.form.structure import structure_stage
from srt_kernels.answers.form.trimming import trimming_stage
from srt_kernels.answers.rational import MAX_SHIFT
from srt_kernels.answers.stage import MAX_BYTES, NoCanonicalForm, Stage
from srt_kernels.answers.utf8 import SPACES, to_bytes, to_text

OWN_TEXT = b"\\verb "
"""Begins the form of an answer that keeps its own text."""

EMPTY_AFTER = 1
"""The stage (structure) after which an empty output means that there is no answer."""


def canonical_answer(text: str) -> str | None:
    r"""One spelling for the many spellings of an answer; None for an empty answer.

    A number becomes a reduced rational. It stands alone, or between the commas and brackets of a
    tuple, interval, set or matrix.
    >>> halves = (r"\frac12", r"\dfrac{2}{4}", "0.50", ".5", "3/6", "5e-1", r"$\tfrac 12$.")
    >>> [canonical_answer(text) for text in halves]
    ['1/2', '1/2', '1/2', '1/2', '1/2', '1/2', '1/2']
    >>> numbers = ("142.0", "025", "-0", "+7", r"1\frac{4}{5}", "3 1/2", r"3.2\times 10^4")
    >>> [canonical_answer(text) for text in numbers]
    ['142', '25', '0', '7', '9/5', '7/2', '32000']
    >>> canonical_answer(r"\left( \dfrac{3}{2}, -13.0 \right]")
    '(3/2,-13]'
    >>> canonical_answer(r"\begin{pmatrix} 0.5 \\ 2 \end{pmatrix}")
    '\\begin{pmatrix}1/2\\\\2\\end{pmatrix}'

    A comma separates thousands where three digits follow, no space follows, and no bracket is
    open. In brackets it does where a group begins with 0, or where the items have a comma and a
    space between them. `{,}`, `,\!` and `\,` before three digits always separate thousands.
    One comma in all is a decimal comma before two digits, or four and more, or after a lone 0. A
    list without brackets keeps a space after its commas.
    >>> commas = ("2,220", "2{,}220", "12 000", "(2,220)", "(1,050)", "2, 220", "3,5,7", "2,74")
    >>> [canonical_answer(text) for text in commas]
    ['2220', '2220', '12000', '(2,220)', '1050', '2, 220', '3, 5, 7', '137/50']

    Typography and wrappers go. Currency, percent, degrees and units go from a number. Words become
    lower case. Single letters, `nRT`, and up to four capitals such as `ABC` stay.
    >>> wrapped = (r"\text{ East }", r"\$18.90", r"50\%", r"30^{\circ}", "5 apples")
    >>> [canonical_answer(text) for text in wrapped]
    ['east', '189/10', '50', '30', '5']
    >>> letters = ("(C)", "3R^2", r"11\sqrt2", r"2 \pi r", "4210_5", "$ $", "(C) 60")
    >>> [canonical_answer(text) for text in letters]
    ['C', '3R^{2}', '11\\sqrt{2}', '2\\pi r', '4210_{5}', None, 'C']

    A name before the only `=` goes, and a membership. Of equal numbers the last one stays, of an
    exact value and a rounded one the exact one.
    >>> equations = ("AB = 5", r"x \in [-2,7]", "y = 2x+3", "x=1, y=2", "5+6=11", r"\pi \approx 3")
    >>> [canonical_answer(text) for text in equations]
    ['5', '[-2,7]', '2x+3', 'x=1, y=2', '11', '\\pi']

    A number whose numerator or denominator reaches 10^18 keeps its normalised text. An answer that
    is longer than MAX_BYTES or has braces that do not match keeps its own text, after `\verb `.
    >>> [canonical_answer(text) for text in ("1e999999999", r"\frac{1}{0}", r"\sqrt{ 5")]
    ['1e999999999', '\\frac{1}{0}', '\\verb \\sqrt{ 5']
    """
    form = canonical_bytes(to_bytes(text))
    return None if form is None else to_text(form)


def answer_key(text: str | bytes | None) -> int:
    r"""Signed 64-bit hash of the canonical form; 0: no answer.

    It is the same on every device, version and run.

    >>> answer_key(r"\frac12") == answer_key("0.5") != answer_key("2")
    True
    >>> answer_key(None), answer_key(" ")
    (0, 0)
    """
    form = None if text is None else canonical_bytes(to_bytes(text))
    return 0 if form is None else hash_bytes(form)


def canonical_bytes(answer: bytes) -> bytes | None:
    """The canonical form in UTF-8; None for an empty answer."""
    answer = answer.strip(SPACES)
    if answer.isdigit() and len(answer) <= MAX_SHIFT and not answer.startswith(b"0"):
        return answer  # most answers; the stages would give the same
    form = run_stages(answer) if len(answer) <= MAX_BYTES else None
    return OWN_TEXT + answer if form is None else form or None


@lru_cache(maxsize=1 << 14)  # The answers of a group are few.
def run_stages(answer: bytes) -> bytes | None:
    """The output of the last stage, b"" where there is no answer.

    None for an answer that keeps its own text: it has no canonical form, or trimming leaves nothing
    of it, as of "+".
    """
    output = answer
    state: tuple = ()
    try:
        for number, stage in enumerate(stages()):
            output, state = stage.run(output, stage.first_state(state))
            if number == EMPTY_AFTER and not output:
                return output
    except NoCanonicalForm:
        return None
    return output or None


@cache
def stages() -> tuple[Stage, ...]:
    """The stages in order. The first call compiles their automata."""
    return (
        spelling_stage(),
        structure_stage(),
        trimming_stage(),
        quotients_stage(),
        numbers_stage(),
    )


FNV_BASIS = 0xCBF29CE484222325
FNV_PRIME = 0x100000001B3
MIX_FACTORS = (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53)
_MASK = 2**64 - 1


def hash_bytes(form: bytes) -> int:
    """FNV-1a, mixed by the finaliser of MurmurHash3. Signed, and never 0."""
    mixed = fnv(form)
    for factor in MIX_FACTORS:
        mixed = (mixed ^ mixed >> 33) * factor & _MASK
    return as_signed(mixed ^ mixed >> 33) or 1


def fnv(data: bytes) -> int:
    """FNV-1a in 64 bits, unsigned."""
    value = FNV_BASIS
    for byte in data:
        value = (value ^ byte) * FNV_PRIME & _MASK
    return value


def as_signed(value: int) -> int:
    """The int64 with the bits of an unsigned 64-bit integer."""
    return value - (value >> 63 << 64)
