"""Requests to all vLLM servers of a run, with time limits, signals and clear errors."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Literal

from srt_fast.config import VLLMConfig
from srt_fast.sampling.base import SamplerError
from srt_fast.sampling.http_pool import Request, RequestError, RequestPool
from srt_fast.sampling.vllm_common import POLL_SECONDS

TimeLimit = Literal["timeout", "start_timeout"]
"""The field of VLLMConfig that limits a wait."""


class ServerClient:
    """The servers at `config.urls`. `checkpoint` may raise to leave a wait early."""

    def __init__(self, config: VLLMConfig, checkpoint: Callable[[], None]) -> None:
        self.urls = [url.rstrip("/") for url in config.urls]
        self._config = config
        self._checkpoint = checkpoint

    def ask(
        self,
        path: str,
        body: dict[str, Any] | list[dict[str, Any]] | None = None,
        *,
        allowed: tuple[int, ...] = (200,),
        limit: TimeLimit = "timeout",
        hint: Callable[[str], str] = lambda url: "",
        interruptible: bool = False,
    ) -> list[Any]:
        """The answer of every server, in the order of `urls`.

        Args:
            path: Where to send it.
            body: A dict for all servers, or a list with one for each. None: a GET.
            allowed: HTTP statuses of an answer.
            limit: See `wait`.
            hint: See `wait`.
            interruptible: See `wait`.
        """
        bodies = body if isinstance(body, list) else [body] * len(self.urls)
        requests = [
            Request(url, path, server_body)
            for url, server_body in zip(self.urls, bodies, strict=True)
        ]
        pool = RequestPool(requests, allowed)
        return self.wait(pool, limit=limit, hint=hint, interruptible=interruptible)

    def wait(
        self,
        pool: RequestPool,
        *,
        limit: TimeLimit = "timeout",
        hint: Callable[[str], str] = lambda url: "",
        interruptible: bool = False,
    ) -> list[Any]:
        """All answers of a pool, in the order of its requests.

        Args:
            pool: The requests. They are cancelled if the wait ends early.
            limit: Most seconds between two answers.
            hint: What an error says about the server that failed, beside the failure.
            interruptible: Whether `checkpoint` is called meanwhile.

        Raises:
            SamplerError: A request failed, or no answer came within the limit.
        """
        seconds = getattr(self._config, limit)
        try:
            while not pool.wait(POLL_SECONDS):
                if interruptible:
                    self._checkpoint()
                if time.monotonic() - pool.last_answer_at > seconds:
                    message = f"no answer for {seconds:g} s (vllm.{limit})"
                    raise RequestError(pool.unanswered_url(), message)
        except RequestError as error:
            raise SamplerError(f"vLLM server {error.url}: {error}{hint(error.url)}") from error
        finally:
            pool.cancel()
        return pool.answers()
