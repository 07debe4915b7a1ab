"""Finder.run, which skips what it need not see, against a walk over every match of the table."""

import random

from srt_kernels.answers.finding.finder import Candidate, Finder, Walk
from srt_kernels.answers.finding.rules import RANKS, finder
from support.answers import FRAMES, LATEX, SYMBOLS, cases

FRAGMENTS = [*SYMBOLS, *LATEX, *FRAMES * 2, "the answer is ", " the ", " of 5 "]


def walk_all(table: Finder, data: bytes) -> Candidate:
    """What a GPU does."""
    mode = 0
    symbols = table.automaton.symbols(data)
    walk = Walk()
    position = 0
    while position <= len(data):
        kind, length = table.automaton.longest_match(symbols, position, mode)
        action = table.actions[mode][kind]
        assert action
        end = position + (1 if action.takes_one else length - table.lookahead[kind])
        assert end > position
        if walk.step(action, position, min(end, len(data))):
            mode = table.mode_names.index(action.mode)
        position = end
    return walk.candidate


def test_run_finds_what_a_walk_over_all_matches_finds():
    rng = random.Random(0)
    known = [text for case in cases() for text, _ in case.completions]
    texts = [text.encode() for text in known]
    for _ in range(700):
        text = "".join(rng.choices(FRAGMENTS, k=rng.randint(1, 40)))
        case = rng.choice(known)
        place = rng.randint(0, len(case))
        texts += [text.encode(), (case[:place] + text + case[place:]).encode()]
    for rule in RANKS:
        table = finder(rule)
        for text in texts:
            assert table.run(text).candidate == walk_all(table, text), (rule, text)
