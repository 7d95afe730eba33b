"""Ingestion of plain texts that are too large to be held.

Such a text is read several times in sections, and its chunks are written a thousand at a time, so
that no transaction is long. A step that stops on the way goes on from the last chunk.
"""

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any
from uuid import UUID

from shared import files
from shared.bounds import Metadata
from shared.documents import ingest_items, versions
from shared.documents.versions import Content
from shared.errors import Cancelled, DocumentError
from shared.formats import PLAIN_TEXT
from shared.jobs import steps
from shared.kinds.ingest import SplitterType
from shared.tables import File
from workers.attempts.context import Context
from workers.attempts.process import Process
from workers.ingest.formats.sniffing import is_binary, split_content_type
from workers.ingest.formats.texts.large_text import LARGE_TEXT_BYTES, LargeText, metadata_of
from workers.ingest.load import form, split_sections
from workers.ingest.sources import (
    SAMPLE_CHARS,
    IngestRequest,
    check_splitter,
    known_format,
    metadata_chars,
    source_name,
    too_many_chunks,
    too_much_metadata,
    window_of,
)
from workers.ingest.writer import Writer
from workers.retrieval.embed import Embedder

GROWTH_CHUNKS = 1000
GROWTH_SHARE = 0.4
"""Of the time that a step may take."""


@dataclass(frozen=True, kw_only=True)
class LargeSource:
    """An uploaded text."""

    upload: File
    text: LargeText
    source_id: str | None


@dataclass(frozen=True, kw_only=True)
class GrowthResult:
    """What one run of a step has made of a large text."""

    version_id: UUID | None = None
    """None if the source was skipped."""
    chunk_count: int | None = None
    """None if chunks are missing: the step is to run again."""
    is_new: bool = False
    """Whether `versions.end_growth` has to follow."""
    sample: str = ""
    """Slices of the text."""


def large_source_of(
    process: Process, request: IngestRequest, source: Mapping[str, Any], uploads: Mapping[str, File]
) -> LargeSource | None:
    """None for all other sources. (Headings of Markdown are found in whole texts only.)"""
    upload = uploads.get(source["file_id"]) if source["type"] == "file" else None
    if (
        upload is None
        or upload.size_bytes <= LARGE_TEXT_BYTES
        or request.splitter.type is SplitterType.MARKDOWN
    ):
        return None
    name = source_name(source, uploads)
    blocks = partial(files.blocks, process.storage, upload)
    head = next(blocks(), b"")
    if is_binary(head) or known_format(name, upload.content_type, head) is not PLAIN_TEXT:
        return None
    text = LargeText(
        name=name,
        blocks=blocks,
        charset=split_content_type(upload.content_type)[1],
        options=request.options,
        max_chars=process.settings.max_document_chars,
    )
    return LargeSource(upload=upload, text=text, source_id=source.get("id"))


def grow(
    context: Context,
    request: IngestRequest,
    ordinal: int,
    source: LargeSource,
    *,
    live_hash: str | None,
    embedder: Embedder,
    writer: Writer,
) -> GrowthResult:
    """Write the version of the source with its chunks, or some of them. Raises DocumentError and
    NotFound, and Cancelled if the step is no longer this worker's."""
    text, upload = source.text, source.upload
    settings, ledger = context.process.settings, context.process.ledger
    sha256 = hashlib.sha256()
    named = [text.name] if source.source_id else []
    content_digest = request.digest((*form(PLAIN_TEXT, upload.content_type, b""), *named))
    encoding = text.encoding([sha256, content_digest])
    if content_digest.hexdigest() == live_hash:
        writer.add_skipped(ordinal)
        return GrowthResult()
    check_splitter(request, embedder, text.name)
    measures = text.measured(encoding, context.check)
    if measures.letters // request.splitter.size > settings.max_document_chunks:
        raise too_many_chunks(text.name, request.splitter, settings.max_document_chunks)
    metadata = {**metadata_of(encoding), **request.metadata}
    content = Content(
        source=text.name,
        sha256=sha256.hexdigest(),
        content_hash=content_digest.hexdigest(),
        size_bytes=upload.size_bytes,
        metadata=metadata,
        chunks=(),
        attributes=request.metadata,
        source_id=source.source_id,
        is_growing=True,
    )
    writer.add(ordinal, content)
    writer.flush()
    if not writer.chunk_counts:
        return GrowthResult()
    (version_id,) = writer.chunk_counts
    with ledger.begin() as session:
        if not steps.hold(session, context.claim):
            raise Cancelled
        growth = versions.resume_growth(session, version_id)
    count = growth.chunk_count
    if count is None:
        count = _add_chunks(
            context, request, text, encoding, version_id, growth, metadata, embedder
        )
    return GrowthResult(
        version_id=version_id,
        chunk_count=count,
        is_new=growth.chunk_count is None,
        sample=measures.sample[:SAMPLE_CHARS],
    )


def _add_chunks(
    context: Context,
    request: IngestRequest,
    text: LargeText,
    encoding: str,
    version_id: UUID,
    growth: versions.Growth,
    metadata: Metadata,
    embedder: Embedder,
) -> int | None:
    """Write the chunks that are missing, and return how many there are then; None if the time is up
    before."""
    settings, splitter = context.process.settings, request.splitter
    limit = settings.max_document_chunks
    metadata_limit = settings.max_document_metadata_chars // max(1, metadata_chars(metadata))
    with context.process.ledger.read() as session:
        others = ingest_items.count_chunks(session, context.claim.job_id)
    until = time.monotonic() + GROWTH_SHARE * settings.step_soft_limit_s
    pieces = split_sections(
        text.sections(encoding),
        splitter,
        start=growth.start,
        tokenizer=embedder.tokenizer,
        window=window_of(embedder, context.check) if splitter.chunk_size is None else None,
    )
    count = growth.ordinal
    while portion := [(p.start, p.text, metadata) for p in islice(pieces, GROWTH_CHUNKS)]:
        context.check()
        if count > growth.ordinal and time.monotonic() > until:
            return None
        if count + len(portion) > limit:
            raise too_many_chunks(text.name, splitter, limit)
        if count + len(portion) > metadata_limit:
            raise too_much_metadata(text.name, settings.max_document_metadata_chars)
        if others + count + len(portion) > settings.max_job_chunks:
            raise DocumentError(
                f"{text.name}: has more chunks than are left of the {settings.max_job_chunks:,} "
                f"that go into one job, which has {others:,} of other documents. Ingest it in a "
                "job of its own, choose larger chunks, or raise SLUICE_MAX_JOB_CHUNKS."
            )
        with context.process.ledger.begin() as session:
            if not steps.hold(session, context.claim):
                raise Cancelled
            if not versions.grow(session, version_id, count, portion):
                return max(count, 1)  # the embedding step writes the outcome of the document
        count += len(portion)
    return count
