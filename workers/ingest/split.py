"""A loaded document -> the pieces that become chunks, each an exact slice of the document's text.

`piece.text == loaded.text[piece.start : piece.start + len(piece.text)]`, always, and every
character that is not whitespace is in some piece. Passages are split one by one, so a piece never
spans two rows. `recursive` gives the very pieces of LangChain's RecursiveCharacterTextSplitter
with its default separators; `character` those of its CharacterTextSplitter (which never divides a
paragraph, so a piece may exceed `chunk_size`); `markdown` splits at headings first and then as
`recursive`; `token` counts tokens of the embedding model. A piece carries its passage's metadata,
and under `markdown` a `heading` such as "Guide > Install"; the document's own metadata is not
repeated in it. The default separators know no sentence ends, neither English nor Korean ones.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

from langchain_text_splitters import (
    CharacterTextSplitter,
    RecursiveCharacterTextSplitter,
    TextSplitter,
)
from tokenizers import Tokenizer

from shared.errors import ConfigurationError
from shared.payloads import Metadata, Splitter, SplitterType
from workers.ingest import markdown, tokens
from workers.ingest.load import LoadedText

Spans = Callable[[str], Iterator[tuple[int, int]]]
"""Text -> start and end of each piece of it; the pieces are stripped and never empty."""

_NOT_SPACE: Final = re.compile(r"\S")
_PARAGRAPH_GAP: Final = "\n\n"
_STAND_IN_FIRST: Final = 0x10000
_STAND_INS: Final = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Piece:
    """`start` counts code points from the beginning of the document's text."""

    text: str
    start: int
    metadata: Metadata


def split(
    loaded: LoadedText, splitter: Splitter, *, tokenizer: Tokenizer | None = None
) -> Iterator[Piece]:
    """The pieces in order. `token` needs the embedding model's tokenizer."""
    spans = _spans_of(splitter, tokenizer)
    for passage in loaded.passages:
        for offset, text, metadata in _sections(passage.text, passage.metadata, splitter):
            for start, end in spans(text):
                yield Piece(
                    text=text[start:end], start=passage.start + offset + start, metadata=metadata
                )


def _sections(
    text: str, metadata: Metadata, splitter: Splitter
) -> Iterator[tuple[int, str, Metadata]]:
    if splitter.type is not SplitterType.MARKDOWN:
        yield 0, text, metadata
        return
    for section in markdown.sections(text):
        own = metadata | {"heading": section.heading} if section.heading else metadata
        yield section.start, text[section.start : section.end], own


def _spans_of(splitter: Splitter, tokenizer: Tokenizer | None) -> Spans:
    if splitter.type is SplitterType.TOKEN:
        if tokenizer is None:
            raise ConfigurationError("The token splitter needs the embedding model's tokenizer.")
        return partial(
            tokens.spans,
            tokenizer=tokens.whole(tokenizer),
            size=splitter.chunk_size,
            overlap=splitter.chunk_overlap,
        )
    return partial(_by_characters, splitter=splitter)


def _by_characters(text: str, *, splitter: Splitter) -> Iterator[tuple[int, int]]:
    if len(text) < splitter.chunk_size and splitter.type is not SplitterType.CHARACTER:
        # What LangChain would return too; most rows of a table end here.
        stripped = text.strip()
        chunks, starts = [stripped] if stripped else [], [len(text) - len(text.lstrip())]
    else:
        divider = _divider(text, splitter)
        chunks = divider.split_text(text)
        starts = _locate(chunks, text, splitter.chunk_overlap) or _locate_by_stand_ins(
            text, divider, splitter.chunk_overlap
        )
    for chunk, start in zip(chunks, starts, strict=False):
        yield start, start + len(chunk)


def _divider(text: str, splitter: Splitter) -> TextSplitter:
    if splitter.type is not SplitterType.CHARACTER:
        return RecursiveCharacterTextSplitter(
            chunk_size=splitter.chunk_size, chunk_overlap=splitter.chunk_overlap
        )
    # By default it joins paragraphs by one gap, also where the text has more, and the result is
    # then no slice of the text. Keeping separators in the parts avoids that.
    return CharacterTextSplitter(
        separator=_PARAGRAPH_GAP,
        keep_separator=2 * _PARAGRAPH_GAP in text,
        chunk_size=splitter.chunk_size,
        chunk_overlap=splitter.chunk_overlap,
    )


def _locate(chunks: Sequence[str], text: str, overlap: int) -> list[int] | None:
    """The start of each chunk; None if one of them fits in two places.

    A chunk begins at most `overlap` before the end of the one before it, and nothing but
    whitespace is left out between the two. LangChain's `add_start_index` takes the first place
    that fits, and so drifts back through repeated text.
    """
    starts: list[int] = []
    low = end = 0
    for chunk in chunks:
        following = _NOT_SPACE.search(text, end)
        high = following.start() if following else end
        start = text.find(chunk, low, high + len(chunk))
        if start < 0 or text.find(chunk, start + 1, high + len(chunk)) >= 0:
            return None
        starts.append(start)
        end = start + len(chunk)
        low = max(start, end - overlap)
    return starts


def _locate_by_stand_ins(text: str, divider: TextSplitter, overlap: int) -> list[int]:
    """The start of each chunk of a text that repeats itself.

    The splitters look only at whitespace and lengths. So a text in which every other character is
    a different one is cut in the same places, and there each chunk fits in one place only.
    """
    different = "".join(
        char if char.isspace() else chr(_STAND_IN_FIRST + at % _STAND_INS)
        for at, char in enumerate(text)
    )
    starts = _locate(divider.split_text(different), different, overlap)
    if starts is None:
        raise AssertionError("a text of distinct characters has no chunk in two places")
    return starts
