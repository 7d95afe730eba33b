"""Sources of an ingest job -> contents of versions: read, load, split, hash."""

import hashlib
import json
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Unpack, overload
from uuid import UUID

from sqlalchemy.orm import Session

from shared import files
from shared.bounds import Metadata, as_object, nfc
from shared.documents import collections, documents, indexes, ingest_items, versions
from shared.documents.indexes import IndexPlace
from shared.documents.ingest_items import OpenItem
from shared.documents.remote import RemoteOrigin
from shared.documents.versions import ChunkRange, Content
from shared.errors import DocumentError
from shared.formats import Format
from shared.kinds.ingest import LoadOptions, Splitter, SplitterType
from shared.tables import File
from shared.urls import normal_url
from workers.attempts.context import Context
from workers.attempts.process import Process
from workers.ingest import web
from workers.ingest.folders import read_object
from workers.ingest.formats.loader import DocumentKey, PassageKey, Utterance
from workers.ingest.formats.sniffing import format_of
from workers.ingest.load import (
    LOADER_VERSION,
    LoadedText,
    Piece,
    Window,
    form,
    least_pieces,
    split,
    whole_text,
)
from workers.ingest.load import load as load_document
from workers.ingest.reader import reader_of
from workers.ingest.web import Fetcher, Page, RequestOptions
from workers.retrieval.embed import Embedder

_PASSAGE_KEYS = frozenset(key.value for key in PassageKey)
"""Keys that loading and splitting set for a passage, unless the job's own metadata has them."""
LOAD_OPTIONS = frozenset(LoadOptions().model_dump())


@dataclass(frozen=True, kw_only=True)
class IngestRequest:
    """The input of an ingest job without its sources, and what the collection adds to it."""

    collection: str
    collection_id: UUID
    index_id: UUID
    """The active index when the step began."""
    place: IndexPlace
    is_paused: bool
    """Whether that takes in nothing at the moment."""
    model: str
    splitter: Splitter
    options: LoadOptions
    skip_existing: bool
    skip_duplicates: bool
    metadata: Metadata
    passage_prompt: str = ""
    """The text that the embedding model reads before each chunk."""

    @classmethod
    def of_job(cls, session: Session, job_id: UUID) -> "IngestRequest":
        """Raises NotFound if the collection has been erased meanwhile."""
        settings = ingest_items.settings_of(session, job_id)
        collection, index = collections.get_with_index(session, settings["collection"])
        return cls(
            collection=collection.name,
            collection_id=collection.id,
            index_id=index.id,
            place=IndexPlace.of(index),
            is_paused=indexes.is_paused(session, index.id),
            model=index.embedding_model,
            splitter=Splitter.model_validate(settings["splitter"]),
            options=LoadOptions.model_validate(
                {key: value for key, value in settings.items() if key in LOAD_OPTIONS}
            ),
            skip_existing=settings["on_existing"] == "skip",
            skip_duplicates=settings.get("on_duplicate") == "skip",
            metadata=settings["metadata"],
        )

    def of_source(self, source: Mapping[str, Any]) -> "IngestRequest":
        """The request with the options and the metadata of one source."""
        own = {key: value for key in LOAD_OPTIONS if (value := source.get(key)) is not None}
        if classes := source.get("css_classes"):
            html = own.get("html") or self.options.html.model_dump(mode="json")
            own["html"] = html | {"css_classes": classes}
        metadata, splitter = source.get("metadata"), source.get("splitter")
        if not metadata and splitter is None and not own:
            return self
        options = self.options
        if own:
            options = LoadOptions.model_validate(options.model_dump(mode="json") | own)
        return replace(
            self,
            metadata={**self.metadata, **(metadata or {})},
            splitter=self.splitter if splitter is None else Splitter.model_validate(splitter),
            options=options,
        )

    def content_hash(self, data: bytes, form: tuple[str, ...]) -> str:
        """The hash of the bytes and of all else that decides chunks, vectors and metadata."""
        digest = self.digest(form)
        digest.update(data)
        return digest.hexdigest()

    def digest(self, form: tuple[str, ...]) -> "hashlib._Hash":
        """The same hash before any bytes."""
        recipe = [
            LOADER_VERSION, self.model, self.passage_prompt, self.metadata, form,
            self.splitter.model_dump(mode="json"),
            self.options.model_dump(mode="json", exclude_defaults=True),
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode())

    def recipe(self, source_type: str) -> str:
        """The hash of everything but the bytes, for a source of this type."""
        return self.content_hash(b"", (source_type,))


@dataclass(frozen=True, kw_only=True)
class RawSource:
    """The bytes of a source, which are not loaded yet."""

    name: str
    data: bytes
    text: str | None
    """The text that the client sent, which needs no decoding."""
    content_type: str | None
    content_hash: str
    format_: Format | None
    """None for a chunk, and for bytes of no known format, which loading will refuse."""
    is_chunk: bool = False
    """Whether the text is one chunk: it is neither read as a format nor split."""
    source_id: str | None = None
    """The client's id. The name is then part of the hash, since it may change."""
    container: str | None = None
    """The name of the source that contains it."""
    file_name: str | None = None
    """The name whose suffix counts, if `name` is not the name of a file."""
    metadata: Metadata = field(default_factory=dict)
    """Metadata from the place where it was read; those of the loader override them."""


def source_name(
    source: Mapping[str, Any], uploads: Mapping[str, File], known: Mapping[str, str] | None = None
) -> str:
    """The identity of a source within its collection: its name, or the name of its file.

    In NFC: macOS writes names of files in NFD. `known` has the names of documents by their ids.
    """
    if source["type"] == "document":
        id_ = source["document_id"]
        return (known or {}).get(id_, f"document {id_}")
    if source.get("name"):
        return nfc(source["name"])
    if source["type"] == "file":
        upload = uploads.get(source["file_id"])
        return nfc(upload.name) if upload else f"file {source['file_id']}"
    if source["type"] in ("url", "site", "page"):
        return normal_url(source["url"])
    if source["type"] in ("folder", "object", "collection"):
        return nfc(source["url"])
    digest = hashlib.sha256(source["text"].encode()).hexdigest()
    return nfc(f"text-{digest[:16]}")


def source_names(
    session: Session,
    collection_id: UUID,
    sources: Sequence[Mapping[str, Any]],
    uploads: Mapping[str, File],
) -> list[str]:
    ids = [source["document_id"] for source in sources if source["type"] == "document"]
    known = documents.names(session, collection_id, ids) if ids else {}
    return [source_name(source, uploads, known) for source in sources]


def read_source(
    process: Process, request: IngestRequest, source: dict[str, Any], uploads: dict[str, File]
) -> RawSource:
    """Read a source that is in the job or the storage. Raises DocumentError for an unknown file,
    NotFound for one that the storage has lost."""
    name = source_name(source, uploads)
    text: str | None = None
    content_type: str | None = None
    if source["type"] == "member":
        start, end = source["start"], source["start"] + source["size"]
        data = process.storage.part(source["path"], start, end) if start < end else b""
        content_type = source["content_type"]
    elif source["type"] != "file":
        text = source["text"]
        data = source["text"].encode()
    else:
        upload = uploads.get(source["file_id"])
        if upload is None:
            raise DocumentError(
                f"There is no file {source['file_id']}; upload it with `POST /v1/files` first."
            )
        data, content_type = files.read(process.storage, upload), upload.content_type
    if source["type"] == "chunk":
        return RawSource(
            name=name,
            data=data,
            text=text,
            content_type=None,
            content_hash=request.content_hash(data, ("one chunk",)),
            format_=None,
            is_chunk=True,
        )
    content = data if text is None else text
    format_ = known_format(name, content_type, content)
    return RawSource(
        name=name,
        data=data,
        text=text,
        content_type=content_type,
        content_hash=request.content_hash(
            data, (*form(format_, content_type, content), *([name] if source.get("id") else []))
        ),
        format_=format_,
        source_id=source.get("id"),
        container=source.get("container"),
    )


def known_format(name: str, content_type: str | None, content: bytes | str) -> Format | None:
    """None for bytes of no known format, which loading will refuse."""
    try:
        return format_of(name, content_type, content)
    except DocumentError:
        return None


@dataclass(frozen=True, kw_only=True)
class FetchedSource:
    """A document of the web; `raw` is None if the live version is the same."""

    page: Page
    raw: RawSource | None
    origin: RemoteOrigin


def start_source(
    fetcher: Fetcher,
    request: IngestRequest,
    *,
    name: str,
    url: str,
    known: RemoteOrigin | None,
    live_hash: str | None,
    limit_bytes: int,
    **fetching: Unpack[RequestOptions],
) -> Callable[[], FetchedSource]:
    """Ask for a document of the web; only its changes, if the live version is from the same state.
    Raises the errors of `Fetcher.start`.

    The returned function waits for the document. It raises the errors of that of `Fetcher.start`,
    and DocumentError for an answer that is no document.
    """
    recipe = request.recipe("url")
    is_current = known is not None and known.content_hash == live_hash and known.recipe == recipe
    page_of = fetcher.start(
        url, known=known if is_current else None, limit_bytes=limit_bytes, **fetching
    )

    def wait() -> FetchedSource:
        page = page_of()
        web.check_status(page, url)
        if page.is_same and known is not None:
            return FetchedSource(page=page, raw=None, origin=known)
        web.check_whole(page, url, limit_bytes)
        return _fetched(request, name, page, recipe, live_hash)

    return wait


def _fetched(
    request: IngestRequest, name: str, page: Page, recipe: str, live_hash: str | None
) -> FetchedSource:
    format_ = known_format(page.file_name, page.content_type, page.data)
    form_ = form(format_, page.content_type, page.data)
    raw = RawSource(
        name=name,
        data=page.data,
        text=None,
        content_type=page.content_type,
        content_hash=request.content_hash(page.data, (*form_, page.url)),
        format_=format_,
        file_name=page.file_name,
        metadata={DocumentKey.URL.value: page.url, DocumentKey.FETCHED_URL.value: page.url},
    )
    origin = RemoteOrigin(
        source=name,
        url=page.url,
        recipe=recipe,
        content_hash=raw.content_hash,
        etag=page.etag,
        modified=page.modified,
    )
    is_live = raw.content_hash == live_hash
    return FetchedSource(page=page, raw=None if is_live else raw, origin=origin)


def read_item(
    process: Process,
    request: IngestRequest,
    item: OpenItem,
    name: str,
    uploads: dict[str, File],
) -> RawSource:
    """Read an item that is a file, a text, or a file of a folder or an archive. Raises what
    `read_source` and `read_object_source` raise."""
    if item.source["type"] == "object":
        raw, _ = read_object_source(process, request, item.source, name)
        return raw
    return read_source(process, request, item.source, uploads)


def read_object_source(
    process: Process, request: IngestRequest, source: Mapping[str, Any], name: str
) -> tuple[RawSource, RemoteOrigin]:
    """Read a file of a folder. Raises DocumentError, Unavailable."""
    data = read_object(source, process.settings)
    file_name = PurePosixPath(source["url"]).name
    format_ = known_format(file_name, None, data)
    raw = RawSource(
        name=name,
        data=data,
        text=None,
        content_type=None,
        content_hash=request.content_hash(data, form(format_, None, data)),
        format_=format_,
        file_name=file_name,
        metadata={DocumentKey.URL.value: source["url"]},
    )
    origin = RemoteOrigin(
        source=name,
        url=source["url"],
        recipe=request.recipe("object"),
        content_hash=raw.content_hash,
        parent=source["folder"],
        etag=source["validator"],
    )
    return raw, origin


class _Chunks(Sequence[tuple[int, str, Metadata]]):
    """The pieces of a document as (start, text, metadata), made when they are read.

    Only the place and the metadata of each are stored; the pieces of a passage share these.
    """

    def __init__(self, text: str, base: Metadata, over: Metadata) -> None:
        self._text = text
        self._base = base
        self._over = over
        self._starts, self._ends = array("q"), array("q")
        self._metadata: list[Metadata] = []
        self.metadata_chars = 0
        self._last: tuple[Metadata, int] | None = None

    def append(self, piece: Piece) -> None:
        if self._last is None or self._last[0] is not piece.metadata:
            self._last = piece.metadata, metadata_chars({**self._base, **piece.metadata})
        self.metadata_chars += self._last[1]
        self._starts.append(piece.start)
        self._ends.append(piece.start + len(piece.text))
        self._metadata.append(piece.metadata)

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, at: int) -> tuple[int, str, Metadata]: ...
    @overload
    def __getitem__(self, at: slice) -> list[tuple[int, str, Metadata]]: ...
    def __getitem__(
        self, at: int | slice
    ) -> tuple[int, str, Metadata] | list[tuple[int, str, Metadata]]:
        if isinstance(at, slice):
            return [self[index] for index in range(*at.indices(len(self)))]
        start, end = self._starts[at], self._ends[at]
        return start, self._text[start:end], {**self._base, **self._metadata[at], **self._over}


def metadata_chars(metadata: Metadata) -> int:
    """The length of keys and values. Each item of a list counts like a value with its own key."""
    return sum(
        len(key) * (len(value) if isinstance(value, list) else 1) + len(str(value))
        for key, value in metadata.items()
    )


def load_source(
    context: Context,
    request: IngestRequest,
    raw: RawSource,
    transcript: Sequence[Utterance] | None = None,
) -> LoadedText:
    """Load a source. Raises DocumentError, which names the document and the remedy."""
    process = context.process
    if raw.is_chunk:
        return whole_text(raw.text or "", name=raw.name)
    data = raw.data if raw.text is None else raw.text
    if raw.format_ is not None and raw.format_.is_isolated:
        return reader_of(process).load(
            data,
            name=raw.name,
            content_type=raw.content_type,
            options=request.options,
            file_name=raw.file_name,
            check=context.check,
        )
    return load_document(
        data,
        name=raw.name,
        content_type=raw.content_type,
        options=request.options,
        settings=process.settings,
        file_name=raw.file_name,
        transcript=transcript,
    )


def content_of(
    context: Context, request: IngestRequest, raw: RawSource, loaded: LoadedText, embedder: Embedder
) -> Content:
    """Split a loaded source. Raises DocumentError, which names the document and the remedy."""
    check_splitter(request, embedder, raw.name)
    metadata = {**raw.metadata, **loaded.metadata, **request.metadata}
    if raw.is_chunk:
        chunks = _Chunks(loaded.text, metadata, {})
        chunks.append(Piece(text=loaded.text, start=0, metadata={}))
    else:
        chunks = _split(context, request, loaded, metadata, name=raw.name, embedder=embedder)
    if not chunks:
        raise DocumentError(f"{raw.name} has no text to ingest.")
    return Content(
        source=raw.name,
        sha256=hashlib.sha256(raw.data).hexdigest(),
        content_hash=raw.content_hash,
        size_bytes=len(raw.data),
        metadata=metadata,
        chunks=chunks,
        attributes=request.metadata,
        source_id=raw.source_id,
        container=raw.container,
    )


def check_splitter(request: IngestRequest, embedder: Embedder, name: str) -> None:
    """Raises DocumentError if the model has no tokenizer for the splitter."""
    if request.splitter.type is SplitterType.TOKEN and embedder.tokenizer is None:
        raise DocumentError(
            f"{name}: {request.model} has no tokenizer to split with. Choose another "
            "splitter than token."
        )


def with_new_metadata(
    process: Process, request: IngestRequest, source: Mapping[str, Any]
) -> Content | None:
    """The live content of a document with the metadata of the source; None if they are the same.
    Raises DocumentError if there is no such document."""
    document_id = source["document_id"]
    attributes: Metadata = source["metadata"]
    with process.ledger.read() as session:
        live = versions.live_version(session, request.collection_id, UUID(document_id))
        chunks = (
            versions.chunks_of(
                session, ChunkRange(version_id=live.id, first=0, end=live.chunk_count)
            )
            if live is not None
            else ()
        )
    if live is None:
        raise DocumentError(
            f"There is no document {document_id} in {request.collection} that readers see."
        )
    if live.attributes == attributes:
        return None

    def changed(metadata: Metadata) -> Metadata:
        # Keys that loading has set for a single chunk are not changed by a request.
        of_chunk = {
            key: value
            for key, value in metadata.items()
            if key not in live.metadata or live.metadata[key] != value
        }
        rest = {key: value for key, value in metadata.items() if key not in live.attributes}
        return {**rest, **attributes, **of_chunk}

    new_chunks = [(chunk.start, chunk.text, changed(as_object(chunk.meta))) for chunk in chunks]
    limit = process.settings.max_document_metadata_chars
    if sum(metadata_chars(metadata) for _, _, metadata in new_chunks) > limit:
        raise DocumentError(
            f"{live.source}: has too much metadata, which each of its chunks carries: more than "
            f"{limit:,} characters together. Send less, or raise "
            "SLUICE_MAX_DOCUMENT_METADATA_CHARS."
        )
    rest = {key: value for key, value in live.metadata.items() if key not in live.attributes}
    recipe = json.dumps([live.content_hash, attributes], sort_keys=True)
    return Content(
        source=live.source,
        sha256=live.sha256,
        content_hash=hashlib.sha256(recipe.encode()).hexdigest(),
        size_bytes=live.size_bytes,
        metadata={**rest, **attributes},
        chunks=new_chunks,
        attributes=attributes,
        copied_from=live.id,
    )


SAMPLE_CHARS = 4000
"""Characters of the texts of a step whose scripts are examined; each takes about 4 µs."""
SLICE_CHARS = 100


def sample(text: str, chars: int) -> str:
    """Slices from all over the text, of `chars` characters together."""
    count = max(1, chars // SLICE_CHARS)
    if len(text) <= count * SLICE_CHARS:
        return text
    step = (len(text) - SLICE_CHARS) / max(1, count - 1)
    starts = (int(n * step) for n in range(count))
    return "\n".join(text[start : start + SLICE_CHARS] for start in starts)


def _split(
    context: Context,
    request: IngestRequest,
    loaded: LoadedText,
    metadata: Metadata,
    *,
    name: str,
    embedder: Embedder,
) -> _Chunks:
    """Raises DocumentError as soon as there are too many chunks."""
    settings, splitter = context.process.settings, request.splitter
    limit = settings.max_document_chunks
    too_many = too_many_chunks(name, splitter, limit)
    if least_pieces(loaded, splitter) > limit:
        raise too_many
    overrides = {key: value for key, value in request.metadata.items() if key in _PASSAGE_KEYS}
    chunks = _Chunks(loaded.text, metadata, overrides)
    window = window_of(embedder, context.check) if splitter.chunk_size is None else None
    for piece in split(loaded, splitter, tokenizer=embedder.tokenizer, window=window):
        if len(chunks) == limit:
            raise too_many
        chunks.append(piece)
        if chunks.metadata_chars > settings.max_document_metadata_chars:
            raise too_much_metadata(name, settings.max_document_metadata_chars)
    return chunks


def too_many_chunks(name: str, splitter: Splitter, limit: int) -> DocumentError:
    at_most = "at most " if splitter.chunk_size is None else ""
    return DocumentError(
        f"{name}: has more than {limit:,} chunks of {at_most}{splitter.size:,}. Choose larger "
        "chunks, divide it, or raise SLUICE_MAX_DOCUMENT_CHUNKS."
    )


def too_much_metadata(name: str, limit: int) -> DocumentError:
    return DocumentError(
        f"{name}: has too much metadata, which each of its chunks carries: more than "
        f"{limit:,} characters together. Choose larger chunks or less metadata "
        "(csv.metadata_columns, the fields beside the text), or raise "
        "SLUICE_MAX_DOCUMENT_METADATA_CHARS."
    )


LEAST_WINDOW_TOKENS = 16
"""If a model reads fewer tokens, because its prompt fills its window, splitting cannot help: the
job warns about the text that is not read."""


def window_of(embedder: Embedder, check: Callable[[], None]) -> Window | None:
    if embedder.readable is None or embedder.readable < LEAST_WINDOW_TOKENS:
        return None
    return Window(
        tokens=embedder.readable,
        tokenizer=embedder.tokenizer,
        overlong=partial(embedder.overlong, between=check),
    )
