r"""What the finder of answers looks for, as patterns of automaton.py.

The last symbol of a pattern whose name ends in _AHEAD is lookahead.
"""

from __future__ import annotations

# Numbers, as texts spell them. The canonical form reads each of them as one number, but for powers
# and numbers with a base, which it keeps whole.
_SPACE_IN_NUMBER = " |\\\\ |\\\\,|\u00a0|\u2009|\u202f"
_GROUPED = rf"[1-9][0-9]?[0-9]?((,|{{,}}|,\\! ?|{_SPACE_IN_NUMBER})[0-9][0-9][0-9])+"  # thousands
_POINT = r"[0-9]+(\.[0-9]+)?|\.[0-9]+"
_COMMA = "[0-9]+(,|{,})([0-9][0-9]|[0-9][0-9][0-9][0-9]+)|0(,|{,})[0-9][0-9]+"  # a decimal comma
_FULL_WIDTH_DIGIT = "０|１|２|３|４|５|６|７|８|９"
_FULL_WIDTH = rf"({_FULL_WIDTH_DIGIT})+((．|\.|，)({_FULL_WIDTH_DIGIT})+)?"
_DECIMAL = rf"({_GROUPED}(\.[0-9]+)?|{_POINT}|{_COMMA}|{_FULL_WIDTH})"
_INTEGER = "[+-]?[0-9]+"
_SUPERSCRIPT = "⁰|¹|²|³|⁴|⁵|⁶|⁷|⁸|⁹"
_POWER = rf"(^ ?({{ ?{_INTEGER} ?}}|{_INTEGER})|⁻?({_SUPERSCRIPT})+)"
_TIMES = r" ?(\\?\\(times|cdot)|×|·|⋅|\*) ?"
_ARGUMENT = rf" ?{{ ?[+-]?({_GROUPED}|{_POINT}) ?}}"
_FRACTION = rf"\\?\\[dtc]?frac({_ARGUMENT}| ?[0-9])({_ARGUMENT}| ?[0-9])"
NUMBER = "|".join(
    [
        _DECIMAL,
        f"{_DECIMAL}[eE]{_INTEGER}",
        f"{_DECIMAL}{_TIMES}10{_POWER}",
        rf"{_DECIMAL} ?/ ?({_POINT})",
        "[0-9]+ +[0-9]+ ?/ ?[0-9]+",
        f"([0-9]+ *)?{_FRACTION}",
        f"({_POINT}){_POWER}",
        "[0-9]+_({ ?[0-9]+ ?}|[0-9]+)",
    ]
)
SIGNED_NUMBER = rf"([-+]|−|–)(\\?\$ ?)?({NUMBER})"
NOT_GROUPED = f"{_GROUPED}[0-9]"
INDEX = rf"[_^] ?({{ ?{_INTEGER} ?}}|{_INTEGER})"
r"""An exponent or index of something that is no number: of `cm^2`, `x_1`."""
UNIT_POWER_AHEAD = "([mcdk]?m|ft|in|yd|mi)[23]([^0-9]|$)"
VALUE = r"[0-9A-Za-z)\]}]"
"""A sign right after it is no part of a number."""

# Where a text begins and ends, for the finder.
THINK = "<think(ing)?>"
END_OF_THINK = "</think(ing)?>"
_WORDS = "Problem|Exercise|Instruction|Input|Human|User|Student"
RUN_ON = rf"Question( [0-9]+)?:|\x0a[ *#]*((Question|{_WORDS})( [0-9]+)?[*]*|Q):"
"""Where a completion goes on to another question."""

# Boxes and tags.
BOX = r"\\?\\(boxed|fbox)[\x00- ]*{"
BARE_BOX = r"\\?\\(boxed|fbox)[\x00- ]+"
_BARE_COMMAND = r"\\[^\x00- <)\]bf]|\\fr"  # no \boxed, no \fbox
BARE_ANSWER = (
    rf"([^\x00- <$\\A-Za-z{{}}.,;:]|[A-Za-z]?({_BARE_COMMAND})|[A-Za-z][^\x00- <$\\A-Za-z.,;:])"
    rf"(([^\x00- <$\\]|{_BARE_COMMAND})*([^\x00- <$\\.,;:]|{_BARE_COMMAND}))?"
)
"""An answer without braces after BARE_BOX. It ends at a space, and does not begin with a word."""
BARE_LETTER_AHEAD = r"[A-Za-z][.,;:]*([\x00- $\\]|$)"
TAG = "<answer>"
END_OF_TAG = "</answer>"
_PLACEHOLDER = "|".join(
    [
        r"\.\.\.+|…|\\[lcv]?dots|\?+|_+|(\\_)+|\\square|\\Box|\\cdot|~|\\ ",
        r"([Yy]our |[Tt]he |[Ff]inal )*([Aa]nswer|ANSWER|[Ss]olution|[Rr]esult)( here)?",
        r"\\(text|mathrm|mbox|textbf) ?{ ?((your |the |[Ff]inal )*[Aa]nswer( here)?|\.\.\.|…)? ?}",
    ]
)
_BLANK = r"[\x00- ]*"
_NOTHING = rf"{_BLANK}(\$?({_PLACEHOLDER}|[\[{{<]({_PLACEHOLDER})[\]}}>])\$?{_BLANK})?"
NOTHING_IN_BOX = rf"{_NOTHING}}}"
NOTHING_IN_TAG = f"{_NOTHING}</answer>"

_GAP = r"([ \x0a]|\\[ ,;:!]|\\quad|~)"
_GAPS = f"{_GAP}?{_GAP}?{_GAP}?"
_AND = f"{_GAPS}(and|or)|{_GAPS}" + r"\\(text|mbox|textrm|mathrm) ?{ ?,? ?(and|or) ?}"
NEXT_BOX = (
    rf"[ *]?[*]?(\$\$?|\\[)\]])?[*]?[*]?({_GAPS}[,;&]|,?({_AND})){_GAPS}[*]?[*]?(\$\$?|\\[(\[])?"
    rf" ?([A-Za-z](_[A-Za-z0-9]|_{{[A-Za-z0-9]}})? ?= ?)?{BOX}"
)
r"""From the end of a box to the next box of a list, as in `\boxed{1} and \boxed{2}`."""

GAP_BREAK = r" [b-np-z][a-z]|[.+/^'<>?-]"
"""What no NEXT_BOX has."""
NUMBER_BREAK_WORD = " [A-Za-z]"
NUMBER_BREAK_LINE = r"\x0a"
"""What no number has. The first one has a symbol of lookahead."""

PARAGRAPH = r"\x0a *\x0a"

# Phrases that an answer follows.
_IS = "(is|are|equals|would be|will be|must be|should be)"
_HENCE = "(therefore|thus|then|hence|simply|just|indeed|approximately|about|equal to|given by)"
_ASKED = "( to (the|this) (question|problem|exercise))?"
PHRASE = (
    rf"([Aa]nswer{_ASKED} {_IS}( {_HENCE})*|([Aa]nswer|ANSWER)[*_]* ?:|[Ff]inal [Aa]nswer[*_ ]*\x0a"
    rf"|([Oo]ption|[Cc]hoice) {_IS}|[Cc]orrect ([Oo]ption|[Cc]hoice)[*_]* ?:|答案(是|为|：|:))"
    r"([\x00- *_:]|：|\\\[|\$\$)*"
)
FUNCTION_WORD_AHEAD = (
    "(not|in|on|at|as|by|of|to|that|the|an|a [A-Za-z]+|this|it|we|you|I|there|here|below|above|what"
    "|how|because|if|when|from|for|based|found|obtained|correct|incorrect|wrong|clear|simple|easy"
    "|obvious|unknown|unclear|likely|let|Let|To|We|First|The|In|If|This|There|Since|Step|Find|Solve"
    "|Given|For|Here)([^A-Za-z]|$)"
)
"""After a phrase: what follows is no answer."""
BLANK_ANSWER = rf"({_PLACEHOLDER}|\[[A-Za-z ]+\])"
LETTER_IN_BRACKETS = r"\([A-J]\)"
LETTER_AHEAD = r"[A-J]([).:*\x0a]|$)"
LETTER_AND_WORDS = "[B-HJ] [a-z][a-z]"
LONG_WORD = "[A-Za-z][A-Za-z]+"
_SHORT_WORD = "is|of|in|as|to|if|we|so|by|at|on|it|he|cm|mm|km|kg|ml|mL|ft|am|pm"
WORD_IN_FORMULA = rf"[ ,;:(]*[ (]({_SHORT_WORD}|[A-Za-z][A-Za-z][A-Za-z]+)"
FUNCTION_NAME = " (sin|cos|tan|log|ln|exp|sqrt|mod|max|min|lim)"
ANY_WORD = "[A-Za-z]+"
AND_MORE_AHEAD = r" (and|or) [0-9$\\(\-]"
STOP_AHEAD = r"""\.[."'*_)$]*([ \x0a]|$)"""
LINE_END = r"\x0a|。"
COMMAND = r"\\[A-Za-z]+"
PAIR = r"\\[^<]"

HASHES = "####[ *]*"
_REST = r"[ .*]*(\x0a|$)"
_HASHED = rf"\\?\$?({NUMBER}|{SIGNED_NUMBER})\$?|\(?[A-J]\)?"
HASH_LINE_AHEAD = rf"({_HASHED}|[^\x0aA-Za-z#*0-9]*[0-9][^\x0aA-Za-z#*]*)( ?(\\?%|[a-z]+))?{_REST}"
"""The rest of a line after HASHES: a number, a letter or a formula. No heading is one."""
_LETTER_LINE = r"[ *(]*[A-J][ *).:]*(\x0a|$)"
FIRST_LETTER_LINE_AHEAD = _LETTER_LINE
LETTER_LINE_AHEAD = rf"\x0a{_LETTER_LINE}"
