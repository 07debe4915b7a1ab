"""Characters that the stages write for things that have no character of their own.

Stage 1 turns the control characters of an answer into spaces. So these are free.
"""

WRAP = "\x01"  # an invisible `{`: `\mathbf{` and its like
COMMA = "\x02"  # `{,}` and `,\!`, which separate thousands or are a decimal point
THIN = "\x03"  # `\,`, a thin space
MARK = "\x04"  # written by stage 2: the next command is a separator
TEXT = "\x05"  # `\text{`, an invisible `{`; from stage 2 on: what follows is text
GAP = "\x06"  # written by stage 2: a space between a value and a letter
BLOCK = "\x07"  # stands before a word that is no unit, and after one that belongs to a number
OR = "\x08"  # the word `or`
LINE = "\n"  # a new line between two cells of a grid
BEGIN = "\x0b"  # written by stage 2 before everything else: what only begins an answer follows
