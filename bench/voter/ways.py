"""Ways from token ids to votes that bench/vote.py times: ours and its pieces, and the others'."""

from __future__ import annotations

import random
import re
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from srt_kernels import group_advantage, majority_vote
from srt_kernels.answers.canonical import canonical_bytes, hash_bytes, run_stages
from srt_kernels.answers.reader import AnswerReader, find_answers
from srt_kernels.groups.majority_vote import Vote
from voter.rollouts import Rollouts

KERNELS = {
    "marks_kernel": "extraction: marks",
    "find_kernel": "extraction: bytes",
    "form_kernel": "canonicalisation and hashing",
}
"""The name of a kernel in a profile -> what it is for."""

_BOX = re.compile(r"\\boxed\s*\{")
_BRACE = re.compile(r"[{}]")


@dataclass(kw_only=True)
class Way:
    """Something to time."""

    name: str
    call: Callable[[], Any]
    is_cold: bool = False  # whether forms are forgotten before a call; forgetting is not timed
    device: torch.device = torch.device("cpu")

    def seconds(self) -> float:
        """Of one call. On a GPU it is the time between two events; a synchronisation raises."""
        if self.is_cold:
            run_stages.cache_clear()
        if self.device.type == "cpu":
            start_time = time.perf_counter()
            self.call()
            return time.perf_counter() - start_time
        start = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            start.record()
            self.call()
            end.record()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        torch.cuda.synchronize()
        return start.elapsed_time(end) / 1e3


def reward_step(reader: AnswerReader, rollouts: Rollouts) -> tuple[Vote, Tensor]:
    """The vote, and the advantages."""
    vote = majority_vote(reader.keys(rollouts.tokens, rollouts.cu_seqlens), rollouts.cu_groups)
    return vote, group_advantage(vote.rewards, rollouts.cu_groups, kind="mean")


def our_ways(reader: AnswerReader, rollouts: Rollouts) -> list[Way]:
    """The reward step. On a CPU also its pieces, each on its own."""
    device = rollouts.tokens.device
    step = Way(name="ours", call=lambda: reward_step(reader, rollouts), is_cold=True, device=device)
    if device.type == "cuda":
        return [step]
    tables = reader.tables(device)

    def find() -> list[bytes]:
        return list(find_answers(rollouts.tokens, rollouts.cu_seqlens, tables, reader.rule))

    answers = find()
    forms = [form for form in map(canonical_bytes, answers) if form is not None]
    keys = reader.keys(rollouts.tokens, rollouts.cu_seqlens)
    rewards = majority_vote(keys, rollouts.cu_groups).rewards

    def canonicalise() -> list[bytes | None]:
        return list(map(canonical_bytes, answers))

    def compute_advantages() -> Tensor:
        return group_advantage(rewards, rollouts.cu_groups, kind="mean")

    return [
        step,
        Way(name="ours, every answer seen before", call=lambda: reward_step(reader, rollouts)),
        Way(name="ours: extraction", call=find),
        Way(name="ours: canonicalisation", call=canonicalise, is_cold=True),
        Way(name="ours: canonicalisation, all seen before", call=canonicalise),
        Way(name="ours: hashing", call=lambda: list(map(hash_bytes, forms))),
        Way(name="ours: voting", call=lambda: majority_vote(keys, rollouts.cu_groups)),
        Way(name="ours: advantages", call=compute_advantages),
    ]


def gpu_pieces(reader: AnswerReader, rollouts: Rollouts, rounds: int) -> dict[str, list[float]]:
    """Seconds of the GPU's kernels in a reward step by purpose, without the gaps between them."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    seconds_per_round: dict[str, list[float]] = {}
    for _ in range(rounds):
        with torch.profiler.profile(activities=activities) as profile:
            reward_step(reader, rollouts)
            torch.cuda.synchronize()
        seconds: Counter[str] = Counter()
        for event in profile.events():
            if event.device_type == torch.autograd.DeviceType.CUDA:
                seconds[_purpose(event.name)] += event.self_device_time_total / 1e6
                seconds["all kernels"] += event.self_device_time_total / 1e6
        for name, value in seconds.items():
            seconds_per_round.setdefault(f"ours: {name}", []).append(value)
    return seconds_per_round


def _purpose(event_name: str) -> str:
    for kernel, purpose in KERNELS.items():
        if kernel in event_name:
            return purpose
    return "voting, advantages, checks"


def minimum_ways(rollouts: Rollouts) -> list[Way]:
    """The honest minimum and its pieces."""
    texts = rollouts.texts()
    answers = [last_box(text) for text in texts]
    group_size = rollouts.group_size

    def vote() -> list[str | None]:
        return count_votes([last_box(text) for text in rollouts.texts()], group_size)

    def find() -> list[str | None]:
        return [last_box(text) for text in texts]

    return [
        Way(name="honest minimum", call=vote),
        Way(name="honest minimum: decode", call=rollouts.texts),
        Way(name="honest minimum: regular expression", call=find),
        Way(name="honest minimum: Counter", call=lambda: count_votes(answers, group_size)),
    ]


def last_box(text: str) -> str | None:
    for box in reversed(list(_BOX.finditer(text))):
        depth = 1
        for brace in _BRACE.finditer(text, box.end()):
            depth += 1 if brace[0] == "{" else -1
            if depth == 0:
                return text[box.end() : brace.start()].strip()
    return None


def count_votes(answers: list[str | None], group_size: int) -> list[str | None]:
    """The majority of each group; None if it has no answer."""
    majorities: list[str | None] = []
    for start in range(0, len(answers), group_size):
        votes = Counter(answer for answer in answers[start : start + group_size] if answer)
        majorities.append(votes.most_common(1)[0][0] if votes else None)
    return majorities


def math_verify_seconds(rollouts: Rollouts, calls: int, seed: int) -> list[float]:
    """Seconds of compute_score of the reference implementation, for some of the rollouts.

    A call scores a rollout's text against the answer of its group in a box.
    """
    from math_verify.metric import math_metric
    from math_verify.parser import ExprExtractionConfig, LatexExtractionConfig

    latex = LatexExtractionConfig()
    score = math_metric(
        gold_extraction_target=(latex,), pred_extraction_target=(ExprExtractionConfig(), latex)
    )
    score(["\\boxed{1}"], ["\\boxed{2}"])
    texts = rollouts.texts()
    seconds = []
    for i in random.Random(seed).sample(range(len(texts)), min(calls, len(texts))):
        gold = rollouts.golds[i // rollouts.group_size]
        start = time.perf_counter()
        try:
            score([f"\\boxed{{{gold}}}"], [texts[i]])
        except Exception as error:  # The reference implementation catches all, and scores 0.
            print(f"  math_verify: {type(error).__name__}: {str(error)[:100]}", file=sys.stderr)
        seconds.append(time.perf_counter() - start)
    return seconds
