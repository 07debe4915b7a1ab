"""Answers as bytes of UTF-8.

Every rule is defined over bytes: no tokenization of a text changes a key.
"""

from __future__ import annotations

SPACES = bytes(range(33))
"""The bytes that count as space at the ends of an answer: the space and all control characters."""


def to_bytes(text: str | bytes) -> bytes:
    """Encodes a text; a lone surrogate too.

    Bytes stay as they are. Other types raise ValueError.
    """
    if not isinstance(text, (str, bytes)):
        raise ValueError(f"text: expected str or bytes, got {type(text).__name__}")
    return text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass")


def to_text(data: bytes) -> str:
    """Decodes bytes. Byte tokens can spell invalid UTF-8; escapes then keep two answers apart."""
    try:
        return data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        return data.decode("utf-8", "backslashreplace")
