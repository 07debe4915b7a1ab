"""The finders of the answer rules: what each match means, for every mode and rule."""

from __future__ import annotations

from functools import cache

from srt_kernels.answers.finding import patterns as p
from srt_kernels.answers.finding.finder import (
    AFTER_VALUE,
    BEGIN,
    BREAK,
    CLEAR,
    CLOSE,
    CLOSE_END,
    CLOSE_JOINED,
    FINISH,
    FIRST_OPEN,
    JOIN,
    OPEN,
    SPAN,
    STOP,
    TEXT,
    Action,
    Finder,
    Pattern,
)

Actions = dict[str, Action]

PATTERNS = {  # of equally long matches the first one wins
    "think": Pattern(p.THINK),
    "end of think": Pattern(p.END_OF_THINK),
    "run-on": Pattern(p.RUN_ON),
    "nothing in box": Pattern(p.NOTHING_IN_BOX),
    "next box": Pattern(p.NEXT_BOX),
    "box": Pattern(p.BOX),
    "bare box": Pattern(p.BARE_BOX),
    "bare letter": Pattern(p.BARE_LETTER_AHEAD, 1),
    "bare answer": Pattern(p.BARE_ANSWER),
    "nothing in tag": Pattern(p.NOTHING_IN_TAG),
    "tag": Pattern(p.TAG),
    "end of tag": Pattern(p.END_OF_TAG),
    "hashes": Pattern(p.HASHES),
    "hash line": Pattern(p.HASH_LINE_AHEAD, 1),
    "phrase": Pattern(p.PHRASE),
    "blank answer": Pattern(p.BLANK_ANSWER),
    "letter in brackets": Pattern(p.LETTER_IN_BRACKETS),
    "letter": Pattern(p.LETTER_AHEAD, 1),
    "letter and words": Pattern(p.LETTER_AND_WORDS),
    "first letter line": Pattern(p.FIRST_LETTER_LINE_AHEAD, 1),
    "letter line": Pattern(p.LETTER_LINE_AHEAD, 1),
    "and more": Pattern(p.AND_MORE_AHEAD, 1),
    "function word": Pattern(p.FUNCTION_WORD_AHEAD, 1),
    "function name": Pattern(p.FUNCTION_NAME),
    "word in formula": Pattern(p.WORD_IN_FORMULA),
    "long word": Pattern(p.LONG_WORD),
    "any word": Pattern(p.ANY_WORD),
    "command": Pattern(p.COMMAND),
    "paragraph": Pattern(p.PARAGRAPH),
    "stop": Pattern(p.STOP_AHEAD, 1),
    "end of line": Pattern(p.LINE_END),
    "signed number": Pattern(p.SIGNED_NUMBER),
    "number": Pattern(p.NUMBER),
    "not grouped": Pattern(p.NOT_GROUPED),
    "unit power": Pattern(p.UNIT_POWER_AHEAD, 1),
    "index": Pattern(p.INDEX),
    "pair": Pattern(p.PAIR),
    "open": Pattern("{"),
    "close": Pattern("}"),
    "digit": Pattern("[0-9]"),
    "no word": Pattern("[,'!:]"),
    "gap": Pattern(p.GAP_BREAK),
    "word": Pattern(p.NUMBER_BREAK_WORD, 1),
    "line": Pattern(p.NUMBER_BREAK_LINE),
    "value": Pattern(p.VALUE),
    "other": Pattern("."),
    "end": Pattern("$"),
}

RANKS = {
    "boxed": {"box": 2, "bare": 1},
    "tag": {"tag": 1},
    "last_number": {"number": 1},
    "answer": {"box": 7, "bare": 6, "tag": 5, "hashes": 4, "phrase": 3, "letter": 2, "number": 1},
}
"""The ranks of what a rule finds. The highest is the one that `answer` looks for first."""

FRESH = {
    "start": TEXT,
    "opened": "box",
    "joined opened": "joined",
    "closed": AFTER_VALUE,
    "bare": TEXT,
    "tag opened": "in tag",
    "hashes": TEXT,
    "phrase": None,
}
"""The modes that count for one match; see Finder."""


@cache
def finder(rule: str) -> Finder:
    """The finder of one of RANKS. The first call compiles its automaton."""
    rank = RANKS[rule]
    base = {
        "think": Action("over", CLEAR),
        "end of think": Action("start", CLEAR),
        "run-on": Action("over", STOP),
    }
    if "box" in rank:
        base |= {"box": Action("opened", BEGIN), "bare box": Action("bare")}
    if "tag" in rank:
        base |= {"tag": Action("tag opened", BEGIN)}
    numbers = _numbers(rank["number"]) if "number" in rank else {}
    fillers = {"other": Action(TEXT), "end": Action(TEXT)}
    if "box" in rank:
        breaks = p.GAP_BREAK
        fillers["gap"] = Action(TEXT, BREAK, takes_one=True)
    else:
        breaks = f"{p.NUMBER_BREAK_WORD}|{p.NUMBER_BREAK_LINE}"
        fillers |= dict.fromkeys(("word", "line"), Action(TEXT, BREAK))
    text = base | numbers | fillers
    if "phrase" in rank:
        text |= {
            "hashes": Action("hashes"),
            "phrase": Action("phrase", BEGIN),
            "letter line": Action(TEXT, SPAN, rank["letter"]),
        }
    modes = {"start": text, TEXT: text}
    if numbers:
        modes[AFTER_VALUE] = {kind: text[kind] for kind in text if kind != "signed number"}
    modes["over"] = _over(base)
    if "box" in rank:
        modes |= _box_modes(rank, base, modes.get(AFTER_VALUE, text), text)
    if "tag" in rank:
        modes |= _tag_modes(rank["tag"], base, numbers)
    if "phrase" in rank:
        first_letter = {"first letter line": Action(TEXT, SPAN, rank["letter"])}
        modes["start"] = text | first_letter
        modes["hashes"] = text | {"hash line": Action(TEXT, SPAN, rank["hashes"])}
        modes |= _phrase_modes(rank["phrase"], base)
    fresh = FRESH if numbers else FRESH | {"closed": TEXT}
    return Finder(PATTERNS, modes, fresh, breaks)


def _numbers(rank: int) -> Actions:
    """Kinds of the modes TEXT and AFTER_VALUE where numbers are looked for."""
    return {
        "number": Action(AFTER_VALUE, SPAN, rank),
        "signed number": Action(AFTER_VALUE, SPAN, rank),
        "not grouped": Action(AFTER_VALUE, takes_one=True),
        "index": Action(AFTER_VALUE),
        "unit power": Action(AFTER_VALUE),
        "value": Action(AFTER_VALUE),
    }


def _over(base: Actions) -> Actions:
    """After the text's end, and after a `<think>`: only what the text begins with counts."""
    begins = {kind: base[kind] for kind in ("think", "end of think")}
    return begins | dict.fromkeys(("other", "end"), Action("over"))


def _box_modes(
    rank: dict[str, int], base: Actions, after_value: Actions, text: Actions
) -> dict[str, Actions]:
    modes = {}
    for name, close in (("box", CLOSE_END), ("joined", CLOSE_JOINED)):
        stay = Action(name)
        modes[name] = {kind: base[kind] for kind in ("think", "end of think", "run-on", "box")} | {
            "open": Action(name, OPEN),
            "close": Action("closed", close, rank["box"]),
            "pair": stay,
            "other": stay,
            "end": stay,
        }
        if "phrase" in rank:  # the text goes on after a box that stays open
            modes[name]["paragraph"] = Action(TEXT)
    bare = Action(TEXT, SPAN, rank["bare"])
    return modes | {
        "opened": modes["box"] | {"nothing in box": Action(TEXT)},
        "joined opened": modes["joined"] | {"nothing in box": Action(TEXT)},
        "closed": after_value | {"next box": Action("joined opened", JOIN)},
        "bare": text | {"bare answer": bare, "bare letter": bare._replace(takes_one=True)},
    }


def _tag_modes(rank: int, base: Actions, numbers: Actions) -> dict[str, Actions]:
    """Numbers in a tag count, too: it may stay open."""
    inside = {kind: action._replace(mode="in tag") for kind, action in numbers.items()}
    stay = Action("in tag")
    inside |= base | {"end of tag": Action(TEXT, FINISH, rank), "other": stay, "end": stay}
    return {"in tag": inside, "tag opened": inside | {"nothing in tag": Action(TEXT)}}


def _phrase_modes(rank: int, base: Actions) -> dict[str, Actions]:
    """What follows a phrase: a letter, a formula up to its first word, or at most two words."""
    finish = Action(TEXT, FINISH, rank)
    cancel = Action(TEXT)
    ends = {"run-on": Action("over", FINISH, rank), "end of line": finish, "end": finish}
    ends = base | ends | {"stop": finish}
    stay = Action("formula")
    formula = ends | {
        **dict.fromkeys(("and more", "function name", "command", "pair", "other"), stay),
        "word in formula": finish,
        "open": Action("braces", FIRST_OPEN),
    }
    in_braces = Action("braces")
    braces = {kind: ends[kind] for kind in ends if kind != "stop"} | {
        **dict.fromkeys(("pair", "other"), in_braces),
        "open": Action("braces", OPEN),
        "close": Action("formula", CLOSE),
    }
    words = ends | dict.fromkeys(("digit", "no word", "pair"), cancel)
    letter = Action(TEXT, SPAN, rank)
    return {
        "phrase": formula
        | dict.fromkeys(("function word", "blank answer", "stop", "end of line", "end"), cancel)
        | {
            "long word": Action("one word"),
            "letter in brackets": letter,
            "letter": letter,
            "letter and words": letter._replace(takes_one=True),
        },
        "formula": formula,
        "braces": braces,
        "one word": words | {"any word": Action("two words"), "other": Action("one word")},
        "two words": words | {"any word": cancel, "other": Action("two words")},
    }
