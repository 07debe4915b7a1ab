"""vLLM engines in processes of their own (`vllm serve`), on other GPUs or machines, as the sampler: token ids over HTTP.

A prompt with all of its samples is one request; prompt i goes to server i modulo their number, so that a run repeats.
Nothing is sent twice: a server that was restarted meanwhile holds other weights. So each sync gives the weights a name
(vLLM's weight version), which is asked for after every sample and salts the prefix cache. A restart, another run that
uses a server, or a cache that was not emptied cannot bring samples of other weights unnoticed.

Weights reach the servers over NCCL, or through a folder that both sides see. This file does not import vllm.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib.util
import shlex
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import torch
from safetensors import SafetensorError
from torch import Tensor

from srt_fast.config import SamplingConfig, VLLMConfig
from srt_fast.model.policy import Policy
from srt_fast.sampling.base import PendingRollouts, SamplerError, pack_completions
from srt_fast.sampling.http_pool import RequestError, RequestPool, first_line
from srt_fast.sampling.logprob_check import LogprobCheck
from srt_fast.sampling.vllm_common import POLL, VLLMSamplerBase
from srt_fast.types import Rollouts

IDLE = 10.0  # seconds that a server may take to end requests that were given up
SETTINGS = ("logprobs_mode", "generation_config")
"""What servers must run with as we would: log-probs of the distribution that is sampled from, and no settings of a model's."""


class ServerSampler(VLLMSamplerBase):
    """The servers at config.urls; they hold no weights of this run before the first `sync`.

    folder: the run's, where transfer "disk" makes a folder of its own (None: the system's temporary one). `checkpoint` is
    called while waiting; it may raise to leave early (a signal arrived). Raises SamplerError where a server cannot be
    reached, and ValueError for one of another model or with other settings; both say how to start it.
    """

    def __init__(
        self,
        policy: Policy,
        sampling: SamplingConfig,
        config: VLLMConfig,
        *,
        folder: Path | None = None,
        checkpoint: Callable[[], None] = lambda: None,
    ):
        super().__init__(policy, sampling, config, checkpoint)
        self._urls = [url.rstrip("/") for url in config.urls]
        self._nccl = config.transfer == "nccl" or (
            config.transfer == "auto" and policy.device.type == "cuda"
        )
        if self._nccl and importlib.util.find_spec("vllm") is None:
            raise ValueError(
                "vllm.transfer: 'nccl' needs the package vllm here too, which is not installed: "
                "pip install 'srt-fast[vllm]', or vllm.transfer='disk'"
            )
        shared = config.transfer_dir or (
            folder / "weights" if folder else Path(tempfile.gettempdir()) / "srt-fast-weights"
        )
        self._shared = Path(shared).expanduser().resolve()
        self._version: str | None = None  # name of the weights that every server holds
        self._running: RequestPool | None = None
        self._receivers: _Receivers | None = None
        self._gap = LogprobCheck(
            sampling.temperature,
            self._connect(),
            config.max_logprob_mismatch,
            config.mean_logprob_mismatch,
        )

    def sleep(self) -> None:
        """Nothing to free: the servers have devices of their own."""

    def sync(self, policy: Policy) -> None:
        """As Sampler.sync. What the servers remember of older weights, their prefix caches, is forgotten."""
        self._version, version = None, uuid.uuid4().hex
        if self._nccl:
            self._send_over_nccl(policy)
        else:
            self._send_through_folder(policy, self._shared / version)
        self._empty_prefix_caches()
        self._ask("/update_weight_version", {"new_version": version})
        self._version = version

    def close(self) -> None:
        """Give up what is being sampled and remove the folder for weights. The servers stay."""
        if self._running:
            self._running.cancel()
        with contextlib.suppress(OSError):  # there is none, or it holds what is not ours
            self._shared.rmdir()

    def _begin(
        self, prompts: list[list[int]], samples: int, params: list[dict[str, Any]]
    ) -> PendingRollouts:
        if self._version is None:
            raise SamplerError(
                "vLLM servers: they do not hold this run's weights, the last sync failed"
            )
        plain = {
            "repetition_penalty": 1.0,
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "return_token_ids": True,
            "return_tokens_as_token_ids": True,
            "cache_salt": self._version,
        }
        requests = self._running = RequestPool(
            [
                (
                    self._urls[index % len(self._urls)],
                    "/v1/completions",
                    {"prompt": prompt, **settings, **plain},
                )
                for index, (prompt, settings) in enumerate(zip(prompts, params, strict=True))
            ],
            read=_completions,
        )

        def wait(interruptible: bool = False) -> Rollouts:
            answers = self._wait(requests, "timeout", interruptible=interruptible)
            self._confirm_version()
            return self._pack(answers, prompts, samples)

        return PendingRollouts(wait, requests.cancel)

    def _probes(self, prompts: list[list[int]]) -> list[list[int]]:
        return [
            prompts[index % len(prompts)] for index in range(max(len(prompts), len(self._urls)))
        ]  # one for each server

    # ---- starting ----

    def _connect(self) -> torch.dtype:
        """What the servers compute in, once they are seen to fit this run."""
        ask = {
            "hint": lambda url: f". To start it: {self._command(url)}",
            "limit": "start_timeout",
            "interruptible": True,
        }
        configs = [
            answer["vllm_config"] for answer in self._ask("/server_info?config_format=json", **ask)
        ]
        size = self._policy.model.config.get_text_config().vocab_size

        def refusals(
            token: int,
        ) -> list[
            str | None
        ]:  # a token to stop at must be in the vocabulary, whose size none tells
            probe = {"prompt": [0], "max_tokens": 1, "stop_token_ids": [token]}
            answers = self._ask("/v1/completions", probe, allowed=(200, 400), **ask)
            return [answer.get("error", {}).get("message") for answer in answers]

        for url, config, last, beyond in zip(
            self._urls, configs, refusals(size - 1), refusals(size), strict=True
        ):
            wrong = self._misfits(config)
            if last or not beyond:
                wrong.append(
                    f"a model with a vocabulary of {size} tokens, got {last or 'a larger one'}"
                )
            if wrong:
                raise ValueError(
                    f"vllm.urls: {url}: expected {'; expected '.join(wrong)}. To start it: {self._command(url)}"
                )
        dtypes = [
            getattr(torch, config["model_config"]["dtype"].removeprefix("torch."))
            for config in configs
        ]
        return next((dtype for dtype in dtypes if dtype != self._policy.compute_dtype), dtypes[0])

    def _misfits(self, config: dict[str, Any]) -> list[str]:
        """What this run expects of a server's configuration and does not get."""
        model, transfer, ours = (
            config["model_config"],
            config["weight_transfer_config"],
            self._arguments(),
        )
        wrong = [
            f"{name} {ours[name]!r}, got {model[name]!r}"
            for name in SETTINGS
            if model[name] != ours[name]
        ]
        if model["max_model_len"] < ours["max_model_len"]:
            wrong.append(
                f"max_model_len of at least {ours['max_model_len']}, got {model['max_model_len']}"
            )
        if self._nccl and (transfer or {}).get("backend") != "nccl":
            wrong.append(f"weight_transfer_config with backend 'nccl', got {transfer}")
        if (
            config["device_config"]["device"] == "cpu"
            and self._policy.model.config.get_text_config().tie_word_embeddings
        ):
            wrong.append(
                "a head of its own with vLLM's CPU build, whose reload passes tied ones by, got tied embeddings"
            )
        return wrong

    def _command(self, url: str) -> str:
        """What starts a server for this run, as a shell takes it."""
        address, arguments = urlsplit(url), self._arguments()
        if self._nccl:
            arguments["weight_transfer_config"] = '{"backend": "nccl"}'
        words = [
            "vllm",
            "serve",
            self._policy.model.name_or_path,
            "--host",
            address.hostname,
            "--port",
            str(address.port),
        ]
        for name, value in arguments.items():
            flag = name.replace("_", "-")
            if name == "enable_chunked_prefill" and not value:
                words.append(f"--no-{flag}")
            elif value is True:
                words.append(f"--{flag}")
            elif value:
                words += [f"--{flag}", str(value)]
        return "VLLM_SERVER_DEV_MODE=1 " + shlex.join(words)

    # ---- weights ----

    def _send_through_folder(self, policy: Policy, folder: Path) -> None:
        """One copy, under a name that is new each time: network file systems remember old contents."""
        try:
            policy.save(folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(folder, ignore_errors=True)
            raise SamplerError(
                f"weights for vLLM servers: could not write {folder} (vllm.transfer_dir): {error}"
            ) from error
        hint = f". Does it see {self._shared} (vllm.transfer_dir)? A server that failed to load has no weights: start it anew"
        load = {"method": "reload_weights", "kwargs": {"weights_path": str(folder)}}
        try:
            self._ask("/collective_rpc", load, limit="start_timeout", hint=lambda url: hint)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _send_over_nccl(self, policy: Policy) -> None:
        """Sends in a thread of its own, because a broadcast to a server that died does not return."""
        receivers = self._receivers = self._receivers or _Receivers(
            partial(self._ask, limit="start_timeout")
        )
        future = _in_thread(lambda: receivers.send(policy))
        done, _ = concurrent.futures.wait(
            [future, receivers.failure], self._config.start_timeout, FIRST_COMPLETED
        )
        error = next((error for each in done if (error := each.exception())), None)
        if error or not done:
            why = (
                f"no end after {self._config.start_timeout:g} s (vllm.start_timeout)"
                if error is None
                else first_line(error)
            )
            raise SamplerError(f"weights for vLLM servers, over NCCL: {why}") from error

    def _empty_prefix_caches(self) -> None:
        deadline = time.monotonic() + IDLE
        while busy := [
            url
            for url, answer in zip(self._urls, self._ask("/reset_prefix_cache", {}), strict=True)
            if not answer["success"]
        ]:
            if time.monotonic() > deadline:
                raise SamplerError(
                    f"vLLM server {busy[0]}: expected it to be idle at a sync, got one that others use too"
                )
            time.sleep(POLL)  # requests that were given up may not have ended yet

    def _confirm_version(self) -> None:
        for url, answer in zip(self._urls, self._ask("/weight_info"), strict=True):
            if answer["weight_version"] != self._version:
                raise SamplerError(
                    f"vLLM server {url}: expected the weights of the last sync, got others: it was restarted, or "
                    "another run uses it"
                )

    # ---- requests ----

    def _ask(
        self,
        path: str,
        body: Any = None,
        *,
        allowed: tuple[int, ...] = (200,),
        limit: str = "timeout",
        hint: Callable[[str], str] = lambda url: "",
        interruptible: bool = False,
    ) -> list[Any]:
        """Every server's answer. `body`: a dict for all of them, or a list with one for each; None is a GET."""
        bodies = body if isinstance(body, list) else [body] * len(self._urls)
        requests = RequestPool(
            [(url, path, each) for url, each in zip(self._urls, bodies, strict=True)], allowed
        )
        return self._wait(requests, limit, hint, interruptible)

    def _wait(
        self,
        requests: RequestPool,
        limit: str,
        hint: Callable[[str], str] = lambda url: "",
        interruptible: bool = False,
    ) -> list[Any]:
        """All answers, in order. SamplerError where a request fails, or none ends for as long as config's `limit` says."""
        seconds = getattr(self._config, limit)
        try:
            while not requests.wait(POLL):
                if interruptible:
                    self._checkpoint()
                if time.monotonic() - requests.finished_at > seconds:
                    raise RequestError(
                        requests.unanswered(), f"no answer for {seconds:g} s (vllm.{limit})"
                    )
        except RequestError as error:
            raise SamplerError(f"vLLM server {error.url}: {error}{hint(error.url)}") from error
        finally:
            requests.cancel()
        return requests.answers()

    def _pack(
        self, answers: list[list[_Completion]], prompts: list[list[int]], samples: int
    ) -> Rollouts:
        completions = [each for answer in answers for each in answer * (samples // len(answer))]
        tokens, logprobs, truncated = (list(column) for column in zip(*completions, strict=True))
        rollouts = pack_completions(tokens, logprobs, truncated, prompts, samples)
        tensors = ("tokens", "logprobs", "cu_seqlens", "cu_groups", "truncated")
        return replace(
            rollouts, **{name: getattr(rollouts, name).to(self._policy.device) for name in tensors}
        )


class _Completion(NamedTuple):
    tokens: Tensor  # [n] int64
    logprobs: Tensor  # [n] fp32
    truncated: bool


def _completions(answer: dict[str, Any]) -> list[_Completion]:
    """A prompt's samples, out of JSON that takes fifty times their memory."""
    found = []
    for choice in answer["choices"]:
        tokens, logprobs, reason = (
            choice["token_ids"],
            choice["logprobs"]["token_logprobs"],
            choice["finish_reason"],
        )
        if len(tokens) != len(logprobs) or reason not in ("stop", "length"):
            raise ValueError(
                "expected a log-prob a token and finish_reason 'stop' or 'length', "
                f"got {len(tokens)} tokens, {len(logprobs)} log-probs, finish_reason {reason!r}"
            )
        found.append(
            _Completion(
                torch.tensor(tokens, dtype=torch.int64),
                torch.tensor(logprobs, dtype=torch.float32),
                reason == "length",
            )
        )
    return found


class _Receivers:
    """All servers as one receiver of weights: vLLM's VLLMWeightSyncClient. Their workers are ranks of one NCCL group, from 1
    on, server after server. `failure`: an exception once a server has failed."""

    def __init__(self, ask: Callable[..., list[Any]]):
        self._ask, self.failure, self._transfer = ask, Future(), None

    def send(self, policy: Policy) -> None:
        """Send a policy's weights; the first call opens the group."""
        if self._transfer is None:
            from srt_fast.sampling.vllm import nccl_transfer

            self._workers = [answer["world_size"] for answer in self._ask("/get_world_size")]
            self._transfer = nccl_transfer(policy, self, sum(self._workers))
        self._transfer(policy)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        before = [sum(self._workers[:index]) for index in range(len(self._workers))]
        self._tell(
            "/init_weight_transfer_engine",
            [
                {"init_info": init_info | {"rank_offset": init_info["rank_offset"] + workers}}
                for workers in before
            ],
        )

    def start_weight_update(self) -> None:
        self._tell("/start_weight_update", {})

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._tell("/update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._tell("/finish_weight_update", {"weight_version": weight_version})

    def _tell(self, path: str, body: Any) -> None:
        try:
            self._ask(path, body)
        except SamplerError as error:
            if not self.failure.done():
                self.failure.set_exception(error)
            raise


def _in_thread(function: Callable[[], None]) -> Future:
    """The function's end, in a daemon thread."""
    future: Future = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name="weights", daemon=True).start()
    return future
