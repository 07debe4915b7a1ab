r"""The bytes of every token of a vocabulary: text can then be read where the token ids are, without a tokenizer.

The decoders of `tokenizers` are read as the specification and each of their steps is done token by token. Left out on
purpose, as they are not a token's: what decode does only at the two ends of a text. It drops the space at the start
(Strip, no decoder, WordPiece, and Metaspace, which drops every U+2581 of a first token), keeps the `##` of a first
word piece, and drops the space of a last `</w>`. A joined table has that leading or trailing space, and no `##`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from itertools import islice

from srt_kernels.core.checks import expect

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(256 + i): byte for i, byte in enumerate(_OTHERS)
}
"""The 256-character alphabet of byte-level vocabularies (GPT-2's): a printable byte is its own character."""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_CLEANUP = (
    (" .", "."),
    (" ?", "?"),
    (" !", "!"),
    (" ,", ","),
    (" ' ", "'"),
    (" n't", "n't"),
    (" 'm", "'m"),
    (" do not", " don't"),
    (" 's", "'s"),
    (" 've", "'ve"),
    (" 're", "'re"),
)
_SENTENCEPIECE = {
    "type": "Sequence",
    "decoders": [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ],
}
_THEN = {
    "ByteFallback": ("Fuse", "Metaspace", "Replace"),
    "Fuse": ("Fuse", "Strip", "Replace", "ByteLevel"),
    "ByteLevel": ("Fuse", "Strip"),
}
"""Steps that join tokens, and those that may follow: they can still be done token by token, or only touch the ends."""

_SAMPLE = 200  # token ids, and as many added tokens, that a new table is checked on
_PROBES = (
    r"so \boxed{\frac{1}{2}}, 12,345.67 -  x_{10}^3 ",
    "isn't a naïve π ≤ 日本語 🙂 e\u0301\n\tnext\r\n\x7f ▁ 3 .",
)


def token_bytes(tokenizer) -> list[bytes]:
    r"""The UTF-8 text of each token id of a Hugging Face tokenizer; joined over a completion it is its decoded text.

    Entry i is what token i adds in the middle of a text: `Ġx` is b" x", `▁x` b" x", `<0x0A>` b"\n", of WordPiece `x` is
    b" x" and `##x` b"x". Special tokens and ids that are no token are b"". Bytes that are no UTF-8 stay as they are, where
    decode writes U+FFFD (ByteFallback one for each byte of a run of byte tokens, good ones too). Otherwise the same as
    decode(skip_special_tokens=True, clean_up_tokenization_spaces=False), but for the ends of the text (see above).
    At least len(tokenizer) entries and one for the greatest id; a model may have more logits, which are no tokens.

    Fast tokenizers with the decoders ByteLevel, ByteFallback, Fuse, Metaspace, Replace (of a string), Strip, WordPiece,
    BPEDecoder, Sequences of them or none; slow ones with GPT-2's `byte_decoder`, or with a SentencePiece `sp_model`.
    ValueError for other ones, and where the table does not give what tokenizer.decode gives for a sample of tokens.
    """
    steps = list(_steps(_decoder(tokenizer)))
    tokens, special = _tokens(tokenizer), _special_ids(tokenizer)
    text = [i for i, token in enumerate(tokens) if token is not None and i not in special]
    table = [b""] * len(tokens)
    for i in text:
        table[i] = _bytes(tokens[i], steps)
    _check(tokenizer, tokens, table, text)
    return table


def _tokens(tokenizer) -> list[str | None]:
    vocab = tokenizer.get_vocab()
    ids = range(max(len(tokenizer), max(vocab.values(), default=-1) + 1))
    if hasattr(tokenizer, "backend_tokenizer"):
        return list(
            map(tokenizer.backend_tokenizer.id_to_token, ids)
        )  # as decode looks them up, duplicates too
    token_of = {i: token for token, i in vocab.items()}
    return [token_of.get(i) for i in ids]


def _special_ids(tokenizer) -> set[int]:
    """What decode skips. A fast tokenizer goes by the added tokens alone, also where `pad_token` was set to a common word."""
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    return (
        special
        if hasattr(tokenizer, "backend_tokenizer")
        else special | set(tokenizer.all_special_ids)
    )


def _decoder(tokenizer) -> dict | None:
    """The decoder as tokenizer.json has it, of a slow tokenizer one that does the same. None: tokens joined by spaces."""
    if hasattr(tokenizer, "backend_tokenizer"):
        decoder = tokenizer.backend_tokenizer.decoder
        custom = (
            type(decoder).__name__ == "Decoder"
        )  # the bare base class wraps a decoder written in Python
        expect(
            not custom, "tokenizer", "a decoder of the tokenizers library", "one written in Python"
        )
        return decoder and json.loads(
            decoder.__getstate__()
        )  # its part of tokenizer.json, without the vocabulary
    if getattr(tokenizer, "byte_decoder", None) == BYTE_OF:
        return {"type": "ByteLevel"}
    supported = (
        "a fast tokenizer, or a slow one with GPT-2's byte_decoder or a SentencePiece sp_model"
    )
    expect(hasattr(tokenizer, "sp_model"), "tokenizer", supported, type(tokenizer).__name__)
    return _SENTENCEPIECE


def _steps(decoder: dict | None) -> Iterator[Callable[[str], str | bytes]]:
    """One function for each step of the decoder, in order; none for those that only touch the ends of a text."""
    if decoder is None:
        yield " {}".format
        return
    joined = None
    for step in _flat(decoder):
        kind = step["type"]
        if joined:
            harmless = kind in _THEN[joined]
            harmless &= kind != "Replace" or _is_one_character(step["pattern"])
            harmless &= kind != "Strip" or step["content"].isspace()
            expect(harmless, "tokenizer", f"no decoder step across tokens after {joined}", step)
        if kind != "Fuse" and not (joined and kind == "Strip"):
            yield _step(step)
        joined = kind if kind in _THEN else joined


def _flat(decoder: dict) -> list[dict]:
    return sum(map(_flat, decoder["decoders"]), []) if decoder["type"] == "Sequence" else [decoder]


def _is_one_character(pattern: dict) -> bool:
    """One that no single byte token spells: what byte tokens have become is not read again here."""
    return len(pattern.get("String", "")) == 1 and not pattern["String"].isascii()


def _step(step: dict) -> Callable[[str], str | bytes]:
    match step:
        case {"type": "ByteLevel"}:
            return _byte_level
        case {"type": "ByteFallback"}:
            return _byte_fallback
        case {"type": "Replace", "pattern": {"String": old}, "content": new}:
            return lambda token: token.replace(old, new)
        case {"type": "Metaspace", "replacement": old} | {"type": "BPEDecoder", "suffix": old}:
            return lambda token: token.replace(old, " ")
        case {"type": "WordPiece", "prefix": prefix, "cleanup": cleanup}:
            return lambda token: _word_piece(token, prefix, cleanup)
        case {"type": "Strip", "content": char, "start": start, "stop": stop}:
            return lambda token: _strip(token, char, start, stop)
    supported = "ByteLevel, ByteFallback, Fuse, Metaspace, Replace of a string, Strip, WordPiece, BPEDecoder, Sequence"
    raise ValueError(f"tokenizer: expected decoder steps among {supported}, got {step}")


def _byte_level(token: str) -> bytes:
    values = [BYTE_OF.get(char) for char in token]
    return (
        token.encode() if None in values else bytes(values)
    )  # an added token with, say, a space is its own text


def _byte_fallback(token: str) -> str | bytes:
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes.fromhex(match[1]) if match else token


def _word_piece(token: str, prefix: str, cleanup: bool) -> str:
    token = token[len(prefix) :] if token.startswith(prefix) else " " + token
    for old, new in _CLEANUP if cleanup else ():
        token = token.replace(old, new)
    return token


def _strip(token: str, char: str, start: int, stop: int) -> str:
    """Without up to `start` leading and `stop` trailing characters `char`."""
    token = token[min(start, len(token) - len(token.lstrip(char))) :]
    return token[: len(token) - min(stop, len(token) - len(token.rstrip(char)))]


def _bytes(token: str, steps: list[Callable]) -> bytes:
    for step in steps:
        if isinstance(token, bytes):
            break
        token = step(token)
    return token if isinstance(token, bytes) else token.encode()


def _check(tokenizer, tokens: list[str | None], table: list[bytes], text: list[int]) -> None:
    """Raise ValueError unless decode gives what the table gives, for tokens of all the vocabulary between two words."""
    sample = (
        text[:: max(len(text) // _SAMPLE, 1)]
        + [i for i in tokenizer.added_tokens_decoder if table[i]][:_SAMPLE]
    )
    words = (
        i for i in sample if table[i].strip().isalnum() and not _BYTE_TOKEN.fullmatch(tokens[i])
    )
    word = list(islice((i for i in words if _decoded(tokenizer, [i]) == _joined(table, [i])), 1))
    for ids in [*([i] for i in sample), *(_encoded(tokenizer, probe) for probe in _PROBES)]:
        ids = [*word, *ids, *word]
        expected, got = _joined(table, ids), _decoded(tokenizer, ids)
        expect(
            got == expected,
            "tokenizer",
            f"ids {ids} decoded as {expected!r} (by the table of its bytes)",
            repr(got),
        )


def _decoded(tokenizer, ids: list[int]) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text.replace("\ufffd", "").strip(" ")


def _joined(table: list[bytes], ids: list[int]) -> str:
    return b"".join(table[i] for i in ids).decode(errors="replace").replace("\ufffd", "").strip(" ")


def _encoded(tokenizer, text: str) -> list[int]:
    try:
        return tokenizer.encode(text, add_special_tokens=False)
    except Exception:  # the only type that tokenizers raises where a vocabulary has neither a character nor an unknown token
        return []
