"""The stages of the canonical form as tables on a device. kernel/walk.py reads them."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from srt_kernels.answers.canonical import stages
from srt_kernels.answers.rational import MAX_SHIFT, MEANINGS
from srt_kernels.answers.stage import CLOSE_KINDS, Action, Stage

NO_KIND = -2  # no pattern and no "-1: no match" equals it


class StageTables(NamedTuple):
    """Tables of all stages."""

    words: Tensor  # int32: all tables back to back; MEANINGS is the first
    headers: Tensor  # [stages, 10] int32: where a stage's tables begin in `words`; see Header
    powers: Tensor  # [MAX_SHIFT + 1] int64: powers of ten


class Header(NamedTuple):
    """Where the tables of a stage begin in `words`, and three numbers. kernel/walk.py loads it."""

    classes: int
    transitions: int  # [states][width] of the automaton
    width: int  # the number of classes
    accepts: int
    lookahead: int
    actions: int  # [states][kinds] -> row of `rows`
    kinds: int  # the number of kinds
    close: int  # the kind of a closing brace; NO_KIND where the stage has none
    rows: int  # [rows] ActionRow
    first_states: int  # [last states of the previous stage] -> state


class ActionRow(NamedTuple):
    """An Action as words."""

    state: int
    body: int
    prefix: int  # where it begins in `words`
    prefix_size: int
    suffix: int
    suffix_size: int
    take: int
    push: int


@cache
def stage_tables(device: torch.device) -> StageTables:
    """The tables on a device, made once."""
    words = Words()
    words.put(MEANINGS)
    headers = []
    previous_states: list[tuple] = [()]
    for stage in stages():
        first_states = [stage.first_state(state) for state in previous_states]
        headers.append(_put_stage(stage, first_states, words))
        previous_states = stage.states
    return StageTables(
        words=torch.tensor(words.words, dtype=torch.int32, device=device),
        headers=torch.tensor(headers, dtype=torch.int32, device=device),
        powers=10 ** torch.arange(MAX_SHIFT + 1, device=device),
    )


class Words:
    """A list of words. Equal tables are there once."""

    def __init__(self) -> None:
        self.words: list[int] = []
        self._start_of: dict[tuple[int, ...], int] = {}

    def put(self, table: Iterable[int]) -> int:
        """Where the table begins."""
        table = tuple(table)
        if table not in self._start_of:
            self._start_of[table] = len(self.words)
            self.words += table
        return self._start_of[table]


def _put_stage(stage: Stage, first_states: list[tuple], words: Words) -> Header:
    rows: dict[ActionRow, int] = {}  # row -> its number
    actions = []
    for state in stage.states:
        for kind in stage.kinds:
            row = _action_row(stage, stage.actions[state, kind], words)
            actions.append(rows.setdefault(row, len(rows)))
    automaton = stage.automaton
    has_braces = CLOSE_KINDS[0] in stage.kinds
    return Header(
        classes=words.put(automaton.classes),
        transitions=words.put(word for row in automaton.transitions for word in row),
        width=len(automaton.transitions[0]),
        accepts=words.put(automaton.accepts),
        lookahead=words.put(stage.lookahead),
        actions=words.put(actions),
        kinds=len(stage.kinds),
        close=stage.kinds.index(CLOSE_KINDS[0]) if has_braces else NO_KIND,
        rows=words.put(word for row in rows for word in row),
        first_states=words.put(stage.states.index(state) for state in first_states),
    )


def _action_row(stage: Stage, action: Action, words: Words) -> ActionRow:
    prefix = action.prefix.encode()
    suffix = action.suffix.encode()
    return ActionRow(
        state=stage.states.index(action.state),
        body=action.body,
        prefix=words.put(prefix),
        prefix_size=len(prefix),
        suffix=words.put(suffix),
        suffix_size=len(suffix),
        take=action.take,
        push=action.push,
    )
