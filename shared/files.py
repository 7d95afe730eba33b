"""Files: uploads in the storage (a folder or any fsspec URL), and files that grow there.

An upload is streamed into the storage, then recorded. Each part of a file that grows is an object
of the storage. A file, or a part of one, exists once its row is committed; bytes without a row are
never seen by anyone.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from io import BytesIO
from typing import Any, Final, Protocol
from uuid import UUID

from fsspec.core import url_to_fs
from sqlalchemy import delete as delete_rows
from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.config import ConnectionSettings
from shared.errors import InvalidInput, NotFound, TooLarge, Unavailable
from shared.tables import File, PathToDelete, new_id

BLOCK_BYTES = 2**20
PARTS_LIMIT = 10_000
"""Of a file that grows: each is a name in its row, and an object of the storage."""


class Purpose(StrEnum):
    """What a file is for, in the words of OpenAI's API."""

    ASSISTANTS = "assistants"
    ASSISTANTS_OUTPUT = "assistants_output"
    BATCH = "batch"
    BATCH_OUTPUT = "batch_output"
    FINE_TUNE = "fine-tune"
    FINE_TUNE_RESULTS = "fine-tune-results"
    VISION = "vision"
    USER_DATA = "user_data"


class Readable(Protocol):
    def read(self, size: int = ..., /) -> bytes: ...


@dataclass(frozen=True, kw_only=True)
class StoredBytes:
    """Bytes in the storage that have no row yet."""

    id: UUID
    path: str
    size_bytes: int
    sha256: str


class Storage:
    """The folder or bucket of uploads."""

    def __init__(self, url: str) -> None:
        self._fs, self._root = url_to_fs(url, auto_mkdir=True)

    def store(self, source: Readable, *, name: str, limit_bytes: int) -> StoredBytes:
        """Copy a stream. Raises TooLarge or InvalidInput (empty), and then keeps nothing."""
        file_id = new_id()
        path = f"{file_id.hex[-2:]}/{file_id}"
        digest, size = hashlib.sha256(), 0
        try:
            with _storage_errors(path), self._fs.open(self._full(path), "wb") as target:
                while block := source.read(BLOCK_BYTES):
                    size += len(block)
                    if size > limit_bytes:
                        raise TooLarge(too_large(name, limit_bytes))
                    digest.update(block)
                    target.write(block)
            if size == 0:
                raise InvalidInput(f"{name} is empty; there is nothing to store.")
        except BaseException:
            self.delete(path)
            raise
        return StoredBytes(id=file_id, path=path, size_bytes=size, sha256=digest.hexdigest())

    def write(self, path: str, source: Readable) -> None:
        """Copy a stream to a path of one's choice. Raises Unavailable, and keeps nothing then."""
        try:
            with _storage_errors(path), self._fs.open(self._full(path), "wb") as target:
                while block := source.read(BLOCK_BYTES):
                    target.write(block)
        except BaseException:
            self.delete(path)
            raise

    def paths(self, folder: str) -> list[str]:
        """Of the files in a folder, which need not be there. Raises Unavailable."""
        full = self._full(folder)
        with _storage_errors(folder):
            if not self._fs.exists(full):
                return []
            names = self._fs.ls(full, detail=False, refresh=True)
        return [f"{folder}/{name.rstrip('/').rpartition('/')[2]}" for name in names]

    def delete_folder(self, path: str) -> None:
        """Deleting what is not there is no error."""
        full = self._full(path)
        if self._fs.exists(full):
            self._fs.rm(full, recursive=True)

    def read(self, path: str) -> bytes:
        """Raises Unavailable where the storage does not answer, NotFound where it lost the file."""
        with _storage_errors(path):
            data: bytes = self._fs.cat_file(self._full(path))
        return data

    def size(self, path: str) -> int:
        """Of a file, in bytes. Raises as `read` does."""
        with _storage_errors(path):
            return int(self._fs.size(self._full(path)))

    def part(self, path: str, start: int, end: int) -> bytes:
        """The bytes of a file from `start` to before `end`; fewer where it ends. Raises as `read`
        does."""
        with _storage_errors(path):
            data: bytes = self._fs.cat_file(self._full(path), start=start, end=end)
        return data

    def blocks(self, path: str) -> Iterator[bytes]:
        """The file in pieces. Raises as `read` does."""
        with _storage_errors(path), self._fs.open(self._full(path), "rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                yield block

    def delete(self, path: str) -> None:
        """Deleting what is not there is no error."""
        full = self._full(path)
        if self._fs.exists(full):
            self._fs.rm_file(full)

    def check(self) -> None:
        """Raises OSError where the storage cannot be written."""
        self._fs.makedirs(self._root, exist_ok=True)
        probe = self._full(f".probe-{new_id()}")
        self._fs.pipe_file(probe, b"ok")
        self._fs.rm_file(probe)

    def _full(self, path: str) -> str:
        return f"{self._root.rstrip('/')}/{path}"


@contextmanager
def _storage_errors(path: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise NotFound(
            f"The storage no longer has {path}; upload the file again. Do API and workers "
            "share one SLUICE_STORAGE_URL?"
        ) from error
    except OSError as error:
        raise Unavailable(
            f"Storage (SLUICE_STORAGE_URL) failed: {error}", retry_after_s=1
        ) from error


def make_storage(settings: ConnectionSettings) -> Storage:
    return Storage(settings.storage())


def too_large(name: str, limit_bytes: int) -> str:
    return (
        f"{name} is larger than {limit_bytes / 2**20:g} MiB. Split it, or raise "
        "SLUICE_MAX_FILE_BYTES on the server."
    )


def record(
    session: Session,
    stored: StoredBytes,
    *,
    name: str,
    content_type: str | None,
    purpose: Purpose = Purpose.USER_DATA,
    expires_at: datetime | None = None,
) -> File:
    return _add(
        session,
        File(
            id=stored.id,
            name=name,
            size_bytes=stored.size_bytes,
            sha256=stored.sha256,
            content_type=content_type,
            path=stored.path,
            purpose=purpose.value,
            expires_at=expires_at,
        ),
    )


def _add(session: Session, file: File) -> File:
    session.add(file)
    session.flush()
    session.refresh(file)
    return file


@dataclass(frozen=True, kw_only=True)
class StoredPath:
    """What to delete from the storage of a file whose row is gone."""

    path: str
    is_folder: bool


# Files that grow: whoever reads one reads the parts that are there by then.


_NO_HASH: Final = ""
"""Of a file that grows."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Bytes in the storage that no row names yet."""

    path: str
    size_bytes: int


def begin(
    session: Session,
    *,
    name: str,
    purpose: Purpose,
    content_type: str | None,
    expires_at: datetime | None = None,
) -> File:
    """An empty file that grows with `append`."""
    file_id = new_id()
    return _add(
        session,
        File(
            id=file_id,
            name=name,
            size_bytes=0,
            sha256=_NO_HASH,
            content_type=content_type,
            path=_parts_folder(file_id),
            parts=[],
            purpose=purpose.value,
            expires_at=expires_at,
        ),
    )


def write_part(storage: Storage, file_id: UUID, data: bytes) -> Part:
    """Write a part, with no transaction open; it counts from the commit of `append` on. No other
    part has its path, so that an attempt that comes too late changes nothing."""
    path = new_part_path(file_id)
    storage.write(path, BytesIO(data))
    return Part(path=path, size_bytes=len(data))


def new_part_path(file_id: UUID) -> str:
    """Where a part of the file may be written."""
    return f"{_parts_folder(file_id)}/{new_id().hex}"


def part_paths(storage: Storage, file_id: UUID) -> list[str]:
    """Of the parts that there are in the storage, also of those that do not count. Raises
    Unavailable."""
    return storage.paths(_parts_folder(file_id))


def _parts_folder(file_id: UUID) -> str:
    return f"{file_id.hex[-2:]}/{file_id}"


def count_parts(session: Session, file_id: UUID) -> int:
    """Of a file that grows; 0 where there is none."""
    return session.scalar(select(func.cardinality(File.parts)).where(File.id == file_id)) or 0


def append(session: Session, file_id: UUID, *parts: Part) -> None:
    """Let parts count, behind those that do. Raises NotFound where the file has gone, TooLarge
    where it has too many."""
    paths = [part.path for part in parts]
    count = session.scalar(
        update(File)
        .where(File.id == file_id, File.parts.is_not(None))
        .values(
            parts=func.array_cat(File.parts, paths, type_=File.parts.type),
            size_bytes=File.size_bytes + sum(part.size_bytes for part in parts),
            sha256=_NO_HASH,
        )
        .returning(func.cardinality(File.parts))
        .execution_options(synchronize_session=False)
    )
    if count is None:
        raise NotFound(f"There is no file {file_id} that grows.")
    if count > PARTS_LIMIT:
        raise TooLarge(f"File {file_id} has more than {PARTS_LIMIT:,} parts; write larger ones.")


def expire_at(session: Session, file_id: UUID, moment: datetime) -> None:
    """Let a file be forgotten then."""
    session.execute(
        update(File)
        .where(File.id == file_id)
        .values(expires_at=moment)
        .execution_options(synchronize_session=False)
    )


def replace_parts(session: Session, file_id: UUID, part: Part, *, sha256: str) -> None:
    """Let one part stand for all that there were: the file is whole, until it grows again. The
    others may be deleted once this is committed. Raises NotFound."""
    file = session.scalar(select(File).where(File.id == file_id).with_for_update())
    if file is None or file.parts is None:
        raise NotFound(f"There is no file {file_id} that grows.")
    file.parts, file.size_bytes, file.sha256 = [part.path], part.size_bytes, sha256
    session.flush()


def blocks(storage: Storage, file: File) -> Iterator[bytes]:
    """A file in pieces, whatever it consists of. Raises as `Storage.read` does."""
    for path in paths_of(file):
        yield from storage.blocks(path)


def paths_of(file: File) -> list[str]:
    """Of the objects in the storage that a file consists of, in their order."""
    return [file.path] if file.parts is None else list(file.parts)


def read(storage: Storage, file: File) -> bytes:
    """Raises as `Storage.read` does."""
    return storage.read(file.path) if file.parts is None else b"".join(blocks(storage, file))


def find(session: Session, file_id: UUID) -> File | None:
    return session.get(File, file_id)


def get(session: Session, file_id: UUID) -> File:
    """Raises NotFound."""
    file = find(session, file_id)
    if file is None:
        raise NotFound(f"There is no file {file_id}; upload it with `POST /v1/files`.")
    return file


def get_all(session: Session, file_ids: Sequence[UUID]) -> list[File]:
    """Those of the files that there are, in no order."""
    return list(session.scalars(select(File).where(File.id == func.any(list(file_ids)))))


def require(session: Session, file_ids: Sequence[UUID]) -> None:
    """Raises NotFound for the first of the files that is not there."""
    known = set(session.scalars(select(File.id).where(File.id == func.any(list(file_ids)))))
    for file_id in file_ids:
        if file_id not in known:
            raise NotFound(f"There is no file {file_id}; upload it with `POST /v1/files`.")


def with_hashes(session: Session, hashes: list[str]) -> list[File]:
    return list(session.scalars(select(File).where(File.sha256.in_(hashes)).order_by(File.id)))


def page(
    session: Session,
    *,
    limit: int,
    newest_first: bool,
    behind: UUID | None = None,
    purpose: Purpose | None = None,
) -> list[File]:
    """Files by age, behind the one that is named, which may be gone."""
    query = select(File).order_by(File.id.desc() if newest_first else File.id).limit(limit)
    if behind is not None:
        query = query.where(File.id < behind if newest_first else File.id > behind)
    if purpose is not None:
        query = query.where(File.purpose == purpose.value)
    return list(session.scalars(query))


def of_sources(session: Session, sources: Iterable[dict[str, Any]]) -> dict[str, File]:
    """The files that ingest sources of type `file` name, by id; unknown ones are left out."""
    ids = [parsed for source in sources if (parsed := _parse_id(source.get("file_id")))]
    rows = session.scalars(select(File).where(File.id.in_(ids)))
    return {str(file.id): file for file in rows}


def delete(session: Session, file_id: UUID) -> StoredPath:
    """Forget a file; returns what to delete once this is committed. Raises NotFound."""
    paths = delete_all(session, [file_id])
    if not paths:
        raise NotFound(f"There is no file {file_id}.")
    return paths[0]


def delete_all(session: Session, file_ids: Sequence[UUID]) -> list[StoredPath]:
    rows = session.execute(
        delete_rows(File)
        .where(File.id.in_(file_ids))
        .returning(File.path, File.parts.is_not(None))
        .execution_options(synchronize_session=False)
    )
    return [StoredPath(path=path, is_folder=is_folder) for path, is_folder in rows]


def delete_later(session: Session, stored: Sequence[StoredPath], *, after_s: float = 0) -> None:
    """Let the sweeper delete from the storage what no row names any more, `after_s` from now."""
    if stored:
        rows = [{"path": one.path, "is_folder": one.is_folder} for one in stored]
        retry_at = func.now() + timedelta(seconds=after_s)
        session.execute(
            insert(PathToDelete).values(retry_at=retry_at).on_conflict_do_nothing(), rows
        )


def _parse_id(value: object) -> UUID | None:
    try:
        return UUID(str(value)) if value is not None else None
    except ValueError:
        return None
