"""AnswerReader.keys against its plain-Python twin, answer_key(read_answer(text)).

The keys must not depend on the tokenization of a text.
"""

import os
import random

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from srt_kernels import group_advantage, majority_vote
from srt_kernels.answers.canonical import answer_key
from srt_kernels.answers.extract import ANSWER_RULES, read_answer
from srt_kernels.answers.reader import AnswerReader
from srt_kernels.answers.stage import MAX_BYTES
from srt_kernels.core.backend import triton, use_triton
from srt_kernels.core.segments import segment_ids
from srt_kernels.groups.majority_vote import Vote
from srt_kernels.testing import random_tokens
from support.answers import FRAMES, LATEX, SYMBOLS, VOCABULARY, box, cases, shared_rows

DEVICE = torch.get_default_device().type
IS_INTERPRETED = DEVICE == "cpu" and triton is not None and triton.knobs.runtime.interpret
IS_SHORT = IS_INTERPRETED and "SRT_TEST_STRINGS" not in os.environ  # CI sets it


def random_texts(count: int, fragments: list[str], most: int, seed: int) -> list[bytes]:
    """Texts of up to `most` fragments. Some have bytes that are invalid UTF-8."""
    rng = random.Random(seed)
    texts = ["".join(rng.choices(fragments, k=rng.randint(0, most))) for _ in range(count)]
    return [text.encode() + (rng.randbytes(3) if rng.random() < 0.02 else b"") for text in texts]


def check(texts: list[bytes], rule: str) -> list[int]:
    """Checks the keys of the texts, and returns them."""
    tokens, cu_seqlens = random_tokens(texts, VOCABULARY, random.Random(0))
    keys = AnswerReader(VOCABULARY, rule).keys(tokens, cu_seqlens).tolist()
    for text, key in zip(texts, keys, strict=True):
        answer = read_answer(text, rule)
        assert key == answer_key(answer), f"{rule}: {text!r}, answer {answer!r}"
    return keys


@pytest.fixture
def set_lanes(monkeypatch):
    """Sets the rollouts of a program.

    A step of a program takes 15 ms in the interpreter, and little more for many rollouts.
    """
    if not IS_INTERPRETED:
        return lambda lanes: None
    from srt_kernels.answers.kernel import keys as keys_kernel  # needs Triton

    return lambda lanes: monkeypatch.setattr(keys_kernel, "LANES", lanes)


HOSTILE = [
    b"",
    b"{" * 200,
    b"\\boxed{" * 30,
    b"\\boxed{3}" * 20 + b"{" * 99,
    b"\\boxed{7} \\boxed{8",
    b"\\boxed{\\boxed{1}",
    box(b"7" * 600),
    box(b"\\frac" * 20),
    box(b"{" * 40 + b"1" + b"}" * 40),
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


LONGEST = b"x" * MAX_BYTES
AT_THE_LIMIT = [  # the first two have one key
    box(LONGEST),
    box(LONGEST + b" "),
    box(LONGEST + b"x"),
    box(LONGEST[:-1] + b"_1"),  # becomes x_{1}
]


def short_answers() -> list[bytes]:
    """SRT_TEST_STRINGS of them. CI takes a hundred thousand, in the interpreter too."""
    count = int(os.environ.get("SRT_TEST_STRINGS", 3_000 if IS_INTERPRETED else 100_000))
    texts = random_texts(3 * count, SYMBOLS + LATEX, 5, seed=1)
    texts = [text for text in texts if len(text) <= 16][:count]
    assert len(texts) == count
    return texts


def completions(rule: str) -> list[bytes]:
    texts = random_texts(1000, SYMBOLS + LATEX + FRAMES * 3, 10, seed=2)
    texts += [b"no answer " * 9 + text + b" x" * 20 for text in texts[:20]]  # far from the end
    if rule == "tag":
        texts += [b"<answer>" + text + b"</answer>" for text in texts[:500]]
    return texts


@pytest.mark.parametrize("rule", ANSWER_RULES)
def test_keys_are_those_of_the_plain_twin(rule: str, set_lanes):
    """All texts in one call: in the interpreter a call takes the time of its longest text.

    There the texts at the limit take a minute. Only CI, which sets SRT_TEST_STRINGS, takes it.
    """
    texts = HOSTILE + completions(rule)
    if IS_INTERPRETED:  # a byte takes 30 ms
        texts = [text for text in texts if len(text) <= 50]
    texts += [text.encode() for case in cases(rule) for text, _ in case.completions]
    if rule == "whole":
        texts += short_answers()
    has_limit = rule == "boxed" and not IS_SHORT
    if has_limit:
        texts = AT_THE_LIMIT + texts
    set_lanes(1 << (len(texts) - 1).bit_length())
    keys = check(texts, rule)
    assert len(set(keys)) > (1000 if rule == "whole" else 30)
    if has_limit:
        assert keys[0] == keys[1] and len(set(keys[:4])) == 3


@pytest.mark.skipif(IS_SHORT, reason="a minute in the interpreter: only with SRT_TEST_STRINGS")
@pytest.mark.parametrize("rule", ["whole", "answer"])
def test_real_answers(rule: str, set_lanes):
    set_lanes(1024)
    if rule == "whole":
        files = ("math500.jsonl", "amc.jsonl", "aime24.jsonl")
        check([row["answer"].encode() for file in files for row in shared_rows(file)], rule)
        return
    solutions = [row["solution"] for row in shared_rows("math500_solutions.jsonl")]
    check([solution.encode()[-60:] for solution in solutions], rule)


def reward_step(
    reader: AnswerReader, tokens: Tensor, cu_seqlens: Tensor, cu_groups: Tensor
) -> tuple[Vote, Tensor, Tensor]:
    """Tokens -> the vote, the advantages, and which tokens have a gradient."""
    vote = majority_vote(reader.keys(tokens, cu_seqlens), cu_groups)
    advantages = group_advantage(vote.rewards, cu_groups, kind="mean")
    return vote, advantages, advantages[segment_ids(cu_seqlens, len(tokens))] != 0


def test_the_reward_step_never_waits_for_the_device():
    reader = AnswerReader(VOCABULARY, "boxed")
    texts = [box(b"1/2"), box(b".5"), box(b"1"), b"", box(b"7")]
    tokens, cu_seqlens = random_tokens(texts, VOCABULARY, random.Random(0))
    cu_groups = torch.tensor([0, 4, 5], dtype=torch.int32)
    vote, advantages, active = reward_step(reader, tokens, cu_seqlens, cu_groups)
    assert vote.majority.tolist() == [answer_key("0.5"), answer_key("7")]
    assert vote.rewards.tolist() == [1, 1, 0, 0, 1]
    assert vote.share.tolist() == [0.5, 1]
    assert advantages.tolist() == [0.5, 0.5, -0.5, -0.5, 0]
    first_group = int(cu_seqlens[4])
    assert active.tolist() == [True] * first_group + [False] * (len(tokens) - first_group)
    if DEVICE != "cpu":
        torch.cuda.set_sync_debug_mode("error")
        try:
            reward_step(reader, tokens, cu_seqlens, cu_groups)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    # A fake tensor has a device and no values: an op that looks at a value raises.
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fakes = [mode.from_tensor(tensor) for tensor in (tokens, cu_seqlens, cu_groups)]
        vote, advantages, active = reward_step(reader, *fakes)
    assert vote.rewards.shape == advantages.shape == (5,)
    assert active.shape == tokens.shape


@pytest.mark.parametrize(
    ("tokens", "cu_seqlens", "message"),
    [
        ([1.0], [0, 1], "tokens: expected dtype .*int64.* got torch.float32"),
        ([[1]], [0, 1], r"tokens: expected shape \[any\], got \[1, 1\]"),
        ([-1], [0, 1], "tokens: expected values in"),
        ([1], [0, 2], "cu_seqlens: expected 1 last, got 2"),
        ([1], [1], "cu_seqlens: expected 0 first, got 1"),
    ],
)
def test_bad_input(tokens: list, cu_seqlens: list[int], message: str):
    with pytest.raises(ValueError, match=message):
        AnswerReader(VOCABULARY, "boxed").keys(torch.tensor(tokens), torch.tensor(cu_seqlens))


def test_ids_beyond_the_vocabulary_and_empty_batches():
    reader = AnswerReader(VOCABULARY, "whole")
    one, two = b"12"
    beyond = len(VOCABULARY) + 7
    keys = reader.keys(torch.tensor([one, beyond, two]), torch.tensor([0, 3]))
    assert keys.tolist() == [answer_key("12")]
    assert reader.keys(torch.tensor([], dtype=torch.int64), torch.tensor([0])).shape == (0,)
    assert use_triton(torch.tensor([1])) == (IS_INTERPRETED or DEVICE != "cpu")
