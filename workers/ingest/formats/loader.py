"""What a loader is: the bytes of a document of one format -> passages of text, with metadata."""

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
    """What loaders note of a document as a whole, under the same key in every format."""

    MEDIA_TYPE = "media_type"
    """Noted of every document, by `load`."""
    ENCODING = "encoding"
    """Of documents that are text."""
    TITLE = "title"
    AUTHOR = "author"
    LANGUAGE = "language"
    """As BCP 47 has it, such as `ko`."""
    DATE = "date"
    """When it was written or published: a date, or a date and time, of ISO 8601."""
    PROGRAMMING_LANGUAGE = "programming_language"
    """Of source code, such as `python`."""
    URL = "url"
    """Where it was read, or where the page itself says that it lies."""
    FETCHED_URL = "fetched_url"
    """Of a document of the web, where redirects led to. Noted of every one, whatever its loader
    notes."""


class PassageKey(StrEnum):
    """What loaders note of a passage, under the same key in every format; all count from 1."""

    PAGE = "page"
    SLIDE = "slide"
    SHEET = "sheet"
    """The name of a sheet of a workbook."""
    ROW = "row"
    ITEM = "item"
    """Of an array."""
    LINE = "line"
    """The first one of a passage."""
    PART = "part"
    """The title or else the name of a part of a book."""
    HEADING = "heading"
    """The path of headings above a passage, outermost first: `Guide > Install`."""
    HIDDEN = "hidden"
    """Of a sheet or slide that is not shown."""
    START_S = "start_s"
    """When it begins, in seconds from the beginning of a recording; may be a fraction."""
    END_S = "end_s"


_TITLE_CHARS: Final = 500


class Utterance(NamedTuple):
    """What is said from one second to another of a recording."""

    start_s: float
    end_s: float
    text: str


RawPassage = tuple[str, Metadata]
"""The text of a passage, and what is noted of it alone. No chunk is of two passages."""


@dataclass(frozen=True, kw_only=True)
class RawDocument:
    """A document as it came, and what the job says of it. For loaders of formats that are text,
    `workers/ingest/formats/texts/text.py` decodes it."""

    name: str
    """For messages: every error names the document."""
    data: bytes | str
    """A string where the client sent text in the request."""
    charset: str | None
    """What the content type says; often wrong."""
    options: LoadOptions
    settings: IngestSettings
    transcript: Sequence[Utterance] | None = None
    """Of a recording, what a model has heard in it."""

    @property
    def max_chars(self) -> int:
        """Of the text that it becomes."""
        return self.settings.max_document_chars

    @property
    def max_passages(self) -> int:
        """Each becomes at least one chunk."""
        return self.settings.max_document_chunks

    @property
    def content(self) -> bytes:
        """The bytes, for formats that are no text."""
        return self.data.encode() if isinstance(self.data, str) else self.data


@dataclass(frozen=True, kw_only=True)
class Heading:
    """`text[start:end]` of the text that it is in, with whole lines around it."""

    start: int
    end: int
    level: int
    """1 is the highest."""
    title: str


@dataclass(frozen=True, kw_only=True)
class DocumentParts:
    """What a loader makes of a document. Passages come one by one, so that one that is too long is
    refused before it is all there; each is split on its own."""

    passages: Iterable[RawPassage]
    metadata: Metadata = field(default_factory=dict)
    """Of the document as a whole, such as its title."""
    warnings: list[str] = field(default_factory=list)
    """What was not read of the document, and how it can be, in whole sentences with its name. May
    grow until the last passage has come."""
    headings: Sequence[Heading] = ()
    """Those in the text of its only passage, in order; it has then to be fit to be stored. (Other
    passages note the headings above them in their metadata.)"""


@dataclass(frozen=True, kw_only=True)
class Loader:
    """`load` takes time and memory linear in the size of the document, and raises `DocumentError`
    with the document's name and what to do about it. Any other error, such as one of a library,
    becomes a `DocumentError` behind it that can say no more than that the document cannot be read.
    Its passages may hold what cannot be stored (NUL, lone surrogates, other normal forms): that is
    mended behind it.

    `example` is a small document, and `example_text` what becomes of it, or of the only member of
    an archive.
    """

    load: Callable[[RawDocument], DocumentParts] | None = None
    """None of an archive, which is no document itself."""
    members: Callable[[RawDocument, Budget], Iterator[Member]] | None = None
    """Of a format whose documents hold others, these, one by one; not what is within them in turn.
    Raises `DocumentError` where the document cannot be opened, `Exceeded` by the budget."""
    example: bytes
    example_text: str


def heading_title(text: str) -> str:
    """On one line, and not too long: each chunk of a section carries the titles above it."""
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
