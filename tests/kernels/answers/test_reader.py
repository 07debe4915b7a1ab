"""AnswerReader.keys against its plain-Python twin, answer_key(read_answer(text)), over any tokenization of the text."""

import itertools
import json
import os
import random

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from conftest import DEVICE
from srt_kernels import group_advantage, majority_vote
from srt_kernels.answers.canonical import MAX_BYTES, answer_key
from srt_kernels.answers.extract import RULES, read_answer
from srt_kernels.answers.reader import AnswerReader
from srt_kernels.core.backend import triton, use_triton
from srt_kernels.core.segments import segment_ids
from srt_kernels.testing import random_tokens
from support.paths import DATA

INTERPRETED = DEVICE == "cpu" and triton is not None and triton.knobs.runtime.interpret
SYMBOLS = [*"0123456789" * 2, *".,-+/()[]{}^_= $%°π∞xAbe&<\\\n\0"]
LATEX = [
    "{1}",
    "000",
    "1/2",
    "x=",
    " and ",
    "cm",
    "degrees.",
    r"\frac",
    r"\dfrac",
    r"\sqrt",
    r"\text{",
    r"\left",
    r"\right",
]
LATEX += [
    r"\circ",
    r"\!",
    ",\\!",
    "{,}",
    r"\,",
    r"\{",
    r"\}",
    "\\\\",
    r"\pi",
    r"\times 10^",
    r"\times ",
    r"\cdot ",
    r"\in ",
]
LATEX += [
    r"\begin{bmatrix}",
    r"\end{bmatrix}",
    r"\frac{1}{2}",
    "2,220",
    "1e5",
    "f(x)=",
    "(2)",
    "(C)",
    r"+\infty",
    "Word ",
]
FRAMES = [
    r"\boxed{",
    r"\boxed{5}",
    r"\boxed ",
    r"\boxed",
    r"\fbox{",
    "boxed",
    "fbox",
    "<answer>",
    "</answer>",
    "</",
    "−4",
]
PIECES = [
    b"\\bo",
    b"xed",
    b"oxed",
    b"\\box",
    b"ed{1",
    b"d",
    b"x)",
    b" the",
    b"does",
    b"d.",
    b"ans",
    b"wer>",
    b"12",
    b"  (",
]
TABLE = (
    [bytes([byte]) for byte in range(256)]
    + [text.encode() for text in LATEX + FRAMES]
    + PIECES
    + [b""]
)


def texts(number, fragments, most, seed):
    """Strings of up to `most` fragments; some have bytes that are no UTF-8."""
    rng = random.Random(seed)
    found = [
        "".join(rng.choices(fragments, k=rng.randint(0, most))).encode() for _ in range(number)
    ]
    return [text + rng.randbytes(3) if rng.random() < 0.02 else text for text in found]


def check(strings, rule, seed=0):
    tokens, cu_seqlens = random_tokens(strings, TABLE, random.Random(seed))
    keys = AnswerReader(TABLE, rule).keys(tokens, cu_seqlens).tolist()
    for string, key in zip(strings, keys, strict=True):
        answer = read_answer(string, rule)
        assert key == answer_key(answer), f"{rule}: {string!r}, answer {answer!r}"
    return keys


@pytest.fixture
def lanes(monkeypatch):
    """Rollouts in a program: in the interpreter a step takes 15 ms and a little for each of them."""
    if INTERPRETED:
        from srt_kernels.answers import kernel as answer_kernel

        return lambda number: monkeypatch.setattr(answer_kernel, "LANES", number)
    return lambda number: None


def test_many_answers(lanes):
    """SRT_TEST_STRINGS of them, in CI a hundred thousand also for the interpreter (.ci/run)."""
    lanes(1 << 14)
    number = int(os.environ.get("SRT_TEST_STRINGS", 10_000 if INTERPRETED else 100_000))
    strings = [
        string for string in texts(3 * number, SYMBOLS + LATEX, 5, seed=1) if len(string) <= 16
    ][:number]
    assert len(strings) == number
    assert len(set(check(strings, "whole"))) > number / 5


@pytest.mark.parametrize("rule", RULES)
def test_completions(rule, lanes):
    lanes(1024)
    strings = texts(1000, SYMBOLS + LATEX + FRAMES * 3, 10, seed=2)
    strings += [b"no answer " * 9 + s + b" x" * 20 for s in strings[:20]]  # a mark far from the end
    assert len(set(check(strings, rule))) > (2 if rule == "tag" else 30)
    if rule == "tag":
        assert len(set(check([b"<answer>" + s + b"</answer>" for s in strings[:500]], rule))) > 100


HOSTILE = [
    b"",
    b"{" * 200,
    b"\\boxed{" * 30,
    b"\\boxed{3}" * 20 + b"{" * 99,
    b"\\boxed{7} \\boxed{8",
    b"\\boxed{\\boxed{1}",
    b"\\boxed{" + b"7" * 600 + b"}",
    b"\\boxed{" + b"\\frac" * 20 + b"}",
    b"\\boxed{" + b"{" * 40 + b"1" + b"}" * 40 + b"}",
    b"\\boxed{\xff\xfe1\x000}",
    b"\\boxed{ " + b"^2" * 50 + b"}",
    b"\\boxed" + b" " * 99,
    b"\\boxed \\\\\\) 1",
    b"\\boxed \\",
    b"<answer>" * 20,
    b"<answer>1</answer",
    b"</answer>" * 20,
    b"1" * 600,
    b"1,111" * 40,
    b"\\frac{1" * 30,
    b"-1,2345",
    b"...,,,1",
    b"\\boxed{1}\\\\\\}",
    b"\\boxed{\\}1}",
    b"\\boxed{a\\\\}",
]


@pytest.mark.parametrize("rule", RULES)
def test_hostile_text(rule):
    check(HOSTILE, rule)


def test_the_longest_answer():
    longest = b"\\boxed{" + b"x" * MAX_BYTES
    grows = longest[:-1] + b"_1}"  # to x_{1}
    keys = check([longest + b"}", longest + b" }", longest + b"x}", grows], "boxed")
    assert keys[0] == keys[1] and len(set(keys)) == 3


def rows(name):
    if not (DATA / name).is_file():
        pytest.skip(f"the shared data file {name} is not there (expected at {DATA})")
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


def test_real_answers(lanes):
    lanes(1024)
    golds = [
        row["answer"].encode()
        for name in ("math500", "amc", "aime24")
        for row in rows(f"{name}.jsonl")
    ]
    check(golds, "whole")
    solutions = [row["solution"].encode()[-150:] for row in rows("math500_solutions.jsonl")]
    check(solutions, "boxed")
    check(solutions, "last_number")


def chain(reader, tokens, cu_seqlens, cu_groups):
    """Tokens to the rows that have a gradient, and what it takes to get there."""
    vote = majority_vote(reader.keys(tokens, cu_seqlens), cu_groups)
    advantages = group_advantage(vote.rewards, cu_groups, kind="mean")
    return vote, advantages, advantages[segment_ids(cu_seqlens, len(tokens))] != 0


def test_the_reward_step_never_waits_for_the_device():
    reader, strings = (
        AnswerReader(TABLE, "boxed"),
        [b"\\boxed{1/2}", b"\\boxed{.5}", b"\\boxed{1}", b"", b"\\boxed{7}"],
    )
    tokens, cu_seqlens = random_tokens(strings, TABLE, random.Random(0))
    cu_groups = torch.tensor([0, 4, 5], dtype=torch.int32)
    vote, advantages, active = chain(reader, tokens, cu_seqlens, cu_groups)
    assert vote.majority.tolist() == [answer_key("0.5"), answer_key("7")]
    assert vote.rewards.tolist() == [1, 1, 0, 0, 1] and vote.share.tolist() == [0.5, 1]
    assert advantages.tolist() == [0.5, 0.5, -0.5, -0.5, 0]
    lengths = cu_seqlens.diff().tolist()
    assert active.tolist() == [
        n > 0 for n in itertools.chain.from_iterable([i < 4] * lengths[i] for i in range(5))
    ]
    if DEVICE != "cpu":
        torch.cuda.set_sync_debug_mode("error")
        try:
            chain(reader, tokens, cu_seqlens, cu_groups)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    # A look at a value of a fake tensor is an error; its device is not looked at, only its type.
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(tensor) for tensor in (tokens, cu_seqlens, cu_groups)]
        vote, advantages, active = chain(reader, *fakes)
    assert vote.rewards.shape == advantages.shape == (5,) and active.shape == tokens.shape


@pytest.mark.parametrize(
    "tokens, cu_seqlens, named",
    [
        (
            torch.tensor([1.0]),
            torch.tensor([0, 1]),
            "tokens: expected dtype .*int64.* got torch.float32",
        ),
        (
            torch.tensor([[1]]),
            torch.tensor([0, 1]),
            r"tokens: expected shape \[any\], got \[1, 1\]",
        ),
        (torch.tensor([-1]), torch.tensor([0, 1]), "tokens: expected values in"),
        (torch.tensor([1]), torch.tensor([0, 2]), "cu_seqlens: expected 1 last, got 2"),
        (torch.tensor([1]), torch.tensor([1]), "cu_seqlens: expected 0 first, got 1"),
    ],
)
def test_bad_input(tokens, cu_seqlens, named):
    with pytest.raises(ValueError, match=named):
        AnswerReader(TABLE, "boxed").keys(tokens, cu_seqlens)


def test_ids_beyond_the_vocabulary_and_empty_batches():
    reader = AnswerReader(TABLE, "whole")
    assert reader.keys(torch.tensor([49, len(TABLE) + 7, 50]), torch.tensor([0, 3])).tolist() == [
        answer_key("12")
    ]
    assert reader.keys(torch.tensor([], dtype=torch.int64), torch.tensor([0])).shape == (0,)
    assert use_triton(torch.tensor([1])) == (INTERPRETED or DEVICE != "cpu")
