r"""Characters beyond ASCII, and the spelling of each in LaTeX."""

DIGITS = "0123456789"
_SUPERSCRIPTS = dict(zip(DIGITS + "-+n", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺ⁿ", strict=True))
_SUBSCRIPTS = dict(zip(DIGITS, "₀₁₂₃₄₅₆₇₈₉", strict=True))
_FULL_WIDTH = dict(zip(DIGITS + "+-/=().:", "０１２３４５６７８９＋－／＝（）．：", strict=True))
_FRACTIONS = {"½": "12", "⅓": "13", "⅔": "23", "¼": "14", "¾": "34", "⅕": "15", "⅖": "25"} | {
    "⅗": "35", "⅘": "45", "⅙": "16", "⅚": "56", "⅛": "18", "⅜": "38", "⅝": "58", "⅞": "78"
}  # fmt: skip

CHARACTERS = {  # spelling -> the other spellings, as patterns
    **{char: wide for char, wide in _FULL_WIDTH.items() if char not in "-/."},
    ".": "．|。",
    "/": "／|⁄",
    "-": "−|–|－",
    "\\times ": "×",
    "\\cdot ": "·|⋅",
    "\\div ": "÷",
    "\\sqrt ": "√",
    "\\infty ": "∞",
    "\\cup ": "∪",
    "\\cap ": "∩",
    "\\pm ": "±",
    "\\angle ": "∠",
    "\\triangle ": "△",
    "\\theta ": "θ",
    "\\mathbb{R}": "ℝ",
    **{f"\\frac{digits}": char for char, digits in _FRACTIONS.items()},
}
SCRIPTS = {f"^{char}": high for char, high in _SUPERSCRIPTS.items()} | {
    f"_{char}": low for char, low in _SUBSCRIPTS.items()
}
"""Spelling -> a superscript or subscript. Of several in a row the first alone has the ^ or _."""
