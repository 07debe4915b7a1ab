"""The constants of the plain-Python specification as constants of Triton."""

import triton.language as tl

from srt_kernels.answers import automaton, canonical, hints, rational, stage

# Sizes.
MAX_BYTES = tl.constexpr(stage.MAX_BYTES)
ROW = tl.constexpr(stage.MAX_BYTES + 8)  # bytes of a rollout in each buffer
DEEPEST = tl.constexpr(2 * stage.MAX_DEPTH)  # bits of the stack of braces
TOP = tl.constexpr(rational.LIMIT - 1)
MAX_SHIFT = tl.constexpr(rational.MAX_SHIFT)
MAX_EXPONENT = tl.constexpr(rational.MAX_EXPONENT)

# Hashes.
BASIS = tl.constexpr(canonical.as_signed(canonical.FNV_BASIS))
OWN_TEXT_BASIS = tl.constexpr(canonical.as_signed(canonical.fnv(canonical.OWN_TEXT)))
PRIME = tl.constexpr(canonical.as_signed(canonical.FNV_PRIME))
MIX_1 = tl.constexpr(canonical.as_signed(canonical.MIX_FACTORS[0]))
MIX_2 = tl.constexpr(canonical.as_signed(canonical.MIX_FACTORS[1]))

# Bits of a token's hint.
HAS_MARK = tl.constexpr(hints.HAS_MARK)
MAY_HAVE_MARK = tl.constexpr(hints.MAY_HAVE_MARK)
MAY_PRECEDE_MARK = tl.constexpr(hints.MAY_PRECEDE_MARK)
READ_SHIFT = tl.constexpr(hints.READ_SHIFT)

# Stages and their automata.
STAGES = tl.constexpr(5)
SEARCH = tl.constexpr(5)  # the stage after these: it finds numbers in a text
EMPTY_AFTER = tl.constexpr(canonical.EMPTY_AFTER)
END = tl.constexpr(automaton.END)
DEAD = tl.constexpr(automaton.DEAD)
START = tl.constexpr(automaton.START)
DROP = tl.constexpr(stage.DROP)
LOWER = tl.constexpr(stage.LOWER)
ALNUM = tl.constexpr(stage.ALNUM)
NUMBER = tl.constexpr(stage.NUMBER)

# What a byte of a number means, and the part of the number that a digit belongs to.
DIGIT = tl.constexpr(rational.DIGIT)
POINT = tl.constexpr(rational.POINT)
MINUS = tl.constexpr(rational.MINUS)
OVER = tl.constexpr(rational.OVER)
MIXED = tl.constexpr(rational.MIXED)
BRACE = tl.constexpr(rational.BRACE)
TIMES = tl.constexpr(rational.TIMES)
POWER = tl.constexpr(rational.POWER)
EXPONENT = tl.constexpr(rational.EXPONENT)
NUMERATOR = tl.constexpr(rational.NUMERATOR)
DENOMINATOR = tl.constexpr(rational.DENOMINATOR)
TEN = tl.constexpr(rational.TEN)
POWER_OF_TEN = tl.constexpr(rational.POWER_OF_TEN)

# Codes of characters.
SPACE = tl.constexpr(ord(" "))  # the last byte of utf8.SPACES
DOLLAR = tl.constexpr(ord("$"))
PLUS = tl.constexpr(ord("+"))
COMMA = tl.constexpr(ord(","))
HYPHEN = tl.constexpr(ord("-"))
FULL_STOP = tl.constexpr(ord("."))
SLASH = tl.constexpr(ord("/"))
EXCLAMATION = tl.constexpr(ord("!"))
COLON = tl.constexpr(ord(":"))
SEMICOLON = tl.constexpr(ord(";"))
LESS = tl.constexpr(ord("<"))
GREATER = tl.constexpr(ord(">"))
BACKSLASH = tl.constexpr(ord("\\"))
CLOSE_PARENTHESIS = tl.constexpr(ord(")"))
CLOSE_BRACKET = tl.constexpr(ord("]"))
OPEN_BRACE = tl.constexpr(ord("{"))
CLOSE_BRACE = tl.constexpr(ord("}"))
ZERO = tl.constexpr(ord("0"))
NINE = tl.constexpr(ord("9"))
CAPITAL_A = tl.constexpr(ord("A"))
CAPITAL_Z = tl.constexpr(ord("Z"))
CASE_BIT = tl.constexpr(ord("a") - ord("A"))
A = tl.constexpr(ord("a"))
B = tl.constexpr(ord("b"))
C = tl.constexpr(ord("c"))
D = tl.constexpr(ord("d"))
E = tl.constexpr(ord("e"))
F = tl.constexpr(ord("f"))
N = tl.constexpr(ord("n"))
O = tl.constexpr(ord("o"))  # noqa: E741
R = tl.constexpr(ord("r"))
S = tl.constexpr(ord("s"))
T = tl.constexpr(ord("t"))
W = tl.constexpr(ord("w"))
X = tl.constexpr(ord("x"))
Z = tl.constexpr(ord("z"))
