"""Formats of files that can be ingested, a line each. How to add one: CONTRIBUTING.md.

A document's format goes by the suffix of its name, else by its media type, else by its first
bytes, else it is plain text (`workers/ingest/load.py`).
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
    magic: bytes = b""
    """How its documents begin, where neither name nor media type says what they are."""


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
