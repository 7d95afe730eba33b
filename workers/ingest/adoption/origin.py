"""The protocol of places that collections are adopted from.

An origin is only read. What is expensive to open, such as a copy of a folder, is kept by a worker
process for the next step of the same job, for SLUICE_ADOPT_COPY_KEEP_S.
"""

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol

from shared.errors import DocumentError
from shared.urls import CollectionUrl
from workers.attempts.process import Process
from workers.models.devices import Vectors

SHOWN_NAMES = 50


@dataclass(frozen=True, kw_only=True)
class OriginChunk:
    """A chunk as another program wrote it; `text` None of one that has a vector alone."""

    id: str
    text: str | None
    metadata: Mapping[str, Any]


class Origin(Protocol):
    """A collection of another program. Every call raises `Unavailable` if it cannot be read now,
    and `DocumentError` if it cannot be read at all."""

    def pages(self) -> Iterator[list[OriginChunk]]:
        """All chunks in the order in which they were written, without their texts."""

    def having(self, key: str, values: Sequence[str]) -> Iterator[list[OriginChunk]]:
        """The chunks whose metadata has one of these values under the key, in the same order."""

    def chunks(self, ids: Sequence[str]) -> list[OriginChunk]:
        """Those of these chunks that exist, in any order."""

    def vectors(self, ids: Sequence[str]) -> dict[str, Vectors]:
        """Id -> vector of the shape (dimension,), float32, of those of these chunks that have
        one."""


class UnnamedCollection(DocumentError):
    """The place has several collections, or not the one that was named."""

    @classmethod
    def among(cls, url: CollectionUrl, names: Sequence[tuple[str, int | None]]) -> "DocumentError":
        """`names` are those of the collections that are there, with their numbers of chunks."""
        missing = f"has no collection {url.name!r}" if url.name else "names no collection"
        if not names:
            return cls(f"{url}: {missing}, and there is none at this place.")
        listed = ", ".join(
            name if count is None else f"{name} ({count:,} chunks)"
            for name, count in names[:SHOWN_NAMES]
        )
        more = f" and {len(names) - SHOWN_NAMES:,} more" if len(names) > SHOWN_NAMES else ""
        example = url.with_name(names[0][0])
        return cls(f"{url}: {missing}. There are {listed}{more}; name one, as in {example}.")


class KeptOrigins:
    """What this process has opened and keeps for a while, by keys that change when the files do."""

    def __init__(self, process: Process) -> None:
        self._keep_s = process.settings.adopt_copy_keep_s
        self._lock = threading.Lock()
        self._open: dict[Any, tuple[Any, Callable[[], object]]] = {}
        self._uses: dict[Any, int] = {}
        self._timer: threading.Timer | None = None

    @contextmanager
    def use(self, key: Any, make: Callable[[], tuple[Any, Callable[[], object]]]) -> Iterator[Any]:
        """What `make` made for this key; it also returns what closes that."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            if key not in self._open:
                self._close_unused()
                self._open[key] = make()
            self._uses[key] = self._uses.get(key, 0) + 1
            value = self._open[key][0]
        try:
            yield value
        finally:
            with self._lock:
                self._uses[key] = self._uses.get(key, 1) - 1
                if self._timer is not None:
                    self._timer.cancel()
                self._timer = threading.Timer(self._keep_s, self._close_idle)
                self._timer.daemon = True
                self._timer.start()

    def _close_idle(self) -> None:
        with self._lock:
            self._close_unused()

    def _close_unused(self) -> None:
        for key in [key for key in self._open if not self._uses.get(key)]:
            _, close = self._open.pop(key)
            self._uses.pop(key, None)
            with suppress(Exception):
                close()

    def close(self) -> None:
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            self._uses.clear()
            self._close_unused()


def kept_origins(process: Process) -> KeptOrigins:
    return process.held(KeptOrigins, KeptOrigins.close)
