"""The parts of a run: how they are made, and their state in a checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from srt_fast import quickstart
from srt_fast.collapse.actions import CollapseHandler
from srt_fast.collapse.probe import CollapseProbe
from srt_fast.config import Config
from srt_fast.learner import Learner
from srt_fast.model.layer_kernels import describe_kernels
from srt_fast.model.loading import load_adapted, load_policy, load_reference
from srt_fast.model.lora import TEACHER
from srt_fast.model.policy import Policy
from srt_fast.rewards import RewardFunction
from srt_fast.rewards.base import EMATeacher, StartLabels, TokenCertainty, find_requirement
from srt_fast.rewards.inputs import RewardInputs
from srt_fast.rewards.pipeline import RewardPipeline
from srt_fast.run.checkpoint import random_state, set_random_state
from srt_fast.run.folder import RunFolder
from srt_fast.run.progress import RunProgress
from srt_fast.sampling import Sampler, make_sampler
from srt_fast.sampling.prefetch import BatchPrefetcher
from srt_fast.sampling.prompts import fitting_prompts
from srt_fast.supervised_replay import SupervisedReplay
from srt_fast.tasks.base import Task
from srt_fast.tasks.stream import PromptStream
from srt_fast.utilization.meter import Limit, StepMeter
from srt_fast.utilization.model_cost import UnknownCostError, largest_matrix, model_cost
from srt_fast.utilization.rates import measure_rates
from srt_kernels import AnswerReader


@dataclass(frozen=True, kw_only=True)
class RunParts:
    """What a run is made of, beside its folder and its task."""

    policy: Policy
    reader: AnswerReader
    sampler: Sampler
    prefetcher: BatchPrefetcher
    rewards: RewardPipeline
    learner: Learner
    replay: SupervisedReplay
    collapse: CollapseHandler
    meter: StepMeter
    check_prompts: list[list[int]]  # token ids of the prompts that the sampler is checked on

    def position(self) -> dict[str, Any]:
        """What a step changes before its first update: enough to run the step again."""
        return {
            "random": random_state(),
            "prefetcher": self.prefetcher.state_dict(),
            "rewards": self.rewards.state_dict(),
            "replay": self.replay.state_dict(),
        }

    def rewind(self, position: dict[str, Any]) -> None:
        """The inverse of position."""
        # First: a sampler that still runs may draw from the same random generator.
        self.prefetcher.load_state_dict(position["prefetcher"])
        set_random_state(position["random"])
        self.rewards.load_state_dict(position["rewards"])
        self.replay.load_state_dict(position["replay"])

    def state_dict(self) -> dict[str, Any]:
        """Everything but the policy's weights."""
        return {
            "position": self.position(),
            "learner": self.learner.state_dict(),
            "collapse": self.collapse.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.collapse.load_state_dict(state["collapse"])
        self.rewind(state["position"])
        self.learner.load_state_dict(state["learner"])


def make_parts(
    config: Config,
    task: Task,
    function: RewardFunction,
    run: RunFolder,
    resources: contextlib.ExitStack,
) -> RunParts:
    """Load the models and make the parts. `resources` closes them.

    Loads the policy from the run's last checkpoint if there is one. Raises ValueError for a model
    that cannot be loaded or does not fit the reward function.
    """
    check = run.check
    policy, start, ema = _load_models(config, function, run)
    run.progress.note(describe_kernels(policy))
    meter = StepMeter(policy.device)
    reader = AnswerReader(policy.tokenizer, config.task.answer_rule)
    _note_engine(config, run)
    stop_sampling = run.interrupts.check  # not collective: ranks sample without each other
    sampler = make_sampler(config, policy, folder=run.folder, checkpoint=stop_sampling)
    resources.callback(sampler.close)
    reference = start if _has_kl(config) else None
    learner = Learner(config, policy, reference, check, meter)
    inputs = RewardInputs(
        config, policy, sampler, reader, check, stop_sampling, start=start, ema=ema, meter=meter
    )
    rewards = RewardPipeline(config, task, policy, sampler, reader, inputs, function, meter)
    replay = SupervisedReplay(config.curriculum)
    stream = PromptStream(task, config.train.seed)
    prefetcher = BatchPrefetcher(config, stream, policy, sampler, learner.set_reference)
    resources.callback(prefetcher.close)
    probe = None
    if config.monitor.every:
        probe = CollapseProbe(config, task, policy, sampler, reader, check)
    collapse = CollapseHandler(
        config.monitor,
        probe,
        run=run,
        policy=policy,
        sampler=sampler,
        prefetcher=prefetcher,
        rewards=rewards,
        learner=learner,
        replay=replay,
    )
    check_problems = task.held_out(config.evaluation.prompts)
    _, check_prompts = fitting_prompts(check_problems, config, policy)
    return RunParts(
        policy=policy,
        reader=reader,
        sampler=sampler,
        prefetcher=prefetcher,
        rewards=rewards,
        learner=learner,
        replay=replay,
        collapse=collapse,
        meter=meter,
        check_prompts=check_prompts[: config.vllm.check_prompts],
    )


def starting_model(
    config: Config, progress: RunProgress, check: Callable[[], None] = lambda: None
) -> str:
    """The path of the model to load: model.path, or the folder of the embedded model.

    Warm-starts the embedded model first if there is none in the cache.
    """
    if config.model.path != "quickstart":
        return config.model.path
    low = config.warm_start.pass1_low
    high = config.warm_start.pass1_high
    title = f"warm start (until pass@1 {low:g} to {high:g})"
    progress.phase(title, None, ["pass1", "loss", "tokens_per_second"])
    return str(quickstart.ensure_warm_started(config, progress.update, check))


def measure_limit(config: Config, policy: Policy, run: RunFolder, step: int) -> Limit | None:
    """What steps are compared with, measured now. Logs the rates, or why there are none.

    None without log.mfu, and for a model whose FLOPs are not understood. Collective.
    """
    if not config.log.mfu:
        return None
    try:
        cost = model_cost(policy)
    except UnknownCostError as error:
        run.event(step, "no_mfu", f"{type(policy.model).__name__}: no FLOPs are counted: {error}")
        return None
    weights = cost.weights + cost.head_weights
    dtype = policy.compute_dtype
    rates = measure_rates(largest_matrix(policy), weights, dtype, policy.device, run.world)
    message = (
        f"measured on {rates.device}: {rates.flops / 1e12:,.3f} TFLOP/s in {rates.product}, "
        f"{rates.bandwidth / 1e9:,.1f} GB/s in a copy"
    )
    figures = {"gemm_flops_per_second": rates.flops, "copy_bytes_per_second": rates.bandwidth}
    run.event(step, "device_rates", message, **figures)
    samples_elsewhere = bool(config.vllm.urls) or config.vllm.one_step_off
    samples_ahead = config.train.rounds > 0
    tensor_parallel = config.vllm.engine_args.get("tensor_parallel_size", 1)
    return Limit(
        cost=cost,
        rates=rates,
        element_bytes=dtype.itemsize,
        copies=max(1, run.world.size // tensor_parallel),
        shares_prompts=policy.shares_prompts,
        times_sampling=not (
            samples_ahead or (config.sampling.engine == "vllm" and samples_elsewhere)
        ),
    )


def _has_kl(config: Config) -> bool:
    return config.train.reward_kl_coef > 0 or config.objective().kl_coef > 0


def _load_models(
    config: Config, function: RewardFunction, run: RunFolder
) -> tuple[Policy, Policy | None, Policy | None]:
    """The policy, and if the run needs them: the starting model, a model for the EMA teacher."""
    labels = find_requirement(function, StartLabels)
    votes = labels is not None and labels.file is None
    needs_start = _has_kl(config) or votes or config.monitor.action == "freeze"
    needs_ema = find_requirement(function, EMATeacher) is not None
    checkpoint = run.last_checkpoint()
    start_path = None
    if needs_start or config.model.lora.r or not checkpoint:
        with run.world.agreement():
            start_path = starting_model(config, run.progress, run.interrupts.check)
    share_prompts = config.train.shared_prompt
    if config.model.lora.r:
        assert start_path is not None
        models = _load_adapted(config, start_path, run, with_teacher=needs_ema)
    else:
        policy_path = str(checkpoint / "model") if checkpoint else start_path
        assert policy_path is not None
        policy = load_policy(policy_path, config.model, run.world, share_prompts=share_prompts)
        start = None
        if needs_start:
            assert start_path is not None
            start = load_reference(start_path, config.model, run.world, share_prompts=share_prompts)
        ema = load_reference(policy_path, config.model, run.world) if needs_ema else None
        models = policy, start, ema
    if obstacle := models[0].sharing_obstacle:
        run.progress.note(
            f"train.shared_prompt: {obstacle}. A prompt is computed once for each completion"
        )
    softcap = models[0].head.softcap
    if find_requirement(function, TokenCertainty) and softcap is not None:
        raise ValueError(
            f"reward.kind: {config.reward.kind!r} expected a model without softcap on its logits, "
            f"got one of {softcap}"
        )
    return models


def _load_adapted(
    config: Config, start_path: str, run: RunFolder, *, with_teacher: bool
) -> tuple[Policy, Policy, Policy | None]:
    """As _load_models, of one model: the starting model is the policy without its adapter."""
    policy = load_adapted(
        start_path,
        config.model,
        run.world,
        with_teacher=with_teacher,
        share_prompts=config.train.shared_prompt,
    )
    if checkpoint := run.last_checkpoint():
        policy.load(checkpoint / "model")
    trained = sum(weight.numel() for weight in policy.own_weights().values())
    run.progress.note(f"LoRA: {trained:,} weights of adapters are trained")
    ema = None
    if with_teacher:
        ema = policy.view(TEACHER)
        ema.copy_adapter(policy)
    return policy, policy.view(None), ema


def _note_engine(config: Config, run: RunFolder) -> None:
    if config.sampling.engine == "vllm":
        urls = config.vllm.urls
        log_file = run.folder / "vllm.log"
        place = f" at {', '.join(urls)}" if urls else f", whose log is {log_file}"
        run.progress.note(f"sampling with vLLM{place}")
