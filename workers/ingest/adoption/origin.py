"""The protocol of places that collections are adopted from.

An origin is only read. What is expensive to open, such as a copy of a folder, is kept by a worker
process for the next step of the same job, for SLUICE_ADOPT_COPY_KEEP_S.
"""

import fcntl
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from shared.errors import DocumentError, Unavailable
from shared.urls import CollectionUrl
from workers.attempts.context import Context
from workers.attempts.process import Process
from workers.models.devices import Vectors

SHOWN_NAMES = 50
COPIED_BYTES = 16 * 2**20
"""Of a file, between two looks at whether the step has to stop."""
_PREFIX, _LOCK = "sluice-adopt-", "sluice.lock"
LOOK_S = 0.5
"""Between two such looks of a step that waits for another one to open something."""


@dataclass(frozen=True, kw_only=True)
class OriginChunk:
    """A chunk as another program wrote it; `text` None of one that has a vector alone."""

    id: str
    text: str | None
    metadata: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class OriginVector:
    """The vector of a chunk, of the shape (dimension,), float32; and the text that the chunk has at
    the same moment."""

    text: str | None
    vector: Vectors


class Origin(Protocol):
    """A collection of another program. Every call raises `Unavailable` if it cannot be read now,
    and `DocumentError` if it cannot be read at all."""

    def pages(self) -> Iterator[list[OriginChunk]]:
        """All chunks in the order in which they were written, without their texts."""

    def having(self, key: str, values: Sequence[str]) -> Iterator[list[OriginChunk]]:
        """The chunks whose metadata has one of these values under the key, in the same order."""

    def chunks(self, ids: Sequence[str]) -> list[OriginChunk]:
        """Those of these chunks that exist, in any order."""

    def vectors(self, ids: Sequence[str]) -> dict[str, OriginVector]:
        """Those of these chunks that have a vector, by their ids."""


class UnnamedCollection(DocumentError):
    """The place has several collections, or not the one that was named."""

    @classmethod
    def among(
        cls, url: CollectionUrl, names: Sequence[tuple[str, int | None]], count: int
    ) -> "DocumentError":
        """`names` are those of the first of the `count` collections that are there, with their
        numbers of chunks."""
        missing = f"has no collection {url.name!r}" if url.name else "names no collection"
        if not names:
            return cls(f"{url}: {missing}, and there is none at this place.")
        listed = ", ".join(
            name if chunks is None else f"{name} ({chunks:,} chunks)"
            for name, chunks in names[:SHOWN_NAMES]
        )
        more = f" and {count - SHOWN_NAMES:,} more" if count > SHOWN_NAMES else ""
        example = url.with_name(names[0][0])
        return cls(f"{url}: {missing}. There are {listed}{more}; name one, as in {example}.")


# Copies of folders. Libraries read a copy: another program may write to the folder meanwhile, and
# Chroma writes to what it opens.


class Copy:
    """A new folder of temporary files. It is locked, so that another process can tell whether it is
    in use: a worker that is killed leaves it behind."""

    def __init__(self) -> None:
        _delete_leftovers()
        self._folder = tempfile.TemporaryDirectory(prefix=_PREFIX, ignore_cleanup_errors=True)
        self.path = Path(self._folder.name)
        unlocked = self.path / "new"
        self._lock = unlocked.open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        unlocked.rename(self.path / _LOCK)

    def delete(self) -> None:
        self._folder.cleanup()
        self._lock.close()


def _delete_leftovers() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        # OSError: it is in use, or of another user, or has just been deleted.
        with suppress(OSError), (folder / _LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)


def require_room(
    context: Context, url: CollectionUrl, size_bytes: int, folder: Path, *, otherwise: str
) -> None:
    """Raises DocumentError if there is more to copy than the setting allows, with what to do
    `otherwise`; Unavailable if the disk of the copy has no room for it."""
    limit = context.process.settings.adopt_limit_mib * 2**20
    if size_bytes > limit:
        raise DocumentError(
            f"{url}: has {size_bytes / 2**20:,.0f} MiB, and {limit // 2**20:,} are allowed "
            f"(SLUICE_ADOPT_LIMIT_MIB). Raise that, or {otherwise}."
        )
    free = shutil.disk_usage(folder).free
    if size_bytes > free:
        raise Unavailable(
            f"{url}: the worker has {free / 2**20:,.0f} MiB left for temporary files in "
            f"{folder.parent}, and the copy needs {size_bytes / 2**20:,.0f}. Make room, or set "
            "TMPDIR."
        )


def copy_file(context: Context, source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("wb") as writer:
        while block := reader.read(COPIED_BYTES):
            context.check()
            writer.write(block)


class KeptOrigins:
    """What this process has opened and keeps for a while, by keys that are those of a job or of a
    server."""

    def __init__(self, process: Process) -> None:
        self._keep_s = process.settings.adopt_copy_keep_s
        self._lock = threading.Lock()
        self._opening = threading.Lock()
        """Held while something is opened, which may take minutes."""
        self._open: dict[Any, tuple[Any, Callable[[], object]]] = {}
        self._uses: dict[Any, int] = {}
        self._timer: threading.Timer | None = None

    @contextmanager
    def use(
        self,
        key: Any,
        make: Callable[[], tuple[Any, Callable[[], object]]],
        check: Callable[[], None],
    ) -> Iterator[Any]:
        """What `make` made for this key; it also returns what closes that. `check` is called while
        another thread opens something."""
        while not self._opening.acquire(timeout=LOOK_S):
            check()
        try:
            value = self._kept(key)
            if value is None:
                made = make()
                value = made[0]
                with self._lock:
                    self._open[key], self._uses[key] = made, 1
        finally:
            self._opening.release()
        try:
            yield value
        finally:
            with self._lock:
                self._uses[key] = self._uses.get(key, 1) - 1
                self._cancel_timer()
                self._timer = threading.Timer(self._keep_s, self._close_idle)
                self._timer.daemon = True
                self._timer.start()

    def _kept(self, key: Any) -> Any:
        """What is open for the key, and counts as in use; None, and what is not in use is closed,
        if there is nothing."""
        with self._lock:
            self._cancel_timer()
            if key not in self._open:
                self._close_unused()
                return None
            self._uses[key] += 1
            return self._open[key][0]

    def drop(self, key: Any) -> None:
        """Close what is open for the key, unless another thread uses it."""
        with self._lock:
            if key in self._open and not self._uses.get(key):
                self._close(key)

    def _cancel_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _close_idle(self) -> None:
        with self._lock:
            self._close_unused()

    def _close_unused(self) -> None:
        for key in [key for key in self._open if not self._uses.get(key)]:
            self._close(key)

    def _close(self, key: Any) -> None:
        _, close = self._open.pop(key)
        self._uses.pop(key, None)
        with suppress(Exception):
            close()

    def close(self) -> None:
        with self._lock:
            self._cancel_timer()
            self._uses.clear()
            self._close_unused()


def kept_origins(process: Process) -> KeptOrigins:
    return process.held(KeptOrigins, KeptOrigins.close)
