"""What a loader is: the bytes of a document of one format -> passages of text, with metadata."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from shared.bounds import Metadata
from shared.errors import DocumentError
from shared.kinds.ingest import CsvOptions

RawPassage = tuple[str, Metadata]
"""The text of a passage, and what is noted of it alone."""


@dataclass(frozen=True, kw_only=True)
class RawDocument:
    """A document as it came, and what the job says of it. `workers/ingest/formats/text.py` decodes
    it for loaders of formats that are text."""

    name: str
    """For messages: every error names the document."""
    data: bytes | str
    """A string where the client sent text in the request."""
    charset: str | None
    """What the content type says; often wrong."""
    csv: CsvOptions
    max_chars: int
    max_passages: int

    @property
    def content(self) -> bytes:
        """The bytes, for formats that are no text."""
        return self.data.encode() if isinstance(self.data, str) else self.data


@dataclass(frozen=True, kw_only=True)
class DocumentParts:
    """What a loader makes of a document. Passages come one by one, so that one that is too long is
    refused before it is all there; each is split on its own."""

    passages: Iterable[RawPassage]
    metadata: Metadata = field(default_factory=dict)
    """Of the document as a whole, such as its title."""


@dataclass(frozen=True, kw_only=True)
class Loader:
    """`load` takes time and memory linear in the size of the document, and raises `DocumentError`
    with the document's name and what to do about it. Its passages may hold what cannot be stored
    (NUL, lone surrogates, other normal forms): that is mended behind it.

    `example` is a small document, and `example_text` what becomes of it.
    """

    load: Callable[[RawDocument], DocumentParts]
    example: bytes
    example_text: str


def too_long(name: str, max_chars: int) -> DocumentError:
    return DocumentError(
        f"{name}: has more than {max_chars:,} characters of text. Divide it, or raise "
        "SLUICE_MAX_DOCUMENT_CHARS."
    )
