"""Uploads: streamed into the storage (a folder or any fsspec URL), then recorded.

A file exists once its row is committed; bytes without a row are never seen by anyone.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol
from uuid import UUID

from fsspec.core import url_to_fs
from sqlalchemy import delete as delete_rows
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from shared.config import ConnectionSettings
from shared.errors import InvalidInput, NotFound, TooLarge, Unavailable
from shared.tables import File, new_id

BLOCK_BYTES = 2**20


class Readable(Protocol):
    def read(self, size: int = ..., /) -> bytes: ...


@dataclass(frozen=True, kw_only=True)
class Stored:
    """Bytes in the storage that have no row yet."""

    id: UUID
    path: str
    size_bytes: int
    sha256: str


class Storage:
    """The folder or bucket of uploads."""

    def __init__(self, url: str) -> None:
        self._fs, self._root = url_to_fs(url, auto_mkdir=True)

    def store(self, source: Readable, *, name: str, limit_bytes: int) -> Stored:
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
        return Stored(id=file_id, path=path, size_bytes=size, sha256=digest.hexdigest())

    def write(self, path: str, source: Readable) -> None:
        """Copy a stream to a path of one's choice. Raises Unavailable, and keeps nothing then."""
        try:
            with _storage_errors(path), self._fs.open(self._full(path), "wb") as target:
                while block := source.read(BLOCK_BYTES):
                    target.write(block)
        except BaseException:
            self.delete(path)
            raise

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


def record(session: Session, stored: Stored, *, name: str, content_type: str | None) -> File:
    file = File(
        id=stored.id,
        name=name,
        size_bytes=stored.size_bytes,
        sha256=stored.sha256,
        content_type=content_type,
        path=stored.path,
    )
    session.add(file)
    session.flush()
    session.refresh(file)
    return file


def get(session: Session, file_id: UUID) -> File:
    """Raises NotFound."""
    file = session.get(File, file_id)
    if file is None:
        raise NotFound(f"There is no file {file_id}; upload it with `POST /v1/files`.")
    return file


def require(session: Session, file_ids: Sequence[UUID]) -> None:
    """Raises NotFound for the first of the files that is not there."""
    known = set(session.scalars(select(File.id).where(File.id == func.any(list(file_ids)))))
    for file_id in file_ids:
        if file_id not in known:
            raise NotFound(f"There is no file {file_id}; upload it with `POST /v1/files`.")


def with_hashes(session: Session, hashes: list[str]) -> list[File]:
    return list(session.scalars(select(File).where(File.sha256.in_(hashes)).order_by(File.id)))


def of_sources(session: Session, sources: Iterable[dict[str, Any]]) -> dict[str, File]:
    """The files that ingest sources of type `file` name, by id; unknown ones are left out."""
    ids = [parsed for source in sources if (parsed := _parse_id(source.get("file_id")))]
    rows = session.scalars(select(File).where(File.id.in_(ids)))
    return {str(file.id): file for file in rows}


def delete(session: Session, file_id: UUID) -> str:
    """Forget a file; returns the path to delete once this is committed. Raises NotFound."""
    path: str | None = session.scalar(
        delete_rows(File).where(File.id == file_id).returning(File.path)
    )
    if path is None:
        raise NotFound(f"There is no file {file_id}.")
    return path


def _parse_id(value: object) -> UUID | None:
    try:
        return UUID(str(value)) if value is not None else None
    except ValueError:
        return None
