"""The kind `ingest`: documents become chunks with vectors, in a collection.

Offsets and sizes named `*_chars` count Unicode code points; `chunk_size` of the token splitter
counts tokens of the embedding model. Where none is given, no chunk is longer than what the model
of the collection reads.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from shared.bounds import (
    SOURCES_LIMIT,
    CollectionName,
    DocumentText,
    Line,
    Metadata,
    SourceName,
    Text,
    nfc,
    nfc_metadata,
)
from shared.config import IngestSettings
from shared.errors import InvalidInput
from shared.kinds.kind import Kind, StepType
from shared.vocabulary import KeyScope, Queue, Shape


def _canonical_id(value: str) -> str:
    """UUIDs are written in several ways; what is none is told of when the source is read."""
    try:
        return str(UUID(value))
    except ValueError:
        return value


class SplitterType(StrEnum):
    RECURSIVE = "recursive"
    CHARACTER = "character"
    TOKEN = "token"
    MARKDOWN = "markdown"


CHUNK_LIMIT = 1000
"""Of chunks whose size is not given, where the embedding model reads that much."""


class Splitter(Shape):
    """How text becomes chunks; sizes in characters, or in tokens for `token`.

    Without `chunk_size`, chunks hold what the collection's embedding model reads, counted by its
    own tokenizer, and at most 1,000. `chunk_overlap` is at most half of `chunk_size`; where it is
    not given, it is 200 or, of sizes below 400, half of the size. In chunks that the model made
    smaller, it is as much smaller.
    """

    type: SplitterType = SplitterType.RECURSIVE
    chunk_size: Annotated[int, Field(ge=16, le=100_000)] | None = None
    chunk_overlap: Annotated[int, Field(ge=0, le=50_000)] = 200

    @property
    def size(self) -> int:
        """The size, or the limit where none is given."""
        return CHUNK_LIMIT if self.chunk_size is None else self.chunk_size

    @model_validator(mode="before")
    @classmethod
    def _overlap_of_small_chunks(cls, value: Any) -> Any:
        if not isinstance(value, dict) or "chunk_overlap" in value:
            return value
        size = value.get("chunk_size")
        default: int = cls.model_fields["chunk_overlap"].default
        if isinstance(size, int) and 0 < size < 2 * default:
            return value | {"chunk_overlap": size // 2}
        return value

    @model_validator(mode="after")
    def _overlap_is_smaller(self) -> "Splitter":
        # With more, a short text becomes any number of chunks: at 1000/999 one for each character.
        if 2 * self.chunk_overlap > self.size:
            raise ValueError(
                "chunk_overlap must be smaller: at most half of chunk_size, which is "
                f"{self.size // 2} of {self.size}"
            )
        return self


class _Source(Shape):
    """`metadata` is added to that of the job, and `splitter` stands for the job's."""

    metadata: Annotated[Metadata, AfterValidator(nfc_metadata)] | None = None
    splitter: Splitter | None = None

    @model_serializer(mode="wrap")
    def _without_nothing(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A job has up to 100,000 of these.
        values: dict[str, Any] = serialize(self)
        return {
            name: value
            for name, value in values.items()
            if value is not None or (name == "name" and isinstance(self, TextSource))
        }


class FileSource(_Source):
    """An upload; its document is called `name`, or as the upload."""

    type: Literal["file"]
    file_id: Annotated[Line, AfterValidator(_canonical_id)]
    name: SourceName | None = None


class TextSource(_Source):
    type: Literal["text"]
    text: DocumentText
    name: SourceName | None = None


class ChunkSource(Shape):
    """A text that is one chunk as it is: no format is looked for in it, and it is not divided."""

    type: Literal["chunk"]
    text: Text
    name: SourceName | None = None
    metadata: Annotated[Metadata, AfterValidator(nfc_metadata)] = {}


class DocumentSource(Shape):
    """A document of the collection, which gets other metadata: all that came with requests before
    gives way to `metadata`. Its text and its chunks stay as they are."""

    type: Literal["document"]
    document_id: Annotated[Line, AfterValidator(_canonical_id)]
    metadata: Annotated[Metadata, AfterValidator(nfc_metadata)] = {}


Source = Annotated[
    FileSource | TextSource | ChunkSource | DocumentSource, Field(discriminator="type")
]


Columns = Annotated[
    list[Annotated[Line, AfterValidator(nfc)]], Field(fail_fast=True, max_length=10_000)
]


class CsvOptions(Shape):
    """How CSV rows become text: which columns are text, which are metadata."""

    encoding: Line | None = None
    content_columns: Columns | None = None
    metadata_columns: Columns | None = None


class IngestInput(Shape):
    collection: CollectionName
    sources: Annotated[list[Source], Field(fail_fast=True, min_length=1, max_length=SOURCES_LIMIT)]
    splitter: Splitter = Splitter()
    csv: CsvOptions = CsvOptions()
    on_existing: Literal["skip", "replace"] = "replace"
    """`replace`: changed content replaces the old, unchanged is skipped. `skip`: a source that
    the collection already has is left as it is, whatever its content."""
    metadata: Annotated[Metadata, AfterValidator(nfc_metadata)] = {}


class IngestDocuments(Shape):
    added: int
    replaced: int
    skipped: int
    failed: int


class SourceError(Shape):
    source: str
    message: str


class IngestResult(Shape):
    documents: IngestDocuments
    chunks: int
    errors: list[SourceError]


def _check(job_input: IngestInput, settings: IngestSettings) -> None:
    if len(job_input.sources) > settings.max_sources_per_job:
        raise InvalidInput(
            f"input.sources has {len(job_input.sources)} entries; a job takes "
            f"{settings.max_sources_per_job} (SLUICE_MAX_SOURCES_PER_JOB). Submit several jobs."
        )


INGEST = Kind(
    name="ingest",
    scope=KeyScope.WRITE,
    summary="put documents into a collection",
    input=IngestInput,
    result=IngestResult,
    steps=[
        StepType(name="ingest.plan", queue=Queue.INGEST, handler="workers.ingest.steps:PLAN"),
        StepType(
            name="ingest.load",
            queue=Queue.INGEST,
            handler="workers.ingest.steps:LOAD",
            is_absorbed=True,
        ),
        StepType(
            name="ingest.embed",
            queue=Queue.EMBED,
            handler="workers.ingest.steps:EMBED",
            is_absorbed=True,
        ),
    ],
    example={
        "collection": "handbook",
        "sources": [{"type": "text", "name": "opening-hours.md", "text": "We open at nine."}],
    },
    check=_check,
    file_path="$.sources.file_id",
)
