"""Rollouts like those of a training step: joined MATH-500 solutions, the last one changed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srt_kernels.answers.canonical import answer_key
from voter.near_misses import near_misses
from voter.spellings import spellings

# Shares of the rollouts.
RIGHT = 0.65
WITHOUT_BOX = 0.05
TRUNCATED_IN_BOX = 0.03

OTHER_BOXES = 0.05  # share of the solutions before the last that keep their box
WRONG_ANSWERS = 5  # that the rollouts of a group choose from


@dataclass(kw_only=True)
class Rollouts:
    """R rollouts of `length` tokens, in groups of `group_size`."""

    tokens: Tensor  # [R * length] int64
    length: int
    group_size: int
    golds: list[str]  # [R / group_size]
    backend: Any  # the fast tokenizer without transformers around it

    def __len__(self) -> int:
        return len(self.golds) * self.group_size

    @cached_property
    def cu_seqlens(self) -> Tensor:
        return self._arange(len(self) + 1) * self.length

    @cached_property
    def cu_groups(self) -> Tensor:
        return self._arange(len(self.golds) + 1) * self.group_size

    def _arange(self, count: int) -> Tensor:
        return torch.arange(count, dtype=torch.int32, device=self.tokens.device)

    def texts(self) -> list[str]:
        """By decode_batch, which uses all cores. batch_decode of transformers uses one."""
        ids = self.tokens.view(-1, self.length).tolist()
        return self.backend.decode_batch(ids, skip_special_tokens=True)


def load_tokenizer(path: str | None) -> Any:
    """The tokenizer in a folder; None: SmolLM2's."""
    from transformers import AutoTokenizer, logging

    logging.set_verbosity_error()
    if path:
        return AutoTokenizer.from_pretrained(path)
    from srt_fast.config.recipes import smollm_path

    file = Path(smollm_path())
    return AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)


def make_rollouts(
    rows: list[dict], tokenizer: Any, count: int, length: int, group_size: int, seed: int
) -> Rollouts:
    """rows: problems with `answer` and `solution`.

    A rollout is the last `length` tokens of joined solutions. So it may begin inside a solution.
    """
    draw = random.Random(seed)

    def encode(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=False)["input_ids"]

    boxed = encode([row["solution"] + "\n\n" for row in rows])
    plain = encode([row["solution"].replace("\\boxed", "") + "\n\n" for row in rows])
    answers = [row["answer"] for row in rows]
    golds = []
    tokens = torch.empty(count, length, dtype=torch.int64)
    for first in range(0, count, group_size):
        row = draw.choice(rows)
        golds.append(row["answer"])
        endings = encode(list(last_solutions(row, answers, group_size, draw)))
        for number, ids in enumerate(endings):
            parts = [ids]  # from the last to the first
            size = len(ids)
            while size < length:
                solutions = boxed if draw.random() < OTHER_BOXES else plain
                parts.append(solutions[draw.randrange(len(rows))])
                size += len(parts[-1])
            joined = [token for part in reversed(parts) for token in part]
            tokens[first + number] = torch.tensor(joined[-length:])
    return Rollouts(
        tokens=tokens.flatten(),
        length=length,
        group_size=group_size,
        golds=golds,
        backend=tokenizer.backend_tokenizer,
    )


def last_solutions(
    row: dict, answers: list[str], group_size: int, draw: random.Random
) -> Iterator[str]:
    """The last solutions of a group's rollouts, with different answers."""
    head, _, _ = row["solution"].rpartition("\\boxed")
    gold = row["answer"]
    right = [gold] * 3 + draw.sample(sorted(spellings(gold, draw)), 3)
    wrong = wrong_answers(gold, answers, draw)
    for _ in range(group_size):
        answer = draw.choice(right if draw.random() < RIGHT else wrong)
        ending = draw.random()
        if ending < WITHOUT_BOX:
            yield f"{head}{answer}."
        elif ending < WITHOUT_BOX + TRUNCATED_IN_BOX:
            yield f"{head}\\boxed{{{answer}"
        else:
            end = draw.choice(["$", "$\n", "$ is the final answer."])
            yield f"{head}\\boxed{{{answer}}}.{end}"


def wrong_answers(gold: str, answers: list[str], draw: random.Random) -> list[str]:
    """Near misses, and answers of other problems."""
    near = sorted(near_misses(gold))
    texts = draw.sample(near, min(2, len(near))) + draw.sample(answers, WRONG_ANSWERS)
    return [text for text in texts if answer_key(text) != answer_key(gold)][:WRONG_ANSWERS]
