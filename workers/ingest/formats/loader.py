"""The interface of loaders: the bytes of a document of one format -> passages of text, with
metadata."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, NamedTuple

from shared.bounds import Metadata
from shared.config import IngestSettings
from shared.errors import DocumentError
from shared.kinds.ingest import LoadOptions
from workers.ingest.formats.container import Budget, Member


class DocumentKey(StrEnum):
    """Keys of the metadata of a document, the same in all formats."""

    MEDIA_TYPE = "media_type"
    """Of every document; set by `load` in `workers/ingest/load.py`."""
    ENCODING = "encoding"
    """Of text documents."""
    TITLE = "title"
    AUTHOR = "author"
    LANGUAGE = "language"
    """A BCP 47 tag such as `ko`."""
    DATE = "date"
    """When it was written or published: an ISO 8601 date, with or without a time."""
    PROGRAMMING_LANGUAGE = "programming_language"
    """Of source code, such as `python`."""
    URL = "url"
    """Where it was fetched, or the address that the page itself declares."""
    FETCHED_URL = "fetched_url"
    """Of a document from the web: the address after redirects. Set for each of them, whatever the
    loader sets."""


class PassageKey(StrEnum):
    """Keys of the metadata of a passage, the same in all formats. Numbers count from 1."""

    PAGE = "page"
    SLIDE = "slide"
    SHEET = "sheet"
    """The name of a sheet of a workbook."""
    ROW = "row"
    ITEM = "item"
    """The number of an element of an array."""
    LINE = "line"
    """The first line of a passage."""
    PART = "part"
    """The title of a part of a book, or its name if it has no title; also `notes`, `comments` and
    the like."""
    HEADING = "heading"
    """The path of headings above a passage, outermost first: `Guide > Install`."""
    HIDDEN = "hidden"
    """True of a sheet or slide that is not shown."""
    START_S = "start_s"
    """Start, in seconds from the beginning of a recording; may be a fraction."""
    END_S = "end_s"


_TITLE_CHARS: Final = 500


class Utterance(NamedTuple):
    """A piece of speech in a recording, with its start and end in seconds."""

    start_s: float
    end_s: float
    text: str


RawPassage = tuple[str, Metadata]
"""The text of a passage, and its own metadata. A chunk never spans two passages."""


@dataclass(frozen=True, kw_only=True)
class RawDocument:
    """A document as it was received, with the options of the job. For text formats,
    `workers/ingest/formats/texts/text.py` decodes it."""

    name: str
    """Every error message begins with it."""
    data: bytes | str
    """A string if the client sent text in the request."""
    charset: str | None
    """From the content type; often wrong."""
    options: LoadOptions
    settings: IngestSettings
    transcript: Sequence[Utterance] | None = None
    """Of a recording: what a model has transcribed."""

    @property
    def max_chars(self) -> int:
        """How much text may come of it."""
        return self.settings.max_document_chars

    @property
    def max_passages(self) -> int:
        """How many passages may come of it; each becomes at least one chunk."""
        return self.settings.max_document_chunks

    @property
    def content(self) -> bytes:
        """The bytes, for formats that are not text."""
        return self.data.encode() if isinstance(self.data, str) else self.data


@dataclass(frozen=True, kw_only=True)
class Heading:
    """A heading: `text[start:end]`, which are whole lines."""

    start: int
    end: int
    level: int
    """1 is the highest."""
    title: str


@dataclass(frozen=True, kw_only=True)
class DocumentParts:
    """What a loader makes of a document.

    Passages come one by one, so that a document that is too long is refused before all of it is in
    memory. Each is split on its own.
    """

    passages: Iterable[RawPassage]
    metadata: Metadata = field(default_factory=dict)
    """Of the whole document, such as its title."""
    warnings: list[str] = field(default_factory=list)
    """What was not read, and how it can be, as whole sentences that name the document. The list is
    complete when the last passage has come."""
    headings: Sequence[Heading] = ()
    """The headings in the text of the only passage, in order. That text must be storable already,
    so that the offsets stay right. (Other passages have the headings above them in their metadata.)
    """


@dataclass(frozen=True, kw_only=True)
class Loader:
    """Reads documents of one format.

    `load` takes time and memory linear in the size of the document. It raises DocumentError with
    the name of the document and what to do. Any other error, such as one of a library, becomes a
    DocumentError that says only that the document cannot be read. Passages may contain what cannot
    be stored (NUL, lone surrogates, other normal forms): the caller corrects that.

    `example` is a small document, and `example_text` is its text, or that of the only member of an
    archive.
    """

    load: Callable[[RawDocument], DocumentParts] | None = None
    """None for an archive, which has no text itself."""
    members: Callable[[RawDocument, Budget], Iterator[Member]] | None = None
    """For formats whose documents contain others: yields the members, without what is inside of
    these. Raises DocumentError if the document cannot be opened, and Exceeded above the budget."""
    example: bytes
    example_text: str


def heading_title(text: str) -> str:
    """The title on one line, shortened if it is long: each chunk of a section has the titles above
    it."""
    title = " ".join(text[: 4 * _TITLE_CHARS].split())
    return title if len(title) <= _TITLE_CHARS else title[: _TITLE_CHARS - 1].rstrip() + "…"


def too_long(name: str, max_chars: int) -> DocumentError:
    return DocumentError(
        f"{name}: has more than {max_chars:,} characters of text. Divide it, or raise "
        "SLUICE_MAX_DOCUMENT_CHARS."
    )


def too_many(name: str, max_passages: int) -> DocumentError:
    return DocumentError(
        f"{name}: has more than {max_passages:,} sections, rows or records, each a chunk. Divide "
        "it, or raise SLUICE_MAX_DOCUMENT_CHUNKS."
    )
