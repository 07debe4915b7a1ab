r"""Regular expressions over bytes -> one deterministic automaton that finds the longest match, as a lexer does.

Patterns: literals (in UTF-8), `[a-z]`, `[^a-z]`, `.` (any byte), `|`, `(...)`, `*`, `+`, `?`, `\` before a character that
is meant as it is or `\xhh`, and `$`: one symbol more, which follows the last byte. Braces are literals.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

END = 256  # the symbol after the last byte
DEAD, START = 0, 1


@dataclass(frozen=True)
class Automaton:
    """symbols are bytes and END; states are numbered from START, and from DEAD nothing matches."""

    classes: list[int]  # [257] symbol -> class of symbols that no pattern tells apart
    following: list[list[int]]  # [states][classes] -> state
    accepts: list[int]  # [states] -> the first pattern that what was read matches, or -1

    def longest(self, symbols: bytes, start: int) -> tuple[int, int]:
        """The pattern that matches the most symbols (by their classes) from `start` on, the first of equals; how many."""
        state, best, length = START, -1, 0
        for at in range(start, len(symbols)):
            state = self.following[state][symbols[at]]
            if state == DEAD:
                break
            if self.accepts[state] >= 0:
                best, length = self.accepts[state], at + 1 - start
        return best, length

    def symbols(self, data: bytes) -> bytes:
        """The class of each byte, and of END."""
        return data.translate(bytes(self.classes[:END])) + bytes(self.classes[END:])


def compile_patterns(patterns: list[str]) -> Automaton:
    """Every symbol must have a pattern of its own, so that a match is always found."""
    nfa = _Nfa()
    accepting = {
        nfa.add(pattern): number for number, pattern in reversed(list(enumerate(patterns)))
    }
    alphabets = list({symbols for edges in nfa.edges for symbols, _ in edges if symbols})
    signatures = [tuple(symbol in alphabet for alphabet in alphabets) for symbol in range(END + 1)]
    numbers = {signature: number for number, signature in enumerate(dict.fromkeys(signatures))}
    classes = [numbers[signature] for signature in signatures]
    edges = [
        [({classes[s] for s in symbols}, to) for symbols, to in some if symbols]
        for some in nfa.edges
    ]
    start = nfa.closure(frozenset([0]))
    subsets, states, following, accepts = (
        [frozenset(), start],
        {frozenset(): DEAD, start: START},
        [],
        [],
    )
    for subset in subsets:  # which grows
        moves: list[set[int]] = [set() for _ in numbers]
        for some, to in itertools.chain.from_iterable(edges[state] for state in subset):
            for number in some:
                moves[number].add(to)
        following.append([])
        for moved in map(nfa.closure, map(frozenset, moves)):
            if moved not in states:
                states[moved] = len(subsets)
                subsets.append(moved)
            following[-1].append(states[moved])
        accepts.append(
            min((accepting[state] for state in subset if state in accepting), default=-1)
        )
    missing = [
        symbol for symbol in range(END + 1) if accepts[following[START][classes[symbol]]] < 0
    ]
    assert not missing, f"expected a pattern for each symbol, got none for {missing}"
    return Automaton(classes=classes, following=following, accepts=accepts)


class _Nfa:
    """Thompson's construction. edges[state]: pairs of symbols (None: no symbol is read) and the state they lead to."""

    def __init__(self):
        self.edges: list[list[tuple[frozenset[int] | None, int]]] = [[]]
        self.closures: dict[frozenset[int], frozenset[int]] = {}

    def add(self, pattern: str) -> int:
        """Lead from state 0 along `pattern` to a new state, which is returned."""
        self.rest = list(reversed(pattern))
        start, end = self._alternatives()
        assert not self.rest, f"expected {pattern!r} to end after {pattern[: -len(self.rest)]!r}"
        self._edge(0, None, start)
        return end

    def closure(self, states: frozenset[int]) -> frozenset[int]:
        """The states that `states` lead to without a symbol."""
        if states not in self.closures:
            found, waiting = set(states), list(states)
            while waiting:
                reached = {
                    to for symbols, to in self.edges[waiting.pop()] if symbols is None
                } - found
                found |= reached
                waiting += reached
            self.closures[states] = frozenset(found)
        return self.closures[states]

    def _state(self) -> int:
        self.edges.append([])
        return len(self.edges) - 1

    def _edge(self, start: int, symbols: frozenset[int] | None, end: int) -> None:
        self.edges[start].append((symbols, end))

    def _peek(self) -> str:
        return self.rest[-1] if self.rest else ""

    def _alternatives(self) -> tuple[int, int]:
        start, end = self._state(), self._state()
        while True:
            first, last = self._sequence()
            self._edge(start, None, first)
            self._edge(last, None, end)
            if self._peek() != "|":
                return start, end
            self.rest.pop()

    def _sequence(self) -> tuple[int, int]:
        start = end = self._state()
        while self._peek() and self._peek() not in "|)":
            first, last = self._item()
            operator = self.rest.pop() if self._peek() and self._peek() in "*+?" else ""
            if operator and operator in "*?":
                self._edge(first, None, last)
            if operator and operator in "*+":
                self._edge(last, None, first)
            self._edge(end, None, first)
            end = self._state()  # so that a loop's end is not what follows it
            self._edge(last, None, end)
        return start, end

    def _item(self) -> tuple[int, int]:
        token = self.rest.pop()
        if token == "(":
            found = self._alternatives()
            assert self.rest.pop() == ")"
            return found
        if token == "$":
            return self._symbols(frozenset([END]))
        if token == ".":
            return self._symbols(frozenset(range(END)))
        if token == "[":
            return self._symbols(self._set())
        start = end = self._state()
        for byte in self._literal(token).encode():
            end, before = self._state(), end
            self._edge(before, frozenset([byte]), end)
        return start, end

    def _symbols(self, symbols: frozenset[int]) -> tuple[int, int]:
        start, end = self._state(), self._state()
        self._edge(start, symbols, end)
        return start, end

    def _set(self) -> frozenset[int]:
        negated = self._peek() == "^" and bool(self.rest.pop())
        found: set[int] = set()
        while (token := self.rest.pop()) != "]":
            first = last = ord(self._literal(token))
            if self._peek() == "-" and self.rest[-2] != "]":
                self.rest.pop()
                last = ord(self._literal(self.rest.pop()))
            assert last < END, "expected a byte in [...]"
            found |= set(range(first, last + 1))
        return frozenset(set(range(END)) - found) if negated else frozenset(found)

    def _literal(self, token: str) -> str:
        """The character that `token` begins."""
        if token != "\\":
            return token
        token = self.rest.pop()
        assert token == "x" or not token.isalnum(), (
            f"expected a sign or xhh after a backslash, got {token!r}"
        )
        return chr(int(self.rest.pop() + self.rest.pop(), 16)) if token == "x" else token
