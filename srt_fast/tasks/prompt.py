"""Where a prompt becomes tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from srt_fast.config import TaskConfig
from srt_fast.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenize_prompt(
    problem: Problem, config: TaskConfig, tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """Token ids of the problem in config.template, and in the chat template if config.chat.

    Of a prompt that is a chat the template words the last message. The other messages stay as they
    are, and config.system comes before them. Without a chat template the tokenizer adds its usual
    special tokens, such as a beginning of sequence. It never adds an end of sequence, because the
    model continues the prompt. Raises ValueError if config.chat needs a chat template and the
    tokenizer has none.
    """
    if config.chat:
        return tokenize_chat(chat_messages(problem, config), tokenizer)
    assert problem.messages is None, "the task refuses a chat without config.chat"
    text_ids: Any = tokenizer(config.template.replace("{prompt}", problem.prompt))["input_ids"]
    token_ids = list(text_ids)
    if token_ids and token_ids[-1] == tokenizer.eos_token_id:
        token_ids.pop()
    return token_ids


def tokenize_chat(
    messages: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """Token ids of a chat whose next message is the model's.

    Raises ValueError for a tokenizer without a chat template.
    """
    if not tokenizer.chat_template:
        raise ValueError(
            "task.chat: expected a tokenizer with a chat template, got one without; "
            "set task.chat to false and word the prompt with task.template"
        )
    chat_ids: Any = tokenizer.apply_chat_template(
        list(messages), add_generation_prompt=True, return_dict=False
    )
    return list(chat_ids)


def chat_messages(problem: Problem, config: TaskConfig) -> list[dict[str, Any]]:
    """The messages that the model answers."""
    messages = list(problem.messages or ({"role": "user", "content": problem.prompt},))
    wording = config.template.replace("{prompt}", messages[-1]["content"])
    messages[-1] = messages[-1] | {"content": wording}
    if config.system is not None:
        messages.insert(0, {"role": "system", "content": config.system})
    return messages
