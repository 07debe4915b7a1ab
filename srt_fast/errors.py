"""Errors that several rooms raise, and texts of errors."""

from __future__ import annotations


class CheckpointError(Exception):
    """A checkpoint could not be written, for example on a full disk, or is damaged."""


def first_line(error: object) -> str:
    """The first line of an error's text. Its repr if the text is empty."""
    text = str(error).strip() or repr(error)
    return text.splitlines()[0]
