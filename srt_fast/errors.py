"""Texts of errors."""

from __future__ import annotations


def first_line(error: object) -> str:
    """The first line of an error's text. Its repr if the text is empty."""
    text = str(error).strip() or repr(error)
    return text.splitlines()[0]
