r"""Compiles regular expressions over bytes into one deterministic automaton, as a lexer has.

The automaton finds the longest match of all patterns. A pattern consists of

    abc  π        literals, in UTF-8; braces are literals
    \+  \x01      a sign as it is written; a byte by its code
    [a-z] [^a-z]  one byte of a set; one byte outside of it
    .             any byte
    $             END, the symbol that follows the last byte
    | (...) * + ? as usual
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

END = 256
"""The symbol after the last byte."""

DEAD = 0
START = 1
"""The state before the first symbol of an automaton's first mode."""

Edge = tuple[frozenset[int] | None, int]
"""The symbols of an edge (None: the edge reads no symbol) and the state that it leads to."""


@dataclass(frozen=True)
class Automaton:
    """A deterministic automaton. Symbols are bytes and END. From the state DEAD nothing matches."""

    classes: list[int]  # [257] symbol -> class; no pattern tells the symbols of a class apart
    transitions: list[list[int]]  # [states][classes] -> state
    accepts: list[int]  # [states] -> the first pattern that matches the symbols so far, or -1
    starts: list[int]  # [modes] -> the state before the first symbol of a match

    def longest_match(self, symbols: bytes, start: int, mode: int = 0) -> tuple[int, int]:
        """The pattern of a mode with the longest match from `start` on, and its length in symbols.

        symbols: their classes. Of patterns that match equally many symbols, the first one wins.
        """
        node = self._nodes[self.starts[mode]]
        pattern = -1
        last = start - 1
        for position in range(start, len(symbols)):
            node = node[symbols[position]]
            if node is None:
                break
            if node[-1] >= 0:
                pattern = node[-1]
                last = position
        return pattern, last + 1 - start

    def symbols(self, data: bytes) -> bytes:
        """The class of each byte, and then the class of END."""
        table, end = self._class_bytes
        return data.translate(table) + end

    @cached_property
    def _nodes(self) -> list[list[Any]]:
        """[states][classes] -> node of the next state, None for DEAD; then what the state accepts.

        A walk over nodes looks up less than a walk over `transitions`.
        """
        nodes: list[list[Any]] = [[] for _ in self.accepts]
        for node, row, pattern in zip(nodes, self.transitions, self.accepts, strict=True):
            node += [None if state == DEAD else nodes[state] for state in row]
            node.append(pattern)
        return nodes

    @cached_property
    def _class_bytes(self) -> tuple[bytes, bytes]:
        """The classes of all bytes, and the class of END."""
        return bytes(self.classes[:END]), bytes(self.classes[END:])


def compile_patterns(patterns: list[str]) -> Automaton:
    """The automaton of patterns with one mode."""
    return compile_modes(patterns, [range(len(patterns))])


def compile_modes(patterns: list[str], modes: Sequence[Iterable[int]]) -> Automaton:
    """The automaton of patterns. A mode is the numbers of the patterns that it knows.

    Each symbol needs a pattern of its own in each mode: a match then always exists.
    """
    nfa = _Nfa()
    paths = [nfa.add(pattern) for pattern in patterns]
    pattern_of = {
        end: number for number, (_, end) in enumerate(paths)
    }  # accepting state -> pattern
    classes = _symbol_classes(nfa)
    origins = [nfa.closure([paths[number][0] for number in mode]) for mode in modes]
    subsets, transitions = _determinize(nfa, classes, origins)
    accepts = [
        min((pattern_of[state] for state in subset if state in pattern_of), default=-1)
        for subset in subsets
    ]
    starts = [subsets.index(origin) for origin in origins]
    unmatched = [
        (mode, symbol)
        for mode, start in enumerate(starts)
        for symbol in range(END + 1)
        if accepts[transitions[start][classes[symbol]]] < 0
    ]
    assert not unmatched, f"expected a pattern for each mode and symbol, got none for {unmatched}"
    return Automaton(classes=classes, transitions=transitions, accepts=accepts, starts=starts)


def _symbol_classes(nfa: _Nfa) -> list[int]:
    """[257] symbol -> class.

    Two symbols share a class if every edge has both of them or neither.
    """
    edge_sets = list({symbols for edges in nfa.edges for symbols, _ in edges if symbols})
    signatures = [tuple(symbol in edge_set for edge_set in edge_sets) for symbol in range(END + 1)]
    numbers = {signature: number for number, signature in enumerate(dict.fromkeys(signatures))}
    return [numbers[signature] for signature in signatures]


def _determinize(
    nfa: _Nfa, classes: list[int], origins: list[frozenset[int]]
) -> tuple[list[frozenset[int]], list[list[int]]]:
    """The subset construction: the states of the NFA of each new state, and its transitions."""
    edges = [
        [({classes[symbol] for symbol in symbols}, target) for symbols, target in edges if symbols]
        for edges in nfa.edges
    ]
    subsets = list(dict.fromkeys([frozenset(), *origins]))
    number_of = {subset: number for number, subset in enumerate(subsets)}
    transitions = []
    for subset in subsets:  # The loop appends to `subsets`.
        targets: list[set[int]] = [set() for _ in range(max(classes) + 1)]
        for edge_classes, target in itertools.chain.from_iterable(edges[state] for state in subset):
            for number in edge_classes:
                targets[number].add(target)
        row = []
        for closure in map(nfa.closure, targets):
            if closure not in number_of:
                number_of[closure] = len(subsets)
                subsets.append(closure)
            row.append(number_of[closure])
        transitions.append(row)
    return subsets, transitions


class _Nfa:
    """A nondeterministic automaton by Thompson's construction: a path for each pattern."""

    def __init__(self) -> None:
        self.edges: list[list[Edge]] = []  # of each state
        self._closures: dict[frozenset[int], frozenset[int]] = {}
        self._input: list[str] = []  # characters of the pattern that are not yet parsed, reversed

    def add(self, pattern: str) -> tuple[int, int]:
        """Adds a path that matches `pattern`. Returns the states at its start and at its end."""
        self._input = list(reversed(pattern))
        start, end = self._alternatives()
        rest = "".join(reversed(self._input))
        assert not rest, f"expected the end of the pattern {pattern!r}, got {rest!r}"
        return start, end

    def closure(self, states: Iterable[int]) -> frozenset[int]:
        """`states` and the states that they lead to without a symbol."""
        origin = frozenset(states)
        if origin not in self._closures:
            reached = set(origin)
            pending = list(origin)
            while pending:
                targets = {
                    target for symbols, target in self.edges[pending.pop()] if symbols is None
                }
                pending += targets - reached
                reached |= targets
            self._closures[origin] = frozenset(reached)
        return self._closures[origin]

    def _new_state(self) -> int:
        self.edges.append([])
        return len(self.edges) - 1

    def _connect(self, start: int, symbols: frozenset[int] | None, end: int) -> None:
        self.edges[start].append((symbols, end))

    def _peek(self) -> str:
        return self._input[-1] if self._input else ""

    def _alternatives(self) -> tuple[int, int]:
        start = self._new_state()
        end = self._new_state()
        while True:
            first, last = self._sequence()
            self._connect(start, None, first)
            self._connect(last, None, end)
            if self._peek() != "|":
                return start, end
            self._input.pop()

    def _sequence(self) -> tuple[int, int]:
        start = end = self._new_state()
        while self._peek() and self._peek() not in "|)":
            first, last = self._item()
            operator = self._input.pop() if self._peek() and self._peek() in "*+?" else None
            if operator in ("*", "?"):
                self._connect(first, None, last)
            if operator in ("*", "+"):
                self._connect(last, None, first)
            self._connect(end, None, first)
            end = self._new_state()  # A loop's end must not be the state of the next item.
            self._connect(last, None, end)
        return start, end

    def _item(self) -> tuple[int, int]:
        char = self._input.pop()
        if char == "(":
            group = self._alternatives()
            assert self._input.pop() == ")"
            return group
        if char == "$":
            return self._one_of(frozenset([END]))
        if char == ".":
            return self._one_of(frozenset(range(END)))
        if char == "[":
            return self._one_of(self._set())
        start = end = self._new_state()
        for byte in self._literal(char).encode():
            target = self._new_state()
            self._connect(end, frozenset([byte]), target)
            end = target
        return start, end

    def _one_of(self, symbols: frozenset[int]) -> tuple[int, int]:
        start = self._new_state()
        end = self._new_state()
        self._connect(start, symbols, end)
        return start, end

    def _set(self) -> frozenset[int]:
        """The bytes of a set, whose opening bracket is parsed."""
        negated = self._peek() == "^"
        if negated:
            self._input.pop()
        members: set[int] = set()
        while (char := self._input.pop()) != "]":
            first = last = ord(self._literal(char))
            if self._peek() == "-" and self._input[-2] != "]":
                self._input.pop()
                last = ord(self._literal(self._input.pop()))
            assert last < END, "expected a byte in [...]"
            members |= set(range(first, last + 1))
        return frozenset(set(range(END)) - members if negated else members)

    def _literal(self, char: str) -> str:
        """The character that `char` begins, of one or more characters of the pattern."""
        if char != "\\":
            return char
        char = self._input.pop()
        if char == "x":
            return chr(int(self._input.pop() + self._input.pop(), 16))
        assert not char.isalnum(), f"expected a sign or xhh after a backslash, got {char!r}"
        return char
