"""Settings of sampling, and of the vLLM engine."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from srt_fast.config.fields import (
    Fraction,
    NonNegative,
    Positive,
    PositiveFloat,
    Table,
    check_no_password,
    section,
)


@section("sampling.")
class SamplingConfig:
    """How completions are sampled for training."""

    group_size: Annotated[int, Field(ge=2)] = 16
    """Completions per prompt, at least 2. A group of one has no majority and no advantage."""
    temperature: PositiveFloat = 1.0
    """Sampling temperature. The loss uses the same one."""
    max_prompt_tokens: Positive = 1024
    """Longest prompt. Longer prompts are dropped and counted. If all prompts are longer, that is an
    error."""
    max_new_tokens: Positive = 1024
    """Longest completion. Truncated completions are counted. reward.truncated says how they
    vote."""
    max_sequences: Positive = 512
    """Sequences that are sampled at the same time. Limits the size of the KV cache."""
    engine: Literal["auto", "hf", "vllm"] = "auto"
    """What samples. "hf": the trained model itself. "vllm": vLLM with the weights of every step,
    whose log-probs are checked against the trainer's (see vllm). "auto": vLLM if it is installed,
    else hf. The run's config.json says which one it was."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Nucleus sampling in training. 1: off. Needs allow_truncation."""
    top_k: NonNegative = 0
    """Sample from the k likeliest tokens in training. 0: off. Needs allow_truncation."""
    min_p: Fraction = 0.0
    """Smallest probability of a sampled token in training, as a fraction of the likeliest token's.
    0: off. Needs allow_truncation."""
    allow_truncation: bool = False
    """Accept the bias of top_p, top_k and min_p: the sampler normalises over fewer tokens than the
    trainer, which biases the ratio of their probabilities."""

    def __post_init__(self) -> None:
        truncations = []
        for name, off in (("top_p", 1), ("top_k", 0), ("min_p", 0)):
            value = getattr(self, name)
            if value != off:
                truncations.append(f"{name}={value}")
        if truncations and not self.allow_truncation:
            raise ValueError(
                f"sampling.allow_truncation: expected True with {', '.join(truncations)}, because "
                "truncated sampling biases the ratio of trainer and sampler, got False"
            )


@section("vllm.")
class VLLMConfig:
    """The vLLM engine. Used only if sampling.engine is "vllm", or "auto" with vLLM installed."""

    mode: Literal["colocate", "server"] = "colocate"
    """Where vLLM runs. "colocate": in the trainer's process, on its device. "server": engines that
    were started with `vllm serve`, over HTTP."""
    urls: tuple[str, ...] = ()
    """Servers to use, such as http://localhost:8000 (mode server). Prompts are spread over them.
    The documentation says how to start one."""
    transfer: Literal["auto", "nccl", "disk"] = "auto"
    """How weights reach servers: "nccl", or "disk" (a folder that both sides see). "auto": nccl if
    the model is on CUDA, else disk."""
    transfer_dir: str | None = None
    """Folder for transfer "disk". None: weights/ in the run's folder. srt-fast eval then uses
    srt-fast-weights in the system's temporary folder."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, lt=1)] = 0.45
    """Fraction of the GPU's memory for vLLM's weights and KV cache (colocate)."""
    kv_cache_gib: PositiveFloat | None = None
    """Size of the KV cache in GiB. None: what gpu_memory_utilization leaves on a GPU, 1 on a
    CPU."""
    sleep: bool = True
    """Free vLLM's weights and KV cache during the training pass (colocate, GPU)."""
    one_step_off: bool = False
    """Sample the next batch while this one trains, with the weights of the step before. Meant for
    engines that do not share the trainer's device. The loss then corrects by token_truncate, unless
    train.objective_overrides sets correction."""
    check_prompts: Positive = 4
    """Held-out prompts of the check after every sync. Trainer and sampler both score the sampled
    tokens."""
    check_tokens: Positive = 32
    """Longest completion in that check."""
    max_logprob_mismatch: PositiveFloat | None = None
    """Largest allowed difference, in nats, between vLLM's and the trainer's log-prob of a token. A
    larger one stops the run. None: 1e-3 in float32, no limit in bfloat16."""
    mean_logprob_mismatch: PositiveFloat | None = None
    """Largest allowed mean of that difference over tokens, in nats. None: no limit in float32, 0.1
    in bfloat16."""
    timeout: PositiveFloat = 600.0
    """Seconds without a finished prompt, or without a server's answer, after which the engine
    counts as stuck."""
    start_timeout: PositiveFloat = 1800.0
    """Seconds that the engine may take to start or to load weights."""
    engine_args: Table = Field(default_factory=dict)
    """More arguments of vllm.LLM, such as enforce_eager=true (colocate)."""

    def __post_init__(self) -> None:
        check_no_password("vllm.urls", self.urls)  # first: the errors below show the URLs
        if self.mode == "server" and not self.urls:
            raise ValueError(
                "vllm.urls: expected at least one server with vllm.mode='server', got none"
            )
        if self.mode == "colocate" and self.urls:
            raise ValueError(
                "vllm.mode: expected 'server' with vllm.urls, "
                f"got 'colocate' and {', '.join(self.urls)}"
            )
        malformed = [url for url in self.urls if not url.startswith(("http://", "https://"))]
        if malformed:
            raise ValueError(f"vllm.urls: expected http://host:port, got {', '.join(malformed)}")
