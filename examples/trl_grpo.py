r"""A model learns sums without labels: TRL's GRPOTrainer with srt-fast's loss and majority vote.

    python examples/trl_grpo.py                  # the quickstart's model
    python examples/trl_grpo.py --model FOLDER   # a model that writes \boxed{...}

The quickstart's model is warm-started first if it is not cached. That takes two minutes.
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from trl import GRPOConfig

from srt_fast.config.recipes import quickstart
from srt_fast.integrations.trl import SRTGRPOTrainer, majority_reward
from srt_fast.quickstart import ensure_warm_started
from srt_fast.tasks import make_task
from srt_fast.types import Problem
from srt_kernels.answers.canonical import answer_key
from srt_kernels.answers.extract import read_answer

GROUP_SIZE = 16  # completions of a prompt: they vote
EVAL_SAMPLES = 8  # completions of a prompt that accuracy is measured on
MAX_NEW_TOKENS = 16


def accuracy(trainer: SRTGRPOTrainer, problems: list[Problem]) -> float:
    """The fraction of samples that are right. Only this function reads the gold answers."""
    torch.manual_seed(0)
    tokenizer = trainer.processing_class
    texts = [problem.prompt for problem in problems]
    prompts = tokenizer(texts, return_tensors="pt", return_token_type_ids=False)
    prompts = prompts.to(trainer.model.device)
    ids = trainer.model.generate(
        **prompts,
        do_sample=True,
        top_k=0,
        max_new_tokens=MAX_NEW_TOKENS,
        num_return_sequences=EVAL_SAMPLES,
    )
    prompt_length = prompts["input_ids"].shape[1]
    completions = tokenizer.batch_decode(ids[:, prompt_length:], skip_special_tokens=True)
    gold_keys = [answer_key(problem.gold) for problem in problems for _ in range(EVAL_SAMPLES)]
    keys = [answer_key(read_answer(text, "boxed")) for text in completions]
    correct = [key == gold for key, gold in zip(keys, gold_keys, strict=True)]
    return sum(correct) / len(correct)


def warm_started_model() -> Path:
    def print_progress(*_: Any, **figures: Any) -> None:
        print(figures)

    return ensure_warm_started(quickstart(), print_progress, checkpoint=lambda: None)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--model", help="folder or hub id (default: the quickstart's)")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--prompts", type=int, default=64, help="prompts in a step")
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--held-out", type=int, default=128, help="sums to measure accuracy on")
    parser.add_argument("--output", default="runs/trl_grpo", help="TRL's output folder")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    task = make_task(quickstart())
    prompts = [task.train(index).prompt for index in range(options.steps * options.prompts)]
    # A step takes four micro-batches, each with a quarter of its completions.
    args = GRPOConfig(
        output_dir=options.output,
        max_steps=options.steps,
        learning_rate=options.learning_rate,
        lr_scheduler_type="constant",
        loss_type="grpo",
        num_generations=GROUP_SIZE,
        max_completion_length=MAX_NEW_TOKENS,
        per_device_train_batch_size=GROUP_SIZE // 4 * options.prompts,
        gradient_accumulation_steps=4,
        gradient_checkpointing=False,
        bf16=torch.cuda.is_available(),
        report_to="none",
        save_strategy="no",
        logging_steps=5,
    )
    trainer = SRTGRPOTrainer(
        options.model or str(warm_started_model()),
        majority_reward(rule="boxed"),
        args,
        train_dataset=Dataset.from_dict({"prompt": prompts}),
    )
    problems = task.held_out(options.held_out)
    start = accuracy(trainer, problems)
    trainer.train()
    end = accuracy(trainer, problems)
    print(f"held-out accuracy: {start:.3f} before, {end:.3f} after {options.steps} steps")


if __name__ == "__main__":
    main()
