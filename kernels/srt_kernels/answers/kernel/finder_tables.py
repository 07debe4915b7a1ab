"""A finder (finding/finder.py) as tables on a device. kernel/search.py reads them."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from srt_kernels.answers.finding.finder import TEXT, Action
from srt_kernels.answers.finding.rules import finder
from srt_kernels.answers.kernel.tables import Words

# A word of an action: bits of the op, of takes_one, of the rank, and then the mode.
OP_BITS = 4
RANK_SHIFT = OP_BITS + 1
RANK_BITS = 4
MODE_SHIFT = RANK_SHIFT + RANK_BITS


class FinderTables(NamedTuple):
    """The tables of a finder. `header` says where each begins in `words`."""

    words: Tensor  # int32: all tables back to back
    header: Tensor  # [9] int32: see Header


class Header(NamedTuple):
    """Where the tables of a finder begin, and two numbers."""

    classes: int
    transitions: int  # [states][width] of the automaton
    width: int  # the number of classes
    accepts: int
    lookahead: int
    actions: int  # [modes][kinds]
    kinds: int  # the number of kinds
    starts: int  # [modes] -> the state before the first symbol of a match
    text_mode: int  # the mode at the start of a part of a text


@cache
def finder_tables(device: torch.device, rule: str) -> FinderTables:
    """The tables of a rule's finder on a device, made once."""
    table = finder(rule)
    number_of = {name: number for number, name in enumerate(table.mode_names)}
    words = Words()
    automaton = table.automaton
    header = Header(
        classes=words.put(automaton.classes),
        transitions=words.put(word for row in automaton.transitions for word in row),
        width=len(automaton.transitions[0]),
        accepts=words.put(automaton.accepts),
        lookahead=words.put(table.lookahead),
        actions=words.put(_word(action, number_of) for mode in table.actions for action in mode),
        kinds=len(table.kinds),
        starts=words.put(automaton.starts),
        text_mode=number_of[TEXT],
    )
    return FinderTables(
        words=torch.tensor(words.words, dtype=torch.int32, device=device),
        header=torch.tensor(header, dtype=torch.int32, device=device),
    )


def no_tables(device: torch.device) -> FinderTables:
    """For a rule that finds nothing: it takes all of a text."""
    nothing = torch.empty(0, dtype=torch.int32, device=device)
    return FinderTables(words=nothing, header=nothing)


def _word(action: Action | None, number_of: dict[str, int]) -> int:
    if action is None:  # the mode does not know the kind
        return 0
    flags = action.op | action.takes_one << OP_BITS | action.rank << RANK_SHIFT
    return flags | number_of[action.mode] << MODE_SHIFT
