"""A loaded document -> the pieces that become chunks, each an exact slice of the document's text.

`piece.text == loaded.text[piece.start : piece.start + len(piece.text)]`, always, and every
character that is not whitespace is in some piece. Passages are split one by one, so a piece never
spans two rows. `recursive` gives the very pieces of LangChain's RecursiveCharacterTextSplitter
with its default separators; `character` those of its CharacterTextSplitter (which never divides a
paragraph, so a piece may exceed `chunk_size`), each with its own place and in time and memory
linear in the text, which LangChain's are not; `markdown` splits at headings first and then as
`recursive`; `token` counts tokens of the embedding model. A piece carries its passage's metadata,
and under `markdown` a `heading` such as "Guide > Install"; the document's own metadata is not
repeated in it. The default separators know no sentence ends, neither English nor Korean ones.
"""

import re
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Final

from tokenizers import Tokenizer

from shared.bounds import Metadata
from shared.errors import ConfigurationError
from shared.kinds.ingest import Splitter, SplitterType
from workers.ingest.formats import markdown
from workers.ingest.load import LoadedText

# Text -> spans of at most so many tokens of a Hugging Face fast tokenizer.
#
# Cuts fall between words wherever a word is shorter than a span, and never inside a
# character. The size counts the text's own tokens, without the special ones a model adds. It
# downloads nothing.

# Encoded block by block: one call for a whole book would hold hundreds of MiB.
_BLOCK_CHARS: Final = 100_000
_SPACE: Final = re.compile(r"\s")


@dataclass(frozen=True, kw_only=True)
class _Tokens:
    starts: "array[int]"  # where each token begins in the text
    fresh: bytearray  # whether a word begins with it
    cuttable: bytearray  # whether a character begins with it


@lru_cache(maxsize=4)  # a copy takes tens of milliseconds, and every document asks for one
def whole(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer itself, or a copy without the truncation and padding that models ship with."""
    if tokenizer.truncation is None and tokenizer.padding is None:
        return tokenizer
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def spans(text: str, *, tokenizer: Tokenizer, size: int, overlap: int) -> Iterator[tuple[int, int]]:
    """Start and end of each span, stripped of whitespace, none empty; together they cover all."""
    tokens = _encode(text, tokenizer)
    count = len(tokens.starts)
    first = before = 0
    while True:
        last = first + size
        if last < count:
            last = _cut_before(tokens, last, first)
            if last <= before:
                # A long word follows: what overlaps would be all of the span, again and again.
                first, last = before, before + size
                last = _cut_before(tokens, last, first) if last < count else count
        is_end = last >= count
        start = tokens.starts[first] if first else 0
        end = len(text) if is_end else tokens.starts[last]
        piece = text[start:end]
        if piece.strip():
            yield start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())
        if is_end:
            return
        first, before = _resume(tokens, last, first, overlap), last


def _cut_before(tokens: _Tokens, last: int, first: int) -> int:
    """The nearest word at or before `last`; else the nearest character; else the next one."""
    for usable in (tokens.fresh, tokens.cuttable):
        at = usable.rfind(1, first + 1, last + 1)
        if at >= 0:
            return at
    while last < len(tokens.starts) and not tokens.cuttable[last]:
        last += 1
    return last


def _resume(tokens: _Tokens, last: int, first: int, overlap: int) -> int:
    """The first word at most `overlap` tokens before `last`, and after `first`."""
    at = tokens.fresh.find(1, max(first + 1, last - overlap), last)
    return at if at >= 0 else last


def _encode(text: str, tokenizer: Tokenizer) -> _Tokens:
    starts, fresh, cuttable = array("q"), bytearray(), bytearray()
    reached = 0
    for at, block in _blocks(text):
        encoding = tokenizer.encode(block, add_special_tokens=False)
        word_before: int | None = -1
        for (start, end), word in zip(encoding.offsets, encoding.word_ids, strict=True):
            # Pieces of one character (its bytes, or Hangul's letters) share its offsets.
            starts.append(max(at + start, reached))
            cuttable.append(at + start >= reached)
            fresh.append(cuttable[-1] and (word is None or word != word_before))
            reached, word_before = max(reached, at + end), word
    return _Tokens(starts=starts, fresh=fresh, cuttable=cuttable)


def _blocks(text: str) -> Iterator[tuple[int, str]]:
    start = 0
    while start < len(text):
        end = start + _BLOCK_CHARS
        if end < len(text):
            # A text without any whitespace (Chinese, base64) is cut all the same.
            gap = _SPACE.search(text, end, end + _BLOCK_CHARS)
            end = gap.start() if gap else min(end + _BLOCK_CHARS, len(text))
        yield start, text[start:end]
        start = end


Spans = Callable[[str], Iterator[tuple[int, int]]]
"""Text -> start and end of each piece of it; the pieces are stripped and never empty."""

_SPACES: Final = re.compile(r"\s+")
_PARAGRAPH_GAP: Final = "\n\n"
_SEPARATORS: Final = (_PARAGRAPH_GAP, "\n", " ", "")


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
            spans,
            tokenizer=whole(tokenizer),
            size=splitter.chunk_size,
            overlap=splitter.chunk_overlap,
        )
    return partial(_by_characters, splitter=splitter)


def least_pieces(loaded: LoadedText, splitter: Splitter) -> int:
    """No splitting by characters gives fewer; known without splitting."""
    if splitter.type in (SplitterType.TOKEN, SplitterType.CHARACTER):
        return len(loaded.passages)
    size = splitter.chunk_size
    return sum(max(1, len(_SPACES.sub("", p.text)) // size) for p in loaded.passages)


def _by_characters(text: str, *, splitter: Splitter) -> Iterator[tuple[int, int]]:
    size, overlap = splitter.chunk_size, splitter.chunk_overlap
    if splitter.type is SplitterType.CHARACTER:
        # LangChain joins paragraphs by one gap, also where the text has more, and the result is
        # then no slice of the text. Keeping the gaps in the parts avoids that.
        is_kept = 2 * _PARAGRAPH_GAP in text
        merger = _Merger(size=size, overlap=overlap, gap=0 if is_kept else len(_PARAGRAPH_GAP))
        spans = merger.merge(_parts(text, 0, len(text), _PARAGRAPH_GAP, is_kept=is_kept))
    elif len(text) < size:
        spans = iter([(0, len(text))])  # most rows of a table end here
    else:
        spans = _recursive(text, 0, len(text), _SEPARATORS, splitter)
    for start, end in spans:
        piece = text[start:end]
        stripped = piece.lstrip()
        start += len(piece) - len(stripped)
        end = start + len(stripped.rstrip())
        if start < end:
            yield start, end


def _recursive(
    text: str, start: int, end: int, separators: Sequence[str], splitter: Splitter
) -> Iterator[tuple[int, int]]:
    """Merge the parts between the first separator that there is; divide long ones by the next."""
    size, overlap = splitter.chunk_size, splitter.chunk_overlap
    at = next(at for at, sign in enumerate(separators) if text.find(sign, start, end) >= 0)
    if not separators[at]:
        yield from _windows(start, end, size, overlap)
        return
    merger = _Merger(size=size, overlap=overlap)
    for part in _parts(text, start, end, separators[at], is_kept=True):
        if part[1] - part[0] < size:
            yield from merger.add(*part)
        else:
            yield from merger.flush()
            yield from _recursive(text, *part, separators[at + 1 :], splitter)
    yield from merger.flush()


def _windows(start: int, end: int, size: int, overlap: int) -> Iterator[tuple[int, int]]:
    while start + size < end:
        yield start, start + size
        start += size - overlap
    yield start, end


def _parts(
    text: str, start: int, end: int, separator: str, *, is_kept: bool
) -> Iterator[tuple[int, int]]:
    """What lies between separators, none empty; a kept separator begins the part after it."""
    first = start
    while (at := text.find(separator, start, end)) >= 0:
        if at > first:
            yield first, at
        start = at + len(separator)
        first = at if is_kept else start
    if end > first:
        yield first, end


@dataclass(kw_only=True)
class _Merger:
    """Joins neighbouring parts to pieces of at most `size`, each with the last `overlap` of the
    one before; `gap` characters lie between two parts."""

    size: int
    overlap: int
    gap: int = 0
    _parts: deque[tuple[int, int]] = field(default_factory=deque)
    _total: int = 0

    def merge(self, parts: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        for part in parts:
            yield from self.add(*part)
        yield from self.flush()

    def add(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        length = end - start
        if self._parts and self._total + length + self.gap > self.size:
            yield self._parts[0][0], self._parts[-1][1]
            while self._parts and (
                self._total > self.overlap or self._total + length + self.gap > self.size
            ):
                first = self._parts.popleft()
                self._total -= first[1] - first[0] + (self.gap if self._parts else 0)
        self._total += length + (self.gap if self._parts else 0)
        self._parts.append((start, end))

    def flush(self) -> Iterator[tuple[int, int]]:
        if self._parts:
            yield self._parts[0][0], self._parts[-1][1]
        self._parts.clear()
        self._total = 0
