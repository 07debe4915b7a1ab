"""How weights reach vLLM servers: over NCCL, or through a folder that both sides see."""

from __future__ import annotations

import concurrent.futures
import contextlib
import shutil
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError

from srt_fast.errors import first_line
from srt_fast.model.policy import Policy
from srt_fast.sampling.base import SamplerError
from srt_fast.sampling.server_client import ServerClient
from srt_fast.sampling.vllm import NCCLWeightSender


class WeightTransfer(Protocol):
    """A way for weights to reach all servers. Raises SamplerError if they do not arrive."""

    def send(self, policy: Policy) -> None:
        """Replace the servers' weights by the policy's."""

    def close(self) -> None:
        """Remove what the transfer left."""


class FolderTransfer:
    """Weights through a folder: `folder`/NAME, removed after each transfer."""

    def __init__(self, client: ServerClient, folder: Path) -> None:
        self._client = client
        self._folder = folder

    def send(self, policy: Policy) -> None:
        """See WeightTransfer.send."""
        # A new name each time: network file systems may serve the old contents of an old name.
        copy = self._folder / policy.world.broadcast(uuid.uuid4().hex)
        try:
            policy.save(copy)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(copy, ignore_errors=True)
            raise SamplerError(
                f"weights for vLLM servers: could not write {copy} (vllm.transfer_dir): {error}"
            ) from error
        hint = (
            f". Does it see {self._folder} (vllm.transfer_dir)? A server that failed to load has "
            "no weights: start it anew"
        )
        body = {"method": "reload_weights", "kwargs": {"weights_path": str(copy)}}

        def ask() -> None:
            self._client.ask("/collective_rpc", body, limit="start_timeout", hint=lambda url: hint)

        try:
            policy.world.on_main(ask)
        finally:
            shutil.rmtree(copy, ignore_errors=True)

    def close(self) -> None:
        """Remove the folder. Leaves it if it has other contents."""
        with contextlib.suppress(OSError):  # it does not exist, or it is not empty
            self._folder.rmdir()


class NCCLTransfer:
    """Weights over NCCL. Rank 0 is the trainer, then come the workers of each server."""

    def __init__(self, client: ServerClient, timeout_seconds: float) -> None:
        self._client = _WeightSyncClient(client)
        self._timeout_seconds = timeout_seconds
        self._workers: int | None = None  # of all servers
        self._sender: NCCLWeightSender | None = None

    def send(self, policy: Policy) -> None:
        """See WeightTransfer.send. The first call opens the group.

        Rank 0 sends. The other ranks take part in gathering the weights.
        """
        if self._workers is None:
            self._workers = policy.world.on_main(self._client.count_workers)
        with policy.world.agreement():
            self._send_in_thread(policy, self._workers)

    def _send_in_thread(self, policy: Policy, workers: int) -> None:
        # In a thread of its own: a broadcast to a server that died does not return.
        future = _run_in_thread(lambda: self._send(policy, workers))
        failure = self._client.failure
        ended, _ = concurrent.futures.wait(
            [future, failure], self._timeout_seconds, FIRST_COMPLETED
        )
        errors = [error for future in ended if (error := future.exception())]
        if ended and not errors:
            return
        if errors:
            message = first_line(errors[0])
        else:
            message = f"no end after {self._timeout_seconds:g} s (vllm.start_timeout)"
        cause = errors[0] if errors else None
        raise SamplerError(f"weights for vLLM servers, over NCCL: {message}") from cause

    def close(self) -> None:
        """Leaves the group open: it ends with the process."""

    def _send(self, policy: Policy, workers: int) -> None:
        if self._sender is None:
            self._sender = NCCLWeightSender(policy, self._client, workers)
        self._sender.send(policy)


class _WeightSyncClient:
    """vLLM's VLLMWeightSyncClient for several servers.

    `failure` gets an exception once a server has failed.
    """

    def __init__(self, client: ServerClient) -> None:
        self._client = client
        self._workers: list[int] = []  # of each server
        self.failure: Future[None] = Future()

    def count_workers(self) -> int:
        """The number of workers of all servers."""
        answers = self._client.ask("/get_world_size", limit="start_timeout")
        self._workers = [answer["world_size"] for answer in answers]
        return sum(self._workers)

    def init_weight_transfer_engine(self, init_info: dict[str, Any]) -> None:
        rank_offset = init_info["rank_offset"]
        bodies = []
        for workers in self._workers:
            bodies.append({"init_info": init_info | {"rank_offset": rank_offset}})
            rank_offset += workers
        self._post("/init_weight_transfer_engine", bodies)

    def start_weight_update(self) -> None:
        self._post("/start_weight_update", {})

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self._post("/update_weights", {"update_info": update_info})

    def finish_weight_update(self, weight_version: str | None = None) -> None:
        self._post("/finish_weight_update", {"weight_version": weight_version})

    def _post(self, path: str, body: dict[str, Any] | list[dict[str, Any]]) -> None:
        try:
            self._client.ask(path, body, limit="start_timeout")
        except SamplerError as error:
            if not self.failure.done():
                self.failure.set_exception(error)
            raise


def _run_in_thread(function: Callable[[], None]) -> Future[None]:
    """Run a function in a daemon thread. The future has its result or its exception."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            function()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(None)

    threading.Thread(target=run, name="weights", daemon=True).start()
    return future
