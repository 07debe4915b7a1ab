"""The majority vote of each prompt's completions as a reward function for TRL."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from srt_fast.integrations.padded import lengths_to_offsets
from srt_kernels import majority_vote
from srt_kernels.answers.canonical import answer_key
from srt_kernels.answers.extract import read_answer
from srt_kernels.core.checks import expect

Message = dict[str, Any]  # of a conversation: role, content
Row = tuple[int, int, bool]  # of a completion: keys of its prompt and its answer, is it masked


def majority_reward(rule: str = "boxed") -> Callable[..., list[float | None]]:
    """A TRL reward function without labels: 1 if the final answer is the group's majority, else 0.

    rule: where the final answer is (read_answer: boxed, tag, last_number, whole). Different
    spellings of an answer are one vote. A completion without an answer earns 0. In a conversation
    the assistant's last message that has text counts.

    A completion that the loss masks does not vote. Its reward is None, and TRL leaves it out of its
    group's mean. SRTGRPOTrainer says which these are, with mask_truncated_completions: the column
    is_masked. TRL's own trainer does not. TRL warns about completions whose only reward is None.

    A group is all completions of one prompt in the batch, over all processes. TRL puts
    num_generations copies of a prompt next to each other, but it may split a group over processes.
    So every process sends 8-byte keys of each prompt and answer to all others, and groups by
    prompt. Prompts that occur twice in the data set vote together. All processes must call the
    function equally often, as TRL does.

    Logs vote/share, the mean share of the majority in a group, and vote/answered, the fraction of
    completions with an answer. Both are without masked completions.

    Raises ValueError for an unknown rule, for prompts and completions that are not text, and for a
    prompt with one completion: its vote would be its own answer. The last happens if
    num_generations_eval is 1.
    """
    read_answer("", rule)  # raises for an unknown rule

    def reward(
        prompts: list,
        completions: list,
        is_masked: list[bool] | None = None,
        log_metric: Callable[[str, float], None] | None = None,
        **columns: Any,
    ) -> list[float | None]:
        is_masked = is_masked or [False] * len(prompts)
        local_rows = [
            (_prompt_key(prompt), answer_key(read_answer(_last_text(completion), rule)), masked)
            for prompt, completion, masked in zip(prompts, completions, is_masked, strict=True)
        ]
        rows, first = _gather(local_rows)
        table = torch.tensor(rows, dtype=torch.int64).view(-1, 3)
        rewards, share, answered = _vote(*table.unbind(1))
        if log_metric is not None:
            log_metric("vote/share", share)
            log_metric("vote/answered", answered)
        local_rewards = rewards[first : first + len(local_rows)].tolist()
        pairs = zip(local_rewards, is_masked, strict=True)
        return [None if masked else value for value, masked in pairs]

    reward.__name__ = "majority_reward"  # TRL logs rewards under it
    return reward


def _vote(
    prompt_keys: Tensor, answer_keys: Tensor, is_masked: Tensor
) -> tuple[Tensor, float, float]:
    """Rewards [R] in the order of the keys [R], mean majority share, fraction with an answer.

    is_masked [R]: 1 for the completions without a vote.
    """
    _, group, sizes = prompt_keys.unique(return_inverse=True, return_counts=True)
    singles = int((sizes == 1).sum())
    expect(singles == 0, "prompts", "at least two completions of each", f"{singles} with one")
    order = group.argsort(stable=True)
    votes = 1.0 - is_masked
    vote = majority_vote(answer_keys[order], lengths_to_offsets(sizes), weights=votes[order])
    rewards = torch.empty_like(vote.rewards)
    rewards[order] = vote.rewards
    answered = ((answer_keys != 0) * votes).sum() / votes.sum().clamp(min=1)
    return rewards, vote.share.mean().item(), answered.item()


def _gather(local_rows: list[Row]) -> tuple[list[Row], int]:
    """The rows of all processes in the order of their ranks, and where this process's begin."""
    if not (dist.is_available() and dist.is_initialized()):
        return local_rows, 0
    parts: list = [None] * dist.get_world_size()
    dist.all_gather_object(parts, local_rows)
    first = sum(len(part) for part in parts[: dist.get_rank()])
    return sum(parts, []), first


def _prompt_key(prompt: str | list[Message]) -> int:
    """Signed 64-bit hash, the same in every process."""
    if isinstance(prompt, str):
        text = prompt
    else:
        text = json.dumps(prompt, sort_keys=True, default=_refuse_part)
    digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _refuse_part(part: object) -> None:
    """For a part of a message that JSON cannot encode, for example an image."""
    expected = "strings or messages of text"
    raise ValueError(f"prompts: expected {expected}, got a {type(part).__name__} in one")


def _last_text(completion: str | list[Message]) -> str:
    """The text of a completion: of a conversation, the assistant's last message that has text."""
    if isinstance(completion, str):
        return completion
    is_list = isinstance(completion, list)
    expect(is_list, "completions", "strings or lists of messages", type(completion).__name__)
    others = {type(message).__name__ for message in completion if not isinstance(message, dict)}
    expect(not others, "completions", "strings or lists of messages", f"a list of {others}")
    answers = [message for message in completion if message.get("role") == "assistant"]
    texts = (_text(message.get("content")) for message in reversed(answers))
    return next((text for text in texts if text.strip()), "")


def _text(content: object) -> str:
    """The text of a message's content, or of the parts of a multimodal template's."""
    if isinstance(content, list):
        return "".join(_text(part) for part in content)
    text = content.get("text") if isinstance(content, dict) else content
    if isinstance(text, str):
        return text
    expected = "strings, or messages with text, parts or None as content"
    expect(text is None, "completions", expected, f"a {type(text).__name__} in one")
    return ""
