"""Asks the later turns of episodes: who is asked, what the conversation is, what the model says."""

from __future__ import annotations

from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor

from srt_fast.config import Config
from srt_fast.model.policy import Policy, longest_prompt
from srt_fast.rewards.base import answer_keys, fill_question
from srt_fast.rewards.choice import choose
from srt_fast.rewards.turns import Turn
from srt_fast.sampling.base import Sampler, SamplingParams, no_rollouts, stop_tokens
from srt_fast.tasks.prompt import chat_messages, tokenize_chat, tokenize_prompt
from srt_fast.transfer import fetch, send
from srt_fast.types import Conversation, Groups, PlayedTurn, Problem, Prompts, Rollouts
from srt_fast.utilization.meter import StepMeter
from srt_kernels import AnswerReader, majority_vote
from srt_kernels.answers.canonical import hash_bytes

Question = tuple[list[int], Conversation]  # the completions that it shows, and its prompt


class Episodes:
    """Asks the turns of a run.

    meter: gets the sampling that is done here. None: nothing is measured.
    """

    def __init__(
        self,
        config: Config,
        policy: Policy,
        sampler: Sampler,
        reader: AnswerReader,
        meter: StepMeter | None = None,
    ) -> None:
        self._config = config
        self._policy = policy
        self._tokenizer: Any = policy.tokenizer
        self._sampler = sampler
        self._reader = reader
        self._meter = meter or StepMeter()
        self._longest_prompt = longest_prompt(policy, config.sampling)
        self._stop_tokens = set(stop_tokens(policy))

    def begin(self, prompts: Prompts, rollouts: Rollouts, groups: Groups) -> PlayedTurn:
        """The first turn: rollouts of the task's prompts."""
        task = self._config.task
        conversations = [
            Conversation(
                problem=problem,
                question=problem.prompt,
                token_ids=token_ids,
                messages=tuple(chat_messages(problem, task)) if task.chat else (),
            )
            for problem, token_ids in zip(prompts.problems, prompts.token_ids, strict=True)
        ]
        return PlayedTurn(
            conversations=conversations,
            prompts=rollouts.layout.groups,
            parents=[],
            rollouts=rollouts,
            groups=groups,
        )

    def ask(
        self, turn: Turn, before: PlayedTurn, agrees: Tensor | None, params: SamplingParams
    ) -> PlayedTurn:
        """Ask a turn about the completions of the turn before. params: how replies are sampled.

        agrees [R] bool: which of these agree with their labels, if the turn is "balanced". Leaves
        out questions that are longer than a prompt may be. Asks nothing if no question is left. One
        host sync beside sampling, two where problems are written.
        """
        read = [before.rollouts.tokens, before.groups.keys]
        tokens, keys, *flags = fetch(*read, *([] if agrees is None else [agrees]))
        all_keys = keys.tolist()
        asked = choose(turn, all_keys, flags[0] if flags else None, before.prompts)
        questions = self._word(turn, before, asked, tokens)
        fitting = [item for item in questions if len(item[1].token_ids) <= self._longest_prompt]
        groups = _by_baseline(turn, before, all_keys, fitting)
        in_order = [item for group in groups for item in group]
        conversations = [conversation for _, conversation in in_order]
        rollouts = self._sample([item.token_ids for item in conversations], params)
        parents = [shown[0] for shown, _ in in_order for _ in range(params.n)]
        sizes = [params.n * len(group) for group in groups]
        keys = self._keys(turn, rollouts, conversations)
        return PlayedTurn(
            conversations=conversations,
            prompts=[before.prompts[parent] for parent in parents],
            parents=parents,
            rollouts=rollouts,
            groups=self._groups(rollouts, keys, sizes, parents),
            too_long=len(questions) - len(fitting),
        )

    def _sample(self, prompts: list[list[int]], params: SamplingParams) -> Rollouts:
        if not prompts:
            return no_rollouts(self._policy.device)
        with self._meter.part("sample"):
            rollouts = self._sampler.sample(prompts, params)
        self._meter.count_sampling(rollouts)
        return rollouts

    def _keys(self, turn: Turn, rollouts: Rollouts, conversations: list[Conversation]) -> Tensor:
        """[R] int64: keys of the answers. Of a problem, a hash of its text, and 0 if it is
        truncated, empty or the task's prompt again. That takes a host sync.
        """
        if turn.reply != "problem":
            return answer_keys(self._reader, rollouts, self._config.reward)
        tokens, truncated = fetch(rollouts.tokens, rollouts.truncated)
        keys = torch.zeros(len(truncated), dtype=torch.int64)
        spans = pairwise(rollouts.layout.offsets)
        for place, (group, (start, stop)) in enumerate(
            zip(rollouts.layout.groups, spans, strict=True)
        ):
            text = str(self._tokenizer.decode(tokens[start:stop], skip_special_tokens=True)).strip()
            is_own = text == conversations[group].problem.prompt.strip()
            if text and not is_own and not truncated[place]:
                keys[place] = hash_bytes(text.encode("utf-8", "surrogatepass"))
        [keys] = send([keys], rollouts.tokens.device)
        return keys

    def _groups(
        self, rollouts: Rollouts, keys: Tensor, sizes: list[int], parents: list[int]
    ) -> Groups:
        """What the reward function sees: groups of these sizes share a baseline."""
        settings = self._config.reward
        offsets = torch.tensor([0, *accumulate(sizes)], dtype=torch.int32)
        places = torch.tensor(parents, dtype=torch.int64)
        cu_groups, parent = send([offsets, places], keys.device)
        return Groups(
            keys=keys,
            cu_groups=cu_groups,
            cu_seqlens=rollouts.cu_seqlens,
            logprobs=rollouts.logprobs,
            vote=majority_vote(keys, cu_groups, share_over=settings.share_over),
            parent=parent,
        )

    # ---- conversations ----

    def _word(
        self, turn: Turn, before: PlayedTurn, asked: list[list[int]], tokens: Tensor
    ) -> list[Question]:
        """The question about each of these lists of completions. tokens [N] in host memory."""
        offsets = before.rollouts.layout.offsets
        groups = before.rollouts.layout.groups
        questions = []
        for shown in asked:
            told = before.conversations[groups[shown[0]]]
            completions = [tokens[offsets[place] : offsets[place + 1]] for place in shown]
            questions.append((shown, self._conversation(turn, told, completions)))
        return questions

    def _conversation(
        self, turn: Turn, told: Conversation, completions: list[Tensor]
    ) -> Conversation:
        """What was told so far, what the model said to it, and the turn's question."""
        task = self._config.task
        texts = [
            str(self._tokenizer.decode(completion, skip_special_tokens=True))
            for completion in completions
        ]
        values = {"prompt": told.problem.prompt, "completion": _list_solutions(texts)}
        if "{answer}" in turn.question:
            values["answer"] = ", ".join(self._answer(completion) for completion in completions)
        question = fill_question(turn.question, **values)
        messages: tuple[dict[str, Any], ...] = ()
        if turn.stands_alone:
            problem = Problem(id=told.problem.id, prompt=question)
            token_ids = tokenize_prompt(problem, task, self._tokenizer)
            messages = tuple(chat_messages(problem, task)) if task.chat else ()
        elif task.chat:
            said = {"role": "assistant", "content": texts[0]}
            messages = (*told.messages, said, {"role": "user", "content": question.strip()})
            token_ids = tokenize_chat(messages, self._tokenizer)
        else:
            said_ids = completions[0].tolist()
            if said_ids and said_ids[-1] in self._stop_tokens:
                said_ids.pop()
            asked_ids = self._tokenizer(question, add_special_tokens=False)["input_ids"]
            token_ids = [*told.token_ids, *said_ids, *asked_ids]
        return Conversation(
            problem=told.problem, question=question, token_ids=token_ids, messages=messages
        )

    def _answer(self, completion: Tensor) -> str:
        """The answer in a completion as it is written. Empty without one."""
        [answer] = self._reader.read(completion, torch.tensor([0, len(completion)]))
        return answer or ""


def _by_baseline(
    turn: Turn, before: PlayedTurn, keys: list[int], questions: list[Question]
) -> list[list[Question]]:
    """The questions, those whose completions share a baseline together."""
    groups: dict[Any, list[Question]] = {}
    for number, question in enumerate(questions):
        place = question[0][0]
        prompt = before.prompts[place]
        marks = {"prompt": prompt, "parent": number, "answer": (prompt, keys[place])}
        groups.setdefault(marks[turn.group], []).append(question)
    return list(groups.values())


def _list_solutions(texts: list[str]) -> str:
    """One text as it is, several with a number each."""
    if len(texts) == 1:
        return texts[0]
    return "\n\n".join(f"Solution {number}:\n{text}" for number, text in enumerate(texts, 1))
