"""Held-out evaluation: pass@1 as avg@k, unbiased pass@k, maj@k and the gap between them."""

from __future__ import annotations

import torch

from srt_fast.config import Config, EvalConfig
from srt_fast.evaluation.scores import summarize
from srt_fast.model.policy import Policy, longest_prompt
from srt_fast.sampling.base import Sampler, SamplingParams
from srt_fast.tasks.base import Task
from srt_fast.tasks.prompt import tokenize_prompt
from srt_kernels.answers.reader import AnswerReader
from srt_kernels.groups.majority_vote import majority_vote

EVAL_SEED = 20260101


def evaluate(
    policy: Policy,
    sampler: Sampler,
    reader: AnswerReader,
    task: Task,
    config: Config,
    settings: EvalConfig,
) -> dict[str, float]:
    """Sample `settings.samples` completions of each held-out prompt and score them against gold.

    The caller's random state is left as it was, so that evaluating more or less often changes no training step, and
    every evaluation draws with the same seed. Accuracies are absent where the task has no gold answers.
    """
    samples = settings.samples if settings.temperature > 0 else 1
    limit, asked = longest_prompt(policy, config.sampling), task.held_out(settings.prompts)
    pairs = [
        (problem, tokenize_prompt(problem, config.task, policy.tokenizer)) for problem in asked
    ]
    problems = [problem for problem, ids in pairs if len(ids) <= limit]
    prompts = [ids for _, ids in pairs if len(ids) <= limit]
    if not prompts:
        raise ValueError(
            f"sampling.max_prompt_tokens: expected held-out prompts of at most {limit} tokens, "
            f"got {len(pairs)} longer ones"
        )
    devices = [policy.device] if policy.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(EVAL_SEED)
        params = SamplingParams(
            n=samples, temperature=settings.temperature, max_tokens=config.sampling.max_new_tokens
        )
        rollouts = sampler.sample(prompts, params)
    answers = reader.read(rollouts.tokens, rollouts.cu_seqlens)
    keys = reader.keys(rollouts.tokens, rollouts.cu_seqlens)
    vote = majority_vote(keys, rollouts.cu_groups)
    groups = [answers[i : i + samples] for i in range(0, len(answers), samples)]
    shares = vote.share.tolist()
    result = {
        "vote_share": sum(shares) / len(shares),
        "truncated": rollouts.truncated.float().mean().item(),
        "completion_tokens": len(rollouts.tokens) / len(answers),
    }
    if len(prompts) < len(asked):
        result["prompts_too_long"] = len(asked) - len(prompts)  # left out of every figure
    if not task.has_gold:
        return result
    correct = [
        [task.correct(answer, problem) for answer in group]
        for group, problem in zip(groups, problems, strict=True)
    ]
    majority = _majority_correct(keys.view(-1, samples).tolist(), vote.majority.tolist(), correct)
    return {**result, **summarize(correct, majority, shares)}


def _majority_correct(
    keys: list[list[int]], majority: list[int], correct: list[list[bool]]
) -> list[bool]:
    """Whether each group's majority answer is correct: the verdict on the first rollout that gave it."""
    return [
        key != 0 and verdicts[group.index(key)]
        for group, key, verdicts in zip(keys, majority, correct, strict=True)
    ]
