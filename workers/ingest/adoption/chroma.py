"""Collections of Chroma as origins: those of a server, and those of a folder (`PersistentClient`).

A server is one that the guard for addresses of users lets through, and connections go to the very
address that was checked. A folder is never opened itself, since Chroma would write to it, and
would change one of an older version for good: it is copied, and the copy is opened.
"""

import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import httpx
import numpy as np
from chromadb import PersistentClient, __version__
from chromadb.api import ClientAPI
from chromadb.api.client import Client
from chromadb.api.models.Collection import Collection
from chromadb.config import Settings as ChromaSettings
from chromadb.errors import ChromaError, NotFoundError

from shared.errors import DocumentError, SluiceError, Unavailable
from shared.urls import CollectionUrl
from workers import outbound
from workers.attempts.context import Context
from workers.ingest.adoption.origin import (
    SHOWN_NAMES,
    Copy,
    OriginChunk,
    OriginVector,
    UnnamedCollection,
    copy_file,
    kept_origins,
    require_room,
)
from workers.retrieval.stores.chroma import TimedClient, server_settings
from workers.retrieval.stores.timed_transport import TimedTransport

LISTED_AT_ONCE = 2000
READ_AT_ONCE = 256
MESSAGE_CHARS = 300
COPIED_PAGES = 4096
"""Of SQLite, between two looks at whether the step has to stop."""
DATABASE = "chroma.sqlite3"
_NO_PICKLES = "chromadb.api.rust.RustBindingsAPI"
"""Chroma's default, which the environment could change: the older one, in Python, unpickles a file
of the folder, and a pickle can run any program."""


class ChromaOrigin:
    """A collection of Chroma. `get` gives chunks in the order in which they were written."""

    def __init__(self, url: CollectionUrl, collection: Collection) -> None:
        self._url = url
        self._collection = collection

    def pages(self) -> Iterator[list[OriginChunk]]:
        yield from self._read(LISTED_AT_ONCE, include=["metadatas"])

    def having(self, key: str, values: Sequence[str]) -> Iterator[list[OriginChunk]]:
        where = {key: {"$in": list(values)}}
        yield from self._read(READ_AT_ONCE, where=where, include=["metadatas", "documents"])

    def chunks(self, ids: Sequence[str]) -> list[OriginChunk]:
        chunks: list[OriginChunk] = []
        for first in range(0, len(ids), READ_AT_ONCE):
            some = list(ids[first : first + READ_AT_ONCE])
            chunks += _chunks(self._get(ids=some, include=["metadatas", "documents"]))
        return chunks

    def vectors(self, ids: Sequence[str]) -> dict[str, OriginVector]:
        vectors: dict[str, OriginVector] = {}
        for first in range(0, len(ids), READ_AT_ONCE):
            some = list(ids[first : first + READ_AT_ONCE])
            result = self._get(ids=some, include=["documents", "embeddings"])
            found = result["ids"]
            texts = result["documents"] or [None] * len(found)
            rows = [None] * len(found) if result["embeddings"] is None else result["embeddings"]
            for id_, text, row in zip(found, texts, rows, strict=True):
                if row is not None:
                    vector = np.asarray(row, dtype=np.float32)
                    vectors[id_] = OriginVector(text=text, vector=vector)
        return vectors

    def _read(self, limit: int, **options: Any) -> Iterator[list[OriginChunk]]:
        offset = 0
        while page := _chunks(self._get(limit=limit, offset=offset, **options)):
            yield page
            offset += len(page)

    def _get(self, **options: Any) -> Any:
        with translated(self._url):
            return self._collection.get(**options)


def _chunks(result: Any) -> list[OriginChunk]:
    ids = result["ids"]
    texts = result["documents"] or [None] * len(ids)
    metadatas = result["metadatas"] or [None] * len(ids)
    return [
        OriginChunk(id=id_, text=text, metadata=metadata or {})
        for id_, text, metadata in zip(ids, texts, metadatas, strict=True)
    ]


@contextmanager
def translated(url: CollectionUrl) -> Iterator[None]:
    """Turn the client's exceptions into ours."""
    try:
        yield
    except SluiceError:
        raise
    except NotFoundError as error:
        raise DocumentError(f"{url}: is not there: {_short(error)}.") from error
    except (ChromaError, ValueError) as error:
        is_away = (
            error.code() >= 500
            if isinstance(error, ChromaError)
            # The client raises ValueError if it cannot reach the server at its first use.
            else "connect" in str(error).lower()
        )
        if is_away and not url.is_folder:
            raise Unavailable(f"{url} does not answer: {_short(error)}.") from error
        raise _unreadable(url, error) from error
    except Exception as error:  # such as those of httpx, and answers of a proxy
        if url.is_folder:
            raise _unreadable(url, error) from error
        raise Unavailable(f"{url} does not answer: {_short(error)}.") from error
    except BaseException as error:
        # What the Rust part of Chroma raises where files are damaged.
        if type(error).__name__ != "PanicException":
            raise
        raise _unreadable(url, error) from error


def _unreadable(url: CollectionUrl, error: BaseException) -> DocumentError:
    return DocumentError(f"{url}: Chroma {__version__} cannot read it: {_short(error)}.")


def _short(error: BaseException) -> str:
    return (str(error) or type(error).__name__)[:MESSAGE_CHARS].rstrip(".")


def _origin(client: ClientAPI, url: CollectionUrl) -> ChromaOrigin:
    """Raises DocumentError with the names of the collections unless the URL has one of them."""
    with translated(url):
        if url.name:
            try:
                collection = client.get_collection(url.name, embedding_function=None)
            except (ChromaError, ValueError) as error:
                if isinstance(error, ChromaError) and error.code() >= 500:
                    raise
                # The message below names those that are there.
            else:
                return ChromaOrigin(url, collection)
        count = client.count_collections()
        found = [(one.name, one.count()) for one in client.list_collections(limit=SHOWN_NAMES)]
    raise UnnamedCollection.among(url, found, count)


# Servers


@contextmanager
def server_origin(context: Context, url: CollectionUrl) -> Iterator[ChromaOrigin]:
    """Raises DocumentError, also for an address that may not be reached, and Unavailable."""
    key = (url.place, url.tenant, url.database)
    make = partial(_connect, context, url)
    kept = kept_origins(context.process)
    try:
        with kept.use(key, make, context.check) as client:
            yield _origin(client, url)
    except Unavailable:
        kept.drop(key)  # its name may stand for another address by now
        raise


def _connect(context: Context, url: CollectionUrl) -> tuple[ClientAPI, Callable[[], object]]:
    settings = context.process.settings
    parts = urlsplit(url.place)
    host, port = parts.hostname or "", parts.port or outbound.PORTS[parts.scheme]
    try:
        addresses = outbound.within(
            partial(outbound.resolve, host, port, guard=settings.guard()),
            timeout_s=settings.connect_timeout_s,
            what=f"The look-up of {host}",
            stop=context.stop,
        )
    except outbound.Unreachable as error:
        raise Unavailable(f"{url} does not answer: {error.message}") from error
    except outbound.NotAllowed as error:
        raise DocumentError(f"{url}: {error.message}") from error
    options = server_settings(host, port, is_secure=parts.scheme == "https")
    # Chroma reads these from the environment, where they are meant for another server.
    options.chroma_client_auth_provider = options.chroma_client_auth_credentials = None
    options.chroma_server_headers = None
    with translated(url):
        client = TimedClient(
            options,
            settings.request_timeout_s,
            settings.connect_timeout_s,
            tenant=url.tenant,
            database=url.database,
            make_transport=partial(_PinnedTransport, addresses=addresses),
        )

    def close() -> None:
        client.close_sessions()
        client.close()

    return client, close


class _PinnedTransport(TimedTransport):
    """Sends requests for a host to the addresses of it that were checked: to the first one that
    takes a connection."""

    def __init__(self, timeout_s: float, *, addresses: Sequence[str]) -> None:
        super().__init__(timeout_s)
        self._addresses = addresses

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.extensions = {**request.extensions, "sni_hostname": request.url.host}
        url = request.url
        for address in self._addresses[:-1]:
            request.url = url.copy_with(host=address)  # the header `host` stays
            try:
                return super().handle_request(request)
            except httpx.ConnectError:
                continue
        request.url = url.copy_with(host=self._addresses[-1])
        return super().handle_request(request)


# Folders


@contextmanager
def folder_origin(context: Context, url: CollectionUrl) -> Iterator[ChromaOrigin]:
    """The collection as it is when the first step of the job reads it. Raises DocumentError,
    Unavailable."""
    database = url.folder / DATABASE
    if database.is_symlink():
        raise DocumentError(f"{url}: {DATABASE} is a link, which is not followed.")
    key = (context.claim.job_id, str(url))
    make = partial(_open_copy, context, url)
    with kept_origins(context.process).use(key, make, context.check) as client:
        yield _origin(client, url)


def _open_copy(context: Context, url: CollectionUrl) -> tuple[ClientAPI, Callable[[], object]]:
    copy = Copy()
    try:
        _copy(context, url, copy.path)
        with translated(url):
            client = PersistentClient(
                path=copy.path,
                settings=ChromaSettings(anonymized_telemetry=False, chroma_api_impl=_NO_PICKLES),
                tenant=url.tenant,
                database=url.database,
            )
        assert isinstance(client, Client)
    except sqlite3.DatabaseError as error:
        copy.delete()
        raise DocumentError(
            f"{url}: {DATABASE} cannot be read: {error}. Let the workers read it, and end the "
            "program that writes there; if that was killed, open the folder with it once more."
        ) from error
    except OSError as error:
        copy.delete()
        raise Unavailable(f"{url}: cannot be copied: {error}.") from error
    except BaseException:
        copy.delete()
        raise

    def close() -> None:
        client.close()
        copy.delete()

    return client, close


def _copy(context: Context, url: CollectionUrl, target: Path) -> None:
    """Copy the database at one moment, and the vectors of the collection. Raises DocumentError if
    there is too much of it."""
    source = url.folder / DATABASE
    place = f"file:{quote(str(source))}?mode=ro"
    timeout_s = context.process.settings.connect_timeout_s
    with closing(sqlite3.connect(place, uri=True, timeout=timeout_s)) as database:
        segments = _segments(url, database)
        size = source.stat().st_size + sum(path.stat().st_size for path in segments)
        serve = "serve it by `chroma run --path` and adopt it from the server"
        require_room(context, url, size, target, otherwise=serve)
        with closing(sqlite3.connect(target / DATABASE)) as copied:
            database.backup(copied, pages=COPIED_PAGES, progress=lambda *_: context.check())
    for path in segments:
        (target / path.parent.name).mkdir(exist_ok=True)
        copy_file(context, path, target / path.parent.name / path.name)


def _segments(url: CollectionUrl, database: sqlite3.Connection) -> list[Path]:
    """The files with the vectors of the collection; of all if it is not there."""
    rows = database.execute(
        "SELECT s.id FROM segments s JOIN collections c ON c.id = s.collection "
        "WHERE s.scope = 'VECTOR' AND c.name = ?",
        (url.name,),
    )
    folders = [url.folder / str(id_) for (id_,) in rows]
    return [
        path
        for folder in folders
        if folder.is_dir() and not folder.is_symlink()
        for path in sorted(folder.iterdir())
        if path.is_file() and not path.is_symlink()
    ]
