"""JSON over HTTP to several servers at once. By the standard library: the client that comes with transformers changes with it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import http.client
import json
import queue
import socket
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import FIRST_EXCEPTION, Future
from typing import Any
from urllib.parse import urlsplit

CONNECT = 10.0  # seconds that a server may take to accept a connection
IN_FLIGHT = 256  # requests at once to a server, which queues those that it cannot run


class RequestError(Exception):
    """What went wrong with a request to `url`."""

    def __init__(self, url: str, what: str):
        super().__init__(what)
        self.url = url


class RequestPool:
    """RequestPool on their way, (url, path, body) each: a GET where the body is None, else a POST. Sent by daemon threads: a
    server that hangs does not keep the process alive.

    allowed: other statuses are failures. `read` makes what is kept of an answer; a ValueError in it is a failure.
    """

    def __init__(
        self,
        requests: list[tuple[str, str, Any]],
        allowed: tuple[int, ...] = (200,),
        read: Callable[[Any], Any] = lambda answer: answer,
    ):
        self._urls, self._futures = [url for url, _, _ in requests], [Future() for _ in requests]
        self._allowed, self._read = allowed, read
        self._cancelled, self._sockets, self._lock = False, set(), threading.Lock()
        self.finished_at = time.monotonic()  # when the last one ended
        jobs: dict[str, queue.SimpleQueue] = defaultdict(queue.SimpleQueue)
        for future, request in zip(self._futures, requests, strict=True):
            jobs[request[0]].put((future, request))
        for waiting in jobs.values():
            for _ in range(min(IN_FLIGHT, waiting.qsize())):
                threading.Thread(
                    target=self._work, args=(waiting,), name="requests", daemon=True
                ).start()

    def wait(self, seconds: float) -> bool:
        """Whether all are answered, after at most `seconds`. Raises RequestError as soon as one has failed."""
        done, waiting = concurrent.futures.wait(self._futures, seconds, FIRST_EXCEPTION)
        for future in done:
            future.result()
        return not waiting

    def answers(self) -> list[Any]:
        """In the requests' order."""
        return [future.result() for future in self._futures]

    def unanswered(self) -> str:
        """The url of a request that is still on its way."""
        return next(
            (
                url
                for url, future in zip(self._urls, self._futures, strict=True)
                if not future.done()
            ),
            self._urls[-1],
        )

    def cancel(self) -> None:
        """Hang up. vLLM drops the requests of a client that is gone."""
        with self._lock:
            self._cancelled = True
            for line in self._sockets:
                with contextlib.suppress(OSError):
                    line.shutdown(socket.SHUT_RDWR)

    def _work(self, jobs: queue.SimpleQueue) -> None:
        with contextlib.suppress(queue.Empty):
            while not self._cancelled:
                future, request = jobs.get_nowait()
                try:
                    future.set_result(self._send(*request))
                except Exception as error:
                    future.set_exception(error)
                self.finished_at = time.monotonic()

    def _send(self, url: str, path: str, body: Any) -> Any:
        address = urlsplit(url)
        kind = (
            http.client.HTTPSConnection if address.scheme == "https" else http.client.HTTPConnection
        )
        try:
            with contextlib.closing(
                kind(address.hostname, address.port, timeout=CONNECT)
            ) as connection:
                status, text = self._exchange(connection, address.path + path, body)
            if status in self._allowed:
                return self._read(json.loads(text))
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise RequestError(url, f"{path}: {type(error).__name__}: {error}") from error
        raise RequestError(url, f"{path}: HTTP {status}: {_message(text)}")

    def _exchange(
        self, connection: http.client.HTTPConnection, path: str, body: Any
    ) -> tuple[int, str]:
        connection.connect()
        line = connection.sock
        line.settimeout(None)  # for how long to wait is for whoever waits
        with self._lock:
            self._sockets.add(line)
            if self._cancelled:
                raise ConnectionAbortedError
        try:
            connection.request(
                "GET" if body is None else "POST",
                path,
                None if body is None else json.dumps(body),
                {"Content-Type": "application/json"},
            )
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            with self._lock:
                self._sockets.discard(line)


def _message(text: str) -> str:
    """What a server says is wrong, in a line: as vLLM says it, as FastAPI does, or as it is."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        answer = json.loads(text)
        text = answer["error"]["message"] if "error" in answer else answer["detail"]
    return first_line(text)


def first_line(what: Any) -> str:
    return (str(what).strip() or repr(what)).splitlines()[0]
