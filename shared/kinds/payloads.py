"""One pydantic model per kind, for what goes in and what comes out.

These are the shapes of the HTTP contract; workers validate against the same ones. Offsets and
sizes named `*_chars` or `start` count Unicode code points, `chunk_size` of the token splitter
counts tokens of the embedding model.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, Field, model_validator

from shared.bounds import COLLECTION_NAME as COLLECTION_NAME
from shared.bounds import (
    SOURCES_LIMIT,
    DocumentText,
    Line,
    ModelName,
    Paragraph,
    ServerParameters,
    SourceName,
)
from shared.bounds import CollectionName as CollectionName
from shared.bounds import Metadata as Metadata
from shared.kinds.generation import (
    ChatInput,
    ModelReference,
    Parameters,
    PromptTemplate,
    ResponseFormat,
    Usage,
)
from shared.kinds.hf import HfInput
from shared.normal import nfc, nfc_metadata
from shared.vocabulary import Shape, Text


class Kind(StrEnum):
    """What a job does."""

    INGEST = "ingest"
    EMBED = "embed"
    SEARCH = "search"
    RAG = "rag"
    CHAT = "chat"
    HF = "hf"
    ERASE = "erase"
    MODEL = "model"


def _canonical_id(value: str) -> str:
    """UUIDs are written in several ways; what is none is told of when the source is read."""
    try:
        return str(UUID(value))
    except ValueError:
        return value


class FileSource(Shape):
    type: Literal["file"]
    file_id: Annotated[Line, AfterValidator(_canonical_id)]


class TextSource(Shape):
    type: Literal["text"]
    text: DocumentText
    name: SourceName | None = None


Source = Annotated[FileSource | TextSource, Field(discriminator="type")]


class SplitterType(StrEnum):
    RECURSIVE = "recursive"
    CHARACTER = "character"
    TOKEN = "token"
    MARKDOWN = "markdown"


class Splitter(Shape):
    """How text becomes chunks; sizes in characters, or in tokens for `token`.

    `chunk_overlap` is at most half of `chunk_size`; where only the size is given, it is 200 or, of
    sizes below 400, half of the size.
    """

    type: SplitterType = SplitterType.RECURSIVE
    chunk_size: Annotated[int, Field(ge=16, le=100_000)] = 1000
    chunk_overlap: Annotated[int, Field(ge=0, le=50_000)] = 200

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
        if 2 * self.chunk_overlap > self.chunk_size:
            raise ValueError(
                "chunk_overlap must be smaller: at most half of chunk_size, which is "
                f"{self.chunk_size // 2} of {self.chunk_size}"
            )
        return self


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


class EmbedInput(Shape):
    texts: Annotated[list[Text], Field(fail_fast=True, min_length=1, max_length=10_000)]
    model: ModelName | None = None


class EmbedResult(Shape):
    model: str
    dimension: int
    embeddings: list[list[float]]


class SearchOptions(Shape):
    type: Literal["similarity"] = "similarity"
    filter: Annotated[Metadata, AfterValidator(nfc_metadata)] | None = None
    """What a hit's metadata has to equal, all of it; `source` is also the document's own."""


PassageCount = Annotated[int, Field(ge=1, le=100)]


class SearchInput(Shape):
    collection: CollectionName
    query: Annotated[Text, AfterValidator(nfc)]
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
    metadata: dict[str, Any] = {}


class SearchResult(Shape):
    hits: list[Hit]


class RagInput(Shape):
    collection: CollectionName
    question: Annotated[Text, AfterValidator(nfc)]
    k: PassageCount = 6
    search: SearchOptions = SearchOptions()
    model: ModelReference | None = None
    prompt: PromptTemplate | None = None
    conversation_id: UUID | None = None
    parameters: Parameters = Parameters()
    response_format: ResponseFormat = ResponseFormat()


class Citation(Hit):
    marker: str


class RagResult(Shape):
    """`passages_dropped` found no room in the model's window; `markers_removed` cited nothing."""

    answer: str
    citations: list[Citation]
    model: str
    usage: Usage
    finish_reason: str = "stop"
    passages_dropped: int = 0
    markers_removed: int = 0
    parsed: Any = None
    """The answer as JSON, where `response_format` asked for that."""


class EraseInput(Shape):
    document_ids: (
        Annotated[list[Line], Field(fail_fast=True, min_length=1, max_length=10_000)] | None
    ) = None
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


class ModelInput(Shape):
    """What to do with a model of the Ollama server: `create` makes `name` of `from`."""

    action: Literal["pull", "create", "delete"]
    name: ModelReference
    from_: ModelName | None = Field(default=None, alias="from")
    system: Paragraph | None = None
    template: Paragraph | None = None
    parameters: ServerParameters = {}

    @model_validator(mode="after")
    def _fits_the_action(self) -> "ModelInput":
        if not self.name.startswith("ollama/"):
            raise ValueError("name must be a model of Ollama, as `ollama/llama3.2`")
        if (self.action == "create") != (self.from_ is not None):
            raise ValueError("`from` goes with the action `create`, which needs it")
        if self.action != "create" and (self.system or self.template or self.parameters):
            raise ValueError("system, template and parameters go with the action `create`")
        return self


class ModelResult(Shape):
    action: str
    name: str


INPUTS: dict[Kind, type[Shape]] = {
    Kind.INGEST: IngestInput,
    Kind.EMBED: EmbedInput,
    Kind.SEARCH: SearchInput,
    Kind.RAG: RagInput,
    Kind.CHAT: ChatInput,
    Kind.HF: HfInput,
    Kind.ERASE: EraseInput,
    Kind.MODEL: ModelInput,
}


def parse_input(kind: Kind, value: dict[str, Any]) -> Shape:
    """Validate the `input` of a job of this kind. Raises pydantic's ValidationError."""
    return INPUTS[kind].model_validate(value)
