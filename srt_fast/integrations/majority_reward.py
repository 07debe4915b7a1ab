"""The group's majority vote as a reward function of TRL's, over all processes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor

from srt_fast.integrations.padded import offsets
from srt_kernels import majority_vote
from srt_kernels.answers.canonical import answer_key
from srt_kernels.answers.extract import read_answer
from srt_kernels.core.checks import expect


def majority_reward(rule: str = "boxed") -> Callable[..., list[float]]:
    r"""A TRL reward function without labels: 1 for each completion whose final answer is its group's majority, else 0.

    rule says how to find the answer (srt_kernels.read_answer: boxed, tag, last_number, whole); spellings of one answer
    are one vote, and no answer never earns. Of a conversation the last message of the assistant counts.

    A group is all completions of one prompt in the batch. TRL puts num_generations copies of a prompt next to each
    other, and splits that batch over processes wherever it wants to; so each process sends keys of 8 bytes for prompt and
    answer to all others and groups by prompt. Copies of a prompt in the data set vote together. A prompt with one
    completion (a data set's prompt that was changed for each, num_generations_eval 1) is a ValueError: its vote would be
    its own. All processes must call it equally often, as TRL does.

    Logs vote/share, the mean part of a group that agrees, and vote/answered, the part of completions with an answer.
    """
    read_answer("", rule)  # an unknown rule raises here

    def reward(
        prompts: list,
        completions: list,
        log_metric: Callable[[str, float], None] | None = None,
        **columns,
    ):
        own = [
            (_prompt_key(prompt), answer_key(read_answer(_text(completion), rule)))
            for prompt, completion in zip(prompts, completions, strict=True)
        ]
        everyone, first = _gather(own)
        rewards, share, answered = _vote(
            *torch.tensor(everyone, dtype=torch.int64).view(-1, 2).unbind(1)
        )
        if log_metric is not None:
            log_metric("vote/share", share)
            log_metric("vote/answered", answered)
        return rewards[first : first + len(own)].tolist()

    reward.__name__ = "majority_reward"  # TRL logs rewards under it
    return reward


def _vote(prompt_keys: Tensor, keys: Tensor) -> tuple[Tensor, float, float]:
    """[R] prompts and answers -> rewards [R] in the same order, mean share of the groups, part that has an answer."""
    _, group, sizes = prompt_keys.unique(return_inverse=True, return_counts=True)
    expect(
        bool((sizes > 1).all()),
        "prompts",
        "at least two completions of each",
        f"{int((sizes == 1).sum())} with one",
    )
    order = group.argsort(stable=True)
    vote = majority_vote(keys[order], offsets(sizes))
    rewards = torch.empty_like(vote.rewards)
    rewards[order] = vote.rewards
    return rewards, vote.share.mean().item(), vote.valid.float().mean().item()


def _gather(own: list[tuple[int, int]]) -> tuple[list[tuple[int, int]], int]:
    """The keys of all processes, in the order of their ranks, and where this process's begin."""
    if not (dist.is_available() and dist.is_initialized()):
        return own, 0
    parts: list = [None] * dist.get_world_size()
    dist.all_gather_object(parts, own)
    return sum(parts, []), sum(map(len, parts[: dist.get_rank()]))


def _prompt_key(prompt: str | list[dict]) -> int:
    """Signed 64-bit hash, the same in every process."""
    text = (
        prompt if isinstance(prompt, str) else json.dumps(prompt, sort_keys=True, default=_no_text)
    )
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(),
        "little",
        signed=True,
    )


def _no_text(part: object) -> None:
    raise ValueError(
        f"prompts: expected strings or messages of text, got a {type(part).__name__} in one"
    )


def _text(completion: str | list[dict]) -> str:
    """What the assistant wrote last."""
    if isinstance(completion, str):
        return completion
    said = [message.get("content") for message in completion if message.get("role") == "assistant"]
    content = said[-1] if said else None
    if isinstance(content, list):  # parts, as multimodal templates have them
        return "".join(part.get("text", "") for part in content)
    return content or ""
