"""The texts of the completions of a row.

A completion is a text, an object that has one (text, content, message.content and others), a chat,
of which the last assistant message with text counts, or a message in parts. Reasoning apart from
the text is no text, and a null is a completion without text.
"""

from __future__ import annotations

import json
from typing import Any

from srt_fast.rows.chat import content, content_text, is_chat, is_parts, role
from srt_fast.rows.text import preview

_INNER = ("body", "choices", "candidates", "outputs")
"""The fields of a response in which its completions are."""
_TEXTS = (
    "text", "content", "message", "generated_text", "output_text", "completion", "response",
    "output",
)  # fmt: skip


def read_texts(value: Any, *, may_be_list: bool) -> tuple[list[str], bool]:
    """The texts of a row's completions, and whether they are a list of them.

    may_be_list: the field's name says so. Then a text may be a list in JSON, as in a cell of CSV,
    and several messages of the assistant are several completions. Raises ValueError, which lacks
    the place, for what is no completion.
    """
    value = _unfold(value)
    if isinstance(value, str) and may_be_list:
        value = _list_in_text(value)
    if isinstance(value, list) and _is_list_of_completions(value, may_be_list):
        inner = value[0] if len(value) == 1 else None
        if isinstance(inner, list) and _is_list_of_completions(inner, may_be_list):
            value = inner
        return [_text(completion) for completion in value], True
    return [_text(value)], False


def _unfold(value: Any) -> Any:
    """The choices of a response, and the values of {"0": ..., "1": ...}."""
    while isinstance(value, dict):
        if value.get("object") == "response":  # OpenAI's Responses also have a field text
            return value.get("output")
        inner = next((value[name] for name in _INNER if value.get(name) is not None), None)
        if inner is None:
            is_numbered = bool(value) and all(str(name).isdecimal() for name in value)
            return list(value.values()) if is_numbered else value
        value = inner
    return value


def _list_in_text(text: str) -> Any:
    if not (text.lstrip().startswith(("[", "{")) and text.rstrip().endswith(("]", "}"))):
        return text
    try:
        value = json.loads(text)
    except ValueError:
        if text.lstrip().startswith(("['", '["')):
            raise ValueError(
                f"expected a text, or a list in JSON, got a list that is no JSON: {preview(text)}"
            ) from None
        return text
    return value if isinstance(value, list) else text


def _is_list_of_completions(value: list, may_be_messages: bool) -> bool:
    """Whether it is no chat and no message in parts.

    may_be_messages: several messages, all of the assistant, are completions.
    """
    if is_chat(value):
        only_answers = all(role(message) == "assistant" for message in value)
        return may_be_messages and only_answers and len(value) > 1
    return not is_parts(value)


def _text(value: Any) -> str:
    if value is None or value == []:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, dict):
        return _object_text(value)
    if is_chat(value):
        answers = [message for message in value if role(message) == "assistant"]
        if not answers:
            raise ValueError(
                f"expected an assistant message among the chat's, got {preview(value)}"
            )
        texts = (content_text(content(answer)) for answer in reversed(answers))
        return next((text for text in texts if text.strip()), "")
    if is_parts(value):
        return content_text(value)
    raise ValueError(
        "expected text, an object with text, content or message.content, or a list of chat "
        f"messages, got {preview(value)}"
    )


def _object_text(value: dict) -> str:
    if "parts" in value:  # Gemini
        return "".join(
            part.get("text") or ""
            for part in value["parts"] or []
            if isinstance(part, dict) and not part.get("thought")
        )
    names = [name for name in _TEXTS if name in value]
    if names or {"role", "finish_reason", "finishReason"} & value.keys():
        filled = [value[name] for name in names if value[name] is not None]
        return _text(filled[0] if filled else None)
    raise ValueError(
        "expected an object with text, content or message.content, got fields "
        f"{', '.join(map(str, value)) or 'none'}"
    )
