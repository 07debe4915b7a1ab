"""From a problem to the token ids that the model is asked to continue."""

from __future__ import annotations

from srt_fast.config import TaskConfig
from srt_fast.types import Problem


def prompt_ids(problem: Problem, config: TaskConfig, tokenizer) -> list[int]:
    """The problem in the task's template, inside the tokenizer's chat template if config.chat, as token ids.

    Without a chat template the tokenizer adds the special tokens that it adds to any text (such as a beginning of
    sequence), but never an end-of-sequence token: the model is to go on.
    """
    text = config.template.replace("{prompt}", problem.prompt)
    if config.chat:
        if not tokenizer.chat_template:
            raise ValueError(
                "task.chat: expected a tokenizer with a chat template, got one without; "
                "set task.chat to false and word the prompt with task.template"
            )
        system = [] if config.system is None else [{"role": "system", "content": config.system}]
        messages = [*system, {"role": "user", "content": text}]
        return list(
            tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        )
    ids = list(tokenizer(text)["input_ids"])
    return ids[:-1] if ids and ids[-1] == tokenizer.eos_token_id else ids
