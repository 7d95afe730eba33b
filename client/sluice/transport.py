"""HTTP to the API: one request with retries, or one stream. Errors become exceptions.

A request is repeated in these cases:

- It was never sent, because there was no connection.
- The connection broke, and repeating is harmless (`safe=True`).
- The status is 429: after `Retry-After`.
- The status is 502, 503 or 504, and repeating is harmless. If the body is a problem document, the
  API itself has answered: then only after a short `Retry-After`, and with the API's own message.
  Else a gateway has answered for an API that it cannot reach.

A deletion that is sent again after a lost answer may find nothing any more, because the first one
was carried out. With `accept_gone=True`, the status 404 of the API then counts as success; if there
was nothing to delete before either, that is not noticed. Without a lost answer 404 is an error.

Before the first answer of the API, the retries end soon ("is it running?"). After it, the API is
known to exist, and the retries last as long as a restart takes.

All of this is written once, as coroutines. `AsyncTransport` runs them on asyncio. With
`BlockingTransport` they never wait for an event loop: each `await` does its work at once, in the
calling thread, so `drive` has the result after one step. Jobs are unknown here.

The logger `sluice` gets a line for each request (DEBUG) and each retry (INFO): method, path, status
and times; no keys, no queries of URLs, no bodies.
"""

import asyncio
import logging
import math
import random
import ssl
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Awaitable,
    Callable,
    Coroutine,
    Mapping,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from typing import IO, Any, ParamSpec, Protocol, TypeVar
from urllib.parse import urlsplit, urlunsplit

import httpx

from sluice.errors import (
    ApiError,
    ConfigurationError,
    ConnectionBroken,
    ConnectionFailed,
    of_status,
)

log = logging.getLogger("sluice")

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

Params = Mapping[str, str | int | bool | Sequence[str] | None]
Upload = tuple[str, IO[bytes], str]
"""Name, open file, content type."""

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_TRANSIENT = {502, 503, 504}
_REPORTED_FAILURES = 4
_PROBLEM = "application/problem+json"
_MOMENT_S = 0.001
_SHORT_S = 10.0
"""A longer `Retry-After` of the API, which waits for a server of its own, is left to the caller."""


@dataclass(frozen=True, kw_only=True)
class Retries:
    """How long to go on trying; pauses double from `base_s` up to `cap_s`, with jitter."""

    connect_for_s: float = 2.0
    """before the first answer of the API"""
    retry_for_s: float = 60.0
    """after it, when the connection breaks or a gateway answers for the API"""
    busy_for_s: float = 120.0
    """while the API answers 429"""
    base_s: float = 0.2
    cap_s: float = 2.0


class Background(Protocol):
    """Given to work that runs in the background of a block (`Transport.in_background`)."""

    async def pause(self, seconds: float) -> bool:
        """Sleep. False if the block has ended meanwhile."""

    def call(self, function: Callable[[T], object], argument: T) -> None:
        """Call the function, unless the block has ended."""


class Transport(ABC):
    """A connection pool to one API."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None,
        timeout_s: float,
        retries: Retries,
        notify: Callable[[str], None],
        limits: httpx.Limits | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ConfigurationError(
                f"{url!r} is not a URL of the API; it must read like http://127.0.0.1:8000."
            )
        self.url = url.rstrip("/")
        self._shown_url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        """Without a password, for messages."""
        self.timeout_s = timeout_s
        self._retries = retries
        self._notify = notify
        self._answered = False
        self._absence_reported = False
        headers = {"Accept": "application/json", "User-Agent": "sluice-client"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        self._options: dict[str, Any] = {
            "base_url": self.url,
            "headers": headers,
            "timeout": timeout_s,
            # A proxy from the environment must not get the calls to this very machine.
            "trust_env": parts.hostname not in _LOOPBACK,
            "follow_redirects": True,
        }
        if parts.scheme == "http" and parts.hostname in _LOOPBACK:
            # To read the certificates of all authorities takes 25 ms, and nobody needs them here.
            self._options["verify"] = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if limits is not None:
            self._options["limits"] = limits

    @abstractmethod
    async def close(self) -> None:
        """Close all connections, and end the retries of other threads or tasks."""

    @abstractmethod
    async def pause(self, seconds: float) -> None:
        """Sleep. Raises `ConnectionFailed` if the client is closed meanwhile."""

    @abstractmethod
    async def in_thread(
        self, function: Callable[P, R], *arguments: P.args, **options: P.kwargs
    ) -> R:
        """The result of a function that reads files. It does not block an event loop."""

    @abstractmethod
    def parallel(
        self, function: Callable[[T], Coroutine[Any, Any, R]], items: Sequence[T], limit: int
    ) -> AsyncGenerator[tuple[T, R], None]:
        """Items with their results, in the order in which they are done.

        An exception, also one of the consumer, cancels the calls that have not begun.
        """

    @abstractmethod
    def in_background(
        self, work: Callable[[Background], Coroutine[Any, Any, None]]
    ) -> AbstractAsyncContextManager[None]:
        """Run the work beside the block, until one of the two ends."""

    @abstractmethod
    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response: ...

    @abstractmethod
    def _open(
        self, path: str, headers: Mapping[str, str], timeout: httpx.Timeout
    ) -> AbstractAsyncContextManager[tuple[httpx.Response, AsyncIterator[bytes]]]:
        """An answer and the chunks of its body. The body of an error is already read."""

    @property
    @abstractmethod
    def _is_closed(self) -> bool: ...

    async def request(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        body: Any = None,
        upload: Upload | None = None,
        headers: Mapping[str, str] | None = None,
        safe: bool = True,
        wait_s: float = 0.0,
        accept_status: Sequence[int] = (),
        accept_gone: bool = False,
        tries: int | None = None,
        retry: bool = True,
        timeout_s: float | None = None,
    ) -> httpx.Response:
        """One answer with a status below 400, or in `accept_status`; with `accept_gone` also 404
        after a lost answer.

        Raises `ApiError` or `ConnectionFailed`. `wait_s` is how long the server may delay the
        answer. `tries` bounds how often a connection may break in the middle. `retry=False` gives
        up at the first failure. `timeout_s` bounds the call with all its retries; None means the
        client's timeout, for each try, and its `Retries`.
        """
        pauses = _Pauses(self._retries, is_known=self._answered, tries=tries, timeout_s=timeout_s)
        may_be_done = False  # an earlier try whose answer was lost
        while True:
            started = time.monotonic()
            answer_s = self.timeout_s if timeout_s is None else pauses.left_s()
            delay_s = wait_s if timeout_s is None else 0.0
            try:
                response = await self._send(
                    method,
                    path,
                    params=_without_none(params),
                    json=body,
                    files={"file": _rewound(upload)} if upload else None,
                    headers=headers,
                    timeout=httpx.Timeout(answer_s, read=answer_s + delay_s),
                )
            except httpx.TransportError as error:
                log.debug("%s %s: %s", method, path, type(error).__name__)
                unsent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                may_be_done |= not unsent
                pause_s = pauses.absence_s() if unsent else pauses.break_s() if safe else None
                if pause_s is None or not retry:
                    raise self._failure(error, is_sent=not unsent) from error
                self._report_absence(pauses, f"The API at {self._shown_url} does not answer")
                log.info("%s %s is tried again in %.1f s", method, path, pause_s)
                await self.pause(pause_s)
                continue
            except RuntimeError as error:
                # httpx raises this in a thread or task that uses a closed client.
                if self._is_closed:
                    raise ConnectionFailed("The client was closed.") from error
                raise
            self._answered = True
            took_ms = 1000 * (time.monotonic() - started)
            log.debug("%s %s: %d in %.0f ms", method, path, response.status_code, took_ms)
            if response.status_code < 400 or response.status_code in accept_status:
                self._absence_reported = False
                return response
            is_gone = response.status_code == 404 and _is_problem(response)
            if accept_gone and may_be_done and is_gone:
                return response
            may_be_done |= response.status_code in _TRANSIENT and not _is_problem(response)
            problem = problem_of(response)
            pause_s = self._retry_pause_s(problem, response, pauses, safe=safe) if retry else None
            if pause_s is None:
                raise problem
            log.info(
                "%s %s: %d, tried again in %.1f s", method, path, response.status_code, pause_s
            )
            await self.pause(pause_s)

    def _retry_pause_s(
        self, problem: ApiError, response: httpx.Response, pauses: "_Pauses", *, safe: bool
    ) -> float | None:
        """The pause before the next try after an error, which is reported; None: no more tries."""
        if problem.status == 429:
            pause_s = pauses.busy_s(problem.retry_after_s)
            if pause_s is not None:
                self._notify(f"{problem.message} Trying again in {pause_s:.0f} s.")
            return pause_s
        if not safe or problem.status not in _TRANSIENT:
            return None
        reason, at_least_s = f"The API at {self._shown_url} does not answer", 0.0
        if _is_problem(response):
            if problem.retry_after_s is None or problem.retry_after_s > _SHORT_S:
                return None
            reason, at_least_s = problem.message.rstrip("."), problem.retry_after_s
        pause_s = pauses.absence_s(at_least_s=at_least_s)
        if pause_s is not None:
            self._report_absence(pauses, reason)
        return pause_s

    async def json(self, method: str, path: str, **options: Any) -> Any:
        """The body of `request(...)`, which must be JSON."""
        response = await self.request(method, path, **options)
        try:
            return response.json()
        except ValueError as error:
            raise self._unknown_server() from error

    async def json_list(
        self, method: str, path: str, *, name: str = "items", **options: Any
    ) -> list[Any]:
        """The list in the field `name` of an answer."""
        answer = await self.json(method, path, **options)
        items = answer.get(name) if isinstance(answer, dict) else None
        if not isinstance(items, list):
            raise self._unknown_server()
        return items

    @asynccontextmanager
    async def stream(
        self, path: str, *, headers: Mapping[str, str], silence_s: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """One streamed GET without retries. Raises `httpx.TransportError`, too."""
        timeout = httpx.Timeout(self.timeout_s, read=silence_s)
        async with self._open(path, headers, timeout) as (response, chunks):
            self._answered = True
            log.debug("GET %s: %d, a stream", path, response.status_code)
            if response.status_code >= 400:
                raise problem_of(response)
            yield chunks

    def _unknown_server(self) -> ConnectionFailed:
        return ConnectionFailed(
            f"{self._shown_url} answered, but not as this version of Sluice does. "
            "Is SLUICE_URL right?"
        )

    def _failure(self, error: Exception, *, is_sent: bool) -> ConnectionFailed:
        reason = str(error).strip() or type(error).__name__
        if is_sent:
            return ConnectionBroken(
                f"The connection to the API at {self._shown_url} broke ({reason}). "
                "The request may or may not have been carried out."
            )
        return ConnectionFailed(
            f"Cannot reach the API at {self._shown_url} ({reason}). "
            "Is it running? Start it with `sluice up`, or set SLUICE_URL."
        )

    def _report_absence(self, pauses: "_Pauses", reason: str) -> None:
        """Notify once for all threads or tasks, and only after several failures."""
        if self._answered and not self._absence_reported and pauses.failures == _REPORTED_FAILURES:
            self._absence_reported = True
            self._notify(f"{reason}; trying again for up to {self._retries.retry_for_s:g} s.")


class AsyncTransport(Transport):
    """On asyncio; tasks of one event loop may share it."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self._closed = asyncio.Event()
        self._http = httpx.AsyncClient(**self._options)

    async def close(self) -> None:
        self._closed.set()
        await self._http.aclose()

    async def pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._closed.wait(), seconds)
        except TimeoutError:
            return
        raise ConnectionFailed("The client was closed.")

    async def in_thread(
        self, function: Callable[P, R], *arguments: P.args, **options: P.kwargs
    ) -> R:
        return await asyncio.to_thread(function, *arguments, **options)

    async def parallel(
        self, function: Callable[[T], Coroutine[Any, Any, R]], items: Sequence[T], limit: int
    ) -> AsyncGenerator[tuple[T, R], None]:
        free = asyncio.Semaphore(limit)

        async def run(item: T) -> tuple[T, R]:
            async with free:
                return item, await function(item)

        tasks = [asyncio.create_task(run(item)) for item in items]
        try:
            for task in asyncio.as_completed(tasks):
                yield await task
        finally:
            await _cancel(tasks)

    @asynccontextmanager
    async def in_background(
        self, work: Callable[[Background], Coroutine[Any, Any, None]]
    ) -> AsyncIterator[None]:
        task = asyncio.create_task(work(_TaskBackground()))
        try:
            yield
        finally:
            await _cancel([task])
        if not task.cancelled():
            task.result()  # raises the exception of a callback in the block's code

    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        return await self._http.request(method, path, **options)

    @asynccontextmanager
    async def _open(
        self, path: str, headers: Mapping[str, str], timeout: httpx.Timeout
    ) -> AsyncIterator[tuple[httpx.Response, AsyncIterator[bytes]]]:
        async with self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
            if response.status_code >= 400:
                await response.aread()
            yield response, response.aiter_bytes()

    @property
    def _is_closed(self) -> bool:
        return self._closed.is_set()


async def _cancel(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Cancel the tasks, and wait until they have ended."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


class _TaskBackground:
    """A task that is cancelled with its block."""

    async def pause(self, seconds: float) -> bool:
        await asyncio.sleep(seconds)
        return True

    def call(self, function: Callable[[T], object], argument: T) -> None:
        function(argument)


class BlockingTransport(Transport):
    """In the calling thread; threads may share it."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self._closed = threading.Event()
        self._http = httpx.Client(**self._options)

    async def close(self) -> None:
        self._closed.set()
        self._http.close()

    async def pause(self, seconds: float) -> None:
        if self._closed.wait(seconds):
            raise ConnectionFailed("The client was closed.")

    async def in_thread(
        self, function: Callable[P, R], *arguments: P.args, **options: P.kwargs
    ) -> R:
        return function(*arguments, **options)

    async def parallel(
        self, function: Callable[[T], Coroutine[Any, Any, R]], items: Sequence[T], limit: int
    ) -> AsyncGenerator[tuple[T, R], None]:
        pool = ThreadPoolExecutor(max_workers=limit)
        try:
            futures = {
                pool.submit(lambda item: drive(function(item)), item): item for item in items
            }
            for future in as_completed(futures):
                yield futures[future], future.result()
        finally:
            # Without waiting: after Ctrl-C the client is closed next, which ends running calls.
            pool.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def in_background(
        self, work: Callable[[Background], Coroutine[Any, Any, None]]
    ) -> AsyncIterator[None]:
        background = _ThreadBackground()
        threading.Thread(
            target=lambda: drive(work(background)), name="sluice-background", daemon=True
        ).start()
        try:
            yield
        finally:
            background.end()

    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        return self._http.request(method, path, **options)

    @asynccontextmanager
    async def _open(
        self, path: str, headers: Mapping[str, str], timeout: httpx.Timeout
    ) -> AsyncIterator[tuple[httpx.Response, AsyncIterator[bytes]]]:
        with self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
            if response.status_code >= 400:
                response.read()
            yield response, _chunks(response)

    @property
    def _is_closed(self) -> bool:
        return self._closed.is_set()


async def _chunks(response: httpx.Response) -> AsyncIterator[bytes]:
    for chunk in response.iter_bytes():
        yield chunk


class _ThreadBackground:
    """A thread that nobody waits for, since its last call may take as long as a timeout."""

    def __init__(self) -> None:
        self._lock, self._ended = threading.Lock(), threading.Event()

    def end(self) -> None:
        with self._lock:
            self._ended.set()

    async def pause(self, seconds: float) -> bool:
        return not self._ended.wait(seconds)

    def call(self, function: Callable[[T], object], argument: T) -> None:
        with self._lock:
            if not self._ended.is_set():
                function(argument)


def drive(coroutine: Awaitable[R]) -> R:
    """The result of a coroutine over a `BlockingTransport`, which never waits for a loop."""
    step = coroutine.__await__()
    try:
        next(step)
    except StopIteration as end:
        result: R = end.value
        return result
    raise RuntimeError("A call of the blocking client waited for an event loop.")


class _Pauses:
    """The pauses between the tries of one request. None instead of a pause: no more tries."""

    def __init__(
        self,
        retries: Retries,
        *,
        is_known: bool,
        tries: int | None,
        timeout_s: float | None = None,
    ) -> None:
        self._retries = retries
        self._tries = tries
        self.failures = 0
        self._breaks = 0
        started = time.monotonic()
        self._deadline = math.inf if timeout_s is None else started + timeout_s
        self._known_until = min(self._deadline, started + retries.retry_for_s)
        self._absent_until = (
            self._known_until if is_known else min(self._deadline, started + retries.connect_for_s)
        )
        self._busy_until = min(self._deadline, started + retries.busy_for_s)

    def left_s(self) -> float:
        """The rest of the call's time. Never zero, which httpx does not take."""
        return max(_MOMENT_S, self._deadline - time.monotonic())

    def absence_s(self, *, at_least_s: float = 0.0) -> float | None:
        """After a try that was not sent, or an answer that the API is not ready yet."""
        pause_s = min(self._retries.cap_s, self._retries.base_s * 2 ** min(self.failures, 10))
        self.failures += 1
        return _within(self._absent_until, max(at_least_s, pause_s * random.uniform(0.5, 1.0)))

    def break_s(self) -> float | None:
        """After a connection that broke: so there is an API, which may be restarting."""
        self._breaks += 1
        self._absent_until = self._known_until
        return None if self._breaks == self._tries else self.absence_s()

    def busy_s(self, retry_after_s: float | None) -> float | None:
        """After the status 429."""
        pause_s = self._retries.cap_s if retry_after_s is None else retry_after_s
        return _within(self._busy_until, pause_s)


def problem_of(response: httpx.Response) -> ApiError:
    """The exception for an answer with status 400 or above, with any body."""
    try:
        body = response.json()
    except ValueError:
        body = {}
    if not isinstance(body, dict):
        body = {}
    errors = body.get("errors")
    detail = body.get("detail")
    title = str(body.get("title") or response.reason_phrase)
    text = detail if isinstance(detail, str) else ""
    if response.status_code == 401:
        text = f"{text or 'The API wants a key.'} Set SLUICE_API_KEY, or give --api-key."
    elif response.status_code == 404 and not _is_problem(response):
        url = response.url.copy_with(query=None, userinfo=b"")
        text = f"{url} answers 404, and not as Sluice does. Is SLUICE_URL right?"
    elif response.status_code >= 500 and not (text and _is_problem(response)):
        text = f"The API failed with status {response.status_code}: {text or title}"
    return of_status(response.status_code)(
        status=response.status_code,
        title=title,
        detail=text,
        errors=[e for e in errors if isinstance(e, dict)] if isinstance(errors, list) else [],
        retry_after_s=_seconds(response.headers.get("Retry-After")),
    )


def _is_problem(response: httpx.Response) -> bool:
    """Whether the API itself has answered, and not a gateway."""
    content_type = str(response.headers.get("Content-Type", ""))
    return content_type.partition(";")[0].strip().lower() == _PROBLEM


def _within(until: float, pause_s: float) -> float | None:
    return pause_s if time.monotonic() + pause_s <= until else None


def _seconds(value: str | None) -> float | None:
    return float(value) if value is not None and value.strip().isdigit() else None


def _rewound(upload: Upload) -> Upload:
    """The upload from its beginning: a repeated request sends the whole file again."""
    upload[1].seek(0)
    return upload


def _without_none(params: Params | None) -> dict[str, Any] | None:
    """httpx would send a parameter with the value None as an empty one."""
    return {k: v for k, v in params.items() if v is not None} if params else None
