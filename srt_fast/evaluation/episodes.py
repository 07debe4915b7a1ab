"""Held-out evaluation of the later turns of episodes: revisions, and verdicts on answers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import torch

from srt_fast.evaluation.scores import summarize_revisions, summarize_verdicts
from srt_fast.rewards.episodes import Episodes
from srt_fast.rewards.turns import CORRECT, WRONG, Turn
from srt_fast.sampling.base import SamplingParams
from srt_fast.tasks.base import Task
from srt_fast.types import PlayedTurn
from srt_kernels import AnswerReader, majority_vote

EVAL_SEED = 20260101
READ_VERDICTS = {CORRECT: True, WRONG: False}
"""The verdict of a key. Other keys are none."""


@contextlib.contextmanager
def evaluation_seed(device: torch.device, turn: int) -> Iterator[None]:
    """Draw with the seed of this turn of an evaluation. Restores the random state."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(EVAL_SEED + turn)
        yield


def evaluate_turns(
    turns: Sequence[Turn],
    first: PlayedTurn,
    correct: list[bool],
    episodes: Episodes,
    task: Task,
    reader: AnswerReader,
    params: SamplingParams,
) -> dict[str, float | None]:
    """Ask the turns after the first, once about each completion.

    Stops where the model writes a problem: a problem of its own has no gold answer. A turn that is
    "balanced" in training asks about all completions here. No turn has a limit. A turn that shows
    one completion of each answer speaks for all completions of its prompt.

    Args:
        turns: Those of the reward function, the first one included.
        first: The first turn.
        correct: Whether each of its completions agrees with gold.
        params: How the later turns are sampled. Its n is not read.

    Returns:
        The scores of summarize_revisions, if a later turn answers the task; those of
        summarize_verdicts, of the first turn that judges answers; and `maj_verdict`, the accuracy
        of a vote weighted by the verdicts on the first turn's answers. An answer that was not asked
        about, because its question was too long, votes. The vote of a prompt whose answers are all
        rejected is not weighted.
    """
    scores: dict[str, float | None] = {}
    final = list(correct)
    before = first
    right_before: list[bool] | None = correct
    roots = list(range(len(correct)))
    has_answers = False
    for number, turn in enumerate(turns[1:], 1):
        if turn.reply == "problem":
            break
        ask = "all" if turn.ask == "balanced" else turn.ask
        turn = replace(turn, ask=ask, samples=1, limit=0)
        with evaluation_seed(first.rollouts.tokens.device, number):
            played = episodes.ask(turn, before, None, replace(params, n=1))
        roots = [roots[parent] for parent in played.parents]
        if turn.reply == "answer":
            has_answers = True
            right = _correct(played, task, reader)
            of_prompt = first if ask == "one_per_answer" else None
            _replace_answers(final, right, played, roots, of_prompt)
            right_before = right
        else:
            is_first = "verdict_accuracy" not in scores
            if turn.reply == "verdict" and right_before is not None and is_first:
                verdicts = [READ_VERDICTS.get(key) for key in played.groups.keys.tolist()]
                judged = [right_before[parent] for parent in played.parents]
                scores |= summarize_verdicts(verdicts, judged)
                if before is first:
                    scores["maj_verdict"] = _weighted_vote(first, correct, roots, verdicts)
            right_before = None
        before = played
    return scores | (summarize_revisions(correct, final) if has_answers else {})


def _correct(played: PlayedTurn, task: Task, reader: AnswerReader) -> list[bool]:
    """Whether each completion of a turn agrees with gold."""
    answers = reader.read(played.rollouts.tokens, played.rollouts.cu_seqlens)
    groups = played.rollouts.layout.groups
    problems = [played.conversations[group].problem for group in groups]
    return [task.correct(*pair) for pair in zip(answers, problems, strict=True)]


def _replace_answers(
    final: list[bool],
    right: list[bool],
    played: PlayedTurn,
    roots: list[int],
    of_prompt: PlayedTurn | None,
) -> None:
    """Put what a turn answered in the place of the first completions' answers.

    of_prompt: the first turn, if an answer is that of its whole prompt.
    """
    if of_prompt is None:
        for root, is_right in zip(roots, right, strict=True):
            final[root] = is_right
        return
    by_prompt = dict(zip(played.prompts, right, strict=True))
    for place, prompt in enumerate(of_prompt.prompts):
        final[place] = by_prompt.get(prompt, final[place])


def _weighted_vote(
    first: PlayedTurn, correct: list[bool], roots: list[int], verdicts: list[bool | None]
) -> float:
    """The part of the prompts whose majority is right, if what was asked and not accepted has no
    vote.
    """
    keys = first.groups.keys
    weights = torch.ones(len(correct), dtype=torch.float64)
    for root, verdict in zip(roots, verdicts, strict=True):
        weights[root] = float(verdict is True)
    has_key = (keys != 0).cpu()
    bounds = first.rollouts.layout.group_bounds
    for start, stop in pairwise(bounds):
        if not (weights[start:stop] * has_key[start:stop]).any():
            weights[start:stop] = 1.0
    vote = majority_vote(keys, first.groups.cu_groups, weights=weights.to(keys.device))
    all_keys = keys.tolist()
    hits = 0
    for (start, stop), majority in zip(pairwise(bounds), vote.majority.tolist(), strict=True):
        members = all_keys[start:stop]
        hits += majority != 0 and correct[start + members.index(majority)]
    return hits / (len(bounds) - 1)
