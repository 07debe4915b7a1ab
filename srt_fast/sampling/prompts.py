"""Which problems have a prompt that fits into the model's context."""

from __future__ import annotations

from collections.abc import Sequence

from srt_fast.config import Config
from srt_fast.model.policy import Policy, longest_prompt
from srt_fast.tasks.prompt import tokenize_prompt
from srt_fast.types import Problem


def fitting_prompts(
    problems: Sequence[Problem], config: Config, policy: Policy
) -> tuple[list[Problem], list[list[int]]]:
    """The problems whose prompts fit, and the token ids of these prompts.

    A prompt fits if it has at most longest_prompt(policy, config.sampling) tokens. The others are
    left out. Raises ValueError if the context is too short for any prompt.
    """
    limit = longest_prompt(policy, config.sampling)
    fitting_problems = []
    prompts = []
    for problem in problems:
        ids = tokenize_prompt(problem, config.task, policy.tokenizer)
        if len(ids) <= limit:
            fitting_problems.append(problem)
            prompts.append(ids)
    return fitting_problems, prompts
