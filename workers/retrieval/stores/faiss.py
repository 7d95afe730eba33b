"""The vector store FAISS: an index in a folder of one machine, for several processes at once.

A collection is a folder with these files; `1` is the number of a generation, of which the largest
counts:

     lock          locked by the process that writes
     log-1         records of written and deleted chunks; the end of a record is its commit
     vectors-1     the vectors, float32, one row after another; only rows in the log count

Both files only grow. A write appends the vectors, waits until they are on the disk (fsync), appends
its records, and waits again before it returns: a process that is killed at any byte loses nothing
that was acknowledged. An incomplete record at the end of the log is cut off by the next writer.
Each record and its vectors have a checksum, which includes the checksum of the record before.

Readers take no lock. Each process has the ids in memory and continues to read the log from where it
was; a `stat` at each call shows whether there is more. Vectors are mapped into memory, so that all
processes of the machine share one copy.

A row never changes: a chunk that is written again gets a new row. When a quarter of the rows belong
to no chunk any more, the others are copied to a new generation, which counts once its log has its
final name.

The folder has ids, vectors and metadata, but not the texts; those are in Postgres. FAISS's own
file, which LangChain writes beside a pickle, is not used: it can only be written as a whole, by one
process, and reading a pickle may run any program.
"""

import errno
import fcntl
import hashlib
import json
import logging
import mmap
import os
import re
import shutil
import struct
import time
import zlib
from array import array
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import RLock
from typing import Any
from uuid import uuid4

import faiss as faiss_library
import numpy as np
import orjson
from numpy.typing import NDArray

from shared.bounds import nfc, nfc_value
from shared.config import Settings
from shared.errors import ConfigurationError, Permanent, Unavailable
from shared.filters import MetadataFilter
from shared.vector_stores import StoreUrl
from workers.models.devices import Vectors
from workers.retrieval.store import (
    REBUILD,
    DamagedCollection,
    Match,
    MissingCollection,
    VectorEntry,
    is_same,
)

log = logging.getLogger(__name__)

_faiss: Any = faiss_library  # its types lack most of what is used here

BATCH = 1000
"""Chunks of one record, at most."""
COLLECTIONS_KEPT = 64
FILTERS_KEPT = 16
DELETED_ROWS = 1000
"""As many rows that belong to no chunk are left where they are."""
GROWTH_BYTES = 2**24
"""The file of vectors grows by at least this, so that it is seldom mapped again. The part that is
not written yet takes no space on the disk."""
LOCK_POLL_S = 0.01

_Mask = NDArray[np.bool_]
_sync = getattr(os, "fdatasync", os.fsync)

# A record: its head, the checksum of that, the payload, the checksum of both and of the record
# before, and an end that is not zero: a file may end with zeros after a power failure.
_HEAD = struct.Struct("<4sB3xQ")
_CRC = struct.Struct("<I")
_MAGIC = b"SLFV"
_END = b"end\n"
_START_BYTES = _HEAD.size + _CRC.size
_FORMAT = 1

_COLLECTION, _UPSERT, _DELETE = 1, 2, 3


def folder_name(name: str) -> str:
    """The name of a collection's folder: the same for short names of small ASCII letters, digits,
    `.`, `_` and `-`, otherwise the SHA-256 of the name in UTF-8 behind a `~`, which no other name
    has. So no name leads out of the folder, and names that differ in case only are two folders
    everywhere."""
    if re.fullmatch(r"[a-z0-9][a-z0-9._-]{0,99}", name):
        return name
    return f"~{hashlib.sha256(name.encode()).hexdigest()}"


class _Damaged(Exception):
    """The files of a collection are not as they were written; the text describes the damage."""


class Faiss:
    """A `VectorStore` in a folder. `url` is `faiss:///folder`."""

    def __init__(self, settings: Settings, url: str) -> None:
        self._root = Path(StoreUrl.read(url).path)
        self._timeout_s = settings.request_timeout_s
        self._lock = RLock()
        self._kept: OrderedDict[str, _Collection] = OrderedDict()

    def make(self, name: str, distance: str) -> None:
        with self._lock, self._translated(name):
            self._remove_dropped()
            while True:
                folder = self._folder(name)
                folder.mkdir(exist_ok=True)
                try:
                    with self._locked(folder):
                        if _generation(folder) is None:
                            _begin(folder, 1, {"name": name, "distance": distance})
                            _sync_folder(self._root)
                        return
                except FileNotFoundError:
                    continue  # dropped since

    def upsert(self, name: str, entries: Sequence[VectorEntry], vectors: Vectors) -> None:
        with self._lock, self._translated(name), self._writing(name) as collection:
            if entries:
                collection.upsert(entries, np.ascontiguousarray(vectors, dtype=np.float32))
            self._compact(name, collection)

    def query(
        self,
        name: str,
        vectors: Vectors,
        *,
        limit: int,
        where: MetadataFilter | None,
        ids: Sequence[str] | None = None,
    ) -> list[list[Match]]:
        with self._lock, self._translated(name):
            collection = self._current(name)
            if not collection.row_of:
                return [[] for _ in vectors]
            return collection.nearest(
                np.ascontiguousarray(vectors, dtype=np.float32),
                limit,
                collection.mask(where, ids),
            )

    def is_exact(self, where: MetadataFilter) -> bool:
        del where
        return True

    def vectors(self, name: str, ids: Sequence[str]) -> dict[str, Vectors]:
        with self._lock, self._translated(name):
            collection = self._current(name)
            rows = {id_: row for id_ in ids if (row := collection.row_of.get(id_)) is not None}
            return {id_: collection.vectors[row].copy() for id_, row in rows.items()}

    def compare(self, name: str, entries: Sequence[VectorEntry]) -> dict[str, bool]:
        with self._lock, self._translated(name):
            collection = self._current(name)
            return {
                entry.id: collection.has_line(row, _line(entry))
                for entry in entries
                if (row := collection.row_of.get(entry.id)) is not None
            }

    def delete(self, name: str, ids: Sequence[str]) -> int:
        try:
            with self._lock, self._translated(name), self._writing(name) as collection:
                stored = [id_ for id_ in dict.fromkeys(ids) if id_ in collection.row_of]
                if stored:
                    collection.delete(stored)
                    left = sum(id_ in collection.row_of for id_ in stored)
                    if left:
                        raise Unavailable(f"{collection.folder} still has {left} vectors.")
                self._compact(name, collection)
                return len(stored)
        except MissingCollection:
            return 0

    def drop(self, name: str) -> int:
        with self._lock, self._translated(name):
            folder = self._folder(name)
            try:
                with self._locked(folder):
                    try:
                        count = len(self._follow(name).row_of)
                    except (FileNotFoundError, _Damaged):
                        count = 0
                    self._forget(name)
                    # From here on, no process has the collection; if this one is killed, the next
                    # one removes the rest of the folder.
                    folder.rename(self._root / f".dropped-{uuid4().hex}")
                    _sync_folder(self._root)
            except FileNotFoundError:
                count = 0
            self._remove_dropped()
            return count

    def id_page(self, name: str, *, limit: int, offset: int) -> list[str]:
        try:
            with self._lock, self._translated(name):
                return list(islice(self._current(name).row_of, offset, offset + limit))
        except MissingCollection:
            return []

    def close(self) -> None:
        with self._lock:
            for name in list(self._kept):
                self._forget(name)

    def _folder(self, name: str) -> Path:
        return self._root / folder_name(name)

    def _current(self, name: str) -> "_Collection":
        """The collection as it is now. Raises FileNotFoundError if there is none, and _Damaged."""
        try:
            return self._follow(name)
        except _Damaged:
            # Another process may be writing what looks like damage; the lock shows that.
            self._forget(name)
            with self._locked(self._folder(name)):
                return self._follow(name)

    def _follow(self, name: str) -> "_Collection":
        kept = self._kept.get(name)
        if kept is not None and kept.follow():
            self._kept.move_to_end(name)
            return kept
        self._forget(name)
        folder = self._folder(name)
        while True:
            generation = _generation(folder)
            if generation is None:
                raise FileNotFoundError(errno.ENOENT, "no log", folder)
            try:
                collection = _Collection(folder, generation)
            except FileNotFoundError:
                if _generation(folder) != generation:
                    continue  # a new generation since
                raise _Damaged(f"there is no vectors-{generation}") from None
            try:
                if not collection.follow():
                    collection.close()
                    continue
            except BaseException:
                collection.close()
                raise
            self._kept[name] = collection
            if len(self._kept) > COLLECTIONS_KEPT:
                self._forget(next(iter(self._kept)))
            return collection

    def _forget(self, name: str) -> None:
        kept = self._kept.pop(name, None)
        if kept is not None:
            kept.close()

    @contextmanager
    def _writing(self, name: str) -> Iterator["_Collection"]:
        """The collection, while no other process writes it."""
        folder = self._folder(name)
        with self._locked(folder):
            kept = self._kept.get(name)
            if kept is not None and kept.generation != _generation(folder):
                self._forget(name)
            try:
                collection = self._follow(name)
            except _Damaged:
                self._forget(name)
                collection = self._follow(name)
            collection.cut_off()
            _remove_old(folder, collection.generation)
            yield collection

    @contextmanager
    def _locked(self, folder: Path) -> Iterator[None]:
        """Hold the lock of a folder. Raises FileNotFoundError if there is no such folder,
        Unavailable if the lock is not free in time."""
        ends = time.monotonic() + self._timeout_s
        while True:
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                while not _try_lock(lock):
                    if time.monotonic() > ends:
                        raise Unavailable(
                            f"Other processes write to {folder} (SLUICE_VECTORS_URL) for longer "
                            f"than {self._timeout_s:g} s (SLUICE_REQUEST_TIMEOUT_S)."
                        )
                    time.sleep(LOCK_POLL_S)
                # The folder may have been dropped meanwhile, and even made again.
                if _is_at(lock, folder / "lock"):
                    yield
                    return
            finally:
                os.close(lock)

    def _compact(self, name: str, collection: "_Collection") -> None:
        if collection.rows - len(collection.row_of) < max(DELETED_ROWS, collection.rows // 4):
            return
        try:
            collection.compact()
        except OSError as error:
            # The write is complete and searches are right; the next write tries this again.
            log.warning("%s (SLUICE_VECTORS_URL) was not compacted: %s", collection.folder, error)
        else:
            self._forget(name)

    def _remove_dropped(self) -> None:
        for folder in self._root.glob(".dropped-*"):
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        """Turn errors of files into ours. Where the folder of the store is not there, as on a disk
        that is not mounted, nothing is made, found missing or erased."""
        try:
            try:
                self._root.stat()
            except FileNotFoundError as error:
                raise Unavailable(
                    f"There is no folder {self._root} (SLUICE_VECTORS_URL): make it (mkdir -p), or "
                    "mount it."
                ) from error
            yield
        except _Damaged as error:
            raise DamagedCollection(
                f"The files of collection {name!r} in {self._folder(name)} (SLUICE_VECTORS_URL) "
                f"are damaged: {error}. {REBUILD}"
            ) from error
        except FileNotFoundError as error:
            raise MissingCollection(
                f"{self._root} (SLUICE_VECTORS_URL) has no collection {name!r}: its files were "
                "removed, or the setting names another folder. "
                f"{REBUILD}"
            ) from error
        except OSError as error:
            where = f"{self._root} (SLUICE_VECTORS_URL)"
            reason = error.strerror or str(error)
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
                raise Unavailable(
                    f"There is no space left for {where}: {reason}. Make some; what was written "
                    "before is not lost."
                ) from error
            if error.errno in _NOT_OURS:
                raise ConfigurationError(
                    f"{where} cannot be written: {reason}. Name a folder that the workers may "
                    "write to."
                ) from error
            raise Unavailable(f"{where} failed: {reason}") from error


_NOT_OURS = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.EISDIR,
    errno.ENAMETOOLONG,
)  # fmt: skip


class _Collection:
    """A generation of a collection's files, as this process has read them."""

    def __init__(self, folder: Path, generation: int) -> None:
        """Raises FileNotFoundError if they are not there."""
        self.folder = folder
        self.generation = generation
        self._log_path = folder / f"log-{generation}"
        self._log = os.open(self._log_path, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._file = os.open(folder / f"vectors-{generation}", os.O_RDWR | os.O_CLOEXEC)
        except BaseException:
            os.close(self._log)
            raise
        self._end = 0
        """The offset up to which the log was read: the end of a record."""
        self._crc = 0
        self.head: dict[str, Any] = {}
        self.dimension = 0
        self.rows = 0
        """Including those that belong to no chunk any more."""
        self.row_of: dict[str, int] = {}
        self._ids: list[str] = []
        self._lines = array("Q")
        """For each row, the offset and the length of its line in the log."""
        self._line_bytes = array("I")
        self._is_live: _Mask = np.zeros(0, dtype=np.bool_)
        self._mapped_bytes = 0
        self._map: NDArray[np.float32] = np.zeros(0, dtype=np.float32)
        self._fitting: OrderedDict[str, _Mask] = OrderedDict()
        """Filter -> the rows that match it, among the first ones."""

    def close(self) -> None:
        self._map = np.zeros(0, dtype=np.float32)
        os.close(self._log)
        os.close(self._file)

    @property
    def vectors(self) -> Vectors:
        return self._map[: self.rows * self.dimension].reshape(self.rows, self.dimension)

    # Reading

    def follow(self) -> bool:
        """Read new records. Returns whether this is still the current generation. Raises
        _Damaged."""
        if not _is_at(self._log, self._log_path):
            return False
        size = os.fstat(self._log).st_size
        if size < self._end:
            return False
        if self._mapped_bytes > os.fstat(self._file).st_size:
            raise _Damaged(f"vectors-{self.generation} has become shorter")
        while (record := _read(self._log, self._end, size, self._crc)) is not None:
            start = self._end + _START_BYTES
            if not self._end:
                self._read_head(record)
            elif record.kind == _UPSERT:
                self._read_upsert(record.payload, start)
            elif record.kind == _DELETE:
                for id_ in orjson.loads(record.payload):
                    self._forget(id_)
            else:
                raise _Damaged(f"a record has the unknown kind {record.kind}")
            self._end, self._crc = record.end, record.crc
        if not self._end:
            raise _Damaged(f"log-{self.generation} is empty")
        return True

    def _read_head(self, record: "_Record") -> None:
        if record.kind != _COLLECTION:
            raise _Damaged("the first record is missing")
        self.head = orjson.loads(record.payload)
        if self.head["format"] != _FORMAT:
            raise _Damaged(f"they have the format {self.head['format']}, not {_FORMAT}")

    def _read_upsert(self, payload: bytes, start: int) -> None:
        first, *lines = payload.splitlines(keepends=True)
        batch = orjson.loads(first)
        if batch["row"] != self.rows or self.dimension not in (0, batch["dimension"]):
            raise _Damaged(f"row {batch['row']:,} does not follow row {self.rows:,}")
        self.dimension = batch["dimension"]
        self._map_rows(self.rows + len(lines))
        written = self._map[self.rows * self.dimension : (self.rows + len(lines)) * self.dimension]
        if zlib.crc32(written.data) != batch["crc"]:
            raise _Damaged(
                f"vectors-{self.generation} has other bytes in the rows {self.rows:,} to "
                f"{self.rows + len(lines) - 1:,}"
            )
        if len(self._is_live) < self.rows + len(lines):
            grown = np.zeros(max(2 * len(self._is_live), self.rows + len(lines)), dtype=np.bool_)
            grown[: self.rows] = self._is_live[: self.rows]
            self._is_live = grown
        start += len(first)
        for line in lines:
            id_ = orjson.loads(line)[0]
            dead = self.row_of.get(id_)
            if dead is not None:
                self._is_live[dead] = False
            self.row_of[id_] = self.rows
            self._is_live[self.rows] = True
            self._ids.append(id_)
            self._lines.append(start)
            self._line_bytes.append(len(line))
            self.rows += 1
            start += len(line)

    def _forget(self, id_: str) -> None:
        row = self.row_of.pop(id_, None)
        if row is not None:
            self._is_live[row] = False

    def _map_rows(self, rows: int) -> None:
        """Map the vectors of this many rows, and what the file has behind them."""
        if rows * self.dimension <= len(self._map):
            return
        size = os.fstat(self._file).st_size
        if size < rows * self.dimension * 4:
            raise _Damaged(f"vectors-{self.generation} is shorter than the log says")
        self._map = np.frombuffer(
            mmap.mmap(self._file, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ),
            dtype=np.float32,
            count=size // 4,
        )
        self._mapped_bytes = size

    def line(self, row: int) -> bytes:
        return os.pread(self._log, self._line_bytes[row], self._lines[row])

    def has_line(self, row: int, line: bytes) -> bool:
        """Whether a row has this line; keys may be in another order."""
        stored = self.line(row)
        return stored == line or is_same(orjson.loads(stored), orjson.loads(line))

    # Searching

    def mask(self, where: MetadataFilter | None, ids: Sequence[str] | None) -> _Mask:
        """The rows that a query may return."""
        mask = self._is_live[: self.rows]
        if ids is not None:
            rows = [row for id_ in ids if (row := self.row_of.get(id_)) is not None]
            mask = np.zeros(self.rows, dtype=np.bool_)
            mask[rows] = True
        return mask if where is None else mask & self._matching(where)

    def _matching(self, where: MetadataFilter) -> _Mask:
        """The rows that match a filter, among those that belong to a chunk. Rows never change, so
        the result for the first ones is kept."""
        key = json.dumps(where.json, sort_keys=True)
        known = self._fitting.pop(key, np.zeros(0, dtype=np.bool_))
        new = np.zeros(self.rows - len(known), dtype=np.bool_)
        for row in (np.flatnonzero(self._is_live[len(known) : self.rows]) + len(known)).tolist():
            _, own, metadata = orjson.loads(self.line(row))
            new[row - len(known)] = where.matches(metadata, own)
        self._fitting[key] = np.concatenate([known, new]) if len(new) else known
        if len(self._fitting) > FILTERS_KEPT:
            self._fitting.popitem(last=False)
        return self._fitting[key]

    def nearest(self, queries: Vectors, limit: int, mask: _Mask) -> list[list[Match]]:
        self._check_dimension(queries)
        count = min(limit, int(np.count_nonzero(mask)))
        if not count or not len(queries):
            return [[] for _ in queries]
        scores, rows = _search(queries, self.vectors, count, mask)
        return [
            [
                Match(id=self._ids[row], score=score)
                for row, score in zip(row_rows, row_scores, strict=True)
            ]
            for row_rows, row_scores in zip(rows.tolist(), scores.tolist(), strict=True)
        ]

    def _check_dimension(self, vectors: Vectors) -> None:
        if self.dimension and vectors.shape[1] != self.dimension:
            raise Permanent(
                f"{self.folder} (SLUICE_VECTORS_URL) has vectors of {self.dimension:,} numbers, "
                f"not of {vectors.shape[1]:,}: they are of another embedding model. "
                f"{REBUILD}"
            )

    # Writing: the caller has the lock

    def cut_off(self) -> None:
        """Remove an incomplete record that a killed process left at the end of the log."""
        if os.fstat(self._log).st_size > self._end:
            os.ftruncate(self._log, self._end)
            _sync(self._log)

    def upsert(self, entries: Sequence[VectorEntry], vectors: Vectors) -> None:
        self._check_dimension(vectors)
        writer = _Writer(self._log, self._file, self._end, self._crc, self.rows)
        lines = [_line(entry) for entry in entries]
        for first in range(0, len(lines), BATCH):
            writer.upsert(lines[first : first + BATCH], vectors[first : first + BATCH])
        writer.commit()
        self._follow_own()

    def delete(self, ids: Sequence[str]) -> None:
        writer = _Writer(self._log, self._file, self._end, self._crc, self.rows)
        for first in range(0, len(ids), BATCH):
            writer.record(_DELETE, orjson.dumps(ids[first : first + BATCH]))
        writer.commit()
        self._follow_own()

    def _follow_own(self) -> None:
        """Read the records that this process has just written."""
        if not self.follow():
            raise FileNotFoundError(errno.ENOENT, "removed by another program", self._log_path)

    def compact(self) -> None:
        """Copy the rows that belong to chunks to the next generation."""
        rows = list(self.row_of.values())
        _begin(self.folder, self.generation + 1, self.head, (self, rows))
        _remove_old(self.folder, self.generation + 1)


def _line(entry: VectorEntry) -> bytes:
    """What the log has of a chunk."""
    metadata = {nfc(key): nfc_value(value) for key, value in entry.metadata.items()}
    return orjson.dumps([entry.id, entry.own, metadata]) + b"\n"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Record:
    kind: int
    payload: bytes
    crc: int
    end: int


def _read(file: int, start: int, size: int, crc: int) -> _Record | None:
    """The record that starts there in a file of this size, with the checksum of the record before;
    None if there is none yet, or only a part of one. Raises _Damaged."""
    if start + _START_BYTES > size:
        return None
    head = os.pread(file, _START_BYTES, start)
    if len(head) < _START_BYTES:  # another process has just cut it off
        return None
    magic, kind, length = _HEAD.unpack_from(head)
    if magic != _MAGIC or _CRC.unpack_from(head, _HEAD.size)[0] != zlib.crc32(head[: _HEAD.size]):
        end = start + _START_BYTES
    else:
        end = start + _START_BYTES + length + _CRC.size + len(_END)
        if end > size:
            return None
        rest = os.pread(file, end - start - _START_BYTES, start + _START_BYTES)
        new_crc = zlib.crc32(rest[:length], zlib.crc32(head, crc))
        if rest[length:] == _CRC.pack(new_crc) + _END:
            return _Record(kind=kind, payload=rest[:length], crc=new_crc, end=end)
    # A power failure leaves zeros of a write that was not acknowledged.
    if start + len(os.pread(file, size - start, start).rstrip(b"\0")) < end:
        return None
    raise _Damaged(f"the log has other bytes from byte {start:,} on")


class _Writer:
    """Appends to the two files of a generation; `commit` makes it count."""

    def __init__(self, log_file: int, file: int, end: int, crc: int, rows: int) -> None:
        self._log = log_file
        self._file = file
        self._end = end
        self._crc = crc
        self._rows = rows
        self._records: list[bytes] = []
        self._has_vectors = False

    def record(self, kind: int, payload: bytes) -> None:
        head = _HEAD.pack(_MAGIC, kind, len(payload))
        head += _CRC.pack(zlib.crc32(head))
        self._crc = zlib.crc32(payload, zlib.crc32(head, self._crc))
        self._records += [head, payload, _CRC.pack(self._crc), _END]

    def upsert(self, lines: Sequence[bytes], vectors: Vectors) -> None:
        """Write the vectors; the records follow at the commit."""
        content = vectors.tobytes()
        dimension = vectors.shape[1]
        start = self._rows * dimension * 4
        size = os.fstat(self._file).st_size
        if start + len(content) > size:
            growth = max(GROWTH_BYTES, size // 4, start + len(content) - size)
            os.ftruncate(self._file, size + growth)
        _write(self._file, content, start)
        first = {"row": self._rows, "dimension": dimension, "crc": zlib.crc32(content)}
        self.record(_UPSERT, b"".join([orjson.dumps(first), b"\n", *lines]))
        self._rows += len(lines)
        self._has_vectors = True

    def commit(self) -> None:
        """Write the records, and wait until everything is on the disk."""
        if self._has_vectors:
            _sync(self._file)
        start = self._end
        try:
            self.flush()
            _sync(self._log)
        except BaseException:
            os.ftruncate(self._log, start)
            raise

    def flush(self) -> None:
        """Write the records, for a log that nobody reads yet."""
        content = b"".join(self._records)
        self._records.clear()
        _write(self._log, content, self._end)
        self._end += len(content)


def _begin(
    folder: Path,
    generation: int,
    head: dict[str, Any],
    content: tuple[_Collection, Sequence[int]] | None = None,
) -> None:
    """Make the files of a generation, with these rows of another one. The caller has the lock."""
    new, vectors = folder / "log.new", folder / f"vectors-{generation}"
    try:
        with new.open("wb") as log_file, vectors.open("wb+") as file:
            writer = _Writer(log_file.fileno(), file.fileno(), 0, 0, 0)
            writer.record(_COLLECTION, orjson.dumps({**head, "format": _FORMAT}))
            if content is not None:
                source, rows = content
                for first in range(0, len(rows), BATCH):
                    batch = rows[first : first + BATCH]
                    writer.upsert([source.line(row) for row in batch], source.vectors[batch])
                    writer.flush()
            writer.commit()
        _sync_folder(folder)
        new.rename(folder / f"log-{generation}")
    except BaseException:
        new.unlink(missing_ok=True)
        vectors.unlink(missing_ok=True)
        raise
    _sync_folder(folder)


def _search(
    queries: Vectors, vectors: Vectors, count: int, mask: _Mask
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Scores and rows of the `count` largest products of each query with the rows of the mask."""
    # FAISS has an OpenMP of its own, whose number of threads is one for each thread that calls.
    # One is enough: a worker has many processes.
    _faiss.omp_set_num_threads(1)
    scores = np.empty((len(queries), count), dtype=np.float32)
    rows = np.empty((len(queries), count), dtype=np.int64)
    bits = np.packbits(mask, bitorder="little")
    selector = None if mask.all() else _faiss.IDSelectorBitmap(bits)
    _faiss.knn_inner_product(
        _faiss.swig_ptr(queries),
        _faiss.swig_ptr(vectors),
        vectors.shape[1],
        len(queries),
        len(vectors),
        count,
        _faiss.swig_ptr(scores),
        _faiss.swig_ptr(rows),
        selector,
    )
    order = np.lexsort((rows, -scores), axis=1)  # equal scores in the order of writing
    return np.take_along_axis(scores, order, axis=1), np.take_along_axis(rows, order, axis=1)


# Files


def _generation(folder: Path) -> int | None:
    """The number of the newest generation; None if there is no collection."""
    try:
        names = [path.name for path in folder.iterdir()]
    except FileNotFoundError:
        return None
    return max((int(name[4:]) for name in names if re.fullmatch(r"log-[0-9]+", name)), default=None)


def _remove_old(folder: Path, generation: int) -> None:
    """Remove files of older generations. A process that has an old log open learns of the new one
    by its removal, so nothing may be written to the new one before."""
    own = {"lock", f"log-{generation}", f"vectors-{generation}"}
    for path in sorted(folder.iterdir()):  # logs first: none may be left without its vectors
        if path.name not in own:
            path.unlink(missing_ok=True)


def _is_at(file: int, path: Path) -> bool:
    """Whether an open file is the one at the path."""
    try:
        at_path = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    opened = os.fstat(file)
    return (opened.st_dev, opened.st_ino) == (at_path.st_dev, at_path.st_ino)


def _try_lock(file: int) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _write(file: int, content: bytes, start: int) -> None:
    left = memoryview(content)
    while left:
        written = os.pwrite(file, left, start)
        left = left[written:]
        start += written


def _sync_folder(folder: Path) -> None:
    file = os.open(folder, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(file)
    finally:
        os.close(file)
