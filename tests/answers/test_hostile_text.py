"""What a collapsing policy writes, through AnswerReader.keys and majority_vote.

There is a key or 0 for each text, never an exception, in time that grows linearly with the bytes.
test_fuzz runs for SRT_FUZZ_SECONDS (60 if it is not set).
"""

import os
import random
import time
from collections.abc import Callable, Iterator

import pytest
import torch

from srt_kernels import majority_vote
from srt_kernels.answers.canonical import answer_key
from srt_kernels.answers.extract import ANSWER_RULES, read_answer
from srt_kernels.answers.reader import AnswerReader
from srt_kernels.testing import random_tokens
from support.answers import BYTES, FRAMES, LATEX, SYMBOLS, VOCABULARY, box, pack_bytes

FRAGMENTS = [*SYMBOLS, *LATEX, *FRAMES, "the answer is "]
BYTE_READERS = {rule: AnswerReader(BYTES, rule) for rule in ANSWER_RULES}
READERS = {rule: AnswerReader(VOCABULARY, rule) for rule in ANSWER_RULES}

for rule in ANSWER_RULES:  # compiles what the first call needs
    answer_key(read_answer("1", rule))

# CPU seconds that any text may take: several times what the dearest one takes.
SECONDS_PER_BYTE = 10e-6
SECONDS_PER_ROLLOUT = 20e-3


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Makes CPU time a measure of work on a busy machine, too. Threads that wait would count."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def check(texts: list[bytes], rule: str, rng: random.Random) -> list[int]:
    """The keys of the texts. They equal those of the plain functions, by any tokenization."""
    tokens, cu_seqlens = pack_bytes(texts)
    limit = SECONDS_PER_BYTE * len(tokens) + SECONDS_PER_ROLLOUT * len(texts)
    for _ in range(3):  # a state of a stage is compiled when it first occurs
        start = time.process_time()
        keys = BYTE_READERS[rule].keys(tokens, cu_seqlens)
        seconds = time.process_time() - start
        if seconds < limit:
            break
    assert seconds < limit, f"{seconds:.3f} s"
    assert keys.dtype == torch.int64
    assert keys.shape == (len(texts),)
    assert keys.tolist() == [answer_key(read_answer(text, rule)) for text in texts]
    tokens, cu_seqlens = random_tokens(texts, VOCABULARY, rng)
    assert torch.equal(READERS[rule].keys(tokens, cu_seqlens), keys)
    return keys.tolist()


HOSTILE: dict[str, tuple[Callable[[int], bytes], bool]] = {
    "braces": (lambda n: b"{" * n, False),
    "braces in a box": (lambda n: box(b"{" * (n // 2) + b"}" * (n // 2)), True),
    "a box before braces": (lambda n: box(b"3") + b"{" * n, True),
    "closing braces": (lambda n: box(b"3") + b"}" * n, True),
    "boxes that stay open": (lambda n: b"\\boxed{" * (n // 7), False),
    "nested boxes": (lambda n: b"\\boxed{" * (n // 8) + b"1" + b"}" * (n // 8), True),
    "many boxes": (lambda n: box(b"3") * (n // 9), True),
    "many boxes before a brace that stays open": (
        lambda n: box(b"3") * (n // 18) + b"{" * (n // 2),
        True,
    ),
    "half boxes": (lambda n: b"\\boxe" * (n // 10) + b"boxed{" * (n // 12), False),
    "a box before spaces": (lambda n: b"\\boxed" + b" " * n, False),
    "a long bare answer": (lambda n: b"\\boxed " + b"7" * n, True),
    "backslashes": (lambda n: b"\\" * n, False),
    "backslashes in a box": (lambda n: box(b"\\\\" * (n // 2)), True),
    "escaped braces": (lambda n: box(b"\\{" * (n // 2)), True),
    "a truncated box": (lambda n: box(b"7") + b"\\boxed{" + b"8" * n, True),
    "digits": (lambda n: box(b"7" * n), True),
    "digits alone": (lambda n: b"7" * n, False),
    "thousands": (lambda n: box(b"1" + b",111" * (n // 4)), True),
    "fractions": (lambda n: box(b"\\frac" * (n // 5)), True),
    "nested fractions": (lambda n: box(b"\\frac{" * (n // 7) + b"1" + b"}" * (n // 7)), True),
    "open fractions": (lambda n: b"\\frac{1" * (n // 7), False),
    "powers": (lambda n: box(b"9^" * (n // 2) + b"9"), True),
    "invalid UTF-8": (lambda n: box(b"\xff\xfe\xe2\x88" * (n // 4)), True),
    "NUL": (lambda n: box(b"\0" * n), False),
    "NUL around an answer": (lambda n: b"\0" * (n // 2) + box(b"\x001\0") + b"\0" * (n // 2), True),
    "tags that stay open": (lambda n: b"<answer>" * (n // 8), False),
    "tags that only close": (lambda n: b"</answer>" * (n // 9), False),
    "tags": (lambda n: b"<answer>1</answer>" * (n // 18), False),
    "a tag over all": (lambda n: b"<answer>" + b"<" * n + b"</answer>", False),
    "one word": (lambda n: b"wait " * (n // 5), False),
}
"""Name -> a function of n that gives a text of about n bytes, and whether the rule boxed finds an
answer in it."""

MILLION = {
    "braces": "boxed",
    "boxes that stay open": "boxed",
    "many boxes before a brace that stays open": "boxed",
    "a box before spaces": "boxed",
    "a long bare answer": "boxed",
    "tags that stay open": "tag",
    "digits alone": "last_number",
    "thousands": "last_number",
    "open fractions": "last_number",
    "fractions": "whole",
}
"""Name -> the rule that is measured on a million bytes."""


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text(name: str):
    """At 30,000 bytes, whole and truncated, with all rules."""
    make_text, has_box = HOSTILE[name]
    texts = [make_text(30_000), make_text(30_000)[:20_000], make_text(512), make_text(6), b""]
    for rule in ANSWER_RULES:
        keys = check(texts, rule, random.Random(0))
        assert keys[-1] == 0
        if rule == "boxed":
            assert (keys[0] != 0) == has_box


def seconds_of(reader: AnswerReader, text: bytes) -> float:
    tokens, cu_seqlens = pack_bytes([text])
    start = time.process_time()
    reader.keys(tokens, cu_seqlens)
    return time.process_time() - start


@pytest.mark.parametrize("name", HOSTILE)
def test_time_is_linear(name: str):
    """Twice the bytes take at most three times as long. A busy machine gets six attempts."""
    make_text, _ = HOSTILE[name]
    half = make_text(150_000)
    full = make_text(300_000)
    rules = {"boxed", MILLION.get(name, "boxed")} | ({"tag"} if "tag" in name else set())
    for rule in sorted(rules):
        reader = BYTE_READERS[rule]
        for attempt in range(6):
            repeats = range(attempt + 1)
            half_seconds = min(seconds_of(reader, half) for _ in repeats)
            full_seconds = min(seconds_of(reader, full) for _ in repeats)
            if full_seconds < 3 * half_seconds + 2e-3:
                break
        else:
            pytest.fail(
                f"{rule}: {half_seconds:.4f} s for {len(half)} bytes, {full_seconds:.4f} s for "
                f"{len(full)}"
            )


@pytest.mark.parametrize("name", MILLION)
def test_a_million_bytes(name: str):
    make_text, _ = HOSTILE[name]
    text = make_text(1_000_000)
    rule = MILLION[name]
    tokens, cu_seqlens = pack_bytes([text])
    start = time.process_time()
    key = answer_key(read_answer(text, rule))
    keys = BYTE_READERS[rule].keys(tokens, cu_seqlens)
    assert time.process_time() - start < 2 * SECONDS_PER_BYTE * len(text)
    assert keys.tolist() == [key]


def test_thousands_of_distinct_answers():
    """With as many forms as rollouts, keys differ, each has one vote, and the first one wins."""
    texts = [b"so " + box(b"%d/%d" % (n, 2 * n + 1)) for n in range(1, 10_001)]
    start = time.perf_counter()
    keys = BYTE_READERS["boxed"].keys(*pack_bytes(texts))
    assert len(set(keys.tolist())) == len(texts)
    for offsets in ([0, 10_000], [0, 9_000, 10_000], list(range(0, 10_001, 20))):
        cu_groups = torch.tensor(offsets)
        vote = majority_vote(keys, cu_groups)
        assert torch.equal(vote.majority, keys[cu_groups[:-1]])
        assert vote.rewards.sum() == len(offsets) - 1
        assert vote.valid.all()
        assert torch.equal(vote.share, (1 / cu_groups.diff().double()).float())
    assert time.perf_counter() - start < 20


def test_empty_batches():
    empty = torch.tensor([], dtype=torch.int64)
    for reader in BYTE_READERS.values():
        assert reader.keys(empty, torch.tensor([0])).tolist() == []
        assert reader.keys(empty, torch.tensor([0, 0, 0])).tolist() == [0, 0]
    vote = majority_vote(torch.zeros(4, dtype=torch.int64), torch.tensor([0, 0, 4]))
    assert vote.majority.tolist() == [0, 0]
    assert vote.rewards.tolist() == [0] * 4


def fuzzed(rng: random.Random, pool: list[bytes]) -> bytes:
    """A text: fragments, bytes, a hostile one, or a changed text of the pool."""
    kind = rng.randrange(6)
    if kind <= 1 or not pool:
        return "".join(rng.choices(FRAGMENTS, k=rng.randint(0, 40))).encode()
    if kind == 2:
        return rng.randbytes(rng.randint(0, 200))
    if kind == 3:
        make_text, _ = rng.choice(list(HOSTILE.values()))
        return make_text(rng.randint(0, 3000))
    text = bytearray(rng.choice(pool))
    other = rng.choice(pool)
    for _ in range(rng.randint(1, 4)):
        text = changed(text, other, rng)
    return bytes(text[:5000])


def changed(text: bytearray, other: bytes, rng: random.Random) -> bytearray:
    """The text with a part removed, inserted or replaced by the end of `other`, or in a frame."""
    at = rng.randint(0, len(text))
    match rng.randrange(5):
        case 0:
            del text[at : at + rng.randint(1, 20)]
        case 1:
            text[at:at] = rng.choice(FRAGMENTS).encode() * rng.choice([1, 1, 2, 50])
        case 2:
            text[at:at] = rng.randbytes(rng.randint(1, 3))
        case 3:
            text[at:] = other[rng.randint(0, len(other)) :]
        case 4:
            framed = box(text) if rng.random() < 0.7 else b"<answer>" + text + b"</answer>"
            return bytearray(framed)
    return text


def test_fuzz():
    """Fuzzes until the time is up: CI takes a minute. A failure prints seed, rule and texts."""
    end = time.monotonic() + float(os.environ.get("SRT_FUZZ_SECONDS", "15"))
    seed = random.randrange(2**32)
    pool: list[bytes] = []
    batches = 0
    while time.monotonic() < end:
        rng = random.Random(seed + batches)
        texts = [fuzzed(rng, pool) for _ in range(rng.randint(1, 8))]
        rule = rng.choice(ANSWER_RULES)
        try:
            check(texts, rule, rng)
        except Exception as error:
            pytest.fail(
                f"{type(error).__name__}: {error}\nseed {seed} + {batches}, rule {rule}, "
                f"texts {texts}"
            )
        pool = (pool + texts)[-200:]
        batches += 1
    print(f"{batches} batches from seed {seed}")
