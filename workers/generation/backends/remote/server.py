"""A server beside Sluice, as the requests to it need it: one asyncio loop, and a gate before it.

The loop runs in a daemon thread that starts with the first request and ends with `close()`, so
that a server that hangs holds up neither a caller nor the end of the process. At most so many
requests as a setting says are with the server at once; the others wait here.
"""

import asyncio
import ipaddress
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import CancelledError, Future, wait
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from heapq import heappop, heappush
from itertools import count
from typing import Any, Final, TypeVar
from urllib.parse import urlsplit, urlunsplit

from shared.errors import (
    ConfigurationError,
    Permanent,
    Retryable,
    SluiceError,
    StepError,
    Unavailable,
)

# What goes wrong with another server, as the errors that the runner's retry policy goes by.
#
# - It does not answer, or answers that it cannot now: `Unavailable`, with the server's Retry-After.
# - Its stream breaks off in the middle: `Retryable`, and the next attempt goes on from there.
# - It says that the request is wrong: `Permanent`, with its own words and what to do.

_TRY_LATER = (408, 425, 429)
_MESSAGE_LIMIT_CHARS = 500


@dataclass(frozen=True, kw_only=True)
class Place:
    """A server as error messages name it; `url` carries no credentials.

    `remedy` is a sentence that says how to get it running.
    """

    name: str
    url: str
    setting: str
    remedy: str
    key_setting: str
    retry_after_limit_s: float

    def __str__(self) -> str:
        return f"{self.name} at {self.url} ({self.setting})"


def shown(url: str, setting: str) -> str:
    """The URL without user and password. Raises ConfigurationError where it is not one of HTTP."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigurationError(f"{setting} is not a URL: {error}.") from error
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigurationError(f"{setting} must be a URL such as http://127.0.0.1:8080.")
    address = f"[{host}]" if ":" in host else host
    return urlunsplit(
        (parts.scheme, address if port is None else f"{address}:{port}", parts.path, "", "")
    )


def is_loopback(url: str) -> bool:
    """Whether the server is on this machine, where no proxy may stand between."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def unreachable(place: Place, why: str) -> Unavailable:
    return Unavailable(f"{place} does not answer: {why}. {place.remedy}")


def broken_off(place: Place, why: str) -> Retryable:
    return Retryable(f"{place} broke off its answer: {why}.")


def refused(place: Place, status: int, message: str, retry_after: str | None) -> StepError:
    """For an answer with a status from 300."""
    if status < 400:
        return Permanent(
            f"{place} answered {status}: it sends its callers to another address, where nobody "
            f"follows. Set {place.setting} to where it is."
        )
    said = shortened(message)
    if status in _TRY_LATER or status >= 500:
        delay_s = retry_after_s(retry_after)
        capped = None if delay_s is None else min(delay_s, place.retry_after_limit_s)
        return Unavailable(f"{place} answered {status}: {said}", retry_after_s=capped)
    if status in (401, 403):
        return Permanent(
            f"{place} answered {status}: {said} Set {place.key_setting} to a key that it takes."
        )
    return Permanent(f"{place} answered {status}: {said}")


def retry_after_s(header: str | None) -> float | None:
    """Seconds from a Retry-After header, which has seconds or a date; None if it has neither."""
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            moment = parsedate_to_datetime(header)
        except ValueError:
            return None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        seconds = (moment - datetime.now(UTC)).total_seconds()
    return None if math.isnan(seconds) else max(0.0, seconds)


def shortened(message: str) -> str:
    """A server's own words as one sentence."""
    said = " ".join(message.split()) or "(no message)"
    said = said if len(said) <= _MESSAGE_LIMIT_CHARS else said[:_MESSAGE_LIMIT_CHARS] + "…"
    return said if said.endswith((".", "!", "?", "…", ")")) else said + "."


T = TypeVar("T")

POLL_S: Final = 0.2
"""How often those who wait for an answer look whether they still should."""


class Gate:
    """Lets so many through at a time; the others go by lane, then by age. Belongs to one loop."""

    def __init__(self, width: int) -> None:
        self._free = width
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._ages = count()

    @asynccontextmanager
    async def passed(self, lane: int) -> AsyncIterator[None]:
        await self._enter(lane)
        try:
            yield
        finally:
            self._leave()

    async def _enter(self, lane: int) -> None:
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        heappush(self._waiting, (lane, next(self._ages), turn))
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                # Its turn had come in the same moment; the next one takes it.
                self._leave()
            raise

    def _leave(self) -> None:
        while self._waiting:
            turn = heappop(self._waiting)[2]
            if not turn.done():
                turn.set_result(None)
                return
        self._free += 1


class Server(ABC):
    """One server and its client. Thread-safe; generators of several models share it."""

    def __init__(self, place: Place, *, parallel_requests: int) -> None:
        self.place = place
        self.gate = Gate(parallel_requests)
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._is_closed = False

    @abstractmethod
    def translated(self, error: Exception, *, has_begun: bool) -> SluiceError | None:
        """What an error of the client means; None for one that it does not know.

        `has_begun` tells whether an answer was on its way.
        """

    @abstractmethod
    async def disconnect(self) -> None:
        """Close the client."""

    def post(self, callback: Callable[[], object]) -> None:
        """Have the callback run on the loop, soon. Raises Unavailable after `close()`."""
        with self._lock:
            self._started().call_soon_threadsafe(callback)

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run the coroutine on the loop. Raises Unavailable after `close()`."""
        with self._lock:
            try:
                loop = self._started()
            except Unavailable:
                coroutine.close()
                raise
            return asyncio.run_coroutine_threadsafe(coroutine, loop)

    def call(
        self, coroutine: Coroutine[Any, Any, T], *, check: Callable[[], None] = lambda: None
    ) -> T:
        """Run the coroutine to its end, for a thread that can wait; its errors are translated.

        `check` is called all the while, and may raise to give up: the request is dropped then.
        """
        future = self.spawn(coroutine)
        try:
            while not wait([future], timeout=POLL_S).done:
                check()
            return future.result()
        except CancelledError:
            raise Unavailable(f"{self.place} is asked no more: this worker is ending.") from None
        except SluiceError:
            raise
        except Exception as error:
            known = self.translated(error, has_begun=False)
            if known is None:
                raise
            raise known from error
        finally:
            future.cancel()

    def close(self) -> None:
        """End all requests, whose generations fail with Unavailable, and the loop."""
        with self._lock:
            loop, thread, self._is_closed = self._loop, self._thread, True
            self._loop = self._thread = None
        if loop is None or thread is None:
            return
        asyncio.run_coroutine_threadsafe(self._wind_up(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    async def _wind_up(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.disconnect()
        await asyncio.get_running_loop().shutdown_asyncgens()

    def _started(self) -> asyncio.AbstractEventLoop:
        if self._is_closed:
            raise Unavailable(f"{self.place} is asked no more: this worker is ending.")
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(
                target=self._loop.run_forever, name=self.place.name, daemon=True
            )
            self._thread.start()
        return self._loop
