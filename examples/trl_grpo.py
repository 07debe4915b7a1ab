r"""TRL's GRPOTrainer with srt-fast's loss and the group's vote for a reward: a model learns sums without one label.

python examples/trl_grpo.py                  # the quickstart's model, warm-started first (two minutes) if it is not cached
python examples/trl_grpo.py --model FOLDER   # a model that writes \boxed{...}
"""

import argparse

import torch
from datasets import Dataset
from trl import GRPOConfig

from srt_fast.config.recipes import quickstart
from srt_fast.integrations.trl import SRTGRPOTrainer, majority_reward
from srt_fast.quickstart import ensure_warm_started
from srt_fast.tasks import make_task
from srt_kernels.answers.canonical import answer_key
from srt_kernels.answers.extract import read_answer

SAMPLES = 16  # of each prompt: they vote


def accuracy(trainer: SRTGRPOTrainer, sums: list) -> float:
    """The part of 8 samples of each sum that is right. The only place that reads the sums' answers."""
    torch.manual_seed(0)
    tokenizer = trainer.processing_class
    prompts = tokenizer(
        [each.prompt for each in sums], return_tensors="pt", return_token_type_ids=False
    ).to(trainer.model.device)
    out = trainer.model.generate(
        **prompts, do_sample=True, top_k=0, max_new_tokens=16, num_return_sequences=8
    )
    texts = tokenizer.batch_decode(
        out[:, prompts["input_ids"].shape[1] :], skip_special_tokens=True
    )
    gold = [answer_key(each.gold) for each in sums for _ in range(8)]
    return sum(
        answer_key(read_answer(text, "boxed")) == key for text, key in zip(texts, gold, strict=True)
    ) / len(gold)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="folder or hub id (default: the quickstart's)")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--prompts", type=int, default=64, help="in a step")
    parser.add_argument("--held-out", type=int, default=128, help="sums to measure on")
    parser.add_argument("--output", default="runs/trl_grpo", help="TRL's output folder")
    options = parser.parse_args(arguments)
    task = make_task(quickstart())
    model = options.model or str(
        ensure_warm_started(quickstart(), lambda *_, **figures: print(figures), lambda: None)
    )
    prompts = Dataset.from_dict(
        {"prompt": [task.train(i).prompt for i in range(options.steps * options.prompts)]}
    )
    args = GRPOConfig(
        output_dir=options.output,
        max_steps=options.steps,
        learning_rate=1e-4,
        lr_scheduler_type="constant",
        loss_type="grpo",
        num_generations=SAMPLES,
        max_completion_length=16,
        per_device_train_batch_size=4 * options.prompts,
        gradient_accumulation_steps=SAMPLES // 4,
        gradient_checkpointing=False,
        bf16=torch.cuda.is_available(),
        report_to="none",
        save_strategy="no",
        logging_steps=5,
    )
    trainer = SRTGRPOTrainer(model, majority_reward(rule="boxed"), args, train_dataset=prompts)
    held_out = task.held_out(options.held_out)
    before = accuracy(trainer, held_out)
    trainer.train()
    print(
        f"held-out accuracy: {before:.3f} before, {accuracy(trainer, held_out):.3f} after {options.steps} steps"
    )


if __name__ == "__main__":
    main()
