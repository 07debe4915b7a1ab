"""One stage of the canonical form: a lexer with a small state. Python runs it here, and a GPU by
kernel/walk.py.

A stage cuts its input into the longest matches of its patterns. An action says what becomes of a
match. It depends on the kind of the match and on the state, which says what came before. There are
finitely many of both: a GPU reads the actions as a table. The only other memory is a stack with two
bits for each open brace, and the numerator and denominator of a number.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property
from typing import NamedTuple

from srt_kernels.answers.automaton import compile_patterns
from srt_kernels.answers.rational import rational

MAX_BYTES = 512
"""Longest answer with a form, before and after each stage.

A collapsing policy writes longer ones, a real one does not.
"""

MAX_DEPTH = 30
"""Most open braces."""

# What becomes of the bytes of a match. ALNUM keeps letters and digits. NUMBER gives lowest terms.
DROP, COPY, LOWER, ALNUM, NUMBER = range(5)

# What an open brace is. An invisible one is not in the output. After ARGUMENT comes an argument.
NO_BRACE, INVISIBLE, VISIBLE, ARGUMENT = range(-1, 3)

CLOSE_KINDS = ("close", "close visible", "close argument")
"""The kind of a closing brace, by what its open brace is."""

Pattern = tuple[str, str, int]
"""Kind, regular expression, lookahead.

The lookahead is how many symbols at the end of a match stay in the input.
"""


class Action(NamedTuple):
    """What becomes of a match. The output is prefix + body + suffix."""

    state: tuple  # the next state
    body: int = COPY
    prefix: str = ""
    suffix: str = ""
    take: int = 0  # how many bytes of the match are used up; 0: all but the lookahead
    push: int = NO_BRACE  # the brace that this match opens


class _Move(NamedTuple):
    """An action as Python runs it."""

    action: Action
    prefix: bytes
    suffix: bytes


class NoCanonicalForm(ValueError):
    """Braces do not match or nest too deeply, or an output is longer than MAX_BYTES."""


class Stage:
    """Patterns with an action for each state and kind of match.

    action(*state, kind) gives the action. first_state(previous) gives the state before the first
    match, from the last state of the previous stage.
    """

    def __init__(
        self,
        patterns: list[Pattern],
        states: Iterable[tuple],
        action: Callable[..., Action],
        first_state: Callable[[tuple], tuple],
    ):
        self.automaton = compile_patterns([pattern for _, pattern, _ in patterns])
        self.kinds = [kind for kind, _, _ in patterns]
        self.lookahead = [lookahead for _, _, lookahead in patterns]
        if CLOSE_KINDS[0] in self.kinds:
            self.kinds += CLOSE_KINDS[1:]
        self.states = list(states)
        self.first_state = first_state
        self._action = action
        self._rows: dict[tuple, list[_Move]] = {}

    @cached_property
    def actions(self) -> dict[tuple[tuple, str], Action]:
        """(state, kind) -> action, of all states and kinds."""
        return {
            (state, kind): self._action(*state, kind)
            for state in self.states
            for kind in self.kinds
        }

    def _row(self, state: tuple) -> list[_Move]:
        """The moves of a state, in the order of the kinds. Most states never occur."""
        row = self._rows.get(state)
        if row is None:
            actions = [self._action(*state, kind) for kind in self.kinds]
            row = [_Move(act, act.prefix.encode(), act.suffix.encode()) for act in actions]
            self._rows[state] = row
        return row

    def walk(self, data: bytes, state: tuple) -> Iterator[tuple[Action, bytes]]:
        """Yields the action of each match and the bytes of the match that are used up.

        Raises NoCanonicalForm where braces do not match or nest too deeply.
        """
        for move, match in self._moves(data, state):
            yield move.action, match

    def _moves(self, data: bytes, state: tuple) -> Iterator[tuple[_Move, bytes]]:
        symbols = self.automaton.symbols(data)
        longest_match = self.automaton.longest_match
        rows = self._rows
        row = self._row(state)
        close = len(self.kinds) - len(CLOSE_KINDS) + 1 if CLOSE_KINDS[0] in self.kinds else -1
        position = 0
        stack = 1  # two bits for each open brace; the leading 1 marks the bottom
        while position < len(symbols):
            pattern, length = longest_match(symbols, position)
            kind = pattern
            if self.kinds[pattern] == CLOSE_KINDS[0]:
                if stack == 1:
                    raise NoCanonicalForm
                kind = close + (stack & 3) - 1 if stack & 3 else pattern
                stack >>= 2
            move = row[kind]
            action = move.action
            if action.push != NO_BRACE:
                if stack >> 2 * MAX_DEPTH:
                    raise NoCanonicalForm
                stack = stack << 2 | action.push
            taken = action.take or length - self.lookahead[pattern]
            yield move, data[position : position + taken]
            row = rows.get(action.state) or self._row(action.state)
            position += taken
        if stack != 1:
            raise NoCanonicalForm

    def run(self, data: bytes, state: tuple) -> tuple[bytes, tuple]:
        """The output and the last state.

        Raises NoCanonicalForm, also for an output longer than MAX_BYTES.
        """
        output = b""
        for move, match in self._moves(data, state):
            if move.action.body != COPY:
                match = _body(move.action.body, match)
            output += move.prefix + match + move.suffix
            if len(output) > MAX_BYTES:
                raise NoCanonicalForm
            state = move.action.state
        return output, state


def _body(body: int, match: bytes) -> bytes:
    if body == LOWER:
        return match.lower()
    if body == ALNUM:
        return bytes(byte for byte in match if bytes([byte]).isalnum())
    if body == NUMBER:
        return rational(match) or match
    return b""
