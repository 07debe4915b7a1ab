"""Chats in rows: lists of messages as OpenAI, ShareGPT, OpenCompass and others write them."""

from __future__ import annotations

from typing import Any

_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant", "bot": "assistant"}
_CONTENTS = ("content", "value", "prompt", "text")
_TEXT_PARTS = ("text", "output_text", "input_text")


def is_chat(value: Any) -> bool:
    """Whether it is a list of messages, each with a role."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(message, dict) and _role_field(message) for message in value)
    )


def role(message: dict) -> str:
    """system, user, assistant or another one. ShareGPT's "human" is user, "gpt" is assistant."""
    name = str(message[_role_field(message)]).lower()
    return _ROLES.get(name, name)


def content(message: dict) -> Any:
    """The content of a message: a text, a list of parts, or None."""
    return next((message[name] for name in _CONTENTS if message.get(name) is not None), None)


def is_parts(value: Any) -> bool:
    """Whether it is the content of a message as a list of parts, each with a type."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(part, dict) and isinstance(part.get("type"), str) for part in value)
    )


def content_text(value: Any) -> str:
    """The text of a message's content. Reasoning, tool calls and images have none.

    Raises ValueError for what is no content.
    """
    if value is None or value == []:
        return ""
    if isinstance(value, str):
        return value
    if is_parts(value):
        return "".join(_part_text(part) for part in value)
    raise ValueError(f"expected the text of a message or a list of its parts, got {value!r:.80}")


def plain_messages(chat: list[dict]) -> list[dict[str, Any]]:
    """The messages as chat templates take them: role, content as a text, and other filled fields.

    Raises ValueError for a content that is not text, such as an image.
    """
    messages = []
    for message in chat:
        value = content(message)
        if is_parts(value) and any(part["type"] not in _TEXT_PARTS for part in value):
            raise ValueError(f"expected messages of text, got {value!r:.80}")
        others = {
            name: field
            for name, field in message.items()
            if field is not None and name not in ("role", "from", *_CONTENTS)
        }
        messages.append({"role": role(message), "content": content_text(value), **others})
    return messages


def chat_text(messages: list[dict[str, Any]]) -> str:
    """A chat as one text: of one message its content, of several "role: content" for each."""
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in messages)


def until_last_user(chat: list[dict]) -> list[dict]:
    """The prompt of a chat: the messages up to the last one of the user, or before the first
    answer if the user says nothing.
    """
    roles = [role(message) for message in chat]
    if "user" in roles:
        return chat[: len(roles) - roles[::-1].index("user")]
    return chat[: roles.index("assistant")] if "assistant" in roles else chat


def _part_text(part: dict) -> str:
    if part["type"] == "message":  # OpenAI's Responses: its parts are one level below
        return content_text(part.get("content"))
    if part["type"] not in _TEXT_PARTS:
        return ""
    if not isinstance(part.get("text"), str):
        raise ValueError(f"expected text in a message's part, got {part!r:.80}")
    return part["text"]


def _role_field(message: dict) -> str | None:
    if isinstance(message.get("role"), str):
        return "role"
    return "from" if isinstance(message.get("from"), str) and "value" in message else None
