"""The steps of an ingest job: plan, load, embed.

`plan` writes one item for each source and makes load steps of a few sources each; `load` reads,
splits and writes pending versions; `embed` writes vectors and makes versions live. A bad source
is one failed item, never a failed job. Each step may run any number of times.
"""

import hashlib
import io
import json
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any, overload
from uuid import UUID

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from shared import files
from shared.bounds import Metadata, as_object, nfc
from shared.database.transaction import Transaction
from shared.documents import collections, containers, documents, ingest_items, remote, versions
from shared.documents.containers import NewContainer
from shared.documents.documents import chunk_id
from shared.documents.ingest_items import (
    CutChunks,
    Duplicates,
    OpenItem,
    Outcome,
    PartOfSource,
    UnreadDocuments,
)
from shared.documents.remote import RemoteOrigin
from shared.documents.versions import ChunkRange, Content, GarbageVersion, Origin, VersionState
from shared.errors import Cancelled, DocumentError, NotFound, Permanent
from shared.formats import Format
from shared.jobs import jobs, steps
from shared.jobs.claims import Claim
from shared.jobs.steps import NewStep, Record
from shared.kinds.ingest import IngestInput, LoadOptions, Splitter, SplitterType
from shared.tables import Chunk, Collection, File, Job
from shared.urls import normal_url
from shared.vocabulary import OPEN, Queue
from workers.attempts.context import Context, Done, Handler
from workers.attempts.process import Process
from workers.ingest import web
from workers.ingest.erasure import collect_replaced, delete_orphans, drop_unless_in_ledger
from workers.ingest.folders import read_object
from workers.ingest.formats.container import Member
from workers.ingest.formats.loader import DocumentKey, PassageKey
from workers.ingest.formats.sniffing import format_of
from workers.ingest.indexing import NewPostings, merge_soon
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
from workers.ingest.web import Fetcher, NotNow, Page
from workers.models.devices import Vectors
from workers.retrieval.embed import Embedder, embedders_of
from workers.retrieval.store import VectorEntry, store_of
from workers.retrieval.tuning import measure_ingested
from workers.retrieval.vocabulary import script_name, unknown_scripts

# How the failure of an ingest step is booked: its sources fail, and the job goes on; and the
# job's end.
#
# Imports no library that loads documents, for the sweeper.


def absorb_load(session: Transaction, claim: Claim, message: str) -> None:
    ordinals: list[int] = claim.payload["ordinals"]
    members = [ordinal for ordinal, _ in ingest_items.open_members(session, claim.job_id, ordinals)]
    containers.spoil(session, claim.job_id, [*ordinals, *members])
    ingest_items.settle(session, claim.job_id, [*ordinals, *members], Outcome.FAILED, message)


def absorb_embed(session: Transaction, claim: Claim, message: str) -> None:
    parts = parts_of(claim)
    containers.spoil_versions(session, claim.job_id, [part.version_id for part in parts])
    for part in parts:
        ingest_items.settle_version(
            session, claim.job_id, part.version_id, Outcome.FAILED, message=message
        )


def finish(session: Session, job_id: UUID) -> dict[str, Any]:
    """The job's result; and a warning where the model could not read all of its chunks."""
    cut = ingest_items.cut(session, job_id)
    if cut is not None:
        input_ = session.scalar(select(Job.input).where(Job.id == job_id)) or {}
        splitter = (input_.get("splitter") or {}).get("type")
        types = {source.get("type") for source in input_.get("sources") or ()}
        jobs.warn(session, job_id, [_cut_warning(cut, splitter, are_chunks="chunk" in types)])
    unread = ingest_items.unread(session, job_id)
    if unread is not None:
        jobs.warn(session, job_id, [_unread_warning(unread)])
    if warnings := _duplicate_warnings(session, job_id):
        jobs.warn(session, job_id, warnings)
    if ingest_items.has_members(session, job_id):
        containers.end(session, job_id)
        jobs.doom_members(session, job_id)
    return ingest_items.result(session, job_id)


MULTILINGUAL_MODEL = "intfloat/multilingual-e5-small"
"""What is named to users whose model does not know their script: the smallest that knows most."""
# Of the hundred languages of XLM-RoBERTa, whose vocabulary it has.
MULTILINGUAL_SCRIPTS = frozenset(
    {
        "ARABIC", "ARMENIAN", "BENGALI", "CJK", "CYRILLIC", "DEVANAGARI", "ETHIOPIC", "GEORGIAN",
        "GREEK", "GUJARATI", "GURMUKHI", "HANGUL", "HEBREW", "HIRAGANA", "KANNADA", "KATAKANA",
        "KHMER", "LAO", "MALAYALAM", "MYANMAR", "ORIYA", "SINHALA", "TAMIL", "TELUGU", "THAI",
    }
)  # fmt: skip


def _unread_warning(unread: UnreadDocuments) -> str:
    left = unread.document_count - len(unread.documents)
    more = f" and {left:,} more" if left else ""
    documents = (
        "1 document" if unread.document_count == 1 else f"{unread.document_count:,} documents"
    )
    scripts = ", ".join(map(script_name, unread.scripts))
    helps = unread.model != MULTILINGUAL_MODEL and set(unread.scripts) <= MULTILINGUAL_SCRIPTS
    other = f", such as {MULTILINGUAL_MODEL}," if helps else ""
    return (
        f"{unread.model} was not made for the script of {documents} ({scripts}; "
        f"{', '.join(unread.documents)}{more}): it spells them out in single letters or does not "
        "read them at all, so that they are not found by their meaning. Ingest into a collection "
        f"with a multilingual embedding_model{other} instead; docs/models.md has a list."
    )


def _duplicate_warnings(session: Session, job_id: UUID) -> list[str]:
    warnings = []
    if (added := ingest_items.duplicates(session, job_id)) is not None:
        warnings.append(
            f"{_documents(added)} the same content as others of the collection: {_named(added)}. "
            'Searches find each of them; with "on_duplicate": "skip" such are left out.'
        )
    if (skipped := ingest_items.left_out_duplicates(session, job_id)) is not None:
        warnings.append(
            f"{_documents(skipped)} the same content as others of the collection, and so were "
            f"skipped: {_named(skipped)}."
        )
    return warnings


def _documents(duplicates: Duplicates) -> str:
    count = duplicates.document_count
    return "1 document has" if count == 1 else f"{count:,} documents have"


def _named(duplicates: Duplicates) -> str:
    left = duplicates.document_count - len(duplicates.documents)
    more = f" and {left:,} more" if left else ""
    return ", ".join(f"{name} (as {other})" for name, other in duplicates.documents) + more


def _cut_warning(cut: CutChunks, splitter: str | None, *, are_chunks: bool) -> str:
    named = ", ".join(f"{name} ({count:,})" for name, count in cut.documents)
    left = cut.document_count - len(cut.documents)
    more = f" and {left:,} more documents" if left else ""
    chunks = "chunk is longer" if cut.chunk_count == 1 else "chunks are longer"
    all_tokens = f"{cut.token_count:,} tokens {cut.unread_count:,}"
    # `character` divides between paragraphs only, so that a smaller size alone may change nothing.
    other = "the splitter recursive, " if splitter == SplitterType.CHARACTER else ""
    return (
        f"{cut.chunk_count:,} {chunks} than what {cut.model} reads of a text; of {all_tokens} are "
        f"not read, so that what stands there is hard to find: {named}{more}. "
        f"{'Sources of the type chunk are not divided: send them as texts. ' if are_chunks else ''}"
        "Ingest again without "
        f"a chunk_size, so that all chunks fit, or with {other}a chunk_size of at most "
        f"{max(cut.chunk_size, 16):,} and a smaller chunk_overlap, or into a collection whose "
        "model reads more."
    )


def parts_of(claim: Claim) -> list[ChunkRange]:
    """What an embedding step works on."""
    return [
        ChunkRange(version_id=UUID(version_id), first=first, end=end)
        for version_id, first, end in claim.payload["parts"]
    ]


# From a source of an ingest job to the content of a version: read, load, split, hash.

_WARNINGS_OF_STEP = 4
_NOTED = frozenset(key.value for key in PassageKey)
"""What loading and splitting note of a passage, unless the job's own metadata has it."""
_OPTIONS = frozenset(LoadOptions().model_dump())


@dataclass(frozen=True, kw_only=True)
class IngestRequest:
    """What an ingest job asks for, without its sources."""

    collection: str
    collection_id: UUID
    model: str
    splitter: Splitter
    options: LoadOptions
    skip_existing: bool
    skip_duplicates: bool
    metadata: Metadata
    passage_prompt: str = ""
    """What the model reads before each chunk."""

    @classmethod
    def of_job(cls, session: Session, job_id: UUID) -> "IngestRequest":
        """Raises NotFound where the collection has been erased meanwhile."""
        settings = ingest_items.settings_of(session, job_id)
        collection = collections.get(session, settings["collection"])
        return cls(
            collection=collection.name,
            collection_id=collection.id,
            model=collection.embedding_model,
            splitter=Splitter.model_validate(settings["splitter"]),
            options=LoadOptions.model_validate(
                {key: value for key, value in settings.items() if key in _OPTIONS}
            ),
            skip_existing=settings["on_existing"] == "skip",
            skip_duplicates=settings.get("on_duplicate") == "skip",
            metadata=settings["metadata"],
        )

    def of_source(self, source: Mapping[str, Any]) -> "IngestRequest":
        """With what the source has of its own."""
        own = {key: value for key in _OPTIONS if (value := source.get(key)) is not None}
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
        """Of the bytes and of everything else that decides chunks, vectors and metadata."""
        recipe = [
            LOADER_VERSION, self.model, self.passage_prompt, self.metadata, form,
            self.splitter.model_dump(mode="json"),
            self.options.model_dump(mode="json", exclude_defaults=True),
        ]  # fmt: skip
        digest = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode())
        digest.update(data)
        return digest.hexdigest()

    def recipe(self, what: str) -> str:
        """Of all but the bytes, and what only they tell."""
        return self.content_hash(b"", (what,))


@dataclass(frozen=True, kw_only=True)
class Raw:
    """A source's bytes, read but not yet looked into."""

    name: str
    data: bytes
    text: str | None
    """What the client sent as text, which needs no decoding."""
    content_type: str | None
    content_hash: str
    format_: Format | None
    """None where loading will say that there is none, and of a chunk."""
    is_chunk: bool = False
    """Whether it is a chunk as it is, which is neither read as a format nor split."""
    source_id: str | None = None
    """What the client calls it; its name is part of the hash then, for it may change."""
    container: str | None = None
    """The name of the source that it was found in."""
    file_name: str | None = None
    """Whose suffix counts, where `name` is none of a file."""
    noted: Metadata = field(default_factory=dict)
    """What is known of it from where it was read, if its loader does not know better."""


def source_name(
    source: Mapping[str, Any], uploads: Mapping[str, File], known: Mapping[str, str] | None = None
) -> str:
    """The identity of a source within its collection: file name, or the name that came with it.

    In NFC: macOS spells the names of files in another way, and they are the same ones. `known` has
    the names of documents by their ids.
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
    if source["type"] in ("folder", "object"):
        return nfc(source["url"])
    digest = hashlib.sha256(source["text"].encode()).hexdigest()
    return nfc(f"text-{digest[:16]}")


def _names(
    session: Session,
    collection_id: UUID,
    sources: Sequence[Mapping[str, Any]],
    uploads: Mapping[str, File],
) -> list[str]:
    ids = [source["document_id"] for source in sources if source["type"] == "document"]
    known = documents.names(session, collection_id, ids) if ids else {}
    return [source_name(source, uploads, known) for source in sources]


def read_source(
    process: Process, options: IngestRequest, source: dict[str, Any], uploads: dict[str, File]
) -> Raw:
    """Raises DocumentError for an unknown file, NotFound for one that the storage lost."""
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
        return Raw(
            name=name,
            data=data,
            text=text,
            content_type=None,
            content_hash=options.content_hash(data, ("one chunk",)),
            format_=None,
            is_chunk=True,
        )
    content = data if text is None else text
    format_ = _format_of(name, content_type, content)
    return Raw(
        name=name,
        data=data,
        text=text,
        content_type=content_type,
        content_hash=options.content_hash(
            data, (*form(format_, content_type, content), *([name] if source.get("id") else []))
        ),
        format_=format_,
        source_id=source.get("id"),
        container=source.get("container"),
    )


def _format_of(name: str, content_type: str | None, content: bytes | str) -> Format | None:
    """None where loading will say what is wrong."""
    try:
        return format_of(name, content_type, content)
    except DocumentError:
        return None


@dataclass(frozen=True, kw_only=True)
class FetchedSource:
    """A document of the web; `raw` is None where it is the same as what is live."""

    page: Page
    raw: Raw | None
    origin: RemoteOrigin


def fetch_source(
    fetcher: Fetcher,
    options: IngestRequest,
    *,
    name: str,
    url: str,
    known: RemoteOrigin | None,
    live_hash: str | None,
    limit_bytes: int,
    **fetching: Any,
) -> FetchedSource:
    """Raises what `Fetcher.fetch` raises, and DocumentError for what is no document.

    The server is asked for changes alone, if what is live came of what it said of it then.
    """
    recipe = options.recipe("url")
    is_current = known is not None and known.content_hash == live_hash and known.recipe == recipe
    page = fetcher.fetch(url, known=known if is_current else None, **fetching)
    web.check_status(page, url)
    if page.is_same and known is not None:
        return FetchedSource(page=page, raw=None, origin=known)
    web.check_whole(page, url, limit_bytes)
    format_ = _format_of(page.file_name, page.content_type, page.data)
    form_ = form(format_, page.content_type, page.data)
    raw = Raw(
        name=name,
        data=page.data,
        text=None,
        content_type=page.content_type,
        content_hash=options.content_hash(page.data, (*form_, page.url)),
        format_=format_,
        file_name=page.file_name,
        noted={DocumentKey.URL.value: page.url, DocumentKey.FETCHED_URL.value: page.url},
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


def read_object_source(
    process: Process, options: IngestRequest, source: Mapping[str, Any], name: str
) -> tuple[Raw, RemoteOrigin]:
    """A file of a folder. Raises DocumentError, Unavailable."""
    data = read_object(source, process.settings)
    file_name = PurePosixPath(source["url"]).name
    format_ = _format_of(file_name, None, data)
    raw = Raw(
        name=name,
        data=data,
        text=None,
        content_type=None,
        content_hash=options.content_hash(data, form(format_, None, data)),
        format_=format_,
        file_name=file_name,
        noted={DocumentKey.URL.value: source["url"]},
    )
    origin = RemoteOrigin(
        source=name,
        url=source["url"],
        recipe=options.recipe("object"),
        content_hash=raw.content_hash,
        parent=source["folder"],
        etag=source["validator"],
    )
    return raw, origin


class _Chunks(Sequence[tuple[int, str, Metadata]]):
    """The pieces of a document as (start, text, metadata), cut from its text when they are read.

    What is held of each is its place and its metadata, which the pieces of a passage share.
    """

    def __init__(self, text: str, base: Metadata, over: Metadata) -> None:
        self._text = text
        self._base = base
        self._over = over
        self._starts, self._ends = array("q"), array("q")
        self._own: list[Metadata] = []
        self.metadata_chars = 0
        self._last: tuple[Metadata, int] | None = None

    def append(self, piece: Piece) -> None:
        if self._last is None or self._last[0] is not piece.metadata:
            self._last = piece.metadata, _chars({**self._base, **piece.metadata})
        self.metadata_chars += self._last[1]
        self._starts.append(piece.start)
        self._ends.append(piece.start + len(piece.text))
        self._own.append(piece.metadata)

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
            return [self[one] for one in range(*at.indices(len(self)))]
        start, end = self._starts[at], self._ends[at]
        return start, self._text[start:end], {**self._base, **self._own[at], **self._over}


def _chars(metadata: Metadata) -> int:
    """Of keys and values; each item of a list costs as much as a value with a key of its own."""
    return sum(
        len(key) * (len(value) if isinstance(value, list) else 1) + len(str(value))
        for key, value in metadata.items()
    )


def load_source(context: Context, options: IngestRequest, raw: Raw) -> LoadedText:
    """Raises DocumentError, naming the document and the remedy."""
    process = context.process
    if raw.is_chunk:
        return whole_text(raw.text or "", name=raw.name)
    data = raw.data if raw.text is None else raw.text
    if raw.format_ is not None and raw.format_.is_isolated:
        return reader_of(process).load(
            data,
            name=raw.name,
            content_type=raw.content_type,
            options=options.options,
            file_name=raw.file_name,
            check=context.check,
        )
    return load_document(
        data,
        name=raw.name,
        content_type=raw.content_type,
        options=options.options,
        settings=process.settings,
        file_name=raw.file_name,
    )


def content_of(
    context: Context, options: IngestRequest, raw: Raw, loaded: LoadedText, embedder: Embedder
) -> Content:
    """Split. Raises DocumentError, naming the document and the remedy."""
    if options.splitter.type is SplitterType.TOKEN and embedder.tokenizer is None:
        raise DocumentError(
            f"{raw.name}: {options.model} has no tokenizer to split with. Choose another "
            "splitter than token."
        )
    metadata = {**raw.noted, **loaded.metadata, **options.metadata}
    if raw.is_chunk:
        chunks = _Chunks(loaded.text, metadata, {})
        chunks.append(Piece(text=loaded.text, start=0, metadata={}))
    else:
        chunks = _split(context, options, loaded, metadata, name=raw.name, embedder=embedder)
    if not chunks:
        raise DocumentError(f"{raw.name} has no text to ingest.")
    return Content(
        source=raw.name,
        sha256=hashlib.sha256(raw.data).hexdigest(),
        content_hash=raw.content_hash,
        size_bytes=len(raw.data),
        metadata=metadata,
        chunks=chunks,
        attributes=options.metadata,
        source_id=raw.source_id,
        container=raw.container,
    )


def relabelled(
    process: Process, options: IngestRequest, source: Mapping[str, Any]
) -> Content | None:
    """The live content of a document with other metadata; None where it has that already. Raises
    DocumentError where there is no such document."""
    document_id = source["document_id"]
    attributes: Metadata = source["metadata"]
    with process.ledger.read() as session:
        live = versions.live_version(session, options.collection_id, UUID(document_id))
        chunks = (
            versions.chunks_of(
                session, ChunkRange(version_id=live.id, first=0, end=live.chunk_count)
            )
            if live is not None
            else ()
        )
    if live is None:
        raise DocumentError(
            f"There is no document {document_id} in {options.collection} that readers see."
        )
    if live.attributes == attributes:
        return None

    def relabel(metadata: Metadata) -> Metadata:
        # What loading noted of a chunk itself is not the request's to change.
        own = {
            key: value
            for key, value in metadata.items()
            if key not in live.metadata or live.metadata[key] != value
        }
        rest = {key: value for key, value in metadata.items() if key not in live.attributes}
        return {**rest, **attributes, **own}

    chunked = [(chunk.start, chunk.text, relabel(as_object(chunk.meta))) for chunk in chunks]
    limit = process.settings.max_document_metadata_chars
    if sum(_chars(metadata) for _, _, metadata in chunked) > limit:
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
        chunks=chunked,
        attributes=attributes,
        copied_from=live.id,
    )


SAMPLE_CHARS = 4000
"""Of the texts of a step that are looked at for their scripts, which takes some 4 µs each."""
SLICE_CHARS = 100


def sample(text: str, chars: int) -> str:
    """Slices from all over the text, `chars` together."""
    count = max(1, chars // SLICE_CHARS)
    if len(text) <= count * SLICE_CHARS:
        return text
    step = (len(text) - SLICE_CHARS) / max(1, count - 1)
    starts = (int(n * step) for n in range(count))
    return "\n".join(text[start : start + SLICE_CHARS] for start in starts)


def _split(
    context: Context,
    options: IngestRequest,
    loaded: LoadedText,
    metadata: Metadata,
    *,
    name: str,
    embedder: Embedder,
) -> _Chunks:
    """Raises DocumentError as soon as it is plain that there are too many chunks."""
    settings, splitter = context.process.settings, options.splitter
    limit = settings.max_document_chunks
    at_most = "at most " if splitter.chunk_size is None else ""
    too_many = DocumentError(
        f"{name}: has more than {limit:,} chunks of {at_most}{splitter.size:,}. Choose larger "
        "chunks, divide it, or raise SLUICE_MAX_DOCUMENT_CHUNKS."
    )
    if least_pieces(loaded, splitter) > limit:
        raise too_many
    chosen = {key: value for key, value in options.metadata.items() if key in _NOTED}
    chunks = _Chunks(loaded.text, metadata, chosen)
    window = _window(embedder, context.check) if splitter.chunk_size is None else None
    for piece in split(loaded, splitter, tokenizer=embedder.tokenizer, window=window):
        if len(chunks) == limit:
            raise too_many
        chunks.append(piece)
        if chunks.metadata_chars > settings.max_document_metadata_chars:
            raise DocumentError(
                f"{name}: has too much metadata, which each of its chunks carries: more than "
                f"{settings.max_document_metadata_chars:,} characters together. Choose larger "
                "chunks or less metadata (csv.metadata_columns, the fields beside the text), or "
                "raise SLUICE_MAX_DOCUMENT_METADATA_CHARS."
            )
    return chunks


LEAST_WINDOW_TOKENS = 16
"""A model that reads fewer, because its prompt fills its window, is beyond help by splitting: the
job warns of what is not read."""


def _window(embedder: Embedder, check: Callable[[], None]) -> Window | None:
    if embedder.readable is None or embedder.readable < LEAST_WINDOW_TOKENS:
        return None
    return Window(
        tokens=embedder.readable,
        tokenizer=embedder.tokenizer,
        overlong=partial(embedder.overlong, between=check),
    )


# The vectors of an embedding step: read texts, encode, write to the store.

_SAFE_SHARE = 0.9
"""Other parts of a document have more tokens in as many characters."""


@dataclass(kw_only=True)
class Cut:
    """The chunks of a version that are longer than the model's window."""

    chunks: int
    chunk_size: int
    """Which the splitter should have had, going by the chunk of which the least was read."""
    tokens: int
    unread_tokens: int


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """What came of the chunks of a step, besides the vectors in the store."""

    cuts: dict[UUID, Cut]
    """What the model did not read, by version."""
    postings: NewPostings | None


def write_vectors(context: Context, options: IngestRequest, parts: Sequence[ChunkRange]) -> Encoded:
    """Embed those chunks of the parts that still need it, and make their postings. No transaction
    is open meanwhile."""
    process = context.process
    with process.ledger.read() as session:
        chunks = versions.unembedded(session, parts)
        origins = versions.origins(session, {chunk.version_id for chunk in chunks})
    chunks = [chunk for chunk in chunks if chunk.version_id in origins]  # others just vanished
    if not chunks:
        return Encoded(cuts={}, postings=None)
    embedder = embedders_of(process).get(options.model, check=context.check)
    with process.ledger.begin() as session:
        dimension = collections.fix_dimension(session, options.collection_id, embedder.dimension)
    if dimension != embedder.dimension:
        raise Permanent(
            f"Collection {options.collection!r} has {dimension} dimensions, but {options.model!r} "
            f"gives {embedder.dimension}. Ingest into a new collection."
        )
    copied = _copied_vectors(context, options.collection, chunks)
    all_chunks, chunks = chunks, [chunk for chunk in chunks if _id(chunk) not in copied]
    texts = [chunk.text for chunk in chunks]
    cuts: dict[UUID, Cut] = {}
    for n, tokens in embedder.overlong(texts, between=context.check).items():
        fitting = embedder.readable or tokens
        if options.splitter.type is not SplitterType.TOKEN:
            fitting = int(_SAFE_SHARE * len(texts[n]) * fitting / tokens)
        none = Cut(chunks=0, chunk_size=fitting, tokens=0, unread_tokens=0)
        cut = cuts.setdefault(chunks[n].version_id, none)
        cut.chunks += 1
        cut.tokens += tokens
        cut.unread_tokens += tokens - (embedder.window or 0)
        cut.chunk_size = min(cut.chunk_size, fitting)
    if chunks:
        vectors = embedder.encode(texts, between=context.check)
        context.check()
        entries = [_entry(chunk, origins[chunk.version_id]) for chunk in chunks]
        store_of(process).upsert(options.collection, entries, vectors)
    if copied:
        twins = [chunk for chunk in all_chunks if _id(chunk) in copied]
        entries = [_entry(chunk, origins[chunk.version_id]) for chunk in twins]
        vectors = np.stack([copied[_id(chunk)] for chunk in twins])
        store_of(process).upsert(options.collection, entries, vectors)
    sizes = {version_id: origin.chunk_count for version_id, origin in origins.items()}
    return Encoded(cuts=cuts, postings=NewPostings(process, all_chunks, sizes))


def _copied_vectors(
    context: Context, collection: str, chunks: Sequence[Chunk]
) -> dict[str, Vectors]:
    """By the ids of chunks, the vectors of chunks of an older version that have the same text, as
    far as the store still has them."""
    copied: dict[str, str] = context.claim.payload.get("copied") or {}
    twins = {
        chunk_id(UUID(copied[str(chunk.version_id)]), chunk.ordinal): _id(chunk)
        for chunk in chunks
        if str(chunk.version_id) in copied
    }
    if not twins:
        return {}
    vectors = store_of(context.process).vectors(collection, list(twins))
    return {twins[id_]: vector for id_, vector in vectors.items()}


def _id(chunk: Chunk) -> str:
    return chunk_id(chunk.version_id, chunk.ordinal)


def _entry(chunk: Chunk, origin: Origin) -> VectorEntry:
    return VectorEntry(
        id=_id(chunk),
        text=chunk.text,
        metadata=chunk.meta,
        own={
            "source": origin.source,
            "document_id": str(origin.document_id),
            "start_index": chunk.start,
        },
    )


# Writes what a load step produced: many small documents in one transaction, fenced.
#
# Holds about a million characters at a time, so that memory does not grow with the documents.

FLUSH_CHARS = 1_000_000


class Writer:
    """`chunk_counts` has the versions that were written, or joined, and are to be embedded;
    `copies` has, of those with the chunks of another one, which that is."""

    def __init__(self, context: Context, options: IngestRequest) -> None:
        self._context = context
        self._options = options
        self._contents: list[tuple[int, Content]] = []
        self._skipped: list[int] = []
        self._failed: list[tuple[int, str]] = []
        self._left_out: list[int] = []
        self._origins: list[RemoteOrigin] = []
        self._records: list[Record] = []
        self._chars = 0
        self._documents: int | None = None
        """How many the job has, as far as is known by now."""
        self.chunk_counts: dict[UUID, int] = {}
        self.copies: dict[UUID, UUID] = {}

    def add(self, ordinal: int, content: Content) -> None:
        """Raises DocumentError where the job would have too many chunks with it."""
        self._limit(content)
        self._contents.append((ordinal, content))
        self._chars += sum(len(text) for _, text, _ in content.chunks)
        if self._chars > FLUSH_CHARS:
            self.flush()

    def _limit(self, content: Content) -> None:
        """Small documents pass unasked, for all of the job would be within half of the limit.

        Steps that run at the same time do not see each other's chunks, so the limit is exceeded by
        as many documents at the most.
        """
        settings = self._context.process.settings
        count, limit = len(content.chunks), settings.max_job_chunks
        with self._context.process.ledger.read() as session:
            if self._documents is None:
                self._documents = jobs.total(session, self._context.claim.job_id)
            if count <= limit // (2 * max(1, self._documents)):
                return
            written = ingest_items.count_chunks(session, self._context.claim.job_id)
        waiting = sum(len(other.chunks) for _, other in self._contents)
        if written + waiting + count > limit:
            raise DocumentError(
                f"{content.source}: has {count:,} chunks, and the job has {written + waiting:,} "
                f"before it; at most {limit:,} go into one job. Ingest it in a job of its own, "
                "choose larger chunks, or raise SLUICE_MAX_JOB_CHUNKS."
            )

    def add_skipped(self, ordinal: int) -> None:
        self._skipped.append(ordinal)

    def add_failed(self, ordinal: int, message: str) -> None:
        self._failed.append((ordinal, message))

    def add_left_out(self, ordinal: int) -> None:
        self._left_out.append(ordinal)

    def note_origin(self, origin: RemoteOrigin) -> None:
        """Write where a document was read, in the same transaction."""
        self._origins.append(origin)

    def also(self, record: Record) -> None:
        """Write something else in the same transaction, after all documents."""
        self._records.append(record)

    def flush(self) -> None:
        """Raises Cancelled where the attempt is no longer this worker's."""
        claim = self._context.claim
        with self._context.process.ledger.begin() as session:
            if not steps.hold(session, claim):
                raise Cancelled
            self._write_contents(session)
            remote.note(session, self._options.collection_id, self._origins)
            ingest_items.settle(session, claim.job_id, self._skipped, Outcome.SKIPPED)
            ingest_items.settle(session, claim.job_id, self._left_out, Outcome.LEFT_OUT)
            for ordinal, message in self._failed:
                ingest_items.settle(session, claim.job_id, [ordinal], Outcome.FAILED, message)
            for record in self._records:
                record(session)
        self._contents, self._skipped, self._failed, self._chars = [], [], [], 0
        self._left_out, self._origins, self._records = [], [], []

    def _write_contents(self, session: Transaction) -> None:
        if not self._contents:
            return
        job_id, collection_id = self._context.claim.job_id, self._options.collection_id
        ids = {c.source_id: c.source for _, c in self._contents if c.source_id is not None}
        wrong = versions.rename(session, collection_id, ids) if ids else {}
        documents = versions.lock_documents(
            session, collection_id, [content.source for _, content in self._contents]
        )
        if self._options.skip_duplicates:
            versions.hold_contents(session, self._options.collection_id)
        # A source may have been taken out of the job meanwhile.
        held = ingest_items.hold(session, job_id, [ordinal for ordinal, _ in self._contents])
        written = 0
        for ordinal, content in self._contents:
            if ordinal not in held:
                continue
            document = documents[content.source]
            try:
                if content.source_id in wrong:
                    raise DocumentError(wrong[content.source_id])
                versions.identify(document, content)
            except DocumentError as error:
                self._failed.append((ordinal, error.message))
                continue
            other = (
                versions.twin(session, document, content.sha256)
                if self._options.skip_duplicates
                else None
            )
            if other is not None:
                ingest_items.settle(session, job_id, [ordinal], Outcome.SKIPPED, other)
                versions.remove_empty(session, document)
                continue
            version_id = versions.begin(
                session,
                document,
                content,
                skip_existing=self._options.skip_existing,
            )
            if version_id is None:
                self._skipped.append(ordinal)
            else:
                ingest_items.assign(session, job_id, ordinal, version_id)
                if version_id not in self.chunk_counts:
                    written += len(content.chunks)
                self.chunk_counts[version_id] = len(content.chunks)
                if content.copied_from is not None:
                    self.copies[version_id] = content.copied_from
        if written:
            jobs.add_work(session, job_id, written)


# Sources that hold documents: their members lie in the storage, some together in one object, until
# the job has ended, and are items of their own.

BUNDLE_BYTES = 4 * 2**20
"""Members are written together up to this size, or as many as a step loads."""
_INHERITED = ("metadata", "splitter", *sorted(_OPTIONS))
"""What a member has from its source."""


class _Bundles:
    """Puts members into the storage. `parts` are their items, of which those in `errors`, by their
    numbers, have failed already."""

    def __init__(self, context: Context, item: OpenItem, container: str) -> None:
        claim = context.claim
        self._storage = context.process.storage
        self._limit = context.process.settings.load_step_documents
        folder = jobs.members_folder(claim.job_id)
        self._stem = f"{folder}/{claim.step_id}-{claim.attempt}-{item.ordinal}"
        self._shared = {key: item.source[key] for key in _INHERITED if key in item.source}
        self._shared |= {"type": "member", "container": container}
        self._blocks: list[bytes] = []
        self._size = 0
        self._paths: list[str] = []
        self.parts: list[PartOfSource] = []
        self.errors: dict[int, str] = {}

    def add(self, member: Member) -> None:
        source: dict[str, Any] = {"name": member.name}
        if member.error:
            self.errors[len(self.parts)] = f"{member.name}: {member.error}"
        else:
            source |= {
                "path": f"{self._stem}-{len(self._paths)}",
                "start": self._size,
                "size": len(member.data),
                "content_type": member.content_type,
            }
            self._blocks.append(member.data)
            self._size += len(member.data)
        self.parts.append(PartOfSource(name=member.name, source=self._shared | source))
        if self._size >= BUNDLE_BYTES or len(self._blocks) == self._limit:
            self.flush()

    def flush(self) -> None:
        if self._blocks:
            path = f"{self._stem}-{len(self._paths)}"
            self._paths.append(path)
            self._storage.write(path, io.BytesIO(b"".join(self._blocks)))
            self._blocks, self._size = [], 0

    def delete(self) -> None:
        for path in self._paths:
            self._storage.delete(path)


def expand(context: Context, options: IngestRequest, item: OpenItem, raw: Raw) -> None:
    """Make items of the members of a source, and erase those that it had before and has no more.
    Raises DocumentError, and then nothing has changed; Cancelled where the attempt is lost."""
    process, job_id = context.process, context.claim.job_id
    with process.ledger.read() as session:
        if ingest_items.parts(session, job_id, item.ordinal):
            return  # by an attempt before
    assert raw.format_ is not None
    bundles = _Bundles(context, item, raw.name)
    try:
        for member in reader_of(process).members(
            raw.data if raw.text is None else raw.text,
            name=raw.name,
            content_type=raw.content_type,
            options=options.options,
            check=context.check,
            file_name=raw.file_name,
        ):
            bundles.add(member)
        bundles.flush()
        if not bundles.parts and not raw.format_.is_document:
            raise DocumentError(f"{raw.name}: is an archive without any file; leave it out.")
    except BaseException:
        bundles.delete()
        raise
    # What was written and is not recorded now goes with the job's folder.
    with process.ledger.begin() as session:
        if not steps.hold(session, context.claim):
            raise Cancelled
        erased: dict[str, GarbageVersion] = {}
        if not options.skip_existing:
            names = [part.name for part in bundles.parts]
            erased = versions.retire_missing(session, options.collection_id, raw.name, names)
        _note_container(session, context, options, raw, has_parts=bool(bundles.parts))
        ordinals = ingest_items.expand(session, job_id, item.ordinal, bundles.parts)
        failed = {ordinals[n]: message for n, message in bundles.errors.items()}
        ingest_items.settle_failed(session, job_id, failed)
        ingest_items.add_erased(session, job_id, item.ordinal, list(erased))
        if not raw.format_.is_document:
            ingest_items.settle(session, job_id, [item.ordinal], Outcome.LEFT_OUT)
        session.after_commit(lambda: collect_replaced(process, list(erased.values())))


def _note_container(
    session: Transaction, context: Context, options: IngestRequest, raw: Raw, *, has_parts: bool
) -> None:
    if not has_parts:  # a mail
        containers.empty(session, options.collection_id, raw.name)
        return
    new = NewContainer(
        source=raw.name,
        sha256=hashlib.sha256(raw.data).hexdigest(),
        content_hash=raw.content_hash,
    )
    # With `skip`, what is there may be of another content.
    job_id = None if options.skip_existing else context.claim.job_id
    containers.begin(session, options.collection_id, new, job_id=job_id)


def _member_steps(members: Iterable[tuple[int, str]]) -> list[NewStep]:
    """A step for those that lie in one object of the storage."""
    return [
        load_step(ordinal for ordinal, _ in group)
        for _, group in groupby(members, key=lambda member: member[1])
    ]


def plan(context: Context) -> Done:
    """Name the sources and spread them over load steps."""
    job_id = context.claim.job_id
    process = context.process
    input_ = context.input(IngestInput)
    with process.ledger.read() as session:
        collection = collections.get(session, input_.collection)
        sources = [source.model_dump() for source in input_.sources]
        uploads = files.of_sources(session, sources)
        names = _names(session, collection.id, sources, uploads)
    _make_in_store(process, collection)

    def record(session: Transaction) -> None:
        jobs.set_total(session, job_id, len(names), "documents")
        ingest_items.add_all(session, job_id, names)

    size = process.settings.load_step_documents
    whole = [n for n, source in enumerate(sources) if source["type"] not in _EXPANDED]
    children = [load_step(whole[first : first + size]) for first in range(0, len(whole), size)]
    children += [
        expanding_step(_EXPANDED[source["type"]], n)
        for n, source in enumerate(sources)
        if source["type"] in _EXPANDED
    ]
    return Done(children=children, record=record)


def _make_in_store(process: Process, collection: Collection) -> None:
    """Make the collection in Chroma. Raises NotFound where it was erased meanwhile.

    No transaction waits for Chroma. So an erasure may come in between; then what was made goes.
    """
    with process.ledger.begin() as session:
        collections.hold(session, collection.id)
    store_of(process).make(collection.name, collection.distance)
    try:
        with process.ledger.begin() as session:
            collections.hold(session, collection.id)
    except NotFound:
        drop_unless_in_ledger(process, collection.name)
        raise


def load(context: Context) -> Done:
    """Read and split the step's sources, write them as pending versions, have them embedded.

    After a failed attempt the step only breaks itself up, so that a source that kills its worker
    ends alone.
    """
    claim, process = context.claim, context.process
    ordinals: list[int] = claim.payload["ordinals"]
    if claim.counted_attempt > 1 and len(ordinals) > 1:
        return Done(children=[load_step([ordinal]) for ordinal in ordinals])
    with process.ledger.read() as session:
        options = IngestRequest.of_job(session, claim.job_id)
        todo = ingest_items.still_open(session, claim.job_id, ordinals)
        uploads = files.of_sources(session, [item.source for item in todo])
        sources = [item.source for item in todo]
        names = _names(session, options.collection_id, sources, uploads)
        live = documents.live_hashes(session, options.collection_id, names)
        read = containers.content_hashes(session, options.collection_id, names)
        ids = documents.live_source_ids(
            session, options.collection_id, [id_ for one in sources if (id_ := one.get("id"))]
        )
        members = ingest_items.open_members(session, claim.job_id, ordinals)
    if not todo:
        return Done(children=_member_steps(members))
    embedder = embedders_of(process).get(options.model, check=context.check)
    options = replace(options, passage_prompt=embedder.passage_prompt)
    writer = Writer(context, options)
    samples: dict[int, str] = {}
    warnings: list[str] = []
    archives: list[int] = []
    with closing(_Pages(context, claim.payload.get("tries", 0))) as pages:
        for item, name in zip(todo, names, strict=True):
            context.check()
            try:
                if options.skip_existing and (name in live or item.source.get("id") in ids):
                    writer.add_skipped(item.ordinal)
                    continue
                if item.source["type"] == "document":
                    content = relabelled(process, options, item.source)
                    if content is None:
                        writer.add_skipped(item.ordinal)
                    else:
                        writer.add(item.ordinal, content)
                    continue
                own = options.of_source(item.source)
                if item.source["type"] == "url":
                    source = pages.fetch(own, item, name, read.get(name, live.get(name)))
                    if source is None:
                        continue  # at another time
                    writer.note_origin(source.origin)
                    raw = source.raw
                elif item.source["type"] == "object":
                    raw, origin = read_object_source(process, own, item.source, name)
                    writer.note_origin(origin)
                else:
                    raw = read_source(process, own, item.source, uploads)
                if (
                    raw is not None
                    and raw.format_ is not None
                    and raw.format_.holds_documents
                    and item.source["type"] != "member"
                ):
                    if not raw.format_.is_document and raw.source_id is not None:
                        raise DocumentError(
                            f"{name}: is an archive, whose files are the documents: it has no id. "
                            "Leave it out."
                        )
                    if not raw.format_.is_document and len(ordinals) > 1:
                        archives.append(item.ordinal)  # each takes a step of its own
                        continue
                    expand(context, own, item, raw)
                    if not raw.format_.is_document:
                        continue
                # Asked before loading and splitting, which unchanged documents need not.
                if raw is None or live.get(name) == raw.content_hash:
                    writer.add_skipped(item.ordinal)
                else:
                    loaded = load_source(context, own, raw)
                    writer.add(item.ordinal, content_of(context, own, raw, loaded, embedder))
                    warnings += loaded.warnings
                    samples[item.ordinal] = sample(loaded.text, SAMPLE_CHARS // len(todo))
            except (DocumentError, NotFound) as error:
                writer.add_failed(item.ordinal, error.message)
    writer.flush()
    if len(pages.put_off) == len(todo) and pages.tries == claim.payload.get("tries", 0):
        return Done(again_in_s=pages.wait_s)
    with process.ledger.read() as session:
        members = ingest_items.open_members(session, claim.job_id, ordinals)
    children = [
        *embed_steps(writer.chunk_counts, process.settings.embed_step_chunks, writer.copies),
        *(load_step([ordinal]) for ordinal in archives),
        *_member_steps(members),
    ]
    if pages.put_off:
        children.append(load_step(pages.put_off, tries=pages.tries))
    return Done(
        result=unread_scripts(embedder, samples), children=children, warnings=_first(warnings)
    )


def _first(warnings: Sequence[str]) -> list[str]:
    """Of a step: its job may have thousands."""
    left = len(warnings) - _WARNINGS_OF_STEP
    more = [f"So it is with {left:,} more documents."] if left > 0 else []
    return [*warnings[:_WARNINGS_OF_STEP], *more]


class _Pages:
    """The documents of the web among the sources of a load step. Those whose host is not to be
    asked now are put off; those that the host sent away too often fail."""

    def __init__(self, context: Context, tries: int) -> None:
        self._context = context
        self._fetcher: Fetcher | None = None
        self._tries = self.tries = tries
        self.put_off: list[int] = []
        self.wait_s = 0.0

    def fetch(
        self, options: IngestRequest, item: OpenItem, name: str, live_hash: str | None
    ) -> FetchedSource | None:
        """None where it is put off. Raises DocumentError."""
        process = self._context.process
        if self._fetcher is None:
            self._fetcher = Fetcher(self._context).__enter__()
        with process.ledger.read() as session:
            known = remote.origins(session, options.collection_id, [name]).get(name)
        url = normal_url(item.source["url"])
        try:
            return fetch_source(
                self._fetcher,
                options,
                name=name,
                url=url,
                known=known,
                live_hash=live_hash,
                limit_bytes=process.settings.web_limit_bytes,
                accepts=partial(web.check_type, url),
            )
        except NotNow as later:
            if later.reason:
                if self._tries >= process.settings.web_retries:
                    raise DocumentError(f"{later.reason} Try again later.") from later
                self.tries = self._tries + 1
            self.put_off.append(item.ordinal)
            self.wait_s = max(self.wait_s, later.wait_s)
            return None

    def close(self) -> None:
        if self._fetcher is not None:
            self._fetcher.__exit__(None, None, None)


def unread_scripts(embedder: Embedder, samples: Mapping[int, str]) -> dict[str, Any] | None:
    """Which sources are written in scripts that the model does not know, by their ordinals."""
    if embedder.tokenizer is None:
        return None
    unread = [
        [ordinal, scripts]
        for ordinal, sample in samples.items()
        if (scripts := unknown_scripts(embedder.tokenizer, sample))
    ]
    return {"model": embedder.name, "unread": unread} if unread else None


def embed(context: Context) -> Done:
    """Write the vectors of the step's chunks, then make complete versions live."""
    claim, process = context.claim, context.process
    parts = parts_of(claim)
    if claim.attempt > 1 and len(parts) > 1:
        return Done(children=[_embed_step([part]) for part in parts])
    with process.ledger.read() as session:
        options = IngestRequest.of_job(session, claim.job_id)
    # Vectors whose version is gone must not stay, whatever happens from here on.
    context.on_lost.append(lambda: delete_orphans(process, options.collection, parts))
    try:
        encoded = write_vectors(context, options, parts)
    except Permanent:
        if len(parts) == 1:
            raise
        return Done(children=[_embed_step([part]) for part in parts])  # only one is to blame
    delete_orphans(process, options.collection, parts)

    def record(transaction: Transaction) -> None:
        versions.lock_documents_of(transaction, [part.version_id for part in parts])
        if encoded.postings is not None:
            encoded.postings.write_parts(transaction, options.collection_id)
        noted = [_note(transaction, claim, part) for part in parts]
        if encoded.postings is not None:
            outcomes = zip((part.version_id for part in parts), noted, strict=True)
            encoded.postings.write_whole(transaction, options.collection_id, outcomes)
        jobs.advance(
            transaction, claim.job_id, 0, work=sum(part.end - part.first for part in parts)
        )
        transaction.after_commit(lambda: tidy(noted))

    def tidy(noted: Sequence[versions.Embedded]) -> None:
        if any(version.state in (None, VersionState.RETIRED) for version in noted):
            delete_orphans(process, options.collection, parts)
        collect_replaced(process, [version.replaced for version in noted if version.replaced])
        merge_soon(process, options.collection_id)
        with process.ledger.read_single() as session:
            has_ended = jobs.state_of(session, claim.job_id) not in OPEN
        if has_ended:
            measure_ingested(process, options.collection)

    result = {
        "model": options.model,
        "cut": [
            [str(v), cut.chunks, cut.chunk_size, cut.tokens, cut.unread_tokens]
            for v, cut in encoded.cuts.items()
        ],
    }
    return Done(result=result if encoded.cuts else None, record=record)


def _note(session: Transaction, claim: Claim, part: ChunkRange) -> versions.Embedded:
    """Book a part's vectors, and the outcome of its document where that is now decided."""
    noted = versions.note_embedded(session, part)
    job_id, version_id = claim.job_id, part.version_id
    if noted.state is VersionState.LIVE:
        outcome, chunks = Outcome.ADDED, noted.chunk_count
        if noted.by_another:
            outcome, chunks = Outcome.SKIPPED, 0  # another job was first with the same content
        elif noted.replaced:
            outcome = Outcome.REPLACED
        ingest_items.settle_version(session, job_id, version_id, outcome, chunks=chunks)
    elif noted.state is VersionState.RETIRED and noted.superseded:
        ingest_items.settle_version(session, job_id, version_id, Outcome.SKIPPED)
    elif noted.state is not VersionState.PENDING:
        message = "The document was erased while it was ingested; ingest it again if need be."
        ingest_items.settle_version(session, job_id, version_id, Outcome.FAILED, message=message)
    return noted


def load_step(ordinals: Iterable[int], *, tries: int = 0) -> NewStep:
    payload: dict[str, Any] = {"ordinals": list(ordinals)}
    if tries:
        payload["tries"] = tries
    return NewStep(name="ingest.load", queue=Queue.INGEST, payload=payload)


_EXPANDED = {"site": "ingest.crawl", "folder": "ingest.list"}
"""The steps that make many documents of a source, by its type."""


def expanding_step(name: str, ordinal: int) -> NewStep:
    return NewStep(name=name, queue=Queue.INGEST, payload={"ordinal": ordinal})


def embed_steps(counts: dict[UUID, int], size: int, copies: Mapping[UUID, UUID]) -> list[NewStep]:
    """Steps of at most `size` chunks: small documents together, large ones in several parts."""
    steps: list[NewStep] = []
    batch: list[ChunkRange] = []
    room = size
    for part in _cut(counts, size):
        length = part.end - part.first
        if batch and length > room:
            steps.append(_embed_step(batch, copies))
            batch, room = [], size
        batch.append(part)
        room -= length
    if batch:
        steps.append(_embed_step(batch, copies))
    return steps


def _cut(counts: dict[UUID, int], size: int) -> Iterator[ChunkRange]:
    for version_id, count in counts.items():
        for first in range(0, count, size):
            yield ChunkRange(version_id=version_id, first=first, end=min(first + size, count))


def _embed_step(parts: list[ChunkRange], copies: Mapping[UUID, UUID] | None = None) -> NewStep:
    payload: dict[str, Any] = {
        "parts": [[str(part.version_id), part.first, part.end] for part in parts]
    }
    copied = {
        str(part.version_id): str(copies[part.version_id])
        for part in parts
        if copies and part.version_id in copies
    }
    if copied:
        payload["copied"] = copied
    return NewStep(name="ingest.embed", queue=Queue.EMBED, payload=payload)


PLAN = Handler(run=plan)
LOAD = Handler(run=load, absorb=absorb_load, finish=finish)
EMBED = Handler(run=embed, absorb=absorb_embed, finish=finish)
