"""Whether vLLM servers fit a run, and the command that starts one that does."""

from __future__ import annotations

import shlex
from typing import Any
from urllib.parse import urlsplit

import torch

from srt_fast.model.policy import Policy
from srt_fast.sampling.server_client import ServerClient

SERVER_SETTINGS = ("logprobs_mode", "generation_config")
"""Settings that must be this run's.

Log-probs must be those of the distribution that is sampled from, and the model's own generation
settings must not apply.
"""


class ServerCheck:
    """Compares servers with a run.

    Args:
        policy: The model that they are to sample from.
        arguments: vLLM's arguments that the run needs.
        with_nccl: Whether weights reach the servers over NCCL.
    """

    def __init__(self, policy: Policy, arguments: dict[str, Any], with_nccl: bool) -> None:
        self._policy = policy
        self._arguments = arguments
        self._with_nccl = with_nccl
        self._model_config = policy.model.config.get_text_config()

    def connect(self, client: ServerClient) -> torch.dtype:
        """Check every server. Returns what they compute in.

        If servers differ, returns a dtype that is not the policy's.

        Raises:
            SamplerError: A server does not answer. Says how to start it.
            ValueError: A server has another model or other settings. Says how to start it.
        """
        infos = client.ask(
            "/server_info?config_format=json",
            hint=self._start_hint,
            limit="start_timeout",
            interruptible=True,
        )
        configs = [info["vllm_config"] for info in infos]
        # No server tells the size of its vocabulary. It refuses a stop token outside of it.
        size = self._model_config.vocab_size
        last_refusals = self._refusals(client, size - 1)
        next_refusals = self._refusals(client, size)
        dtypes = []
        for index, (url, config) in enumerate(zip(client.urls, configs, strict=True)):
            mismatches = self._mismatches(config)
            if last_refusals[index] or not next_refusals[index]:
                size_text = last_refusals[index] or "a larger one"
                mismatches.append(f"a model with a vocabulary of {size} tokens, got {size_text}")
            if mismatches:
                expected = "; expected ".join(mismatches)
                raise ValueError(f"vllm.urls: {url}: expected {expected}{self._start_hint(url)}")
            dtypes.append(getattr(torch, config["model_config"]["dtype"].removeprefix("torch.")))
        other_dtypes = [dtype for dtype in dtypes if dtype != self._policy.compute_dtype]
        return other_dtypes[0] if other_dtypes else dtypes[0]

    def start_command(self, url: str) -> str:
        """The shell command that starts a server for this run."""
        address = urlsplit(url)
        arguments = dict(self._arguments)
        if self._with_nccl:
            arguments["weight_transfer_config"] = '{"backend": "nccl"}'
        words = ["vllm", "serve", self._policy.model.name_or_path]
        words += ["--host", str(address.hostname), "--port", str(address.port)]
        for name, value in arguments.items():
            flag = name.replace("_", "-")
            if name == "enable_chunked_prefill" and not value:
                words.append(f"--no-{flag}")
            elif value is True:
                words.append(f"--{flag}")
            elif value:
                words += [f"--{flag}", str(value)]
        return "VLLM_SERVER_DEV_MODE=1 " + shlex.join(words)

    def _start_hint(self, url: str) -> str:
        return f". To start it: {self.start_command(url)}"

    def _refusals(self, client: ServerClient, token: int) -> list[str | None]:
        """Each server's message if it refuses this stop token, else None."""
        answers = client.ask(
            "/v1/completions",
            {"prompt": [0], "max_tokens": 1, "stop_token_ids": [token]},
            allowed=(200, 400),
            hint=self._start_hint,
            limit="start_timeout",
            interruptible=True,
        )
        return [answer.get("error", {}).get("message") for answer in answers]

    def _mismatches(self, config: dict[str, Any]) -> list[str]:
        """What this run expects of a server's configuration and does not get."""
        model = config["model_config"]
        transfer = config["weight_transfer_config"]
        mismatches = []
        for name in SERVER_SETTINGS:
            if model[name] != self._arguments[name]:
                mismatches.append(f"{name} {self._arguments[name]!r}, got {model[name]!r}")
        max_model_len = self._arguments["max_model_len"]
        if model["max_model_len"] < max_model_len:
            mismatches.append(
                f"max_model_len of at least {max_model_len}, got {model['max_model_len']}"
            )
        if self._with_nccl and (transfer or {}).get("backend") != "nccl":
            mismatches.append(f"weight_transfer_config with backend 'nccl', got {transfer}")
        is_on_cpu = config["device_config"]["device"] == "cpu"
        if is_on_cpu and self._model_config.tie_word_embeddings:
            mismatches.append(
                "a head of its own with vLLM's CPU build, whose reload passes tied ones by, got "
                "tied embeddings"
            )
        return mismatches
