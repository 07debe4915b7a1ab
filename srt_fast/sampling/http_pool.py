"""JSON over HTTP to several servers at once.

It uses the standard library: the HTTP client that comes with transformers changes with its version.
"""

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
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from srt_fast.errors import first_line

CONNECT_TIMEOUT_SECONDS = 10.0
"""How long a server may take to accept a connection."""
MAX_REQUESTS_PER_SERVER = 256
"""Requests in flight at once to one server. The server queues those that it cannot run yet."""


class Request(NamedTuple):
    """A request to a server."""

    url: str  # the server: http://host:port
    path: str  # "/v1/completions"
    body: Any  # sent as JSON with POST; None: a GET


class RequestError(Exception):
    """A request to the server at `url` failed."""

    def __init__(self, url: str, message: str) -> None:
        super().__init__(message)
        self.url = url


class RequestPool:
    """Sends requests at once and collects the answers.

    Daemon threads send the requests: a server that hangs does not keep the process alive.

    Args:
        requests: What to send.
        allowed: HTTP statuses of an answer. Another status is a failure.
        read: Maps the JSON of an answer to what `answers` returns. A ValueError is a failure.
    """

    def __init__(
        self,
        requests: list[Request],
        allowed: tuple[int, ...] = (200,),
        read: Callable[[Any], Any] = lambda answer: answer,
    ) -> None:
        self._requests = requests
        self._allowed = allowed
        self._read = read
        self._futures: list[Future[Any]] = [Future() for _ in requests]
        self._lock = threading.Lock()  # guards the next two
        self._is_cancelled = False
        self._sockets: set[socket.socket] = set()
        self.last_answer_at = time.monotonic()
        """time.monotonic() when a request ended last."""
        queues: dict[str, queue.SimpleQueue] = defaultdict(queue.SimpleQueue)
        for future, request in zip(self._futures, requests, strict=True):
            queues[request.url].put((future, request))
        for jobs in queues.values():
            for _ in range(min(MAX_REQUESTS_PER_SERVER, jobs.qsize())):
                threading.Thread(
                    target=self._send_all, args=(jobs,), name="requests", daemon=True
                ).start()

    def wait(self, seconds: float) -> bool:
        """Wait at most `seconds`. Returns whether all requests are answered.

        Raises RequestError as soon as one has failed.
        """
        ended, pending = concurrent.futures.wait(self._futures, seconds, FIRST_EXCEPTION)
        for future in ended:
            future.result()
        return not pending

    def answers(self) -> list[Any]:
        """The answers in the order of the requests. Waits for them."""
        return [future.result() for future in self._futures]

    def unanswered_url(self) -> str:
        """The server of a request that is not answered yet."""
        for future, request in zip(self._futures, self._requests, strict=True):
            if not future.done():
                return request.url
        return self._requests[-1].url  # it was answered meanwhile

    def cancel(self) -> None:
        """Close all connections. vLLM drops the requests of a client that has hung up."""
        with self._lock:
            self._is_cancelled = True
            for connected in self._sockets:
                with contextlib.suppress(OSError):
                    connected.shutdown(socket.SHUT_RDWR)

    def _send_all(self, jobs: queue.SimpleQueue) -> None:
        """Send a server's requests one after the other, until there are none or they are cancelled.

        Runs in several threads at once.
        """
        with contextlib.suppress(queue.Empty):
            while not self._is_cancelled:
                future, request = jobs.get_nowait()
                try:
                    future.set_result(self._send(request))
                except Exception as error:
                    future.set_exception(error)
                self.last_answer_at = time.monotonic()

    def _send(self, request: Request) -> Any:
        address = urlsplit(request.url)
        if address.scheme == "https":
            connection_type = http.client.HTTPSConnection
        else:
            connection_type = http.client.HTTPConnection
        host = address.hostname or "localhost"
        try:
            connection = connection_type(host, address.port, timeout=CONNECT_TIMEOUT_SECONDS)
            with contextlib.closing(connection):
                status, text = self._exchange(connection, address.path + request.path, request.body)
            if status in self._allowed:
                return self._read(json.loads(text))
        except (OSError, http.client.HTTPException, ValueError) as error:
            message = f"{request.path}: {type(error).__name__}: {error}"
            raise RequestError(request.url, message) from error
        message = f"{request.path}: HTTP {status}: {_server_message(text)}"
        raise RequestError(request.url, message)

    def _exchange(
        self, connection: http.client.HTTPConnection, path: str, body: Any
    ) -> tuple[int, str]:
        """The answer's status and text."""
        connection.connect()
        connected = connection.sock
        connected.settimeout(None)  # the thread that calls `wait` limits the time of an answer
        with self._lock:
            self._sockets.add(connected)
            if self._is_cancelled:
                raise ConnectionAbortedError
        try:
            headers = {"Content-Type": "application/json"}
            if body is None:
                connection.request("GET", path, headers=headers)
            else:
                connection.request("POST", path, json.dumps(body), headers)
            response = connection.getresponse()
            return response.status, response.read().decode()
        finally:
            with self._lock:
                self._sockets.discard(connected)


def _server_message(text: str) -> str:
    """The first line of a server's error message. Reads vLLM's form, FastAPI's, and plain text."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        answer = json.loads(text)
        text = answer["error"]["message"] if "error" in answer else answer["detail"]
    return first_line(text)
