"""One pydantic model per kind, for what goes in and what comes out.

These are the shapes of the HTTP contract; workers validate against the same ones. Offsets and
sizes named `*_chars` or `start` count Unicode code points, `chunk_size` of the token splitter
counts tokens of the embedding model.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

COLLECTION_NAME = r"^[a-zA-Z0-9][a-zA-Z0-9._-]{1,61}[a-zA-Z0-9]$"
"""Chroma's rule for names: any LangChain program can open the collection under its name."""

CollectionName = Annotated[str, Field(pattern=COLLECTION_NAME)]
Text = Annotated[str, Field(min_length=1, max_length=1_000_000)]


class Kind(StrEnum):
    """What a job does."""

    INGEST = "ingest"
    EMBED = "embed"
    SEARCH = "search"
    RAG = "rag"
    ERASE = "erase"


class Shape(BaseModel):
    """Base of all payloads: unknown fields are errors, so that a typing mistake is seen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _canonical_id(value: str) -> str:
    """UUIDs are written in several ways; what is none is told of when the source is read."""
    try:
        return str(UUID(value))
    except ValueError:
        return value


class FileSource(Shape):
    type: Literal["file"]
    file_id: Annotated[str, AfterValidator(_canonical_id)]


class TextSource(Shape):
    type: Literal["text"]
    text: str
    name: Annotated[str, Field(min_length=1, max_length=1024)] | None = None


Source = Annotated[FileSource | TextSource, Field(discriminator="type")]


class SplitterType(StrEnum):
    RECURSIVE = "recursive"
    CHARACTER = "character"
    TOKEN = "token"
    MARKDOWN = "markdown"


class Splitter(Shape):
    """How text becomes chunks; sizes in characters, or in tokens for `token`."""

    type: SplitterType = SplitterType.RECURSIVE
    chunk_size: Annotated[int, Field(ge=16, le=100_000)] = 1000
    chunk_overlap: Annotated[int, Field(ge=0, le=50_000)] = 200

    @model_validator(mode="after")
    def _overlap_is_smaller(self) -> "Splitter":
        if self.chunk_overlap >= self.chunk_size:
            raise ValueError("chunk_overlap must be smaller than chunk_size")
        return self


class CsvOptions(Shape):
    """How CSV rows become text: which columns are text, which are metadata."""

    encoding: str | None = None
    content_columns: list[str] | None = None
    metadata_columns: list[str] | None = None


def _fits(metadata: dict[str, Any]) -> dict[str, Any]:
    for key, value in metadata.items():
        if isinstance(value, int) and not -(2**63) <= value < 2**63:
            raise ValueError(f"{key} is an integer of more than 64 bits; send it as a string")
    return metadata


Metadata = Annotated[dict[str, str | int | float | bool], AfterValidator(_fits)]


class IngestInput(Shape):
    collection: CollectionName
    sources: Annotated[list[Source], Field(min_length=1)]
    splitter: Splitter = Splitter()
    csv: CsvOptions = CsvOptions()
    on_existing: Literal["skip", "replace"] = "replace"
    """`replace`: changed content replaces the old, unchanged is skipped. `skip`: a source that
    the collection already has is left as it is, whatever its content."""
    metadata: Metadata = {}


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


class EmbedInput(Shape):
    texts: Annotated[list[Text], Field(min_length=1, max_length=10_000)]
    model: str | None = None


class EmbedResult(Shape):
    model: str
    dimension: int
    embeddings: list[list[float]]


class SearchOptions(Shape):
    type: Literal["similarity"] = "similarity"
    filter: Metadata | None = None


PassageCount = Annotated[int, Field(ge=1, le=100)]


class SearchInput(Shape):
    collection: CollectionName
    query: Text
    k: PassageCount = 6
    search: SearchOptions = SearchOptions()


class Hit(Shape):
    """A chunk that matches; `score` is a cosine similarity, `start` an offset in characters."""

    chunk_id: str
    document_id: str
    source: str
    text: str
    start: int
    score: float
    metadata: Metadata = {}


class SearchResult(Shape):
    hits: list[Hit]


class RagInput(Shape):
    collection: CollectionName
    question: Text
    k: PassageCount = 6
    search: SearchOptions = SearchOptions()
    model: str | None = None


class Citation(Hit):
    marker: str


class Usage(Shape):
    prompt_tokens: int
    completion_tokens: int


class RagResult(Shape):
    answer: str
    citations: list[Citation]
    model: str
    usage: Usage


class EraseInput(Shape):
    document_ids: Annotated[list[str], Field(min_length=1, max_length=10_000)] | None = None
    collection: CollectionName | None = None

    @model_validator(mode="after")
    def _one_target(self) -> "EraseInput":
        if (self.document_ids is None) == (self.collection is None):
            raise ValueError("give either document_ids or collection")
        return self


class EraseResult(Shape):
    documents: int
    chunks: int
    vectors: int


INPUTS: dict[Kind, type[Shape]] = {
    Kind.INGEST: IngestInput,
    Kind.EMBED: EmbedInput,
    Kind.SEARCH: SearchInput,
    Kind.RAG: RagInput,
    Kind.ERASE: EraseInput,
}


def parse_input(kind: Kind, value: dict[str, Any]) -> Shape:
    """Validate the `input` of a job of this kind. Raises pydantic's ValidationError."""
    return INPUTS[kind].model_validate(value)
