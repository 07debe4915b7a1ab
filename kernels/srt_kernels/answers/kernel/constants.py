"""The constants of the plain-Python specification as constants of Triton."""

import triton.language as tl

from srt_kernels.answers import automaton, canonical, rational, stage
from srt_kernels.answers.finding import finder, hints, rules

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
HAS = tl.constexpr(hints.HAS)
MAY = tl.constexpr(hints.MAY)
STARTS = tl.constexpr(hints.STARTS)
INNER = tl.constexpr(hints.INNER)
BITS = tl.constexpr(hints.BITS)
THINK = tl.constexpr(hints.THINK)
RUN_ON = tl.constexpr(hints.RUN_ON)
TOP_MARK = tl.constexpr(hints.TOP)
ANY_MAY = tl.constexpr(sum(hints.MAY << hints.BITS * kind for kind in range(3)))
NEARBY = tl.constexpr(hints.NEARBY)
WIDENING = tl.constexpr(hints.WIDENING)

# What a match of a finder does.
BOXED_RANK = tl.constexpr(max(rules.RANKS["boxed"].values()))
ANSWER_RANK = tl.constexpr(max(rules.RANKS["answer"].values()))
NOTHING = tl.constexpr(finder.NOTHING)
CLEAR = tl.constexpr(finder.CLEAR)
STOP = tl.constexpr(finder.STOP)
BEGIN = tl.constexpr(finder.BEGIN)
JOIN = tl.constexpr(finder.JOIN)
FIRST_OPEN = tl.constexpr(finder.FIRST_OPEN)
OPEN = tl.constexpr(finder.OPEN)
CLOSE = tl.constexpr(finder.CLOSE)
CLOSE_END = tl.constexpr(finder.CLOSE_END)
CLOSE_JOINED = tl.constexpr(finder.CLOSE_JOINED)
FINISH = tl.constexpr(finder.FINISH)
SPAN = tl.constexpr(finder.SPAN)
BREAK = tl.constexpr(finder.BREAK)

# Stages and their automata.
STAGES = tl.constexpr(5)
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
COMMA = tl.constexpr(ord(","))
HYPHEN = tl.constexpr(ord("-"))
SLASH = tl.constexpr(ord("/"))
BACKSLASH = tl.constexpr(ord("\\"))
OPEN_BRACE = tl.constexpr(ord("{"))
CLOSE_BRACE = tl.constexpr(ord("}"))
ZERO = tl.constexpr(ord("0"))
NINE = tl.constexpr(ord("9"))
CAPITAL_A = tl.constexpr(ord("A"))
CAPITAL_Z = tl.constexpr(ord("Z"))
CASE_BIT = tl.constexpr(ord("a") - ord("A"))
A = tl.constexpr(ord("a"))
D = tl.constexpr(ord("d"))
X = tl.constexpr(ord("x"))
Z = tl.constexpr(ord("z"))
