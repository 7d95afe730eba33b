"""Small documents, the same in every run, of which it is known how many chunks they give.

Each paragraph is a bit shorter than a chunk and longer than half of one, so that with
`CHUNKING` (recursive splitter) every paragraph becomes one chunk.
"""

import random
from dataclasses import dataclass
from pathlib import Path

CHUNK_SIZE = 300
CHUNKING = {"type": "recursive", "chunk_size": CHUNK_SIZE, "chunk_overlap": 30}
CHUNKING_OPTIONS = ("--chunk-size", "300", "--chunk-overlap", "30")
PARAGRAPH_CHARS = 250

WORDS = [
    *("archive", "valve", "meter", "harbour", "signal", "ledger", "turbine", "orchard", "copper"),
    *("lantern", "channel", "bridge", "basin", "pulley", "garden", "ticket", "window", "engine"),
    *("수문", "기록", "장부", "항구", "신호", "정원", "다리", "나침반", "강물", "편지"),
]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """A document and the number of its chunks."""

    name: str
    text: str
    chunks: int


def samples(count: int, *, seed: str) -> list[Sample]:
    """HTML and Markdown by turns, two to four chunks each."""
    source = random.Random(seed)
    return [_sample(number, source) for number in range(count)]


def write(folder: Path, documents: list[Sample]) -> None:
    folder.mkdir(parents=True)
    for document in documents:
        (folder / document.name).write_text(document.text, encoding="utf-8")


def as_sources(documents: list[Sample]) -> list[dict[str, str]]:
    """For the input of an `ingest` job."""
    return [
        {"type": "text", "name": document.name, "text": document.text} for document in documents
    ]


def paragraph(source: random.Random, first: str) -> str:
    words = [first]
    while sum(map(len, words)) + len(words) < PARAGRAPH_CHARS:
        words.append(source.choice(WORDS))
    return " ".join(words) + "."


def _sample(number: int, source: random.Random) -> Sample:
    count = source.randint(2, 4)
    paragraphs = [paragraph(source, f"Document {number} part {n}:") for n in range(count)]
    if number % 2:
        return Sample(name=f"doc-{number:04d}.md", text="\n\n".join(paragraphs), chunks=count)
    body = "\n".join(f"<p>{text}</p>" for text in paragraphs)
    page = f"<!doctype html><html><head><title>{number}</title></head><body>{body}</body></html>"
    return Sample(name=f"doc-{number:04d}.html", text=page, chunks=count)
