"""One run of a trainer: TRL, TRL with our loss, or srt-fast. Returns its figures."""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch

from measure import measure
from srt_fast.config import Config, override
from srt_fast.files import read_rows
from srt_fast.model.loading import quiet_transformers
from srt_fast.tasks import make_task
from srt_fast.tasks.stream import PromptStream
from srt_fast.train import Trainer, evaluate_model

CPU = torch.device("cpu")


def run_alone(way: str, config: Config, micro_batch: int) -> dict[str, Any]:
    """`run` in a fresh process, so that the memory is the run's own."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(run, way, config, micro_batch).result()


def run(way: str, config: Config, micro_batch: int) -> dict[str, Any]:
    """Train, and return the run's figures.

    seconds and sampling: of each step but the first. tokens: mean length of a completion.
    unanimous: fraction of the groups. peak_bytes. pass1 for arithmetic, whose gold is known.
    """
    quiet_transformers()
    with tempfile.TemporaryDirectory() as folder:
        if way.startswith("trl"):
            # Imported before the measurement: the imports are not the run's memory.
            from srt_fast.integrations import trl as integration

            train = partial(run_trl, integration, way, config, micro_batch, folder)
        else:
            train = partial(run_srt_fast, way, config, folder)
        figures, seconds, peak_bytes = measure(train, CPU)
        figures |= {"way": way, "seed": config.train.seed}
        figures |= {"run_seconds": seconds, "peak_bytes": peak_bytes}
        if config.task.kind == "arithmetic":
            figures["pass1"] = _accuracy(config, f"{folder}/model")
        return figures


def run_trl(
    integration: Any, way: str, config: Config, micro_batch: int, folder: str
) -> dict[str, Any]:
    """Train with TRL. integration: the module srt_fast.integrations.trl."""
    import trl
    from datasets import Dataset
    from transformers import AutoTokenizer, PrinterCallback

    clock = _make_clock()
    train = config.train
    stream = PromptStream(make_task(config), train.seed)
    problems = stream.next(train.steps * train.prompts_per_step)
    trainer_class = trl.GRPOTrainer if way == "trl" else integration.SRTGRPOTrainer
    trainer = trainer_class(
        config.model.path,
        integration.majority_reward(config.task.answer_rule),
        _trl_config(config, micro_batch, folder),
        train_dataset=Dataset.from_dict({"prompt": [problem.prompt for problem in problems]}),
        processing_class=AutoTokenizer.from_pretrained(config.model.path),
        callbacks=[clock],
    )
    trainer.remove_callback(PrinterCallback)
    sampling_seconds = _time_calls(trainer, "_generate")
    trainer.train()
    trainer.save_model(f"{folder}/model")
    log = [row for row in trainer.state.log_history if "reward" in row][1:]
    return {
        "seconds": [
            end - start for start, end in zip(clock.ends[:-1], clock.ends[1:], strict=True)
        ],
        "sampling": sampling_seconds[1:],
        "unanimous": statistics.mean(row["frac_reward_zero_std"] for row in log),
        "tokens": statistics.mean(row["completions/mean_length"] for row in log),
        "longest": statistics.mean(row["completions/max_length"] for row in log),
    }


def _make_clock() -> Any:
    """A callback whose `ends` has the time at which each step ended."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.ends: list[float] = []

        def on_step_end(self, *arguments: Any, **settings: Any) -> None:
            self.ends.append(time.perf_counter())

    return Clock()


def _time_calls(trainer: Any, name: str) -> list[float]:
    """Replace a method by one that adds the seconds of each call to the list returned here."""
    method = getattr(trainer, name)
    seconds: list[float] = []

    def timed(*arguments: Any) -> Any:
        start = time.perf_counter()
        result = method(*arguments)
        seconds.append(time.perf_counter() - start)
        return result

    setattr(trainer, name, timed)
    return seconds


def _trl_config(config: Config, micro_batch: int, folder: str) -> Any:
    """The run's settings in TRL's words."""
    import trl

    train = config.train
    sampling = config.sampling
    completions_per_step = train.prompts_per_step * sampling.group_size
    return trl.GRPOConfig(
        output_dir=folder,
        max_steps=train.steps,
        seed=train.seed,
        shuffle_dataset=False,
        use_cpu=True,
        bf16=False,
        learning_rate=train.lr,
        lr_scheduler_type="constant",
        weight_decay=train.weight_decay,
        adam_beta2=train.betas[1],
        max_grad_norm=train.grad_clip,
        loss_type="grpo",
        num_generations=sampling.group_size,
        temperature=sampling.temperature,
        max_completion_length=sampling.max_new_tokens,
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=completions_per_step // micro_batch,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        logging_steps=1,
        disable_tqdm=True,
    )


def run_srt_fast(way: str, config: Config, folder: str) -> dict[str, Any]:
    """Train with srt-fast."""
    changes = {
        "run_dir": folder,
        "sampling.engine": "vllm" if way == "srt_fast_vllm" else "hf",
        # A run evaluates at its start and end. No step counts that.
        "evaluation": {"prompts": 8, "samples": 2},
    }
    Trainer(override(config, changes), quiet=True).train()
    rows = [row for row in read_rows(Path(folder) / "metrics.jsonl") if row["kind"] == "train"][1:]
    return {
        "seconds": [row["seconds"] for row in rows],
        "sampling": [row["seconds_sample"] for row in rows],
        "unanimous": statistics.mean(row["unanimous"] for row in rows),
        "tokens": statistics.mean(row["completion_tokens"] for row in rows),
    }


def _accuracy(config: Config, model: str) -> float:
    config = override(config, {"model.path": model, "sampling.engine": "hf"})
    return evaluate_model(config, quiet=True)["pass1"]
