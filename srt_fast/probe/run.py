"""Runs a probe: load, sample, vote, one training step, advice."""

from __future__ import annotations

import contextlib
import platform
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srt_fast.config import Config, to_dict
from srt_fast.distributed.launch import start as start_world
from srt_fast.model.loading import check_path, load_policy, quiet_transformers
from srt_fast.model.policy import Policy
from srt_fast.parts import starting_model
from srt_fast.probe.advice import Advice, advise
from srt_fast.probe.ballots import count_votes
from srt_fast.probe.cost import (
    Cost,
    StepCost,
    first_groups,
    measure_training,
    scale_to_step,
)
from srt_fast.probe.figures import Estimate, estimate, gold_figures, vote_figures
from srt_fast.probe.result import Probe, make_row
from srt_fast.probe.sample import PromptSampler, Samples
from srt_fast.run.interrupts import InterruptHandler, RunInterrupted
from srt_fast.run.progress import RunProgress
from srt_fast.sampling import choose_engine, make_sampler
from srt_fast.tasks import make_task
from srt_kernels import majority_vote

SMALLEST_SAMPLES = 4
"""Least samples of a prompt: each half votes with two."""


def probe(
    config: Config,
    *,
    prompts: int = 64,
    samples: int = 16,
    folder: Path | None = None,
    quiet: bool = False,
) -> Probe:
    """Sample `samples` completions of `prompts` training prompts, and judge their vote.

    folder: where samples.jsonl and vLLM's log go. A signal ends the probe early; what was sampled
    is judged.

    Raises ValueError for bad numbers and whatever srt-fast train refuses, SamplerError if the
    sampler fails, and RunInterrupted for a signal before the first samples.
    """
    _check(prompts, samples)
    config = choose_engine(config)
    if config.model.path != "quickstart":
        check_path(config.model.path)
    quiet_transformers()
    task = make_task(config)
    world = start_world(config.dist, config.model.device)
    if world.is_distributed:
        raise ValueError(f"srt-fast probe: expected one process, got {world.size} of torchrun")
    with contextlib.ExitStack() as resources:
        signals = resources.enter_context(InterruptHandler())
        progress = resources.enter_context(RunProgress(quiet=quiet))
        policy = load_policy(starting_model(config, progress, signals.check), config.model)
        file = None
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            file = resources.enter_context(open(folder / "samples.jsonl", "w", encoding="utf-8"))
        log_folder = folder or _log_folder(config, progress)
        sampler = make_sampler(config, policy, folder=log_folder, checkpoint=signals.check)
        resources.callback(sampler.close)
        drawn = PromptSampler(config, task, policy, sampler, samples, file).draw(
            prompts, progress, signals.check
        )
        sampler.sleep()
        training, interrupt = _train(config, policy, drawn, progress, signals)
    return _judge(config, policy.device, drawn, training, interrupt, task.train_has_gold)


def _check(prompts: int, samples: int) -> None:
    if prompts < 1:
        raise ValueError(f"--prompts: expected at least 1, got {prompts}")
    if samples < SMALLEST_SAMPLES or samples % 2:
        raise ValueError(
            f"--samples: expected an even number of at least {SMALLEST_SAMPLES}, got {samples}"
        )


def _log_folder(config: Config, progress: RunProgress) -> Path | None:
    """A new temporary folder for vLLM's log, if vLLM samples in this process."""
    if config.sampling.engine != "vllm" or config.vllm.mode != "colocate":
        return None
    folder = Path(tempfile.mkdtemp(prefix="srt-fast-probe-"))
    progress.note(f"sampling with vLLM, whose log is {folder / 'vllm.log'}")
    return folder


def _train(
    config: Config,
    policy: Policy,
    drawn: Samples,
    progress: RunProgress,
    signals: InterruptHandler,
) -> tuple[Cost | None, RunInterrupted | None]:
    """The cost of a training step of train.prompts_per_step prompts, and the signal that came."""
    if drawn.interrupt:
        return None, drawn.interrupt
    rollouts = first_groups(drawn.rollouts, config.train.prompts_per_step)
    keys = drawn.keys[: config.train.prompts_per_step].flatten().to(policy.device)
    vote = majority_vote(keys, rollouts.cu_groups, share_over=config.reward.share_over)
    progress.phase("one training step", 1, [])
    try:
        cost = measure_training(config, policy, rollouts, vote, signals.check)
    except RunInterrupted as interrupt:
        return None, interrupt
    progress.update(1)
    return cost, None


def _judge(
    config: Config,
    device: torch.device,
    drawn: Samples,
    training: Cost | None,
    interrupt: RunInterrupted | None,
    trains_with_gold: bool,
) -> Probe:
    """Figures and advice."""
    ballots = count_votes(drawn.keys, drawn.correct, config.reward.share_over)
    vote = vote_figures(drawn.keys, ballots)
    gold = gold_figures(ballots)
    unread = _mean(drawn.keys == 0)
    truncated = _mean(drawn.rollouts.truncated.view(drawn.keys.shape))
    advice = advise(
        vote,
        gold,
        unread=unread.value,
        truncated=truncated.value,
        trains_with_gold=trains_with_gold,
        can_average=config.model.dtype == "float32" or config.model.lora.r > 0,
    )
    values = to_dict(config)
    settings = {name: values[name] for name in ("model", "task", "sampling", "reward")}
    return Probe(
        settings=settings | {"seed": config.train.seed},
        machine=_machine(device),
        prompts=len(ballots),
        samples=drawn.keys.shape[1],
        prompts_too_long=drawn.prompts_too_long,
        interrupted=str(interrupt) if interrupt else None,
        unread=unread,
        truncated=truncated,
        vote=vote,
        gold=gold,
        sampling=drawn.cost,
        training=training,
        step=_step(drawn.cost, training, advice, vote.mixed, config.train.objective),
        advice=advice,
        rows=[make_row(*row) for row in zip(ballots, drawn.answers, drawn.problems, strict=True)],
    )


def _step(
    sampling: Cost,
    training: Cost | None,
    advice: Advice,
    mixed: dict[int, Estimate],
    objective: str,
) -> StepCost | None:
    if training is None:
        return None
    group_size = advice.group_size.value
    prompts = advice.prompts_per_step.value
    assert isinstance(group_size, int) and isinstance(prompts, int)
    fraction = mixed[group_size].value
    taught = 1.0 if objective == "sft" else fraction
    return scale_to_step(
        sampling,
        training,
        prompts=prompts,
        group_size=group_size,
        taught=taught if advice.design.value == "ema" else 0.0,
        mixed=fraction,
    )


def _mean(flags: Tensor) -> Estimate:
    """Of flags [P, K]."""
    return estimate(flags.double().mean(1).tolist())


def _machine(device: torch.device) -> dict[str, Any]:
    is_cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if is_cuda else platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
