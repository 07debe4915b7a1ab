"""A policy's verdicts on its own rollouts: scored as probabilities, or trained as a second task."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from srt_fast.config import Config
from srt_fast.model.logprobs import rollout_logprobs
from srt_fast.model.policy import Policy, longest_prompt
from srt_fast.rewards.base import VerificationTask
from srt_fast.sampling.base import Completion, Sampler, SamplingParams, pack_completions
from srt_fast.tasks.prompt import tokenize_prompt
from srt_fast.transfer import fetch
from srt_fast.types import Problem, Reward, Rollouts
from srt_fast.utilization.meter import StepMeter
from srt_kernels import AnswerReader
from srt_kernels.answers.canonical import answer_key
from srt_kernels.core.segments import segment_ids, segment_reduce

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
        wording = question.replace("{prompt}", problem.prompt, 1).replace("{completion}", text, 1)
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


def sample_verification(
    task: VerificationTask,
    *,
    problems: list[Problem],
    rollouts: Rollouts,
    agrees: Tensor,
    policy: Policy,
    sampler: Sampler,
    reader: AnswerReader,
    config: Config,
) -> tuple[Rollouts, Reward] | None:
    """Rollouts and rewards of the verification task. None if no question fits into a prompt.

    agrees [R] bool: the pseudo-label of each rollout. A verdict that equals it has reward 1.
    Half of the `task.solutions` rollouts agree, if there are enough of both kinds.
    """
    indices = _choose_solutions(agrees, task.solutions)
    prompts = question_prompts(task.question, problems, rollouts, indices, policy, config)
    limit = longest_prompt(policy, config.sampling)
    fitting = [place for place, ids in enumerate(prompts) if len(ids) <= limit]
    if not fitting:
        return None
    params = SamplingParams.of_training(config.sampling, n=task.samples)
    verdicts = sampler.sample([prompts[place] for place in fitting], params)
    fitting_agrees = agrees[[indices[place] for place in fitting]]
    labels = torch.where(fitting_agrees, answer_key("1"), answer_key("0"))
    keys = reader.keys(verdicts.tokens, verdicts.cu_seqlens)
    rewards = (keys == labels[segment_ids(verdicts.cu_groups, len(keys))]).float()
    return verdicts, Reward(rewards=rewards, keep=torch.ones_like(rewards, dtype=torch.bool))


def _choose_solutions(agrees: Tensor, solutions: int) -> list[int]:
    """Random rollouts, at most `solutions` of them: half agree, or fewer where one kind is rare."""
    order = torch.randperm(len(agrees))
    agrees_in_order = agrees.cpu()[order]
    agreeing = order[agrees_in_order].tolist()
    disagreeing = order[~agrees_in_order].tolist()
    quota = max(solutions // 2, solutions - len(disagreeing))
    return agreeing[:quota] + disagreeing[: solutions - min(quota, len(agreeing))]
