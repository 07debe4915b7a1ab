"""A policy's verdict on its own rollouts: read off as a probability, or trained as a second task."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from srt_fast.config import Config
from srt_fast.model.logprobs import rollout_logprobs
from srt_fast.model.policy import Policy, longest_prompt
from srt_fast.rewards.designs.verify import Verify
from srt_fast.sampling.base import Completion, Sampler, SamplingParams, pack_completions
from srt_fast.tasks.prompt import prompt_ids
from srt_fast.types import Problem, Reward, Rollouts
from srt_kernels.answers.extract import answer_key
from srt_kernels.answers.reader import AnswerReader
from srt_kernels.core.segments import segment_ids, segment_reduce

_WORDED = {"boxed": "\\boxed{%s}", "tag": "<answer>%s</answer>"}
"""A verdict where task.answer_rule looks for an answer; bare for the other rules."""


def ask(
    question: str,
    problems: list[Problem],
    rollouts: Rollouts,
    chosen: Iterable[int],
    policy: Policy,
    config: Config,
) -> list[list[int]]:
    """Token ids of the question about each chosen rollout. Special tokens of the completion are left out."""
    group, offsets = (
        segment_ids(rollouts.cu_groups, len(rollouts.truncated)).tolist(),
        rollouts.cu_seqlens.tolist(),
    )
    asked = []
    for index in chosen:
        text = policy.tokenizer.decode(
            rollouts.tokens[offsets[index] : offsets[index + 1]], skip_special_tokens=True
        )
        problem = problems[group[index]]
        wording = question.replace("{prompt}", problem.prompt, 1).replace("{completion}", text, 1)
        asked.append(
            prompt_ids(Problem(id=problem.id, prompt=wording), config.task, policy.tokenizer)
        )
    return asked


def judge(
    question: str,
    problems: list[Problem],
    rollouts: Rollouts,
    policy: Policy,
    config: Config,
    check: Callable[[], None],
) -> Tensor:
    """[R] fp32: P(yes) / (P(yes) + P(no)) of each rollout; NaN where the question does not fit into the context."""
    worded = _WORDED.get(config.task.answer_rule, "%s")
    verdicts = [
        torch.tensor(
            policy.tokenizer(worded % verdict, add_special_tokens=False)["input_ids"],
            device=policy.device,
        )
        for verdict in "10"
    ]
    asked = ask(question, problems, rollouts, range(len(rollouts.truncated)), policy, config)
    limit = longest_prompt(
        policy,
        replace(config.sampling, max_prompt_tokens=2**31, max_new_tokens=max(map(len, verdicts))),
    )
    fits = [index for index, ids in enumerate(asked) if len(ids) <= limit]
    judged = torch.full((len(asked),), float("nan"), device=policy.device)
    if not fits:
        return judged
    completions = [
        Completion(verdict, torch.zeros(len(verdict), device=policy.device), truncated=False)
        for verdict in verdicts
    ]
    both = pack_completions(
        completions * len(fits),
        [asked[index] for index in fits],
        samples=2,
    )
    logprobs = rollout_logprobs(
        policy,
        both,
        torch.arange(len(both.truncated), device=policy.device),
        temperature=1.0,
        token_budget=config.train.token_budget,
        check=check,
    )
    yes, no = segment_reduce(logprobs, "sum", both.cu_seqlens).view(-1, 2).unbind(1)
    judged[fits] = torch.sigmoid(yes - no).float()
    return judged


def verification(
    design: Verify,
    problems: list[Problem],
    rollouts: Rollouts,
    agrees: Tensor,
    policy: Policy,
    sampler: Sampler,
    reader: AnswerReader,
    config: Config,
) -> tuple[Rollouts, Reward] | None:
    """The second task's rollouts and rewards: verdicts on up to `solutions` of these rollouts, `samples` sampled for each.

    agrees [R] bool: the pseudo-label, which a verdict has to give. Half of the solutions agree where there are enough of either.
    A question that is longer than a prompt may be is not asked; None where none is left.
    """
    solutions, order = design.solutions, torch.randperm(len(agrees))
    right, wrong = (order[(agrees.cpu() == label)[order]].tolist() for label in (True, False))
    some = max(solutions // 2, solutions - len(wrong))
    chosen = right[:some] + wrong[: solutions - min(some, len(right))]
    asked = ask(design.question, problems, rollouts, chosen, policy, config)
    limit = longest_prompt(policy, config.sampling)
    fits = [place for place, ids in enumerate(asked) if len(ids) <= limit]
    if not fits:
        return None
    params = SamplingParams.of_training(config.sampling, n=design.samples)
    verdicts = sampler.sample([asked[place] for place in fits], params)
    label = torch.where(agrees[[chosen[place] for place in fits]], answer_key("1"), answer_key("0"))
    keys = reader.keys(verdicts.tokens, verdicts.cu_seqlens)
    rewards = (keys == label[segment_ids(verdicts.cu_groups, len(keys))]).float()
    return verdicts, Reward(rewards=rewards, keep=torch.ones_like(rewards, dtype=torch.bool))
