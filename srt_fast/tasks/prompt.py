"""Where a prompt becomes tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from srt_fast.config import TaskConfig
from srt_fast.types import Problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def tokenize_prompt(
    problem: Problem, config: TaskConfig, tokenizer: PreTrainedTokenizerBase
) -> list[int]:
    """Token ids of the problem in config.template, and in the chat template if config.chat.

    Without a chat template the tokenizer adds its usual special tokens, such as a beginning of
    sequence. It never adds an end of sequence, because the model continues the prompt. Raises
    ValueError if config.chat needs a chat template and the tokenizer has none.
    """
    text = config.template.replace("{prompt}", problem.prompt)
    if config.chat:
        if not tokenizer.chat_template:
            raise ValueError(
                "task.chat: expected a tokenizer with a chat template, got one without; "
                "set task.chat to false and word the prompt with task.template"
            )
        messages = [{"role": "user", "content": text}]
        if config.system is not None:
            messages.insert(0, {"role": "system", "content": config.system})
        chat_ids: Any = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False
        )
        return list(chat_ids)
    text_ids: Any = tokenizer(text)["input_ids"]
    token_ids = list(text_ids)
    if token_ids and token_ids[-1] == tokenizer.eos_token_id:
        token_ids.pop()
    return token_ids
