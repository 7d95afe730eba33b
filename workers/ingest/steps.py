"""The steps of an ingest job: plan, load, embed.

`plan` makes an item for each source, and load steps of a few sources each; `load` reads, splits and
writes pending versions; `embed` writes vectors and makes versions live. A bad source is one failed
item, never a failed job. Each step may run any number of times.
"""

import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import Any
from uuid import UUID

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from shared import files
from shared.database.transaction import Transaction
from shared.documents import (
    collections,
    containers,
    documents,
    indexes,
    ingest_items,
    remote,
    versions,
)
from shared.documents.containers import NewContainer
from shared.documents.documents import chunk_id
from shared.documents.indexes import IndexChanged, IndexPlace
from shared.documents.ingest_items import (
    Adoption,
    CutChunks,
    Duplicates,
    NewItem,
    OpenItem,
    Outcome,
    UnreadDocuments,
)
from shared.documents.versions import ChunkRange, GarbageVersion, VersionDocument, VersionState
from shared.errors import Cancelled, DocumentError, NotFound, Permanent, StepError, Unavailable
from shared.jobs import jobs, steps
from shared.jobs.claims import Claim
from shared.jobs.steps import NewStep
from shared.kinds.ingest import ADOPT_STEP, TRANSCRIBE_STEP, IngestInput, SplitterType
from shared.tables import Chunk, Job, VectorIndex
from shared.urls import normal_url
from shared.vocabulary import OPEN, Queue
from workers.attempts.context import Context, Done, Handler
from workers.attempts.process import Process
from workers.ingest import web
from workers.ingest.erasure import collect_replaced, delete_orphans, drop_unless_in_ledger
from workers.ingest.formats.container import Member
from workers.ingest.formats.loader import Utterance
from workers.ingest.indexing import NewPostings, merge_soon
from workers.ingest.large_texts import GrowthResult, LargeSource, grow, large_source_of
from workers.ingest.reader import reader_of
from workers.ingest.sources import (
    LOAD_OPTIONS,
    SAMPLE_CHARS,
    FetchedSource,
    IngestRequest,
    RawSource,
    content_of,
    load_source,
    read_object_source,
    read_source,
    sample,
    source_names,
    start_source,
    with_new_metadata,
)
from workers.ingest.web import Fetcher, NotNow
from workers.ingest.writer import Writer
from workers.models.devices import Vectors
from workers.retrieval.embed import Embedder, embedders_of
from workers.retrieval.servers import store_of
from workers.retrieval.store import DamagedCollection, MissingCollection, VectorEntry
from workers.retrieval.tuning import measure_ingested
from workers.retrieval.vocabulary import script_name, unknown_scripts
from workers.servers.pulls import on_demand
from workers.servers.server import ModelMissing

PAUSE_S = 0.5
"""How long an embedding step waits while another index is about to become active."""
_WARNINGS_OF_STEP = 4
NO_CHUNK = "none"
"""An id that no chunk has, by which a store is asked whether it has a collection."""

# Failed steps: their sources fail, and the job goes on; and the end of the job


def absorb_load(session: Transaction, claim: Claim, message: str) -> None:
    ordinals: list[int] = claim.payload["ordinals"]
    members = [ordinal for ordinal, _ in ingest_items.open_members(session, claim.job_id, ordinals)]
    containers.mark_incomplete(session, claim.job_id, [*ordinals, *members])
    ingest_items.settle(session, claim.job_id, [*ordinals, *members], Outcome.FAILED, message)


def absorb_embed(session: Transaction, claim: Claim, message: str) -> None:
    parts = parts_of(claim)
    containers.mark_incomplete_versions(session, claim.job_id, [part.version_id for part in parts])
    for part in parts:
        ingest_items.settle_version(
            session, claim.job_id, part.version_id, Outcome.FAILED, message=message
        )


def finish(session: Session, job_id: UUID) -> dict[str, Any]:
    """The result of the job. Adds warnings, such as for chunks that the model cannot read whole."""
    cut = ingest_items.cut_chunks(session, job_id)
    if cut is not None:
        input_ = session.scalar(select(Job.input).where(Job.id == job_id)) or {}
        splitter = (input_.get("splitter") or {}).get("type")
        types = {source.get("type") for source in input_.get("sources") or ()}
        jobs.warn(session, job_id, [_cut_warning(cut, splitter, are_chunks="chunk" in types)])
    unread = ingest_items.unread_documents(session, job_id)
    if unread is not None:
        jobs.warn(session, job_id, [_unread_warning(unread)])
    if warnings := _duplicate_warnings(session, job_id):
        jobs.warn(session, job_id, warnings)
    if warnings := _adoption_warnings(ingest_items.adoption(session, job_id)):
        jobs.warn(session, job_id, warnings)
    if ingest_items.has_members(session, job_id):
        containers.end(session, job_id)
        jobs.delete_members_later(session, job_id)
    return ingest_items.result(session, job_id)


MULTILINGUAL_MODEL = "intfloat/multilingual-e5-small"
"""The model that warnings recommend for unknown scripts: the smallest that knows most of them."""
# The scripts of the hundred languages of XLM-RoBERTa, whose vocabulary it has.
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


_ADOPTION_WARNINGS = {
    Adoption.OTHER_VECTORS: "{chunks} came with vectors of another model than that of the "
    "collection, which gives others for the same texts; they were embedded again.",
    Adoption.OTHER_DIMENSION: "{chunks} came with vectors of another dimension than the model of "
    "the collection gives; they were embedded again.",
    Adoption.NO_VECTOR: "{chunks} came without a vector, or with one that is none (zeros, or no "
    "numbers); they were embedded.",
    Adoption.NO_TEXT: "{chunks} came without text, and were skipped.",
    Adoption.DUPLICATES: "{chunks} came with the same text and the same metadata as others of "
    "their documents, and were skipped.",
    Adoption.BAD_METADATA: "{chunks} of metadata were left out: they are no text, number, true or "
    "false or a list of these, or too large.",
}


def _adoption_warnings(counts: Mapping[Adoption, int]) -> list[str]:
    warnings = []
    for what, text in _ADOPTION_WARNINGS.items():
        unit = "value" if what is Adoption.BAD_METADATA else "chunk"
        if count := counts.get(what):
            warnings.append(text.format(chunks=f"{count:,} {unit}{'' if count == 1 else 's'}"))
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
    """The parts that an embedding step works on."""
    return [
        ChunkRange(version_id=UUID(version_id), first=first, end=end)
        for version_id, first, end in claim.payload["parts"]
    ]


# Vectors of an embedding step: read texts, encode them, write to the store

_SAFE_SHARE = 0.9
"""Of a chunk size in characters, since other parts of a document have more tokens a character."""


@dataclass(kw_only=True)
class Truncation:
    """The chunks of a version that are longer than the model's window."""

    chunks: int
    chunk_size: int
    """A size that would have fitted, by the chunk of which the smallest part was read."""
    tokens: int
    unread_tokens: int


@dataclass(frozen=True, kw_only=True)
class EmbeddingResult:
    """The result of embedding the chunks of a step, beside the vectors in the store."""

    truncations: dict[UUID, Truncation]
    """By version."""
    postings: NewPostings | None


def write_vectors(
    context: Context,
    request: IngestRequest,
    parts: Sequence[ChunkRange],
    given: Mapping[str, Vectors] | None = None,
) -> EmbeddingResult:
    """Embed the chunks of the parts that have no vectors yet, and make their postings. No
    transaction is open meanwhile.

    `given` are vectors of length 1 of some of the chunks, by the ids of these, which are written as
    they are.
    """
    process = context.process
    with process.ledger.read() as session:
        chunks = versions.unembedded(session, parts)
        owners = versions.documents_of(session, {chunk.version_id for chunk in chunks})
    chunks = [chunk for chunk in chunks if chunk.version_id in owners]  # others were just erased
    if not chunks:
        return EmbeddingResult(truncations={}, postings=None)
    embedder = embedders_of(process).get(request.model, check=context.check)
    with process.ledger.begin() as session:
        dimension = indexes.fix_dimension(session, request.index_id, embedder.dimension)
    if dimension != embedder.dimension:
        raise Permanent(
            f"Collection {request.collection!r} has {dimension} dimensions, but {request.model!r} "
            f"gives {embedder.dimension}. Put the model back, or make the vectors anew: `sluice "
            "collections rebuild NAME`."
        )
    place = request.place
    if context.claim.error_before:  # an outage, perhaps: nothing is embedded in vain
        store_of(process).vectors(place.stored_name, [NO_CHUNK])
    copied = {**_copied_vectors(context, place, chunks), **(given or {})}
    all_chunks, chunks = chunks, [chunk for chunk in chunks if _id(chunk) not in copied]
    texts = [chunk.text for chunk in chunks]
    truncations: dict[UUID, Truncation] = {}
    for n, tokens in embedder.overlong(texts, between=context.check).items():
        fitting = embedder.readable or tokens
        if request.splitter.type is not SplitterType.TOKEN:
            fitting = int(_SAFE_SHARE * len(texts[n]) * fitting / tokens)
        none = Truncation(chunks=0, chunk_size=fitting, tokens=0, unread_tokens=0)
        truncation = truncations.setdefault(chunks[n].version_id, none)
        truncation.chunks += 1
        truncation.tokens += tokens
        truncation.unread_tokens += tokens - (embedder.window or 0)
        truncation.chunk_size = min(truncation.chunk_size, fitting)
    if chunks:
        vectors = embedder.encode(texts, between=context.check)
        context.check()
        entries = [entry_of(chunk, owners[chunk.version_id]) for chunk in chunks]
        store_of(process).upsert(place.stored_name, entries, vectors)
    twins = [chunk for chunk in all_chunks if _id(chunk) in copied]
    if twins:
        entries = [entry_of(chunk, owners[chunk.version_id]) for chunk in twins]
        vectors = np.stack([copied[_id(chunk)] for chunk in twins])
        store_of(process).upsert(place.stored_name, entries, vectors)
    sizes = {version_id: document.chunk_count for version_id, document in owners.items()}
    return EmbeddingResult(
        truncations=truncations, postings=NewPostings(process, all_chunks, sizes)
    )


def _copied_vectors(
    context: Context, place: IndexPlace, chunks: Sequence[Chunk]
) -> dict[str, Vectors]:
    """The vectors that chunks with the same text have in an older version, by the ids of the new
    chunks, as far as the store has them."""
    copied: dict[str, str] = context.claim.payload.get("copied") or {}
    twins = {
        chunk_id(UUID(copied[str(chunk.version_id)]), chunk.ordinal): _id(chunk)
        for chunk in chunks
        if str(chunk.version_id) in copied
    }
    if not twins:
        return {}
    vectors = store_of(context.process).vectors(place.stored_name, list(twins))
    return {twins[id_]: vector for id_, vector in vectors.items()}


def _id(chunk: Chunk) -> str:
    return chunk_id(chunk.version_id, chunk.ordinal)


def entry_of(chunk: Chunk, document: VersionDocument) -> VectorEntry:
    """What the store has of a chunk, beside its vector."""
    return VectorEntry(
        id=_id(chunk),
        text=chunk.text,
        metadata=chunk.meta,
        own={
            "source": document.source,
            "document_id": str(document.document_id),
            "start_index": chunk.start,
        },
    )


# Sources that contain documents. Their members are items of their own. They are stored until the
# job has ended, small ones together in one object.

BUNDLE_BYTES = 4 * 2**20
"""Members are stored together up to this size, or up to the number that a step loads."""
_INHERITED = ("metadata", "splitter", *sorted(LOAD_OPTIONS))
"""The fields that a member gets from its source."""


class _Bundles:
    """Writes members to the storage. `items` are their items; `errors` has the messages of failed
    ones by their index in `items`."""

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
        self.items: list[NewItem] = []
        self.errors: dict[int, str] = {}

    def add(self, member: Member) -> None:
        source: dict[str, Any] = {"name": member.name}
        if member.error:
            self.errors[len(self.items)] = f"{member.name}: {member.error}"
        else:
            source |= {
                "path": f"{self._stem}-{len(self._paths)}",
                "start": self._size,
                "size": len(member.data),
                "content_type": member.content_type,
            }
            self._blocks.append(member.data)
            self._size += len(member.data)
        self.items.append(NewItem(name=member.name, source=self._shared | source))
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


def expand(context: Context, request: IngestRequest, item: OpenItem, raw: RawSource) -> None:
    """Make items of the members of a source, and erase members that it no longer has.

    Raises DocumentError, after which nothing has changed; Cancelled if the attempt is lost.
    """
    process, job_id = context.process, context.claim.job_id
    with process.ledger.read() as session:
        if ingest_items.names_below(session, job_id, item.ordinal):
            return  # an earlier attempt has done it
    assert raw.format_ is not None
    bundles = _Bundles(context, item, raw.name)
    try:
        for member in reader_of(process).members(
            raw.data if raw.text is None else raw.text,
            name=raw.name,
            content_type=raw.content_type,
            options=request.options,
            check=context.check,
            file_name=raw.file_name,
        ):
            bundles.add(member)
        bundles.flush()
        if not bundles.items and not raw.format_.is_document:
            raise DocumentError(f"{raw.name}: is an archive without any file; leave it out.")
    except BaseException:
        bundles.delete()
        raise
    # Objects that are written and not recorded are deleted with the job's folder.
    with process.ledger.begin() as session:
        if not steps.hold(session, context.claim):
            raise Cancelled
        erased: dict[str, GarbageVersion] = {}
        if not request.skip_existing:
            names = [member.name for member in bundles.items]
            erased = versions.retire_missing(session, request.collection_id, raw.name, names)
        _note_container(session, context, request, raw, has_members=bool(bundles.items))
        ordinals = ingest_items.expand(session, job_id, item.ordinal, bundles.items)
        failed = {ordinals[n]: message for n, message in bundles.errors.items()}
        ingest_items.settle_failed(session, job_id, failed)
        ingest_items.add_erased(session, job_id, item.ordinal, list(erased))
        if not raw.format_.is_document:
            ingest_items.settle(session, job_id, [item.ordinal], Outcome.LEFT_OUT)
        session.after_commit(lambda: collect_replaced(process, list(erased.values())))


def _note_container(
    session: Transaction,
    context: Context,
    request: IngestRequest,
    raw: RawSource,
    *,
    has_members: bool,
) -> None:
    if not has_members:  # a mail
        containers.empty(session, request.collection_id, raw.name)
        return
    new = NewContainer(
        source=raw.name,
        sha256=hashlib.sha256(raw.data).hexdigest(),
        content_hash=raw.content_hash,
    )
    # With `skip`, its documents may be of another content.
    job_id = None if request.skip_existing else context.claim.job_id
    containers.begin(session, request.collection_id, new, job_id=job_id)


def _member_steps(members: Iterable[tuple[int, str]]) -> list[NewStep]:
    """A step for those that lie in one object of the storage."""
    return [
        load_step(ordinal for ordinal, _ in group)
        for _, group in groupby(members, key=lambda member: member[1])
    ]


def plan(context: Context) -> Done:
    """Make an item for each source, and steps that read them."""
    job_id = context.claim.job_id
    process = context.process
    input_ = context.input(IngestInput)
    with process.ledger.read() as session:
        collection, index = collections.get_with_index(session, input_.collection)
        sources = [source.model_dump() for source in input_.sources]
        uploads = files.of_sources(session, sources)
        names = source_names(session, collection.id, sources, uploads)
    make_in_store(process, index)

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


def lost(process: Process, request: IngestRequest, error: StepError) -> Exception:
    """What the step fails with if the store lacks the index that it is to write to, or cannot read
    it. Raises NotFound if the collection was erased."""
    with process.ledger.read() as session:
        index = collections.get_with_index(session, request.collection)[1]
    if index.id != request.index_id:
        return IndexChanged()
    return Unavailable(f"{error} What was read is kept, and this job goes on after that by itself.")


def make_in_store(process: Process, index: VectorIndex) -> None:
    """Make the collection of an index in the store, unless it was made before: one that the store
    has lost has to be rebuilt. Raises NotFound if it was erased meanwhile.

    No transaction waits for the store, so an erasure may come in between. The collection is then
    deleted again.
    """
    with process.ledger.begin() as session:
        collections.hold(session, index.collection_id)
        if indexes.has_vectors(session, index.collection_id):
            return
    store_of(process).make(index.stored_name, index.distance)
    try:
        with process.ledger.begin() as session:
            collections.hold(session, index.collection_id)
    except NotFound:
        drop_unless_in_ledger(process, IndexPlace.of(index))
        raise


def load(context: Context) -> Done:
    """Read and split the sources of the step, write them as pending versions, have them embedded.

    After a failed attempt the step is only divided, so that a source that kills its worker fails
    alone.
    """
    claim = context.claim
    ordinals: list[int] = claim.payload["ordinals"]
    if claim.counted_attempt > 1 and len(ordinals) > 1:
        return Done(children=[load_step([ordinal]) for ordinal in ordinals])
    with context.process.ledger.read() as session:
        request = IngestRequest.of_job(session, claim.job_id)
        items = ingest_items.still_open(session, claim.job_id, ordinals)
        members = ingest_items.open_members(session, claim.job_id, ordinals)
    if not items:
        return Done(children=_member_steps(members))
    embedder = embedders_of(context.process).get(request.model, check=context.check)
    request = replace(request, passage_prompt=embedder.passage_prompt)
    with closing(_Pages(context, claim.payload.get("tries", 0))) as pages:
        return _Load(context, request, items, embedder, pages).run()


class _Load:
    """One run of a load step."""

    def __init__(
        self,
        context: Context,
        request: IngestRequest,
        items: Sequence[OpenItem],
        embedder: Embedder,
        pages: "_Pages",
    ) -> None:
        self._context = context
        self._process = context.process
        self._request = request
        self._items = items
        self._embedder = embedder
        self._pages = pages
        self._writer = Writer(context, request)
        self._samples: dict[int, str] = {}
        self._warnings: list[str] = []
        self._alone: list[int] = []
        """Archives and large texts that are left to steps of their own."""
        self._grown: GrowthResult | None = None
        """The large text that the step is for."""
        self._recordings: list[int] = []
        """Recordings that have to be transcribed first."""
        self._transcript = _transcript_of(context)
        sources = [item.source for item in items]
        ids = [id_ for source in sources if (id_ := source.get("id"))]
        collection_id = request.collection_id
        with self._process.ledger.read() as session:
            self._uploads = files.of_sources(session, sources)
            self._names = source_names(session, collection_id, sources, self._uploads)
            self._live = documents.live_hashes(session, collection_id, self._names)
            self._containers = containers.content_hashes(session, collection_id, self._names)
            self._live_ids = documents.live_source_ids(session, collection_id, ids)

    def run(self) -> Done:
        for item, name in zip(self._items, self._names, strict=True):
            self._context.check()
            try:
                self._load(item, name)
            except (DocumentError, NotFound) as error:
                self._writer.add_failed(item.ordinal, error.message)
        self._writer.flush()
        return self._outcome()

    def _load(self, item: OpenItem, name: str) -> None:
        """Raises DocumentError or NotFound for a source that cannot be ingested."""
        request, source = self._request, item.source
        is_live = name in self._live or source.get("id") in self._live_ids
        if request.skip_existing and is_live:
            self._writer.add_skipped(item.ordinal)
            return
        if source["type"] == "document":
            content = with_new_metadata(self._process, request, source)
            if content is None:
                self._writer.add_skipped(item.ordinal)
            else:
                self._writer.add(item.ordinal, content)
            return
        request = request.of_source(source)
        large = large_source_of(self._process, request, source, self._uploads)
        if large is not None:
            self._grow(item, name, request, large)
            return
        raw: RawSource | None
        if source["type"] == "url":
            read_hash = self._containers.get(name, self._live.get(name))
            page = self._pages.fetch(request, item, name, read_hash)
            if page is None:
                return
            self._writer.add_origin(page.origin)
            raw = page.raw
        elif source["type"] == "object":
            raw, origin = read_object_source(self._process, request, source, name)
            self._writer.add_origin(origin)
        else:
            raw = read_source(self._process, request, source, self._uploads)
        self._ingest(item, name, request, raw)

    def _grow(self, item: OpenItem, name: str, request: IngestRequest, source: LargeSource) -> None:
        if len(self._context.claim.payload["ordinals"]) > 1:
            self._alone.append(item.ordinal)
            return
        self._grown = grow(
            self._context,
            request,
            item.ordinal,
            source,
            live_hash=self._live.get(name),
            embedder=self._embedder,
            writer=self._writer,
        )
        self._samples[item.ordinal] = self._grown.sample

    def _ingest(
        self, item: OpenItem, name: str, request: IngestRequest, raw: RawSource | None
    ) -> None:
        """`raw` is None for a document of the web that has not changed."""
        if (
            raw is not None
            and raw.format_ is not None
            and raw.format_.holds_documents
            and item.source["type"] != "member"
            and not self._expand(item, name, request, raw)
        ):
            return
        # Compared before loading and splitting, which unchanged documents do not need.
        if raw is None or self._live.get(name) == raw.content_hash:
            self._writer.add_skipped(item.ordinal)
            return
        if self._transcript is None and _is_to_be_transcribed(item, request, raw):
            self._recordings.append(item.ordinal)
            return
        loaded = load_source(self._context, request, raw, self._transcript)
        content = content_of(self._context, request, raw, loaded, self._embedder)
        self._writer.add(item.ordinal, content)
        self._warnings += loaded.warnings
        self._samples[item.ordinal] = sample(loaded.text, SAMPLE_CHARS // len(self._items))

    def _expand(self, item: OpenItem, name: str, request: IngestRequest, raw: RawSource) -> bool:
        """Make items of the documents in a source; returns whether it is a document itself."""
        assert raw.format_ is not None
        is_document = raw.format_.is_document
        if not is_document and raw.source_id is not None:
            raise DocumentError(
                f"{name}: is an archive, whose files are the documents: it has no id. Leave it out."
            )
        if not is_document and len(self._context.claim.payload["ordinals"]) > 1:
            self._alone.append(item.ordinal)
        else:
            expand(self._context, request, item, raw)
        return is_document

    def _outcome(self) -> Done:
        claim, pages, writer = self._context.claim, self._pages, self._writer
        are_all_postponed = len(pages.postponed) == len(self._items)
        if are_all_postponed and pages.tries == claim.payload.get("tries", 0):
            return Done(again_in_s=pages.wait_s)
        if self._grown is not None and self._grown.version_id is not None:
            return self._outcome_of(self._grown, self._grown.version_id)
        with self._process.ledger.read() as session:
            ordinals = claim.payload["ordinals"]
            members = ingest_items.open_members(session, claim.job_id, ordinals)
        size = self._process.settings.embed_step_chunks
        children = [
            *embed_steps(writer.chunk_counts, size, writer.copies),
            *(load_step([ordinal]) for ordinal in self._alone),
            *(transcribe_step(ordinal) for ordinal in self._recordings),
            *_member_steps(members),
        ]
        if pages.postponed:
            children.append(load_step(pages.postponed, tries=pages.tries))
        return Done(
            result=unread_scripts(self._embedder, self._samples),
            children=children,
            warnings=_first_warnings(self._warnings),
        )

    def _outcome_of(self, grown: GrowthResult, version_id: UUID) -> Done:
        count = grown.chunk_count
        if count is None:
            return Done(again_in_s=0)
        job_id = self._context.claim.job_id

        def record(session: Transaction) -> None:
            if grown.is_new:
                versions.end_growth(session, version_id, count)
            jobs.add_work(session, job_id, count)

        size = self._process.settings.embed_step_chunks
        return Done(
            result=unread_scripts(self._embedder, self._samples),
            children=embed_steps({version_id: count}, size, {}),
            record=record,
        )


def _is_to_be_transcribed(item: OpenItem, request: IngestRequest, raw: RawSource) -> bool:
    """Whether it is a recording that the job wants to be transcribed. Those of the web are not;
    loading refuses them."""
    return (
        raw.format_ is not None
        and raw.format_.option == "speech"
        and raw.format_.option in request.options.requested
        and item.source["type"] != "url"
    )


def _transcript_of(context: Context) -> list[Utterance] | None:
    """The transcript of the only recording of a load step, made by the step before."""
    kept = context.claim.payload.get("transcript")
    if kept is None:
        return None
    path = kept.get("path")
    utterances = json.loads(context.process.storage.read(path)) if path else kept["utterances"]
    return [Utterance(*utterance) for utterance in utterances]


def _first_warnings(warnings: Sequence[str]) -> list[str]:
    """The first warnings of a step, and the number of the others: a job may have thousands."""
    left = len(warnings) - _WARNINGS_OF_STEP
    more = [f"So it is with {left:,} more documents."] if left > 0 else []
    return [*warnings[:_WARNINGS_OF_STEP], *more]


class _Pages:
    """The documents of the web in a load step. If a host may not be asked now, its documents are
    postponed; they fail after too many refusals of the host."""

    def __init__(self, context: Context, tries: int) -> None:
        self._context = context
        self._fetcher: Fetcher | None = None
        self._tries = self.tries = tries
        self.postponed: list[int] = []
        self.wait_s = 0.0

    def fetch(
        self, request: IngestRequest, item: OpenItem, name: str, live_hash: str | None
    ) -> FetchedSource | None:
        """None if it is postponed. Raises DocumentError."""
        process = self._context.process
        if self._fetcher is None:
            self._fetcher = Fetcher(self._context).__enter__()
        with process.ledger.read() as session:
            known = remote.origins(session, request.collection_id, [name]).get(name)
        url = normal_url(item.source["url"])
        try:
            return start_source(
                self._fetcher,
                request,
                name=name,
                url=url,
                known=known,
                live_hash=live_hash,
                limit_bytes=process.settings.web_limit_bytes,
                accepts=partial(web.check_type, url, requested=request.options.requested),
            )()
        except NotNow as later:
            if later.reason:
                if self._tries >= process.settings.web_retries:
                    raise DocumentError(f"{later.reason} Try again later.") from later
                self.tries = self._tries + 1
            self.postponed.append(item.ordinal)
            self.wait_s = max(self.wait_s, later.wait_s)
            return None

    def close(self) -> None:
        if self._fetcher is not None:
            self._fetcher.__exit__(None, None, None)


def unread_scripts(embedder: Embedder, samples: Mapping[int, str]) -> dict[str, Any] | None:
    """The sources in scripts that the model does not know, by their ordinals."""
    if embedder.tokenizer is None:
        return None
    unread = [
        [ordinal, scripts]
        for ordinal, sample in samples.items()
        if (scripts := unknown_scripts(embedder.tokenizer, sample))
    ]
    return {"model": embedder.name, "unread": unread} if unread else None


def embed(context: Context) -> Done:
    """Write the vectors of the chunks of the step, and make complete versions live.

    Where the store has lost the index, nobody makes it anew here: it would have these chunks alone,
    and searches would miss all others without a word. The step waits for a rebuild.
    """
    claim, process = context.claim, context.process
    parts = parts_of(claim)
    if claim.counted_attempt > 1 and len(parts) > 1:
        return Done(children=[embed_step([part]) for part in parts])
    with process.ledger.read() as session:
        request = IngestRequest.of_job(session, claim.job_id)
    if request.is_paused:
        return Done(again_in_s=PAUSE_S)
    # Vectors without a version must be deleted, also if this attempt is lost.
    context.on_lost.append(lambda: delete_orphans(process, request.place, parts))
    try:
        embedded = write_vectors(context, request, parts)
    except (MissingCollection, DamagedCollection) as error:
        raise lost(process, request, error) from error
    except ModelMissing:
        raise
    except Permanent:
        if len(parts) == 1:
            raise
        return Done(children=[embed_step([part]) for part in parts])  # one of them is the cause
    delete_orphans(process, request.place, parts)

    def record(transaction: Transaction) -> None:
        note_vectors(transaction, context, request, parts, embedded)
        transaction.after_commit(lambda: measure_at_end(context, request))

    result = {
        "model": request.model,
        "cut": [
            [
                str(v),
                truncation.chunks,
                truncation.chunk_size,
                truncation.tokens,
                truncation.unread_tokens,
            ]
            for v, truncation in embedded.truncations.items()
        ],
    }
    return Done(result=result if embedded.truncations else None, record=record)


def note_vectors(
    transaction: Transaction,
    context: Context,
    request: IngestRequest,
    parts: Sequence[ChunkRange],
    embedded: EmbeddingResult,
) -> None:
    """Note that the parts have vectors, and what became of their documents by that; what was
    replaced is deleted after the commit. Raises IndexChanged."""
    process, claim = context.process, context.claim
    # Vectors of an index that was replaced meanwhile are no vectors of the collection.
    indexes.hold_active(transaction, request.collection_id, request.index_id)
    versions.lock_documents_of(transaction, [part.version_id for part in parts])
    if embedded.postings is not None:
        embedded.postings.write_parts(transaction, request.collection_id)
    noted = _note(transaction, claim, parts)
    if embedded.postings is not None:
        outcomes = zip((part.version_id for part in parts), noted, strict=True)
        embedded.postings.write_whole(transaction, request.collection_id, outcomes)
    jobs.advance(transaction, claim.job_id, 0, work=sum(part.end - part.first for part in parts))

    def tidy() -> None:
        if any(version.state in (None, VersionState.RETIRED) for version in noted):
            delete_orphans(process, request.place, parts)
        collect_replaced(process, [version.replaced for version in noted if version.replaced])
        merge_soon(process, request.collection_id)

    transaction.after_commit(tidy)


def measure_at_end(context: Context, request: IngestRequest) -> None:
    """Measure the collection if the job has ended."""
    process = context.process
    with process.ledger.read_single() as session:
        has_ended = jobs.state_of(session, context.claim.job_id) not in OPEN
    if has_ended:
        measure_ingested(process, request.collection)


def _note(
    session: Transaction, claim: Claim, parts: Sequence[ChunkRange]
) -> list[versions.EmbeddingOutcome]:
    """Write that parts have vectors, and the outcomes of documents that are decided now."""
    noted = versions.note_embedded(session, parts)
    added: dict[UUID, int] = {}
    replaced: dict[UUID, int] = {}
    skipped: dict[UUID, int] = {}
    for part, embedded in zip(parts, noted, strict=True):
        version_id, chunks = part.version_id, embedded.chunk_count
        if embedded.state is VersionState.LIVE:
            if embedded.by_another:
                skipped[version_id] = 0  # another job was first with the same content
            elif embedded.replaced:
                replaced[version_id] = chunks
            else:
                added[version_id] = chunks
        elif embedded.state is VersionState.RETIRED and embedded.superseded:
            skipped[version_id] = 0
        elif embedded.state is not VersionState.PENDING:
            message = "The document was erased while it was ingested; ingest it again if need be."
            ingest_items.settle_version(
                session, claim.job_id, version_id, Outcome.FAILED, message=message
            )
    for outcome, chunks_of in (
        (Outcome.ADDED, added),
        (Outcome.REPLACED, replaced),
        (Outcome.SKIPPED, skipped),
    ):
        ingest_items.settle_versions(session, claim.job_id, chunks_of, outcome)
    return noted


def load_step(
    ordinals: Iterable[int], *, tries: int = 0, transcript: dict[str, Any] | None = None
) -> NewStep:
    """`transcript` of the only item: `{"utterances": …}`, or `{"path": …}` in the storage."""
    payload: dict[str, Any] = {"ordinals": list(ordinals)}
    if tries:
        payload["tries"] = tries
    if transcript is not None:
        payload["transcript"] = transcript
    return NewStep(name="ingest.load", queue=Queue.INGEST, payload=payload)


def transcribe_step(ordinal: int, *, rows: dict[str, Any] | None = None) -> NewStep:
    """`rows` are the outputs for the parts of the recording that earlier steps have run."""
    payload = {"ordinals": [ordinal], **({"rows": rows} if rows else {})}
    return NewStep(name=TRANSCRIBE_STEP, queue=Queue.HF, payload=payload)


_EXPANDED = {"site": "ingest.crawl", "folder": "ingest.list", "collection": ADOPT_STEP}
"""The steps that expand a source, by its type."""


def expanding_step(name: str, ordinal: int) -> NewStep:
    return NewStep(name=name, queue=Queue.INGEST, payload={"ordinal": ordinal})


def embed_steps(
    counts: Mapping[UUID, int], size: int, copies: Mapping[UUID, UUID]
) -> list[NewStep]:
    """Steps of at most `size` chunks: small documents together, large ones in several steps."""
    return [embed_step(batch, copies) for batch in batches_of(counts, size)]


def batches_of(counts: Mapping[UUID, int], size: int) -> Iterator[list[ChunkRange]]:
    """The chunks of these versions, at most `size` in a batch."""
    batch: list[ChunkRange] = []
    room = size
    for part in _cut(counts, size):
        length = part.end - part.first
        if batch and length > room:
            yield batch
            batch, room = [], size
        batch.append(part)
        room -= length
    if batch:
        yield batch


def _cut(counts: Mapping[UUID, int], size: int) -> Iterator[ChunkRange]:
    for version_id, count in counts.items():
        for first in range(0, count, size):
            yield ChunkRange(version_id=version_id, first=first, end=min(first + size, count))


def embed_step(parts: list[ChunkRange], copies: Mapping[UUID, UUID] | None = None) -> NewStep:
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
LOAD = Handler(run=on_demand(load), absorb=absorb_load, finish=finish)
EMBED = Handler(run=on_demand(embed), absorb=absorb_embed, finish=finish)
