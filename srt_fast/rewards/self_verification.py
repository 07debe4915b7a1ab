"""A policy's verdicts on its own rollouts, as probabilities. turns.py samples verdicts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from srt_fast.config import Config
from srt_fast.model.logprobs import rollout_logprobs
from srt_fast.model.policy import Policy, longest_prompt
from srt_fast.rewards.base import fill_question
from srt_fast.sampling.base import Completion, pack_completions
from srt_fast.tasks.prompt import tokenize_prompt
from srt_fast.transfer import fetch
from srt_fast.types import Problem, Rollouts
from srt_fast.utilization.meter import StepMeter
from srt_kernels.core.segments import segment_reduce

VERDICT_FORMATS = {
    "answer": "\\boxed{%s}",
    "boxed": "\\boxed{%s}",
    "tag": "<answer>%s</answer>",
}
"""How a verdict is written for each task.answer_rule. Other rules: the bare verdict."""


def question_prompts(
    question: str,
    problems: list[Problem],
    rollouts: Rollouts,
    indices: Iterable[int],
    policy: Policy,
    config: Config,
) -> list[list[int]]:
    """Token ids of the question about each of these rollouts, without special tokens of it."""
    group = rollouts.layout.groups
    offsets = rollouts.layout.offsets
    [all_tokens] = fetch(rollouts.tokens)
    prompts = []
    for index in indices:
        tokens = all_tokens[offsets[index] : offsets[index + 1]]
        text = str(policy.tokenizer.decode(tokens, skip_special_tokens=True))
        problem = problems[group[index]]
        wording = fill_question(question, prompt=problem.prompt, completion=text)
        wording_problem = Problem(id=problem.id, prompt=wording)
        prompts.append(tokenize_prompt(wording_problem, config.task, policy.tokenizer))
    return prompts


def judge_rollouts(
    question: str,
    problems: list[Problem],
    rollouts: Rollouts,
    policy: Policy,
    config: Config,
    check: Callable[[], None],
    meter: StepMeter | None = None,
) -> Tensor:
    """[R] fp32: P(yes) / (P(yes) + P(no)) of each rollout, according to the policy.

    NaN for a rollout whose question does not fit into the context.
    """
    count = len(rollouts.truncated)
    verdict_format = VERDICT_FORMATS.get(config.task.answer_rule, "%s")
    verdicts = []
    for verdict in "10":
        encoding = policy.tokenizer(verdict_format % verdict, add_special_tokens=False)
        tokens = torch.tensor(encoding["input_ids"], device=policy.device)
        zeros = torch.zeros(len(tokens), device=policy.device)
        verdicts.append(Completion(tokens=tokens, logprobs=zeros, truncated=False))
    prompts = question_prompts(question, problems, rollouts, range(count), policy, config)
    longest_verdict = max(len(verdict.tokens) for verdict in verdicts)
    limits = replace(config.sampling, max_prompt_tokens=2**31, max_new_tokens=longest_verdict)
    limit = longest_prompt(policy, limits)
    fitting = [index for index, ids in enumerate(prompts) if len(ids) <= limit]
    scores = torch.full((count,), float("nan"), device=policy.device)
    if not fitting:
        return scores
    questions = [prompts[index] for index in fitting]
    verdict_rollouts = pack_completions(verdicts * len(fitting), questions, samples=2)
    meter = meter or StepMeter()
    verdict_indices = range(2 * len(fitting))
    with meter.part("score"):
        logprobs = rollout_logprobs(
            policy,
            verdict_rollouts,
            verdict_indices,
            temperature=1.0,
            token_budget=config.train.token_budget,
            check=check,
        )
    meter.count_scoring(verdict_rollouts, verdict_indices)
    sums = segment_reduce(logprobs, "sum", verdict_rollouts.cu_seqlens).view(-1, 2)
    scores[fitting] = torch.sigmoid(sums[:, 0] - sums[:, 1]).float()
    return scores
