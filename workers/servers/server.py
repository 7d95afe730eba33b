"""Another server that models run on: its connections, its limit of requests, its errors.

Back ends that generate and embedders share it. A `Server` is one asyncio loop in a daemon thread,
which starts with the first request and ends with `close()`: a server that hangs delays neither a
caller nor the end of the process. A setting limits how many requests the server has at once; the
others wait here. Nothing is retried here: the runner does that (`workers/attempts/retry.py`), and
decides by the errors of `workers/outbound.py`.
"""

import asyncio
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import CancelledError, Future, wait
from contextlib import asynccontextmanager
from heapq import heappop, heappush
from itertools import count
from typing import Any, Final, TypeVar

from shared.errors import ModelNotFound, SluiceError, Unavailable
from workers.outbound import RemoteServer

T = TypeVar("T")


class ModelMissing(ModelNotFound):
    """The server does not have the model."""

    code = ModelNotFound.code

    def __init__(self, message: str, *, reference: str) -> None:
        super().__init__(message)
        self.reference = reference


POLL_S: Final = 0.2
"""How often a thread that waits for an answer checks whether it should still wait."""


class RequestSlots:
    """A limit of requests at a time; the others wait, ordered by lane, then by age. Belongs to one
    loop."""

    def __init__(self, limit: int) -> None:
        self._free = limit
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._ages = count()

    @asynccontextmanager
    async def slot(self, lane: int) -> AsyncIterator[None]:
        await self._take(lane)
        try:
            yield
        finally:
            self._give_back()

    async def _take(self, lane: int) -> None:
        if self._free:
            self._free -= 1
            return
        slot = asyncio.get_running_loop().create_future()
        heappush(self._waiting, (lane, next(self._ages), slot))
        try:
            await slot
        except asyncio.CancelledError:
            if slot.done() and not slot.cancelled():
                # The slot was given in the same moment; the next request takes it.
                self._give_back()
            raise

    def _give_back(self) -> None:
        while self._waiting:
            slot = heappop(self._waiting)[2]
            if not slot.done():
                slot.set_result(None)
                return
        self._free += 1


class Server(ABC):
    """One server and its client. Thread-safe; generators of several models share it."""

    def __init__(self, info: RemoteServer, *, parallel_requests: int) -> None:
        self.info = info
        self.slots = RequestSlots(parallel_requests)
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._is_closed = False

    @abstractmethod
    def translate_error(self, error: Exception, *, has_begun: bool) -> SluiceError | None:
        """An error of the client as one of ours; None for an unknown one.

        `has_begun` says whether a part of the answer had come.
        """

    @abstractmethod
    async def disconnect(self) -> None:
        """Close the client."""

    def post(self, callback: Callable[[], object]) -> None:
        """Run the callback on the loop, soon. Raises Unavailable after `close()`."""
        with self._lock:
            self._ensure_loop().call_soon_threadsafe(callback)

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> Future[T]:
        """Run the coroutine on the loop. Raises Unavailable after `close()`."""
        with self._lock:
            try:
                loop = self._ensure_loop()
            except Unavailable:
                coroutine.close()
                raise
            return asyncio.run_coroutine_threadsafe(coroutine, loop)

    def call(
        self, coroutine: Coroutine[Any, Any, T], *, check: Callable[[], None] = lambda: None
    ) -> T:
        """Run the coroutine and wait for its result; its errors are translated.

        `check` is called regularly meanwhile; if it raises, the request is dropped.
        """
        future = self.spawn(coroutine)
        try:
            while not wait([future], timeout=POLL_S).done:
                check()
            return future.result()
        except CancelledError:
            raise Unavailable(
                f"{self.info} gets no more requests: this worker is ending."
            ) from None
        except SluiceError:
            raise
        except Exception as error:
            known = self.translate_error(error, has_begun=False)
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
        asyncio.run_coroutine_threadsafe(self._end_all(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()

    async def _end_all(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.disconnect()
        await asyncio.get_running_loop().shutdown_asyncgens()

    def _ensure_loop(self) -> asyncio.AbstractEventLoop:
        if self._is_closed:
            raise Unavailable(f"{self.info} gets no more requests: this worker is ending.")
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(
                target=self._loop.run_forever, name=self.info.name, daemon=True
            )
            self._thread.start()
        return self._loop
