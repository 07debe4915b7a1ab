"""Exceptions: where a key and math-verify's verdict may differ, with their reasons."""

from __future__ import annotations

BOTH_EQUAL_GOLD = "both are equal to the gold answer"
MERGED = {
    BOTH_EQUAL_GOLD: "and not to each other, as `x = 11` and `n = 11`: keys cannot follow verdicts "
    "that are not transitive",
    "full stop": "a full stop after the answer: math-verify reads some, `5.` among them, and not "
    "others",
    "$ $ and full stop": "a full stop after the answer",
    "full stop inside \\text": "a full stop after the answer",
    "choice": "a full stop after the letter, or the brackets around it outside of `\\text`",
    "\\( \\)": "math-verify does not read `\\( \\)` around units and thousands",
    "braces": "math-verify reads braces around an answer as a set",
    "\\mathbf of a number": "math-verify reads a decimal in `\\mathbf` as a name",
    "\\text of a number": "math-verify reads a decimal in `\\text` as a name",
    "percent": "`\\%` is a unit here, as in MATH's answers; math-verify agrees on 7\\%, not on "
    "0.5\\%",
    "thousands \\,": "`2\\,220`: math-verify multiplies 2 by 220",
    "thousands space": "`2 220`: math-verify multiplies 2 by 220",
    "mixed a b/c": "`5 1/2`: math-verify multiplies 5 by 1/2",
    "n =": "math-verify tells `n=5` from the gold answer `x=5`, and `5` from neither",
    "f(x) =": "math-verify tells `f(x)=2x` from the gold answer `y=2x`, and `2x` from neither",
    "n.0 in a list": "math-verify does not compare decimals in `x \\in [-2.0,7.0]`",
    "scientific": "`10^-5` without braces: math-verify reads `10^-`",
    "case of a word": "a word in capitals outside of `\\text`: math-verify multiplies its letters, "
    "and E is a number",
    "\\boxed": "math-verify does not read a unit or a full stop inside of a second box",
    "\\bigl \\bigr": "math-verify does not read `\\bigl(`",
    "e notation": "`8e3`: math-verify multiplies by the letter e",
    "(digits)_base": "`(52)_8`: math-verify does not read a base after brackets",
    "\\cdot": "math-verify reads `9 \\cdot i` as no imaginary number",
    "*": "math-verify reads `9*i` as no imaginary number",
}
"""Why a pair with one key and the verdict "different" is no false merge.

Both texts are spellings of golds that are one or equal. Math-verify tells one of them from its
gold, because of what was done to it: the name here.
"""

APART = "spellings of golds that are different"
ACCEPTED = {
    APART: "math-verify reads a part of them, as the `{` of `{\\text{113}}`",
    "million": "math-verify takes any word after a number for a unit",
    "base": "math-verify drops an index",
    "another base": "math-verify drops an index",
    "base left out": "math-verify drops an index",
    "index": "math-verify drops an index",
    "case of a letter": "math-verify ignores the case of letters",
    "a digit more": "math-verify compares decimals at six places",
    "decimal point moved": "math-verify compares decimals at six places",
    "denominator off by one": "math-verify compares decimals at six places",
    "rounded": "math-verify compares decimals at six places",
    "list": "math-verify reads `5, 5` as the set of 5, and `\\(1{,}440\\)` as a list",
    "part of a tuple": "math-verify reads `\\(1{,}440\\)` as a list",
    "digits apart": "math-verify multiplies numbers that stand apart, also those of `1 250`",
    "another number after it": "math-verify multiplies numbers that stand apart",
    "times a letter": "0x is 0",
    "power": "math-verify reads `1\\,600.` as 1, which is 160^0",
    "sign": "math-verify reads a part of `(2,3).` or `{x=5}`, or the right-hand side of "
    "`-y = 2x + 3`",
    "inner sign": "math-verify reads a part of an equation with a full stop",
    "\\pi left out": "math-verify reads `12\\pi.` as 12",
    "another bracket": "math-verify drops the bracket beside an infinity",
    "another closing bracket": "math-verify drops the bracket beside an infinity",
    "point and list": "math-verify takes a point or an interval for a list of solutions in any "
    "order",
    "equation": "math-verify compares a number with an equation's right-hand side",
}
"""Why a pair with the verdict "equal" is none.

One of the texts was made to be another value, by the change named here; or there is a reason of
another kind.
"""

GOLDS_APART = {
    ("204", "204_5"): "base left out",
    ("40", "40_9"): "base left out",
    ("(-2,1)", "-2,1"): "point and list",
    ("(-2,1)", "1,-2"): "point and list",
    ("0", "5x - 7y + 11z + 4 = 0"): "equation",
    ("0.0", "5x - 7y + 11z + 4 = 0"): "equation",
}
"""Golds of two questions with the verdict "equal", and the name of the reason in ACCEPTED."""
