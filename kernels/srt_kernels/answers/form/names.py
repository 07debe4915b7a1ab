r"""What may stand before `=` and `\approx` as the name of an answer, and chains of equal sides."""

from srt_kernels.answers.form.symbols import BLOCK, GAP, MARK, TEXT

_COMMAND = r"\\([a-eg-kmnoqrt-zA-Z]|l[ai]|p[a-hj-z]|s[a-pr-z])[A-Za-z]* ?"
"""Not `\\frac`, `\\sqrt`, `\\ln`, `\\log` and `\\pi`."""
_MARKERS = f"{TEXT}{GAP}{BLOCK}"
_LETTER = (
    rf"[A-Za-z{_MARKERS}'\x80-\xff]|{_COMMAND}|{{[A-Za-z0-9,]*}}|_{{[^{{}}=]*}}|^{{(-1|\\prime)}}"
)
_LETTERS = f"({_LETTER})+"
_ARGUMENTS = rf"\(-?({_LETTER}|[0-9,| ]|{MARK}\\(cap|cup))*\)"
_TUPLE = rf"\({_LETTERS}(, ?{_LETTERS})+\)"
_ABSOLUTE = rf"\|([A-Zz{_MARKERS}]|{_COMMAND}{{[A-Za-z]*}})+\|"
_FIRST = rf"[A-Za-z\x80-\xff]|{_COMMAND}|{_ABSOLUTE}|{_TUPLE}"
NAME = f"({_FIRST})({_LETTER}|{_ARGUMENTS}|[: ])*"
"""`x`, `AB`, `|AB|`, `a_{n+1}`, `f(x)`, `(p,q)`: no sign, no power, and no digit of its own."""

_NUMERIC_COMMAND = r"\\(frac|sqrt|times|cdot|div|pi) ?"
NUMERIC = rf"([0-9+\-*/().^_{{}}! [\]]|,[0-9][0-9][0-9]|{_NUMERIC_COMMAND})+"
"""An expression without variables."""

_UNIT_AFTER = rf"([{TEXT}{GAP}][A-Za-z./^{{}}0-9]*)?"
CHAIN = f"({NAME}|{NUMERIC})(=([A-Za-z]|{NUMERIC}))*={NUMERIC}{_UNIT_AFTER}$"
"""`5+5+1=11`, `a=b=11`: the last side is a number."""
