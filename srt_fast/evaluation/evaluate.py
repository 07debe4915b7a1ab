"""Held-out evaluation: pass@1 as avg@k, unbiased pass@k, maj@k and the gap between them."""

from __future__ import annotations

from collections.abc import Sequence

from srt_fast.config import Config, EvalConfig
from srt_fast.evaluation.episodes import evaluate_turns, evaluation_seed
from srt_fast.evaluation.scores import summarize
from srt_fast.model.policy import Policy, longest_prompt
from srt_fast.rewards.base import voted_groups
from srt_fast.rewards.episodes import Episodes
from srt_fast.rewards.turns import Turn
from srt_fast.sampling.base import Sampler, SamplingParams
from srt_fast.sampling.prompts import fitting_prompts
from srt_fast.tasks.base import Task
from srt_fast.types import Problem, Prompts
from srt_kernels import AnswerReader, majority_vote


def evaluate(
    policy: Policy,
    sampler: Sampler,
    reader: AnswerReader,
    task: Task,
    config: Config,
    settings: EvalConfig,
    turns: Sequence[Turn] = (),
) -> dict[str, float | int | None]:
    """Sample `settings.samples` completions of each held-out prompt and compare them with gold.

    Every evaluation draws with the same seed and restores the caller's random state. So the number
    of evaluations changes no training step. Samples without top_p, top_k and min_p on purpose: an
    evaluation measures the policy itself.

    Returns:
        `vote_share`, `truncated` and `completion_tokens`; `prompts_too_long`, the number of
        prompts that are left out of every score, if there are any; and the scores of `summarize` if
        the task has gold answers. Then with `turns`, those of a reward function of episodes, also
        the scores of `evaluate_turns`.

    Raises:
        ValueError: All held-out prompts are too long.
    """
    held_out = task.held_out(settings.prompts)
    problems, prompts = fitting_prompts(held_out, config, policy)
    if not prompts:
        raise ValueError(
            "sampling.max_prompt_tokens: expected held-out prompts of at most "
            f"{longest_prompt(policy, config.sampling)} tokens, got {len(held_out)} longer ones"
        )
    params = SamplingParams(
        n=settings.samples if settings.temperature > 0 else 1,  # greedy samples are all the same
        temperature=settings.temperature,
        max_tokens=config.sampling.max_new_tokens,
    )
    with evaluation_seed(policy.device, 0):
        rollouts = sampler.sample(prompts, params)
    answers = reader.read(rollouts.tokens, rollouts.cu_seqlens)
    keys = reader.keys(rollouts.tokens, rollouts.cu_seqlens)
    vote = majority_vote(keys, rollouts.cu_groups)
    shares = vote.share.tolist()
    scores: dict[str, float | int | None] = {
        "vote_share": sum(shares) / len(shares),
        "truncated": rollouts.truncated.float().mean().item(),
        "completion_tokens": len(rollouts.tokens) / len(answers),
    }
    if len(prompts) < len(held_out):
        scores["prompts_too_long"] = len(held_out) - len(prompts)
    if not task.has_gold:
        return scores
    correct = _correct(task, problems, answers, params.n)
    key_groups = keys.view(-1, params.n).tolist()
    majority_correct = _majority_correct(key_groups, vote.majority.tolist(), correct)
    scores |= summarize(correct, majority_correct, shares)
    if turns:
        episodes = Episodes(config, policy, sampler, reader)
        asked = Prompts(problems=problems, token_ids=prompts, dropped=0, position={})
        first = episodes.begin(asked, rollouts, voted_groups(rollouts, keys, vote))
        is_right = [is_right for group in correct for is_right in group]
        scores |= evaluate_turns(turns, first, is_right, episodes, task, reader, params)
    return scores


def _correct(
    task: Task, problems: list[Problem], answers: Sequence[str | None], samples: int
) -> list[list[bool]]:
    """Whether each answer is correct, for each problem. `samples` answers in turn are of one."""
    correct = []
    for index, problem in enumerate(problems):
        group = answers[index * samples : (index + 1) * samples]
        correct.append([task.correct(answer, problem) for answer in group])
    return correct


def _majority_correct(
    key_groups: list[list[int]], majority_keys: list[int], correct: list[list[bool]]
) -> list[bool]:
    """Whether the majority's answer is correct, for each prompt. False without an answer (key 0).

    It is correct if the first rollout with this answer is correct.
    """
    groups = zip(key_groups, majority_keys, correct, strict=True)
    return [
        majority_key != 0 and group_correct[keys.index(majority_key)]
        for keys, majority_key, group_correct in groups
    ]
