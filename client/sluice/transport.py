"""HTTP to the API: one request with retries, or one stream; errors become exceptions.

A request is repeated after a broken connection only where that cannot do harm (`safe=True`), or
where it was never sent; after 429 it is repeated when `Retry-After` is over. An answer of 502 to
504 that is a problem is the API's own: it is repeated where its `Retry-After` is short, and shown
in its own words; any other is a gateway's, behind which the API is away. Before the first answer it
gives up soon ("is it running?"), after it the API is known to exist and is given the time of a
restart.

All of this is written once, as coroutines. `AsyncTransport` runs them on asyncio. With
`BlockingTransport` they never wait for an event loop: each `await` does its work at once, in the
thread that called, so that `drive` has the result after one step. This module knows nothing of
jobs.

The logger `sluice` has a line for each request (DEBUG) and for each that is tried again (INFO):
method, path, status and times; no keys, no queries of URLs, no bodies.
"""

import asyncio
import logging
import math
import random
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
_PASSING = {502, 503, 504}
_REPORTED_FAILURES = 4
_PROBLEM = "application/problem+json"
_MOMENT_S = 0.001
_SHORT_S = 10.0
"""A longer `Retry-After` of an API that lacks a server of its own is left to the caller."""


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
    """What work beside a block may do: pause, and call back as long as the block goes on."""

    async def pause(self, seconds: float) -> bool:
        """Whether the block still goes on after it."""

    def call(self, function: Callable[[T], object], argument: T) -> None:
        """Nothing is called any more once the block has ended."""


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
        if limits is not None:
            self._options["limits"] = limits

    @abstractmethod
    async def close(self) -> None:
        """Also ends the retries of other threads or tasks."""

    @abstractmethod
    async def pause(self, seconds: float) -> None:
        """Raises `ConnectionFailed` where the client is closed meanwhile."""

    @abstractmethod
    async def in_thread(
        self, function: Callable[P, R], *arguments: P.args, **options: P.kwargs
    ) -> R:
        """The result of a function that reads files, so that an event loop does not wait for it."""

    @abstractmethod
    def parallel(
        self, function: Callable[[T], Coroutine[Any, Any, R]], items: Sequence[T], limit: int
    ) -> AsyncGenerator[tuple[T, R], None]:
        """Results as they come; an exception, also the reader's, stops what has not begun."""

    @abstractmethod
    def beside(
        self, work: Callable[[Background], Coroutine[Any, Any, None]]
    ) -> AbstractAsyncContextManager[None]:
        """Work that goes on until it ends or the block does."""

    @abstractmethod
    async def _send(self, method: str, path: str, **options: Any) -> httpx.Response: ...

    @abstractmethod
    def _open(
        self, path: str, headers: Mapping[str, str], timeout: httpx.Timeout
    ) -> AbstractAsyncContextManager[tuple[httpx.Response, AsyncIterator[bytes]]]:
        """An answer whose body is read piece by piece, that of an error already whole."""

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
        tries: int | None = None,
        retry: bool = True,
        timeout_s: float | None = None,
    ) -> httpx.Response:
        """One answer below 400 (or in `accept_status`).

        Raises `ApiError` or `ConnectionFailed`. `wait_s` is how long the server may hold the
        answer back; `tries` bounds how often a connection may break in the middle; `retry=False`
        gives up at the first failure. `timeout_s` is for the whole call, with all its tries; None
        leaves it to the client's timeout, which is for each try, and to its `Retries`.
        """
        pauses = _Pauses(self._retries, known=self._answered, tries=tries, timeout_s=timeout_s)
        while True:
            started = time.monotonic()
            answer_s = self.timeout_s if timeout_s is None else pauses.left_s()
            held_s = wait_s if timeout_s is None else 0.0
            try:
                response = await self._send(
                    method,
                    path,
                    params=_clean(params),
                    json=body,
                    files={"file": _rewound(upload)} if upload else None,
                    headers=headers,
                    timeout=httpx.Timeout(answer_s, read=answer_s + held_s),
                )
            except httpx.TransportError as error:
                log.debug("%s %s: %s", method, path, type(error).__name__)
                unsent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                pause_s = pauses.away() if unsent else pauses.broken() if safe else None
                if pause_s is None or not retry:
                    raise self._failure(error, sent=not unsent) from error
                self._report_absence(pauses, f"The API at {self._shown_url} does not answer")
                log.info("%s %s is tried again in %.1f s", method, path, pause_s)
                await self.pause(pause_s)
                continue
            except RuntimeError as error:
                # What httpx says to a thread or a task that is late to hear of close().
                if self._is_closed:
                    raise ConnectionFailed("The client was closed.") from error
                raise
            self._answered = True
            took_ms = 1000 * (time.monotonic() - started)
            log.debug("%s %s: %d in %.0f ms", method, path, response.status_code, took_ms)
            if response.status_code < 400 or response.status_code in accept_status:
                self._absence_reported = False
                return response
            problem = problem_of(response)
            if not retry:
                raise problem
            if problem.status == 429:
                pause_s = pauses.busy(problem.retry_after_s)
                if pause_s is None:
                    raise problem
                self._notify(f"{problem.message} Trying again in {pause_s:.0f} s.")
            elif not safe or problem.status not in _PASSING:
                raise problem
            elif _is_problem(response):
                if problem.retry_after_s is None or problem.retry_after_s > _SHORT_S:
                    raise problem
                pause_s = pauses.away(at_least_s=problem.retry_after_s)
                if pause_s is None:
                    raise problem
                self._report_absence(pauses, problem.message.rstrip("."))
            else:
                pause_s = pauses.away()
                if pause_s is None:
                    raise problem
                self._report_absence(pauses, f"The API at {self._shown_url} does not answer")
            log.info(
                "%s %s: %d, tried again in %.1f s", method, path, response.status_code, pause_s
            )
            await self.pause(pause_s)

    async def json(self, method: str, path: str, **options: Any) -> Any:
        """The body of `request(...)`, which must be JSON."""
        response = await self.request(method, path, **options)
        try:
            return response.json()
        except ValueError as error:
            raise self._foreign() from error

    async def listed(
        self, method: str, path: str, *, name: str = "items", **options: Any
    ) -> list[Any]:
        """The list that an answer has under this name."""
        answer = await self.json(method, path, **options)
        items = answer.get(name) if isinstance(answer, dict) else None
        if not isinstance(items, list):
            raise self._foreign()
        return items

    @asynccontextmanager
    async def stream(
        self, path: str, *, headers: Mapping[str, str], silence_s: float
    ) -> AsyncIterator[AsyncIterator[bytes]]:
        """One streamed GET, no retries; `httpx.TransportError` is left to the caller."""
        timeout = httpx.Timeout(self.timeout_s, read=silence_s)
        async with self._open(path, headers, timeout) as (response, chunks):
            self._answered = True
            log.debug("GET %s: %d, a stream", path, response.status_code)
            if response.status_code >= 400:
                raise problem_of(response)
            yield chunks

    def _foreign(self) -> ConnectionFailed:
        return ConnectionFailed(
            f"{self._shown_url} answered, but not as this version of Sluice does. "
            "Is SLUICE_URL right?"
        )

    def _failure(self, error: Exception, *, sent: bool) -> ConnectionFailed:
        reason = str(error).strip() or type(error).__name__
        if sent:
            return ConnectionBroken(
                f"The connection to the API at {self._shown_url} broke ({reason}). "
                "The request may or may not have been carried out."
            )
        return ConnectionFailed(
            f"Cannot reach the API at {self._shown_url} ({reason}). "
            "Is it running? Start it with `sluice up`, or set SLUICE_URL."
        )

    def _report_absence(self, pauses: "_Pauses", reason: str) -> None:
        """Once, however many threads or tasks wait, and not for a hiccup."""
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
            await _cancelled(tasks)

    @asynccontextmanager
    async def beside(
        self, work: Callable[[Background], Coroutine[Any, Any, None]]
    ) -> AsyncIterator[None]:
        task = asyncio.create_task(work(_TaskBackground()))
        try:
            yield
        finally:
            await _cancelled([task])
        if not task.cancelled():
            task.result()  # What a callback raised is raised where the block is.

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


async def _cancelled(tasks: Sequence[asyncio.Task[Any]]) -> None:
    """Ends them all, and waits until they have ended."""
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
    """In the thread that calls; threads may share it."""

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
            # Not waited for: on Ctrl-C the client is closed next, which ends what is under way.
            pool.shutdown(wait=False, cancel_futures=True)

    @asynccontextmanager
    async def beside(
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
    """A thread that is not waited for: what it does last may take as long as a timeout."""

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
    """How long one request has been failing, and how long to pause before the next try."""

    def __init__(
        self,
        retries: Retries,
        *,
        known: bool,
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
        self._away_until = (
            self._known_until if known else min(self._deadline, started + retries.connect_for_s)
        )
        self._busy_until = min(self._deadline, started + retries.busy_for_s)

    def left_s(self) -> float:
        """Of the whole call's time; a moment where it is over, for httpx takes no zero."""
        return max(_MOMENT_S, self._deadline - time.monotonic())

    def away(self, *, at_least_s: float = 0.0) -> float | None:
        """Nothing was sent, or the API or a gateway before it said that it is not there yet."""
        pause_s = min(self._retries.cap_s, self._retries.base_s * 2 ** min(self.failures, 10))
        self.failures += 1
        return _within(self._away_until, max(at_least_s, pause_s * random.uniform(0.5, 1.0)))

    def broken(self) -> float | None:
        """The connection was there, and broke: so there is an API, which may be starting anew."""
        self._breaks += 1
        self._away_until = self._known_until
        return None if self._breaks == self._tries else self.away()

    def busy(self, retry_after_s: float | None) -> float | None:
        pause_s = self._retries.cap_s if retry_after_s is None else retry_after_s
        return _within(self._busy_until, pause_s)


def problem_of(response: httpx.Response) -> ApiError:
    """The exception for an answer of 400 and above, whatever its body looks like."""
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
    """Whether the API itself has said this, rather than what stands before it."""
    content_type = str(response.headers.get("Content-Type", ""))
    return content_type.partition(";")[0].strip().lower() == _PROBLEM


def _within(until: float, pause_s: float) -> float | None:
    return pause_s if time.monotonic() + pause_s <= until else None


def _seconds(value: str | None) -> float | None:
    return float(value) if value is not None and value.strip().isdigit() else None


def _rewound(upload: Upload) -> Upload:
    """A repeated request must send the file from its start again."""
    upload[1].seek(0)
    return upload


def _clean(params: Params | None) -> dict[str, Any] | None:
    """Without those that are not set, which httpx would send as empty."""
    return {k: v for k, v in params.items() if v is not None} if params else None
