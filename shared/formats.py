"""Formats of files that can be ingested, a line each. How to add one: CONTRIBUTING.md.

Bytes that no text has say themselves which format they are; of texts, the suffix of the name says
it, else the media type, else how they begin, else they are plain text
(`workers/ingest/formats/sniffing.py`).
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, eq=False)
class Format:
    """What all parts know of a format; what is made of its documents, the workers' loader says."""

    name: str
    """What people call it."""
    suffixes: Sequence[str]
    """In small letters. Folders are searched for files that end with one of them."""
    media_types: Sequence[str]
    """The first is noted in the metadata of each document of the format."""
    loader: str
    """A `Loader` (`workers/ingest/formats/loader.py`) as `module:name`; only workers import it."""
    is_text: bool = True
    """Whether its documents are text in some encoding. Bytes that are none are never read as it,
    and a text is never read as a format that is none."""
    signatures: Sequence[bytes] = ()
    """How its documents begin, where no library knows it. Of texts, it counts only where neither
    name nor media type say what they are, and small letters are as good as capitals."""
    zip_members: Sequence[str] = ()
    """Of a format that is a ZIP archive without a member `mimetype`, which says it: how the name of
    one of its members begins, such as `word/`."""
    ole_streams: Sequence[str] = ()
    """Of a format that is an OLE compound file: the name of a stream that no other one has."""
    extra: str = ""
    """The extra of the distribution that has the library it needs; empty: the worker has it."""
    is_isolated: bool = False
    """Whether it is read in a process of its own with limits of time and memory: wherever it takes
    a library that others wrote, for one that hangs or crashes must not take the worker along."""


FORMATS: dict[str, Format] = {
    format_.name: format_
    for format_ in (
        Format("text", [".txt", ".text"], ["text/plain"], "workers.ingest.formats.text:TEXT"),
        Format(
            "Markdown",
            [".md", ".markdown"],
            ["text/markdown", "text/x-markdown"],
            "workers.ingest.formats.markdown:MARKDOWN",
        ),
        Format(
            "HTML",
            [".html", ".htm", ".xhtml", ".xht"],
            ["text/html", "application/xhtml+xml"],
            "workers.ingest.formats.html:HTML",
            is_isolated=True,
        ),
        Format(
            "CSV", [".csv"], ["text/csv", "application/csv"], "workers.ingest.formats.tables:CSV"
        ),
        Format("TSV", [".tsv"], ["text/tab-separated-values"], "workers.ingest.formats.tables:TSV"),
        Format("JSON", [".json"], ["application/json"], "workers.ingest.formats.records:JSON"),
        Format(
            "JSON Lines",
            [".jsonl", ".ndjson"],
            [
                "application/jsonl",
                "application/x-jsonlines",
                "application/x-ndjson",
                "application/ndjson",
            ],
            "workers.ingest.formats.records:JSON_LINES",
        ),
    )
}
PLAIN_TEXT = FORMATS["text"]


def suffixes() -> frozenset[str]:
    """Those of all formats."""
    return frozenset(suffix for format_ in FORMATS.values() for suffix in format_.suffixes)
