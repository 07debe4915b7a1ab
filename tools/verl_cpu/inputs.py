"""The model, the prompts and the settings of the runs of tools/verl_run.py."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from srt_fast.config import recipes
from srt_fast.quickstart import ensure_warm_started
from srt_fast.tasks.arithmetic import ArithmeticTask
from srt_fast.types import Problem

EMBEDDED = recipes.quickstart()
# The quickstart's tokenizer puts its first token before a prompt. It has no chat template.
CHAT_TEMPLATE = "{{ bos_token }}{{ messages[0].content }}"
PROMPT_TOKENS = 9  # <|begin|>, two operands of three digits, + and =
MICRO_BATCHES = 4
EPOCHS = 2
"""Passes over a step's rollouts. In the second one the ratios are not 1."""
RUN = "srt_fast"
"""Both runs have one name: verl's files of rollouts are kept under it."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """Prompts and completions of a step and of a look at held-out prompts."""

    prompts: int
    rollouts: int
    held_out: int
    held_out_samples: int
    seed: int


def write_inputs(folder: Path, sizes: Sizes, steps: int) -> None:
    """folder/model, and prompts for all steps. Only the held-out prompts have gold answers."""
    source = ensure_warm_started(EMBEDDED, _progress, checkpoint=lambda: None)
    shutil.copytree(source, folder / "model", dirs_exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenizer.save_pretrained(folder / "model")
    task = ArithmeticTask(EMBEDDED.task)
    first = sizes.seed * 10**6
    train = [task.train(first + index) for index in range(steps * sizes.prompts)]
    _write_rows(folder / "train.jsonl", train, has_gold=False)
    _write_rows(folder / "test.jsonl", task.held_out(sizes.held_out), has_gold=True)


def _write_rows(path: Path, problems: list[Problem], *, has_gold: bool) -> None:
    rows = [
        {
            "data_source": "sums",
            "prompt": [{"role": "user", "content": problem.prompt}],
            "reward_model": {"ground_truth": problem.gold if has_gold else None},
            "extra_info": {"index": index},
        }
        for index, problem in enumerate(problems)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def _progress(step: int, *, pass1: float, **_: float) -> None:
    if step % 100 == 0:
        print(f"warm start: step {step}, pass@1 {pass1:.2f}", flush=True)


def settings(folder: Path, sizes: Sizes, *, is_ours: bool, steps: int, shared: int) -> list[str]:
    """verl's command line. shared: the first steps, whose rollouts are written or read."""
    batch = sizes.prompts * sizes.rollouts
    values: dict[str, Any] = {
        "data.train_files": folder / "train.jsonl",
        "data.val_files": folder / "test.jsonl",
        "data.max_prompt_length": PROMPT_TOKENS,
        "data.max_response_length": EMBEDDED.sampling.max_new_tokens,
        "data.train_batch_size": sizes.prompts,
        "data.seed": sizes.seed,
        "data.dataloader_num_workers": 0,
        "reward.custom_reward_function.path": "pkg://srt_fast.integrations.verl",
        "reward.custom_reward_function.name": "answer_score",
        "reward.num_workers": 1,
        "algorithm.adv_estimator": "majority_grpo",
        "trainer.project_name": RUN,
        "trainer.experiment_name": RUN,
        "trainer.logger": "[file]",
        "trainer.device": "cpu",
        "trainer.nnodes": 1,
        "trainer.n_gpus_per_node": 1,
        "trainer.total_epochs": 1,
        "trainer.total_training_steps": steps,
        "trainer.resume_mode": "disable",
        "trainer.val_before_train": is_ours,
        "trainer.test_freq": steps if is_ours else -1,
        "trainer.validation_data_dir": folder / "held_out",
        "skip.rollout_tq.enable": True,
        "skip.rollout_tq.dump_dir": folder / "rollouts",
        "skip.rollout_tq.steps": json.dumps(list(range(1, shared + 1))),
        "transfer_queue.backend.SimpleStorage.num_data_storage_units": 1,
        "ray_kwargs.ray_init.num_cpus": 16,  # slots, not cores: verl's actors take nine
        "+ray_kwargs.ray_init.num_gpus": 1,
        "+ray_kwargs.ray_init.include_dashboard": False,
        "hydra.run.dir": folder / "hydra",
        "hydra.output_subdir": "null",
    }
    for group in (_model, _actor, _rollout):
        part = group(folder, sizes, batch // MICRO_BATCHES, is_ours)
        values |= {_prefixed(name): value for name, value in part.items()}
    return [f"{name}={value}" for name, value in values.items()]


def _prefixed(name: str) -> str:
    plus = "+" * name.startswith("+")
    return f"{plus}actor_rollout_ref.{name.removeprefix('+')}"


def _model(folder: Path, sizes: Sizes, micro_batch: int, is_ours: bool) -> dict[str, Any]:
    return {
        "model.path": folder / "model",
        "+model.override_config.attn_implementation": "sdpa",
        "model.enable_gradient_checkpointing": False,
        "model.use_remove_padding": False,  # needs flash attention
        "model.use_fused_kernels": is_ours,
        "model.fused_kernel_options.impl_backend": "triton" if is_ours else "torch",
    }


def _actor(folder: Path, sizes: Sizes, micro_batch: int, is_ours: bool) -> dict[str, Any]:
    return {
        "actor.policy_loss.loss_mode": "srt_vanilla" if is_ours else "vanilla",
        "actor.strategy": "fsdp2",
        "actor.ppo_mini_batch_size": sizes.prompts,
        "actor.ppo_micro_batch_size_per_gpu": micro_batch,
        "actor.ppo_epochs": EPOCHS,
        "actor.optim.lr": 3e-4,
        "actor.optim.weight_decay": 0.0,
        "actor.use_torch_compile": False,
        "actor.fsdp_config.use_torch_compile": False,
        "+actor.fsdp_config.mixed_precision": "{param_dtype:fp32,reduce_dtype:fp32}",
    }


def _rollout(folder: Path, sizes: Sizes, micro_batch: int, is_ours: bool) -> dict[str, Any]:
    engine = "rollout.engine_kwargs.vllm"
    return {
        "rollout.name": "vllm",
        "rollout.n": sizes.rollouts,
        "rollout.seed": sizes.seed,
        "rollout.dtype": "float32",
        "rollout.tensor_model_parallel_size": 1,
        "rollout.enforce_eager": True,
        "rollout.free_cache_engine": False,
        "+rollout.enable_sleep_mode": False,
        "rollout.max_model_len": 64,
        "rollout.max_num_batched_tokens": 4096,
        "rollout.log_prob_micro_batch_size_per_gpu": micro_batch,
        "rollout.agent.num_workers": 1,
        "rollout.checkpoint_engine.update_weights_bucket_megabytes": 16,
        "rollout.val_kwargs.n": sizes.held_out_samples,
        "rollout.val_kwargs.temperature": 1.0,
        f"+{engine}.worker_extension_cls": "verl_cpu.weights.CPUWorkerExtension",
        f"+{engine}.kv_cache_memory_bytes": 2**28,
    }
