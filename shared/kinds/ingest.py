"""The kind `ingest`: documents become chunks with vectors, in a collection.

Offsets and sizes named `*_chars` count Unicode code points; `chunk_size` of the token splitter
counts tokens of the embedding model. Where none is given, no chunk is longer than what the model
of the collection reads.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from uuid import UUID

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from shared.addresses import literal
from shared.bounds import (
    SOURCES_LIMIT,
    CollectionName,
    DocumentText,
    FullLine,
    Line,
    Metadata,
    ModelName,
    SourceName,
    Text,
    nfc,
    nfc_metadata,
)
from shared.config import HfSettings, Settings
from shared.errors import InvalidInput
from shared.hf.speech import SPEECH_RECOGNITION
from shared.kinds.kind import Kind, StepType
from shared.text_encodings import codec_of
from shared.urls import (
    TRACKING,
    URL_LIMIT_BYTES,
    CollectionUrl,
    check_literal,
    collection_url,
    folder_url,
    normal_url,
)
from shared.vector_stores import configured_store
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
    """By headings, of whatever format, and of plain text by those of Markdown."""
    HTML = "html"
    """By headings, of formats that have some."""
    CODE = "code"
    """Source code at its definitions, by the language of the file; other text as `recursive`."""
    SENTENCE = "sentence"
    """Whole sentences together."""


CHUNK_LIMIT = 1000
"""Of chunks whose size is not given, where the embedding model reads that much."""


class Splitter(Shape):
    """How text becomes chunks; sizes in characters, or in tokens for `token`.

    Without `chunk_size`, chunks hold what the collection's embedding model reads, counted by its
    own tokenizer, and at most 1,000. `chunk_overlap` is less than half of `chunk_size`; where it
    is not given, it is 200, or as much as may be of sizes up to 400. In chunks that the model made
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
        if isinstance(size, int) and 0 < size <= 2 * default:
            return value | {"chunk_overlap": (size - 1) // 2}
        return value

    @model_validator(mode="after")
    def _overlap_is_smaller(self) -> "Splitter":
        # With more, a short text becomes any number of chunks: at 1000/999 one for each character.
        # Half of it is in jobs of earlier releases; `_check` refuses it of new ones.
        if 2 * self.chunk_overlap > self.size:
            raise ValueError(_overlap_message(self.size))
        return self


def _overlap_message(size: int) -> str:
    return (
        "chunk_overlap must be smaller: less than half of chunk_size, which is at most "
        f"{(size - 1) // 2} of {size}"
    )


Columns = Annotated[
    list[Annotated[Line, AfterValidator(nfc)]], Field(fail_fast=True, max_length=10_000)
]


Classes = Annotated[list[FullLine], Field(fail_fast=True, min_length=1, max_length=100)]
Languages = Annotated[list[FullLine], Field(fail_fast=True, min_length=1, max_length=16)]


class CsvOptions(Shape):
    """How CSV rows become text: which columns are text, which are metadata."""

    encoding: Line | None = None
    content_columns: Columns | None = None
    metadata_columns: Columns | None = None


class HtmlOptions(Shape):
    """What of a page becomes text."""

    css_classes: Classes | None = None
    """Only elements that have one of these classes, with what is in them."""
    main_content: bool = True
    """Of a whole page, its main content, without navigation, banners and the like; where there is
    none, or this is false, all that a reader sees of it."""


class JsonOptions(Shape):
    """Which fields of an object are its text, and which its metadata; paths of keys with dots, such
    as `author.name`. Without any, `text` or `content` is the text, and the others are metadata."""

    content_fields: Columns | None = None
    metadata_fields: Columns | None = None


class OcrOptions(Shape):
    """Pictures, and pages that are pictures of text, are read by optical character recognition,
    where the workers have that."""

    languages: (
        Annotated[list[FullLine], Field(fail_fast=True, min_length=1, max_length=16)] | None
    ) = None
    """As the program names them (`kor`, `eng`); those of the workers' settings without any."""


class SpeechOptions(Shape):
    """Recordings are transcribed, by a model of the task `automatic-speech-recognition`."""

    model: ModelName | None = None
    """The default of that task without one."""
    language: Line | None = None
    """In which is spoken, for models that want to know (Whisper): `ko`, `korean`."""


class LoadOptions(Shape):
    """How documents are read; each format goes by those that concern it."""

    encoding: Line | None = None
    """Of all that is text, whatever the documents and their types say of it."""
    csv: CsvOptions = CsvOptions()
    html: HtmlOptions = HtmlOptions()
    json_: JsonOptions = Field(default=JsonOptions(), alias="json")
    ocr: OcrOptions | None = None
    """Nothing is recognized without it."""
    speech: SpeechOptions | None = None
    """Nothing is transcribed without it."""

    @property
    def requested(self) -> frozenset[str]:
        """Those of its fields whose formats are read only where a job has them."""
        options = {"ocr": self.ocr, "speech": self.speech}
        return frozenset(name for name, value in options.items() if value is not None)


class _Source(Shape):
    """`metadata` is added to that of the job, and everything else stands for the job's."""

    metadata: Annotated[Metadata, AfterValidator(nfc_metadata)] | None = None
    splitter: Splitter | None = None
    encoding: Line | None = None
    csv: CsvOptions | None = None
    html: HtmlOptions | None = None
    json_: JsonOptions | None = Field(default=None, alias="json")
    ocr: OcrOptions | None = None
    speech: SpeechOptions | None = None

    @model_serializer(mode="wrap")
    def _without_nothing(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # A job has up to 100,000 of these.
        values: dict[str, Any] = serialize(self)
        return {
            name: value
            for name, value in values.items()
            if value is not None or (name == "name" and isinstance(self, TextSource))
        }


SourceId = Annotated[FullLine, AfterValidator(nfc)]
"""What a document is to its owner, whatever it is called: a source with the id of a document of the
collection is that document, under a new name if it has one. Without it, the name is what counts."""


class FileSource(_Source):
    """An upload; its document is called `name`, or as the upload."""

    type: Literal["file"]
    file_id: Annotated[Line, AfterValidator(_canonical_id)]
    name: SourceName | None = None
    id: SourceId | None = None


class TextSource(_Source):
    type: Literal["text"]
    text: DocumentText
    name: SourceName | None = None
    id: SourceId | None = None


class ChunkSource(Shape):
    """A text that is one chunk as it is: no format is looked for in it, and it is not divided."""

    type: Literal["chunk"]
    text: Text
    name: SourceName | None = None
    metadata: Annotated[Metadata, AfterValidator(nfc_metadata)] = {}


def _of_the_web(url: str) -> str:
    normal_url(url)
    return url


PageUrl = Annotated[str, Field(max_length=URL_LIMIT_BYTES), AfterValidator(_of_the_web)]


class UrlSource(_Source):
    """A document of the web, called `name`, or by its URL."""

    type: Literal["url"]
    url: PageUrl
    name: SourceName | None = None
    css_classes: Classes | None = None
    """The same as `html.css_classes`."""


PathPrefix = Annotated[str, Field(min_length=1, max_length=1024, pattern="^/")]
PathPrefixes = Annotated[list[PathPrefix], Field(fail_fast=True, min_length=1, max_length=100)]


class SiteSource(_Source):
    """All pages of a web site that its sitemaps name, or that links lead to from `url` on; each is
    a document called by its URL. What robots.txt, `nofollow` and `noindex` keep from robots is left
    out."""

    type: Literal["site"]
    url: PageUrl
    """Where to begin; or a sitemap, whose pages are then all there are."""
    max_pages: Annotated[int, Field(ge=1, le=100_000)] = 1000
    max_depth: Annotated[int, Field(ge=0, le=1000)] = 20
    """How many links a page may be away from `url`, or from one that a sitemap names."""
    use_sitemaps: bool = True
    include_paths: PathPrefixes | None = None
    """Only pages whose paths begin with one of these, such as `/docs/`."""
    exclude_paths: PathPrefixes | None = None
    ignore_parameters: Annotated[list[FullLine], Field(fail_fast=True, max_length=100)] = [
        *TRACKING
    ]
    """Parameters of queries that make no other page; `utm_*` is all that begin with `utm_`."""
    delay_s: Annotated[float, Field(ge=0, le=3600)] | None = None
    """Between two requests; no less than what robots.txt says, or else SLUICE_WEB_DELAY_S."""
    on_vanished: Literal["keep", "erase"] = "keep"
    """What becomes of documents of earlier jobs that are no longer on the site."""
    max_erased_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Of the documents of the site: if more have vanished, none is erased, and the job warns."""
    css_classes: Classes | None = None
    """The same as `html.css_classes`."""


class FolderSource(_Source):
    """All files that can be read below a folder of a bucket or of the workers' disks, if the
    deployer permits that folder; each is a document called by its URL."""

    type: Literal["folder"]
    url: Annotated[str, Field(max_length=URL_LIMIT_BYTES), AfterValidator(folder_url)]
    """`s3://bucket/folder`, `gs://…`, `az://…`, `file:///…`."""
    max_documents: Annotated[int, Field(ge=1, le=100_000)] = 10_000
    on_vanished: Literal["keep", "erase"] = "keep"
    """What becomes of documents of earlier jobs that are no longer in the folder."""
    max_erased_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Of the documents of the folder: if more have vanished, none is erased, and the job warns."""


class CollectionSource(Shape):
    """A collection of Chroma or of LangChain, which is adopted: its chunks stay as they are, those
    with one `source` in their metadata are a document, and their vectors are kept if they agree
    with those of the model of this collection."""

    type: Literal["collection"]
    url: Annotated[str, Field(max_length=URL_LIMIT_BYTES), AfterValidator(collection_url)]
    """`chroma://host:8000/NAME`, `chroma+https://…`; or a folder of the workers' disks that the
    deployer permits, which Chroma or LangChain's FAISS wrote: `file:///srv/chroma_db#NAME`."""
    metadata: Annotated[Metadata, AfterValidator(nfc_metadata)] = {}


class DocumentSource(Shape):
    """A document of the collection, which gets other metadata: all that came with requests before
    gives way to `metadata`. Its text and its chunks stay as they are."""

    type: Literal["document"]
    document_id: Annotated[Line, AfterValidator(_canonical_id)]
    metadata: Annotated[Metadata, AfterValidator(nfc_metadata)] = {}


Source = Annotated[
    FileSource
    | TextSource
    | ChunkSource
    | DocumentSource
    | UrlSource
    | SiteSource
    | FolderSource
    | CollectionSource,
    Field(discriminator="type"),
]


class IngestInput(LoadOptions):
    collection: CollectionName
    sources: Annotated[list[Source], Field(fail_fast=True, min_length=1, max_length=SOURCES_LIMIT)]
    splitter: Splitter = Splitter()
    on_existing: Literal["skip", "replace"] = "replace"
    """`replace`: changed content replaces the old, unchanged is skipped. `skip`: a source that
    the collection already has is left as it is, whatever its content."""
    on_duplicate: Literal["warn", "skip"] = "warn"
    """Of bytes that the collection has under another name. `warn`: they are ingested, and the job
    says so. `skip`: they are not, unless the source has other content there."""
    metadata: Annotated[Metadata, AfterValidator(nfc_metadata)] = {}


class IngestDocuments(Shape):
    added: int
    replaced: int
    skipped: int
    failed: int
    erased: int = 0
    """They were in an archive, or the like, that was ingested again without them."""


class SourceError(Shape):
    source: str
    message: str


class AdoptedChunks(Shape):
    """What became of the chunks of collections that were adopted, without those of documents that
    had not changed. `kept` and `embedded` are chunks of documents that were added or replaced."""

    kept: int = 0
    """Their vectors are those that they had."""
    embedded: int = 0
    """Their vectors were made anew; `warnings` of the job say why."""
    no_text: int = 0
    """Skipped: they have a vector alone, or an empty text."""
    duplicates: int = 0
    """Skipped: their document has the same text with the same metadata once more."""
    bad_metadata: int = 0
    """Values of metadata that were left out."""


class IngestResult(Shape):
    documents: IngestDocuments
    chunks: int
    errors: list[SourceError]
    vanished: list[str] = []
    """Documents of sites and folders that earlier jobs read there, and that are there no longer."""
    adopted: AdoptedChunks | None = None
    """Of jobs with a source of the type `collection`."""


def speech_model(options: SpeechOptions, settings: HfSettings) -> str:
    """The one that is named, or else the default of the task."""
    task = SPEECH_RECOGNITION
    return options.model or settings.hf_models.get(task.name, task.default_model)


def _defaults(job_input: IngestInput, settings: Settings) -> dict[str, Any]:
    speech = job_input.speech
    if speech is None:
        return {}
    return {"speech": {**speech.model_dump(), "model": speech_model(speech, settings)}}


def _check(job_input: IngestInput, settings: Settings) -> None:
    if len(job_input.sources) > settings.max_sources_per_job:
        raise InvalidInput(
            f"input.sources has {len(job_input.sources)} entries; a job takes "
            f"{settings.max_sources_per_job} (SLUICE_MAX_SOURCES_PER_JOB). Submit several jobs."
        )
    _check_options(job_input, "input")
    guard = settings.guard()
    for n, source in enumerate(job_input.sources):
        if isinstance(source, _Source):
            _check_options(source, f"input.sources.{n}")
        if isinstance(source, SiteSource) and source.max_pages > settings.web_limit_pages:
            raise InvalidInput(
                f"input.sources.{n}.max_pages is {source.max_pages:,}; a site may have "
                f"{settings.web_limit_pages:,} pages (SLUICE_WEB_LIMIT_PAGES)."
            )
        if isinstance(source, FolderSource) and not settings.permits_folder(source.url):
            raise InvalidInput(
                f"input.sources.{n}.url is {source.url}, which is not in a folder that sources may "
                "read. SLUICE_SOURCE_FOLDERS names those."
            )
        if isinstance(source, CollectionSource):
            _check_collection(source, settings, f"input.sources.{n}.url", job_input.collection)
        if isinstance(source, UrlSource | SiteSource):
            try:
                check_literal(source.url, guard)
            except ValueError as error:
                raise InvalidInput(f"input.sources.{n}.url {error}") from None


def _check_collection(
    source: CollectionSource, settings: Settings, field: str, collection: str
) -> None:
    url = CollectionUrl.read(source.url)
    store = configured_store(settings)
    if url.name == collection and store is not None and store.type_.name == "chroma":
        host, port = urlsplit(url.place).hostname or "", urlsplit(url.place).port
        for own in store.urls:
            is_same = (literal(own.host) or own.host) == (literal(host) or host)
            if is_same and own.port == (port or (443 if url.place.startswith("https") else 80)):
                raise InvalidInput(
                    f"{field} is {url}, where Sluice itself would keep the vectors of "
                    f"{collection!r}: both would be in one collection of Chroma, and erased "
                    "together. Adopt it under another name."
                )
    if url.is_folder and not settings.permits_folder(url.place):
        raise InvalidInput(
            f"{field} is {url}, which is not in a folder that sources may read. "
            "SLUICE_SOURCE_FOLDERS names those."
        )
    if not url.is_folder:
        try:
            check_literal(url.place, settings.guard())
        except ValueError as error:
            raise InvalidInput(f"{field} {error}") from None


def _check_options(options: "IngestInput | _Source", place: str) -> None:
    """What each document would otherwise fail for."""
    splitter = options.splitter
    if splitter is not None and 2 * splitter.chunk_overlap == splitter.size:
        raise InvalidInput(f"{place}.splitter: {_overlap_message(splitter.size)}.")
    encodings = {"encoding": options.encoding}
    if options.csv is not None:
        encodings["csv.encoding"] = options.csv.encoding
    for field, label in encodings.items():
        if label is not None and codec_of(label) is None:
            raise InvalidInput(
                f"{place}.{field} is {label[:50]!r}, and there is no such text encoding. Names "
                "are such as utf-8, cp949 and utf-16-le."
            )
    chosen = {
        "csv.content_columns": options.csv.content_columns if options.csv else None,
        "json.content_fields": options.json_.content_fields if options.json_ else None,
    }
    for field, names in chosen.items():
        if names == []:
            raise InvalidInput(
                f"{place}.{field} is empty, and nothing would be text. Name some, or leave it out."
            )


TRANSCRIBE_STEP = "ingest.transcribe"
"""What a recording goes through before it is loaded: its model is one of Hugging Face tasks."""

ADOPT_STEP = "ingest.adopt"
"""The documents of a collection of another program become items of the job."""
ADOPT_DOCUMENTS_STEP = "ingest.adopt_documents"

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
            name="ingest.list",
            queue=Queue.INGEST,
            handler="workers.ingest.listing:LIST",
            is_absorbed=True,
        ),
        StepType(
            name="ingest.crawl",
            queue=Queue.INGEST,
            handler="workers.ingest.crawl:CRAWL",
            is_absorbed=True,
        ),
        StepType(
            name=ADOPT_STEP,
            queue=Queue.INGEST,
            handler="workers.ingest.adoption.steps:ADOPT",
            is_absorbed=True,
        ),
        StepType(
            name=ADOPT_DOCUMENTS_STEP,
            queue=Queue.INGEST,
            handler="workers.ingest.adoption.steps:ADOPT_DOCUMENTS",
            is_absorbed=True,
        ),
        StepType(
            name=TRANSCRIBE_STEP,
            queue=Queue.HF,
            handler="workers.hf.recordings:TRANSCRIBE",
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
    defaults=_defaults,
    file_path="$.sources.file_id",
    uses_embedder=True,
)
