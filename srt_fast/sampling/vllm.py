"""vLLM as the sampler. The one file that imports vllm (0.32 and 0.33).

The engine runs in this process, on the trainer's device. It starts with random weights: every weight it ever samples with
came through `sync`, from the trainer's own tensors on the same device (vLLM's layerwise reload takes one layer at a
time: no disk, no host copy, no staging buffer; merged projections and tied embeddings are its own business).

All calls of vLLM happen in one daemon thread. The trainer's thread waits with a bound, notices signals meanwhile, and may
train while the engine samples (`start`).
"""

from __future__ import annotations

import logging
import os
import queue
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable
from concurrent import futures
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from srt_fast.config import SamplingConfig, VLLMConfig
from srt_fast.model.policy import Policy
from srt_fast.sampling.base import PendingRollouts, SamplerError, pack_completions
from srt_fast.sampling.logprob_check import LogprobCheck
from srt_fast.sampling.vllm_common import POLL, VLLMSamplerBase
from srt_fast.types import Rollouts

GRACE = 15.0  # seconds that an engine gets to drop its requests or to shut down
DERIVED = (".W_UK_T", ".W_UV")  # parameters that vLLM makes of others (MLA)


class VLLMSampler(VLLMSamplerBase):
    """A vLLM engine in this process. Holds no weights before the first `sync`.

    log_file: where vLLM's own log goes (None: errors to stderr). `checkpoint` is called while waiting; it may raise
    to leave early (a signal arrived). Raises SamplerError where the engine cannot start.
    """

    def __init__(
        self,
        policy: Policy,
        sampling: SamplingConfig,
        config: VLLMConfig,
        *,
        log_file: Path | None = None,
        checkpoint: Callable[[], None] = lambda: None,
    ):
        super().__init__(policy, sampling, config, checkpoint)
        self._log_file = log_file
        self._sleeps = config.sleep and policy.device.type == "cuda"
        self._asleep, self._stop, self._broken = False, threading.Event(), None
        self._finished_at = time.monotonic()
        self._thread = _EngineThread()
        try:
            self._wait(
                self._thread.submit(self._start_engine),
                config.start_timeout,
                "starting",
                interruptible=True,
            )
        except BaseException:
            self._thread.submit(None)
            raise

    # ---- the sampler's interface: the trainer's thread ----

    def sleep(self) -> None:
        """Free the engine's weights and KV cache (on a GPU): the next sync brings both back."""
        if self._sleeps and not self._asleep:
            self._call(lambda: self._llm.sleep(level=2), "falling asleep")
            self._asleep = True

    def sync(self, policy: Policy) -> None:
        """As Sampler.sync. What the engine remembers of older weights, its prefix cache, is forgotten."""
        self._call(lambda: self._load(policy.weights()), "loading weights")
        self._asleep = False

    def close(self) -> None:
        """Shut the engine down; what it samples is dropped. Does not fail: an engine that hangs ends with the process."""
        self._stop.set()
        futures.wait([self._thread.submit(self._shut_down)], GRACE)
        self._thread.submit(None)

    def _begin(
        self, prompts: list[list[int]], samples: int, params: list[dict[str, Any]]
    ) -> PendingRollouts:
        state = (
            torch.get_rng_state()
        )  # vLLM's CPU sampler draws from the same generator, and then not from what it drew
        self._finished_at = time.monotonic()
        future = self._thread.submit(lambda: self._generate(prompts, params))

        def wait(interruptible: bool = False) -> Rollouts:
            outputs = self._wait(
                future,
                self._config.timeout,
                "sampling",
                interruptible,
                since=lambda: self._finished_at,
            )
            torch.set_rng_state(state)
            return self._pack(outputs, prompts, samples)

        return PendingRollouts(wait, lambda: self._abandon(future))

    # ---- waiting ----

    def _call(self, function: Callable[[], Any], what: str) -> Any:
        return self._wait(self._thread.submit(function), self._config.start_timeout, what)

    def _wait(
        self,
        future: Future,
        timeout: float,
        what: str,
        interruptible: bool = False,
        since: Callable[[], float] | None = None,
    ) -> Any:
        """The future's result. Whatever vLLM raises becomes a SamplerError, and so does a wait of more than `timeout`
        seconds (after `since()`, if given)."""
        if self._broken:
            raise SamplerError(self._broken)
        started = time.monotonic()
        while not futures.wait([future], POLL).done:
            try:
                self._checkpoint()
            except BaseException:
                if interruptible:
                    self._abandon(future)
                    raise
                timeout = min(timeout, GRACE)  # asked to leave while a step is being finished
            if time.monotonic() - (since() if since else started) > timeout:
                name = "vllm.timeout" if since else "vllm.start_timeout"
                self._broken = (
                    f"vLLM was {what} and gave nothing for {timeout:g} s ({name}){self._log_hint()}"
                )
                raise SamplerError(self._broken)
        if error := future.exception():
            self._broken = self._explain(error, what)
            raise SamplerError(self._broken) from error
        return future.result()

    def _abandon(self, future: Future) -> None:
        """Have the engine drop its requests, so that it can be used again; one that does not within seconds is given up."""
        self._stop.set()
        if futures.wait([future], GRACE).done:
            self._stop.clear()
        else:
            self._broken = f"vLLM did not stop within {GRACE:g} s{self._log_hint()}"

    def _explain(self, error: BaseException, what: str) -> str:
        line = (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")
        memory = isinstance(error, torch.OutOfMemoryError) or "memory" in line.lower()
        hint = (
            " (vllm.gpu_memory_utilization, vllm.kv_cache_gib and sampling.max_sequences say what it takes)"
            if memory
            else ""
        )
        return f"vLLM failed while {what}: {type(error).__name__}: {line}{hint}{self._log_hint()}"

    def _log_hint(self) -> str:
        return f"; its log is {self._log_file}" if self._log_file else ""

    # ---- the engine: its own thread ----

    def _start_engine(self) -> None:
        on_cpu = self._policy.device.type == "cpu"
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = (
            "0"  # one process: weights are handed over as they are
        )
        if on_cpu:
            os.environ.setdefault(
                "VLLM_CPU_OMP_THREADS_BIND", "nobind"
            )  # or vLLM would bind the trainer's threads too
        _log_to(self._log_file)
        set_num_threads = (
            torch.set_num_threads
        )  # vLLM's CPU worker replaces it, for the whole process
        from vllm import LLM

        with tempfile.TemporaryDirectory() as folder:
            self._policy.save_config(Path(folder))
            arguments = self._arguments() | {
                "model": folder,
                "load_format": "dummy",
                "gpu_memory_utilization": self._config.gpu_memory_utilization,
                "enable_sleep_mode": self._sleeps,
                "enforce_eager": on_cpu,
                "disable_log_stats": True,
                "seed": 0,
            }
            # For some models vLLM runs transformers' own class, decorated: instances made before, as ours, lack this attribute.
            type(self._policy.model.base_model).do_not_compile = True
            try:
                with warnings.catch_warnings():  # it names what torch has deprecated
                    warnings.simplefilter("ignore")
                    self._llm = LLM(**(arguments | self._config.engine_args))
            finally:
                torch.set_num_threads = set_num_threads
        self._engine = self._llm.llm_engine
        self._gap = LogprobCheck(
            self._sampling.temperature,
            self._engine.model_config.dtype,
            self._config.max_logprob_mismatch,
            self._config.mean_logprob_mismatch,
        )

    def _generate(self, prompts: list[list[int]], params: list[dict]) -> list:
        """vLLM's outputs in the prompts' order; None where it was told to stop."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        outputs: dict[int, Any] = {}
        for index, (prompt, settings) in enumerate(zip(prompts, params, strict=True)):
            self._engine.add_request(
                str(index),
                tokens_input(prompt),
                SamplingParams(
                    **settings,
                    flat_logprobs=True,
                    detokenize=False,
                    output_kind=RequestOutputKind.FINAL_ONLY,
                ),
            )
        try:
            while self._engine.has_unfinished_requests():
                if self._stop.is_set():
                    return []
                for output in self._engine.step():
                    if output.finished:
                        outputs[int(output.request_id)] = output
                        self._finished_at = time.monotonic()
        finally:
            if left := [str(index) for index in range(len(prompts)) if index not in outputs]:
                self._engine.abort_request(left)
        return [outputs[index].outputs for index in range(len(prompts))]

    def _load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        from vllm.model_executor.model_loader.reload import (
            finalize_layerwise_reload,
            initialize_layerwise_reload,
        )

        if self._asleep:
            self._llm.wake_up(tags=["weights"])

        def load(model: torch.nn.Module) -> set[str]:
            wanted = {name for name, _ in model.named_parameters()}
            initialize_layerwise_reload(model)
            loaded = model.load_weights((name, weight.detach()) for name, weight in weights)
            finalize_layerwise_reload(model, self._engine.model_config)
            _repack_tied(model)
            return {name for name in wanted - loaded if not name.endswith(DERIVED)}

        if self._policy.device.type == "cuda":
            torch.cuda.synchronize()  # the optimizer's step is over before its weights are read
        [missing] = self._llm.apply_model(load)
        if self._policy.device.type == "cuda":
            torch.cuda.synchronize()
        if missing:
            raise RuntimeError(
                f"expected the trainer's weights to fill the engine's model, got none for {sorted(missing)[:5]}"
            )
        if self._asleep:
            self._llm.wake_up(tags=["kv_cache"])
        if not self._llm.reset_prefix_cache():
            raise RuntimeError(
                "expected an idle engine, whose prefix cache can be reset, got a busy one"
            )

    def _shut_down(self) -> None:
        from vllm.distributed import cleanup_dist_env_and_memory

        self._engine.engine_core.shutdown()
        del self._llm, self._engine
        cleanup_dist_env_and_memory()

    # ---- results ----

    def _pack(self, outputs: list, prompts: list[list[int]], samples: int) -> Rollouts:
        device, completions = self._policy.device, []
        for group in outputs:
            completions += group * (samples // len(group))
        for completion in completions:
            if len(completion.logprobs.logprobs) != len(completion.token_ids):
                raise SamplerError(
                    f"vLLM: expected one log-prob a token, got {len(completion.logprobs.logprobs)} for "
                    f"{len(completion.token_ids)} tokens"
                )
        return pack_completions(
            [
                torch.tensor(completion.token_ids, dtype=torch.int64, device=device)
                for completion in completions
            ],
            [
                torch.tensor(completion.logprobs.logprobs, dtype=torch.float32, device=device)
                for completion in completions
            ],
            [completion.finish_reason != "stop" for completion in completions],
            prompts,
            samples,
        )


def _repack_tied(model: torch.nn.Module) -> None:
    """A head tied to the embeddings is no weight of its own, so vLLM's reload passes it by; but its CPU build multiplies
    with a packed copy, which is made anew here. (With 0.32 on a CPU the head would stay what it was.)"""
    seen = set()
    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is not None and id(weight) in seen and hasattr(module, "quant_method"):
            module.quant_method.process_weights_after_loading(module)
        seen.add(id(weight))


class _EngineThread:
    """Runs functions one after the other in a daemon thread: one that hangs does not keep the process alive."""

    def __init__(self):
        self._jobs: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._run, name="vllm", daemon=True).start()

    def submit(self, function: Callable[[], Any] | None) -> Future:
        """The function's result to be; None ends the thread."""
        future: Future = Future()
        self._jobs.put((future, function))
        return future

    def _run(self) -> None:
        while True:
            future, function = self._jobs.get()
            if function is None:
                return
            try:
                future.set_result(function())
            except BaseException as error:
                future.set_exception(error)
            del future, function  # or the last result would live until the next call


def _log_to(file: Path | None) -> None:
    """vLLM's log to a file, instead of to standard output, whose last line is ours."""
    os.environ["VLLM_CONFIGURE_LOGGING"] = "0"
    logger = logging.getLogger("vllm")
    for old in list(logger.handlers):
        logger.removeHandler(old)
        old.close()
    handler = logging.FileHandler(file) if file else logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if file else logging.ERROR)
    logger.propagate = False


def nccl_transfer(policy: Policy, client: Any, workers: int) -> Callable[[Policy], None]:
    """Join the trainer, rank 0, with `workers` workers of vLLM servers in an NCCL group. The function that is returned sends
    the present weights of a policy: this one, or a teacher of its architecture. client: reaches the servers (vLLM's
    VLLMWeightSyncClient).

    Written for vLLM 0.32 and 0.33 from their sources. It has not been run: that takes two GPUs.
    """
    _log_to(None)
    from vllm.distributed.weight_transfer import ModuleSource, WeightTransferTrainerFactory
    from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
    from vllm.utils.network_utils import get_ip, get_open_port

    class Weights:  # of a module, ModuleSource wants this method alone, in 0.32 and in 0.33, whose other sources differ
        current = policy

        def named_parameters(self) -> Iterable[tuple[str, Tensor]]:
            return ((name, weight.detach()) for name, weight in self.current.weights())

    weights = Weights()

    with torch.cuda.device(policy.device):
        engine = WeightTransferTrainerFactory.trainer_init(
            init_info=NCCLTrainerInitInfo(
                master_address=get_ip(), master_port=get_open_port(), world_size=1 + workers, rank=0
            ),
            client=client,
            source=ModuleSource(weights),
        )

    def send(current: Policy) -> None:
        weights.current = current
        with torch.cuda.device(policy.device):
            torch.cuda.synchronize()  # the optimizer's step is over before its weights are read, on other streams
            engine.send_weights()

    return send
