"""vLLM 0.32 and 0.33: an engine in this process, and weights for engines elsewhere.

This is the one file that imports vllm. It imports it inside functions, because vllm is optional and
reads environment variables that must be set before.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
import threading
import time
import warnings
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from srt_fast.model.policy import Policy

DERIVED_PARAMETERS = (".W_UK_T", ".W_UV")
"""Endings of parameters that vLLM computes from others (MLA)."""
CPU_BLOCK_SIZE = 32
"""Tokens of a KV block on a CPU, the least that vLLM takes there. Its default is 128. Only whole
blocks of a prompt are computed once for all completions of it."""


class VLLMEngine:
    """A vLLM engine in this process, on the policy's device.

    It starts with random weights. All weights that it samples with come through `load_weights`. All
    methods must run in the thread that made it.

    Args:
        policy: The model to serve. Only its architecture is read here.
        arguments: Arguments of vllm.LLM. They override those that this class sets.
        can_sleep: Whether `sleep` will be called. Needs a GPU.
        log_file: Where vLLM's log goes. None: only errors, to stderr.
    """

    def __init__(
        self, policy: Policy, arguments: dict[str, Any], *, can_sleep: bool, log_file: Path | None
    ) -> None:
        is_on_cpu = policy.device.type == "cpu"
        self._is_on_cuda = policy.device.type == "cuda"
        self.is_asleep = False
        self.last_completion_at = time.monotonic()
        """time.monotonic() when a prompt's completions ended last. Other threads may read it."""
        # One process: the engine must see the trainer's tensors.
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
        if is_on_cpu:
            # vLLM would bind the trainer's threads to cores too.
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        _configure_log(log_file)
        # vLLM's CPU worker replaces this function for the whole process.
        set_num_threads = torch.set_num_threads
        from vllm import LLM

        # For some models vLLM decorates and runs transformers' own class. The policy's instance was
        # made before and lacks this attribute, which the decorated class reads.
        cast(Any, type(policy.model.base_model)).do_not_compile = True
        with tempfile.TemporaryDirectory() as folder:
            policy.save_config(Path(folder))
            defaults = {
                "model": folder,
                "load_format": "dummy",
                "enable_sleep_mode": can_sleep,
                "enforce_eager": is_on_cpu,
                "disable_log_stats": True,
                "seed": 0,
                "use_tqdm_on_load": False,
            }
            if is_on_cpu:
                defaults["block_size"] = CPU_BLOCK_SIZE
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # vLLM uses what torch has deprecated
                    self._llm = LLM(**(defaults | arguments))
            finally:
                torch.set_num_threads = set_num_threads
        self._engine: Any = self._llm.llm_engine

    @property
    def dtype(self) -> torch.dtype:
        """What the engine computes in."""
        return self._engine.model_config.dtype

    def generate(
        self,
        prompts: list[list[int]],
        settings: list[dict[str, Any]],
        stop_requested: threading.Event,
    ) -> list[list[Any]]:
        """vLLM's completions of each prompt. Returns [] and drops all of them on `stop_requested`.

        Empties the prefix cache first. It may be of older weights. And log-probs must not depend on
        earlier calls, to the bit: a resumed run has made none.

        settings: the arguments of vllm.SamplingParams for each prompt.
        """
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        if not self._llm.reset_prefix_cache():
            raise RuntimeError(
                "expected an idle engine, whose prefix cache can be reset, got a busy one"
            )
        for index, (prompt, prompt_settings) in enumerate(zip(prompts, settings, strict=True)):
            params = SamplingParams(
                **prompt_settings,
                flat_logprobs=True,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
            )
            self._engine.add_request(str(index), tokens_input(prompt), params)
        outputs: dict[int, list[Any]] = {}
        try:
            while self._engine.has_unfinished_requests():
                if stop_requested.is_set():
                    return []
                for output in self._engine.step():
                    if output.finished:
                        outputs[int(output.request_id)] = output.outputs
                        self.last_completion_at = time.monotonic()
        finally:
            unfinished = [str(index) for index in range(len(prompts)) if index not in outputs]
            if unfinished:
                self._engine.abort_request(unfinished)
        return [outputs[index] for index in range(len(prompts))]

    def load_weights(self, policy: Policy) -> None:
        """Copy the policy's weights into the engine.

        vLLM's layerwise reload reads the policy's own tensors and takes one layer at a time. There
        is no disk, no host copy and no staging buffer. vLLM itself merges projections and ties
        embeddings.
        """
        if self.is_asleep:
            self._llm.wake_up(tags=["weights"])
        self._synchronize()  # the optimizer's step must end before its weights are read
        [missing] = self._llm.apply_model(partial(self._reload, policy=policy))
        self._synchronize()
        if missing:
            raise RuntimeError(
                "expected the trainer's weights to fill the engine's model, got none for "
                f"{sorted(missing)[:5]}"
            )
        if self.is_asleep:
            self._llm.wake_up(tags=["kv_cache"])
        self.is_asleep = False

    def sleep(self) -> None:
        """Free the weights and the KV cache. The next `load_weights` brings both back."""
        self._llm.sleep(level=2)
        self.is_asleep = True

    def shut_down(self) -> None:
        """Release all that the engine holds."""
        from vllm.distributed import cleanup_dist_env_and_memory

        self._engine.engine_core.shutdown()
        del self._llm, self._engine
        cleanup_dist_env_and_memory()

    def _reload(self, model: Any, policy: Policy) -> set[str]:
        """Load the policy's weights into vLLM's module. Returns the parameters that got none."""
        from vllm.model_executor.model_loader.reload import (
            finalize_layerwise_reload,
            initialize_layerwise_reload,
        )

        names = {name for name, _ in model.named_parameters()}
        initialize_layerwise_reload(model)
        weights = policy.weights(self.dtype)
        try:
            loaded = model.load_weights(weights)
        finally:
            for _ in weights:  # after an error the other ranks still gather them
                pass
        finalize_layerwise_reload(model, self._engine.model_config)
        _repack_tied_head(model)
        return {name for name in names - loaded if not name.endswith(DERIVED_PARAMETERS)}

    def _synchronize(self) -> None:
        if self._is_on_cuda:
            torch.cuda.synchronize()


class NCCLWeightSender:
    """Sends weights to vLLM servers over NCCL: the trainer is rank 0 of a group with their workers.

    Written for vLLM 0.32 and 0.33 from their sources. It has not been run: that takes two GPUs.

    Args:
        policy: The model whose architecture the servers have.
        client: Reaches the servers (vLLM's VLLMWeightSyncClient).
        workers: Number of the servers' workers.
    """

    def __init__(self, policy: Policy, client: Any, workers: int) -> None:
        _configure_log(None)
        from vllm.distributed.weight_transfer import ModuleSource, WeightTransferTrainerFactory
        from vllm.distributed.weight_transfer.nccl_engine import NCCLTrainerInitInfo
        from vllm.utils.network_utils import get_ip, get_open_port

        self._device = policy.device
        self._source = _WeightSource(policy)
        with torch.cuda.device(self._device):
            self._engine = WeightTransferTrainerFactory.trainer_init(
                init_info=NCCLTrainerInitInfo(
                    master_address=get_ip(),
                    master_port=get_open_port(),
                    world_size=1 + workers,
                    rank=policy.world.rank,  # rank 0 sends, the others help to gather
                ),
                client=client,
                source=ModuleSource(cast(Any, self._source)),
            )

    def send(self, policy: Policy) -> None:
        """Send the policy's weights: of the policy of the start, or of a teacher like it."""
        self._source.policy = policy
        with torch.cuda.device(self._device):
            # The optimizer's step must end before other streams read its weights.
            torch.cuda.synchronize()
            self._engine.send_weights()


class _WeightSource:
    """A policy as vLLM's ModuleSource takes a module. It calls this method alone (0.32 and 0.33).

    vLLM's other sources differ between the two versions.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy

    def named_parameters(self) -> Iterable[tuple[str, Tensor]]:
        return self.policy.named_weights()  # ModuleSource gathers sharded weights


def _repack_tied_head(model: nn.Module) -> None:
    """Pack a head that is tied to the embeddings again.

    vLLM's reload skips such a head, because it has no weight of its own. But vLLM's CPU build
    multiplies with a packed copy of it. With 0.32 on a CPU the head would keep its old weights.
    """
    seen_ids = set()
    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is None:
            continue
        quant_method = getattr(module, "quant_method", None)
        if id(weight) in seen_ids and quant_method is not None:
            quant_method.process_weights_after_loading(module)
        seen_ids.add(id(weight))


class _LogFile(logging.FileHandler):
    """A log whose messages are lost on a full disk. The base class prints a traceback for each."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


def _configure_log(file: Path | None) -> None:
    """Send vLLM's log to a file. None: errors only, to stderr.

    vLLM's default is standard output, whose last line is the trainer's result.
    """
    os.environ["VLLM_CONFIGURE_LOGGING"] = "0"
    logger = logging.getLogger("vllm")
    for old_handler in list(logger.handlers):
        logger.removeHandler(old_handler)
        with contextlib.suppress(OSError):  # its file may be on a full disk
            old_handler.close()
    handler = _LogFile(file) if file else logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logger.addHandler(handler)
    logger.setLevel(logging.INFO if file else logging.ERROR)
    logger.propagate = False
