"""What a collapsing policy writes, through AnswerReader.keys and majority_vote: a key or 0, never an exception, in time
that grows with the bytes alone; and fuzzed for SRT_FUZZ_SECONDS (60 where it is not set)."""

import os
import random
import time

import pytest
import torch

from srt_kernels import majority_vote
from srt_kernels.answers.canonical import answer_key
from srt_kernels.answers.extract import RULES, read_answer
from srt_kernels.answers.reader import AnswerReader
from srt_kernels.testing import random_tokens

FRAGMENTS = [
    *"0123456789.,-+/()[]{}^_= $%°π∞−xAbe&<>\\\n\0",
    "{1}",
    "000",
    "1,234",
    "{,}",
    ",\\!",
    r"\,",
    r"\{",
    r"\}",
    "\\\\",
]
FRAGMENTS += [
    r"\frac",
    r"\frac{1}{2}",
    r"\dfrac",
    r"\sqrt",
    r"\text{",
    r"\left",
    r"\right",
    r"\times 10^",
    r"\pi",
    "cm",
    "x=",
]
FRAGMENTS += [
    r"\begin{bmatrix}",
    r"\end{bmatrix}",
    r"\boxed{",
    r"\boxed{5}",
    r"\boxed ",
    r"\boxed",
    r"\fbox{",
    "boxed",
    "fbox",
]
FRAGMENTS += ["<answer>", "</answer>", "</", " and ", "the answer is "]
BYTES = [bytes([byte]) for byte in range(256)]
TABLE = (
    BYTES
    + [text.encode() for text in FRAGMENTS]
    + [b"\\bo", b"xed", b"d{", b"ed", b"wer>", b"<ans", b"\xe2\x88", b""]
)
PER_BYTE, PER_ROLLOUT = (
    10e-6,
    20e-3,
)  # CPU seconds that any text may take: several times what the dearest takes
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
READERS = {rule: (AnswerReader(BYTES, rule), AnswerReader(TABLE, rule)) for rule in RULES}


@pytest.fixture(autouse=True)
def one_thread():
    """So that CPU time is work, also on a busy machine: threads that wait for each other would count too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def of_bytes(texts):
    """A token for each byte."""
    tokens = torch.frombuffer(bytearray(b"".join(texts)) or bytearray(1), dtype=torch.uint8)[
        : sum(map(len, texts))
    ]
    return tokens.long(), torch.tensor([0, *map(len, texts)]).cumsum(0)


def check(texts, rule, rng):
    """Keys of the texts. They are what the plain functions say, by any tokenization, in bounded time."""
    packed = of_bytes(texts)
    start = time.process_time()
    keys = READERS[rule][0].keys(*packed)
    seconds = time.process_time() - start
    assert keys.dtype == torch.int64 and keys.shape == (len(texts),)
    assert seconds < PER_BYTE * sum(map(len, texts)) + PER_ROLLOUT * len(texts), f"{seconds:.3f} s"
    assert keys.tolist() == [answer_key(read_answer(text, rule)) for text in texts]
    assert keys.tolist() == READERS[rule][1].keys(*random_tokens(texts, TABLE, rng)).tolist()
    return keys.tolist()


def box(answer):
    return b"\\boxed{" + answer + b"}"


HOSTILE = {  # name: (n -> a text of about n bytes, whether the rule boxed finds an answer)
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
    "a cut span": (lambda n: box(b"7") + b"\\boxed{" + b"8" * n, True),
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


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_text(name):
    """At 30,000 bytes, as written and cut by the length limit: all rules."""
    text, found = HOSTILE[name]
    texts = [text(30_000), text(30_000)[:20_000], text(512), text(6), b""]
    for rule in RULES:
        keys = check(texts, rule, random.Random(0))
        assert keys[-1] == 0
        if rule == "boxed":
            assert (keys[0] != 0) == found


def seconds_of(reader, text):
    tokens, cu_seqlens = of_bytes([text])
    start = time.process_time()
    reader.keys(tokens, cu_seqlens)
    return time.process_time() - start


@pytest.mark.parametrize("name", HOSTILE)
def test_time_is_linear(name):
    """Twice the bytes take at most three times as long."""
    rules = (
        ["boxed"]
        + ["tag"] * ("tag" in name)
        + [rule for rule in ("last_number", "whole") if MILLION.get(name) == rule]
    )
    for rule in rules:
        reader, (text, _) = READERS[rule][0], HOSTILE[name]
        half, whole = text(150_000), text(300_000)
        for attempt in range(6):
            times = [
                (seconds_of(reader, half), seconds_of(reader, whole)) for _ in range(attempt + 1)
            ]
            fast, slow = map(min, zip(*times, strict=True))
            if slow < 3 * fast + 2e-3:
                break
        else:
            pytest.fail(
                f"{rule}: {fast:.4f} s for {len(half)} bytes, {slow:.4f} s for {len(whole)}"
            )


@pytest.mark.parametrize("name", MILLION)
def test_a_million_bytes(name):
    text, rule = HOSTILE[name][0](1_000_000), MILLION[name]
    start = time.process_time()
    key = answer_key(read_answer(text, rule))
    keys = READERS[rule][0].keys(*of_bytes([text]))
    assert time.process_time() - start < 2 * PER_BYTE * len(text)
    assert keys.tolist() == [key]


def test_thousands_of_distinct_answers():
    """As many forms as there are rollouts: keys differ, each has one vote, the first wins."""
    texts = [b"so " + box(b"%d/%d" % (n, 2 * n + 1)) for n in range(1, 10_001)]
    start = time.perf_counter()
    keys = AnswerReader(BYTES, "boxed").keys(*of_bytes(texts))
    assert len(set(keys.tolist())) == len(texts)
    for bounds in ([0, 10_000], [0, 9_000, 10_000], list(range(0, 10_001, 20))):
        vote = majority_vote(keys, torch.tensor(bounds))
        assert vote.majority.tolist() == keys[torch.tensor(bounds[:-1])].tolist()
        assert vote.rewards.sum() == len(bounds) - 1 and vote.valid.all()
        assert torch.equal(vote.share, (1 / torch.tensor(bounds).diff().double()).float())
    assert time.perf_counter() - start < 20


def test_batches_of_nothing():
    for rule in RULES:
        reader = READERS[rule][0]
        assert reader.keys(torch.tensor([], dtype=torch.int64), torch.tensor([0])).tolist() == []
        assert reader.keys(
            torch.tensor([], dtype=torch.int64), torch.tensor([0, 0, 0])
        ).tolist() == [0, 0]
    vote = majority_vote(torch.zeros(4, dtype=torch.int64), torch.tensor([0, 0, 4]))
    assert vote.majority.tolist() == [0, 0] and vote.rewards.tolist() == [0] * 4


def fuzzed(rng, pool):
    """A text: fragments, bytes, a hostile one, or a text of before that was cut, repeated, joined or changed."""
    kind = rng.randrange(6)
    if kind <= 1 or not pool:
        return "".join(rng.choices(FRAGMENTS, k=rng.randint(0, 40))).encode()
    if kind == 2:
        return rng.randbytes(rng.randint(0, 200))
    if kind == 3:
        return rng.choice(list(HOSTILE.values()))[0](rng.randint(0, 3000))
    text, other = bytearray(rng.choice(pool)), rng.choice(pool)
    for _ in range(rng.randint(1, 4)):
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
                text = bytearray(
                    box(text) if rng.random() < 0.7 else b"<answer>" + text + b"</answer>"
                )
    return bytes(text[:5000])


def test_fuzz():
    """Until the time is up. A failure prints the seed, the rule and the texts."""
    end, seed, pool = (
        time.monotonic() + float(os.environ.get("SRT_FUZZ_SECONDS", "60")),
        random.randrange(2**32),
        [],
    )
    count = 0
    while time.monotonic() < end:
        rng = random.Random(seed + count)
        texts = [fuzzed(rng, pool) for _ in range(rng.randint(1, 8))]
        rule = rng.choice(RULES)
        try:
            check(texts, rule, rng)
        except Exception as error:
            pytest.fail(
                f"{type(error).__name__}: {error}\nseed {seed} + {count}, rule {rule}, texts {texts}"
            )
        pool = (pool + texts)[-200:]
        count += 1
    print(f"{count} batches from seed {seed}")
