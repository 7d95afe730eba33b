"""Text -> spans of at most so many tokens of a Hugging Face fast tokenizer.

Cuts fall between words wherever a word is shorter than a span, and never inside a character. The
size counts the text's own tokens, without the special ones a model adds. It downloads nothing.
"""

import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from tokenizers import Tokenizer

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
