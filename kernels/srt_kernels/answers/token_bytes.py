r"""The bytes of every token of a vocabulary. With them, text can be read where the token ids are,
without a tokenizer.

The decoders of the `tokenizers` library are the specification. Each of their steps is done token by
token. Left out on purpose is what decode does only at the two ends of a text, since it depends on
more than a token. There, decode

    drops the leading space    with Strip, without a decoder, with WordPiece, and with Metaspace,
                               which drops every U+2581 of a first token
    keeps the `##`             of a first word piece
    drops the trailing space   of a last `</w>`

Bytes that are joined from the table have that leading or trailing space, and no `##`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

from srt_kernels.core.checks import expect

Step = Callable[[str], str | bytes]
"""One step of a decoder, for one token. Bytes are final."""

_PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_NOT_PRINTABLE = [byte for byte in range(256) if byte not in _PRINTABLE]
BYTE_OF = {chr(byte): byte for byte in _PRINTABLE} | {
    chr(256 + i): byte for i, byte in enumerate(_NOT_PRINTABLE)
}
"""The 256-character alphabet of byte-level vocabularies (GPT-2's).

A printable byte is its own character.
"""

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_WORD_PIECE_CLEANUP = (
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
_STEPS_AFTER = {
    "ByteFallback": ("Fuse", "Metaspace", "Replace"),
    "Fuse": ("Fuse", "Strip", "Replace", "ByteLevel"),
    "ByteLevel": ("Fuse", "Strip"),
}
"""Steps that join tokens -> steps that may follow.

These can still be done token by token, or only touch the ends.
"""

_SUPPORTED_STEPS = (
    "ByteLevel, ByteFallback, Fuse, Metaspace, Replace of a string, Strip, WordPiece, BPEDecoder, "
    "Sequence"
)

_SAMPLE = 200  # how many token ids, and how many added tokens, a new table is checked with
_PROBES = (
    r"so \boxed{\frac{1}{2}}, 12,345.67 -  x_{10}^3 ",
    "isn't a naïve π ≤ 日本語 🙂 e\u0301\n\tnext\r\n\x7f ▁ 3 .",
)


def token_bytes(tokenizer: Any) -> list[bytes]:
    r"""The UTF-8 text of each token id of a Hugging Face tokenizer. Joined over a completion, it is
    the decoded text.

    Entry i is what token i adds in the middle of a text. `Ġx` is b" x", `▁x` is b" x", `<0x0A>` is
    b"\n". Of WordPiece, `x` is b" x" and `##x` is b"x". Special tokens and ids without a token are
    b"". The list has at least len(tokenizer) entries, and one for the greatest id. A model may have
    more logits; these are no tokens.

    The joined bytes equal decode(skip_special_tokens=True, clean_up_tokenization_spaces=False),
    except

    - at the ends of the text (see the module), and
    - where bytes are invalid UTF-8. They stay as they are; decode writes U+FFFD. ByteFallback
      writes one U+FFFD for each byte of a run of byte tokens, for valid ones too.

    Supported are fast tokenizers without a decoder or with the steps ByteLevel, ByteFallback, Fuse,
    Metaspace, Replace (of a string), Strip, WordPiece, BPEDecoder and Sequence; slow tokenizers
    with GPT-2's `byte_decoder` or with a SentencePiece `sp_model`. Raises ValueError for others,
    and where the table and tokenizer.decode differ on a sample of tokens.
    """
    steps = list(_steps(_decoder(tokenizer)))
    tokens = _tokens(tokenizer)
    special_ids = _special_ids(tokenizer)
    table = [
        b"" if token is None or i in special_ids else _decode_token(token, steps)
        for i, token in enumerate(tokens)
    ]
    ids = [i for i, token in enumerate(tokens) if token is not None and i not in special_ids]
    _check(tokenizer, tokens, table, ids)
    return table


def _tokens(tokenizer: Any) -> list[str | None]:
    """The token of each id, None for an id without a token."""
    vocab = tokenizer.get_vocab()
    ids = range(max(len(tokenizer), max(vocab.values(), default=-1) + 1))
    if hasattr(tokenizer, "backend_tokenizer"):
        # As decode looks them up. It finds duplicate tokens too, which the vocabulary lacks.
        return [tokenizer.backend_tokenizer.id_to_token(i) for i in ids]
    token_of = {i: token for token, i in vocab.items()}
    return [token_of.get(i) for i in ids]


def _special_ids(tokenizer: Any) -> set[int]:
    """The ids that decode skips.

    A fast tokenizer skips special added tokens alone. If `pad_token` is set to a common word, it
    still decodes the word.
    """
    special_ids = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    if hasattr(tokenizer, "backend_tokenizer"):
        return special_ids
    return special_ids | set(tokenizer.all_special_ids)


def _decoder(tokenizer: Any) -> dict | None:
    """The decoder as in tokenizer.json; of a slow tokenizer an equal one.

    None: spaces join the tokens.
    """
    if hasattr(tokenizer, "backend_tokenizer"):
        decoder = tokenizer.backend_tokenizer.decoder
        # The bare base class wraps a decoder that is written in Python.
        is_python = type(decoder).__name__ == "Decoder"
        expected = "a decoder of the tokenizers library"
        expect(not is_python, "tokenizer", expected, "one written in Python")
        # __getstate__ is the decoder's part of tokenizer.json, without the vocabulary.
        return decoder and json.loads(decoder.__getstate__())
    if getattr(tokenizer, "byte_decoder", None) == BYTE_OF:
        return {"type": "ByteLevel"}
    expected = (
        "a fast tokenizer, or a slow one with GPT-2's byte_decoder or a SentencePiece sp_model"
    )
    expect(hasattr(tokenizer, "sp_model"), "tokenizer", expected, type(tokenizer).__name__)
    return _SENTENCEPIECE


def _steps(decoder: dict | None) -> Iterator[Step]:
    """One function for each step of the decoder, in order.

    Steps that only touch the ends of a text have none.
    """
    if decoder is None:
        yield " {}".format
        return
    joining = None  # the last step so far that joins tokens
    for step in _flat(decoder):
        kind = step["type"]
        if joining:
            expect(
                _works_by_token(step, joining),
                "tokenizer",
                f"no decoder step across tokens after {joining}",
                step,
            )
        if kind != "Fuse" and not (joining and kind == "Strip"):
            yield _step(step)
        if kind in _STEPS_AFTER:
            joining = kind


def _flat(decoder: dict) -> list[dict]:
    if decoder["type"] != "Sequence":
        return [decoder]
    return [step for part in decoder["decoders"] for step in _flat(part)]


def _works_by_token(step: dict, joining: str) -> bool:
    """Whether a step after `joining` works token by token, or touches only the ends of a text."""
    kind = step["type"]
    if kind == "Replace" and not _is_one_character(step["pattern"]):
        return False
    if kind == "Strip" and not step["content"].isspace():
        return False
    return kind in _STEPS_AFTER[joining]


def _is_one_character(pattern: dict) -> bool:
    """Whether it is one character that no single byte token spells.

    Bytes are final here and not replaced again.
    """
    return len(pattern.get("String", "")) == 1 and not pattern["String"].isascii()


def _step(step: dict) -> Step:
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
    raise ValueError(f"tokenizer: expected decoder steps among {_SUPPORTED_STEPS}, got {step}")


def _byte_level(token: str) -> bytes:
    if all(char in BYTE_OF for char in token):
        return bytes(BYTE_OF[char] for char in token)
    return token.encode()  # An added token with a space, for example, is its own text.


def _byte_fallback(token: str) -> str | bytes:
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes.fromhex(match[1]) if match else token


def _word_piece(token: str, prefix: str, cleanup: bool) -> str:
    text = token.removeprefix(prefix) if token.startswith(prefix) else " " + token
    if cleanup:
        for old, new in _WORD_PIECE_CLEANUP:
            text = text.replace(old, new)
    return text


def _strip(token: str, char: str, start: int, stop: int) -> str:
    """Without up to `start` leading and `stop` trailing characters `char`."""
    leading = len(token) - len(token.lstrip(char))
    token = token[min(start, leading) :]
    trailing = len(token) - len(token.rstrip(char))
    return token[: len(token) - min(stop, trailing)]


def _decode_token(token: str, steps: list[Step]) -> bytes:
    text: str | bytes = token
    for step in steps:
        if isinstance(text, bytes):
            return text
        text = step(text)
    return text if isinstance(text, bytes) else text.encode()


def _check(
    tokenizer: Any, tokens: list[str | None], table: list[bytes], text_ids: list[int]
) -> None:
    """Raises ValueError unless decode gives the bytes of the table.

    It checks a sample of the whole vocabulary, each token between two words, and encoded texts.
    """
    added_ids = [i for i in tokenizer.added_tokens_decoder if table[i]]
    sample = text_ids[:: max(len(text_ids) // _SAMPLE, 1)] + added_ids[:_SAMPLE]
    word = _word_id(tokenizer, tokens, table, sample)
    probes = [_encode(tokenizer, probe) for probe in _PROBES]
    for probe in [*([i] for i in sample), *probes]:
        ids = [*word, *probe, *word]
        expected = _join(table, ids)
        decoded = _decode(tokenizer, ids)
        if decoded != expected:
            raise ValueError(
                f"tokenizer: expected ids {ids} decoded as {expected!r} (by the table of its "
                f"bytes), got {decoded!r}"
            )


def _word_id(
    tokenizer: Any, tokens: list[str | None], table: list[bytes], sample: list[int]
) -> list[int]:
    """The id of a word of the sample that decode gives as the table does; [] for none."""
    for i in sample:
        is_word = table[i].strip().isalnum() and not _BYTE_TOKEN.fullmatch(tokens[i] or "")
        if is_word and _decode(tokenizer, [i]) == _join(table, [i]):
            return [i]
    return []


def _decode(tokenizer: Any, ids: list[int]) -> str:
    text = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text.replace("\ufffd", "").strip(" ")


def _join(table: list[bytes], ids: list[int]) -> str:
    text = b"".join(table[i] for i in ids).decode(errors="replace")
    return text.replace("\ufffd", "").strip(" ")


def _encode(tokenizer: Any, text: str) -> list[int]:
    try:
        return tokenizer.encode(text, add_special_tokens=False)
    except Exception:
        # The only type that `tokenizers` raises where the vocabulary has neither a character nor an
        # unknown token.
        return []
