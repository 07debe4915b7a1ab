"""The machine that finds an answer: a lexer with modes. Python runs it here, and a GPU by
kernel/search.py.

It reads a text from left to right and cuts it into the longest matches of the patterns that its
mode knows. An action says what a match means. It depends on the mode and on the kind of the match.
Python and the GPU read the same tables.

A candidate is a span of the text with a rank. A candidate replaces the one before if its rank is at
least as high. So the answer is the last candidate of the highest rank.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from srt_kernels.answers.automaton import DEAD, END, Automaton, compile_modes, compile_patterns

# What a match does. An END op makes a candidate of the bytes from the last BEGIN to the match.
(
    NOTHING,
    CLEAR,  # forgets the candidate: the answer comes after this match
    STOP,  # the next mode counts if there is a candidate, else the mode stays
    BEGIN,  # a candidate may begin after this match, with one open brace
    JOIN,  # the next box of a list begins after this match
    FIRST_OPEN,  # the first open brace
    OPEN,  # one more
    CLOSE,  # one less; the next mode counts if none is left, else the mode stays
    CLOSE_END,  # as CLOSE, and END if none is left
    CLOSE_JOINED,  # as CLOSE; if none is left, the candidate goes on to the match
    FINISH,  # END
    SPAN,  # the match itself is a candidate
    BREAK,  # no number and no list of boxes reaches over this match
) = range(13)

SKIPPED = ("value", "other", "gap", "word", "line")
"""Kinds that take one byte and change the mode at most from TEXT to AFTER_VALUE or back."""

VALUES = frozenset(b"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ)]}")
"""The bytes of the kind "value"."""

TEXT, AFTER_VALUE = TOLD_APART = ("text", "after value")
"""Modes that the byte before tells apart: a sign after a value belongs to no number."""


Branch = tuple[list[int], bytes]
"""Symbols, and the expression for what follows them."""


class Pattern(NamedTuple):
    """Bytes to find. The last `lookahead` symbols (0 or 1) of a match stay in the text."""

    pattern: str
    lookahead: int = 0


class Action(NamedTuple):
    """What a match means."""

    mode: str  # the next mode
    op: int = NOTHING
    rank: int = 0  # of the candidate that the op makes
    takes_one: bool = False  # only the first byte of the match is used up


class Candidate(NamedTuple):
    """A part of a text that may be its answer."""

    rank: int
    pieces: tuple[tuple[int, int], ...]  # start and end of each; more than one for a list of boxes


NONE = Candidate(0, ())


class Found(NamedTuple):
    """What was found in a text, or in the end of a text."""

    candidate: Candidate
    cleared: bool  # what comes before the text changes nothing: a CLEAR came


class Finder:
    """Modes, each with an action for every kind of match that it knows.

    patterns: kind -> Pattern; of equally long matches the first one wins. modes: name -> kind ->
    Action; the first mode begins a text. fresh: modes that count for one match -> the mode that
    has the same actions but for a few kinds, None for no such mode. breaks: a regular expression
    for the matches with the op BREAK.
    """

    def __init__(
        self,
        patterns: Mapping[str, Pattern],
        modes: Mapping[str, Mapping[str, Action]],
        fresh: Mapping[str, str | None],
        breaks: str,
    ):
        self.kinds = [kind for kind in patterns if any(kind in mode for mode in modes.values())]
        self.lookahead = [patterns[kind].lookahead for kind in self.kinds]
        self.mode_names = list(modes)
        self.actions = [[mode.get(kind) for kind in self.kinds] for mode in modes.values()]
        self.automaton = compile_modes(
            [patterns[kind].pattern for kind in self.kinds],
            [[self.kinds.index(kind) for kind in mode] for mode in modes.values()],
        )
        self._number_of = {name: number for number, name in enumerate(modes)}
        self._breaks = re.compile(breaks.encode())
        self._make_searchers(patterns, modes, fresh)

    def _make_searchers(
        self,
        patterns: Mapping[str, Pattern],
        modes: Mapping[str, Mapping[str, Action]],
        fresh: Mapping[str, str | None],
    ) -> None:
        """What finds the next match of a mode, or whether a match is one of a fresh mode's own."""
        skipped = [number for number, kind in enumerate(self.kinds) if kind in SKIPPED]
        searchers = _Searchers(self.automaton, skipped)
        self._searchers: list[re.Pattern[bytes] | None] = []
        self._probes: list[re.Pattern[bytes] | None] = []
        for number, (name, mode) in enumerate(modes.items()):
            base = fresh.get(name)
            probe = None
            if base is not None:
                assert {kind: mode[kind] for kind in modes[base]} == modes[base]
                own = [patterns[kind].pattern for kind in mode if kind not in modes[base]]
                table = compile_patterns([*own, ".", "$"])
                probe = _Searchers(table, range(len(own), len(own) + 2)).of_mode(0)
            self._probes.append(probe)
            is_fresh = name in fresh
            self._searchers.append(None if is_fresh else searchers.of_mode(number))
        self._base_of = [self._number_of.get(fresh.get(name) or "", -1) for name in modes]
        self._told_apart = [self._number_of[name] for name in TOLD_APART if AFTER_VALUE in modes]
        for number in self._told_apart:  # what a sign begins is found in both
            self._searchers[number] = self._searchers[self._told_apart[0]]

    def run(self, data: bytes, *, is_complete: bool = True) -> Found:
        """Finds the answer. is_complete: the data are all of a text, not only its end."""
        mode = 0 if is_complete else self._number_of[TEXT]
        symbols = self.automaton.symbols(data)
        longest_match = self.automaton.longest_match
        walk = Walk()
        position = 0
        while position <= len(data):
            stay = mode
            probe = self._probes[mode]
            if probe and not probe.match(data, position):
                mode = self._base_of[mode]
            searcher = self._searchers[mode]
            if searcher:
                match = searcher.search(data, position)
                assert match, "the end of a text matches"
                if match.start() > position:
                    position = match.start()
                    if mode in self._told_apart:
                        mode = self._told_apart[data[position - 1] in VALUES]
                    stay = mode
            kind, length = longest_match(symbols, position, mode)
            action = self.actions[mode][kind]
            assert action, "a mode has an action for each of its kinds"
            end = position + (1 if action.takes_one else length - self.lookahead[kind])
            if action.op == NOTHING or walk.step(action, position, min(end, len(data))):
                mode = self._number_of[action.mode]
            else:
                mode = stay
            position = end
        return Found(walk.candidate, walk.cleared)

    def is_broken(self, data: bytes, candidate: Candidate) -> bool:
        """Whether a BREAK comes before the candidate, so that no match reaches over it."""
        return self._breaks.search(data, 0, candidate.pieces[0][0]) is not None


class Walk:
    """What a finder remembers of the text so far."""

    def __init__(self) -> None:
        self.candidate = NONE
        self.begin = 0
        self.depth = 0
        self.cleared = False

    def step(self, action: Action, start: int, end: int) -> bool:
        """Does what an action says of the match from start to end. Whether its mode is next."""
        op = action.op
        if op in (BEGIN, JOIN):
            self.begin = end
        if op in (BEGIN, JOIN, FIRST_OPEN):
            self.depth = 1
        elif op == OPEN:
            self.depth += 1
        elif op in (CLOSE, CLOSE_END, CLOSE_JOINED):
            self.depth -= 1
            if self.depth:
                return False
        elif op == STOP:
            return self.candidate.rank > 0
        elif op == CLEAR:
            self.candidate = NONE
            self.cleared = True
        if op in (CLOSE_END, FINISH):
            self._offer(action.rank, (self.begin, start))
        elif op == CLOSE_JOINED:
            pieces = (*self.candidate.pieces, (self.begin, start))
            self.candidate = self.candidate._replace(pieces=pieces)
        elif op == SPAN:
            self._offer(action.rank, (start, end))
        return True

    def _offer(self, rank: int, piece: tuple[int, int]) -> None:
        if rank >= self.candidate.rank:
            self.candidate = Candidate(rank, (piece,))


class _Searchers:
    """Expressions for the places where a match of a mode may begin whose kind is not skipped."""

    def __init__(self, automaton: Automaton, skipped: Iterable[int]):
        self._automaton = automaton
        self._skipped = frozenset(skipped)
        self._known: dict[tuple[int, int], list[Branch]] = {}

    def of_mode(self, mode: int) -> re.Pattern[bytes]:
        """Finds each such place, and others where the first bytes look so. The end is a place."""
        branches = self._branches(self._automaton.starts[mode], depth=3)
        if not branches:
            return re.compile(rb"\Z")
        firsts = _set(byte for first, _ in branches for byte in first)
        expressions = [b"(?<=%s)%s" % (_set(first), rest) for first, rest in branches]
        return re.compile(b"%s(?:%s)|\\Z" % (firsts, b"|".join(expressions)))

    def _branches(self, state: int, depth: int) -> list[Branch]:
        """The symbols that lead on from a state to a match, with an expression for what follows."""
        if (state, depth) not in self._known:
            symbols_of: dict[bytes, list[int]] = {}
            for symbol in range(END):
                rest = self._rest(state, symbol, depth)
                if rest is not None:
                    symbols_of.setdefault(rest, []).append(symbol)
            branches = [(symbols, rest) for rest, symbols in symbols_of.items()]
            self._known[state, depth] = branches
        return self._known[state, depth]

    def _rest(self, state: int, symbol: int, depth: int) -> bytes | None:
        """The expression for what follows a symbol. None: no match begins so."""
        automaton = self._automaton
        target = automaton.transitions[state][automaton.classes[symbol]]
        pattern = automaton.accepts[target]
        if target == DEAD or pattern in self._skipped and not any(automaton.transitions[target]):
            return None
        if depth == 1 or pattern >= 0 and pattern not in self._skipped:
            return b""
        after = self._branches(target, depth - 1)
        expressions = [_set(first) + more for first, more in after]
        if automaton.accepts[automaton.transitions[target][automaton.classes[END]]] >= 0:
            expressions.append(rb"\Z")
        return b"(?:%s)" % b"|".join(expressions) if expressions else None


def _set(symbols: Iterable[int]) -> bytes:
    return b"[%s]" % b"".join(rb"\x%02x" % symbol for symbol in symbols)
