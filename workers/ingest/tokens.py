"""Text -> spans of at most so many tokens of a Hugging Face fast tokenizer.

Cuts fall between words wherever a word is shorter than a span, and never inside a character. The
size counts the text's own tokens, without the special ones a model adds. It downloads nothing.
"""

import re
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
    starts: list[int]  # where each token begins in the text
    fresh: list[bool]  # whether a word begins with it
    cuttable: list[bool]  # whether a character begins with it


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
    first = 0
    while True:
        last = first + size
        if last < count:
            last = _cut_before(tokens, last, first)
        is_end = last >= count
        start = tokens.starts[first] if first else 0
        end = len(text) if is_end else tokens.starts[last]
        piece = text[start:end]
        if piece.strip():
            yield start + len(piece) - len(piece.lstrip()), start + len(piece.rstrip())
        if is_end:
            return
        first = _resume(tokens, last, first, overlap)


def _cut_before(tokens: _Tokens, last: int, first: int) -> int:
    """The nearest word at or before `last`; else the nearest character; else the next one."""
    for usable in (tokens.fresh, tokens.cuttable):
        for at in range(last, first, -1):
            if usable[at]:
                return at
    while last < len(tokens.starts) and not tokens.cuttable[last]:
        last += 1
    return last


def _resume(tokens: _Tokens, last: int, first: int, overlap: int) -> int:
    """The first word at most `overlap` tokens before `last`, and after `first`."""
    for at in range(max(first + 1, last - overlap), last):
        if tokens.fresh[at]:
            return at
    return last


def _encode(text: str, tokenizer: Tokenizer) -> _Tokens:
    starts: list[int] = []
    fresh: list[bool] = []
    cuttable: list[bool] = []
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
        gap = _SPACE.search(text, end) if end < len(text) else None
        end = gap.start() if gap else len(text)
        yield start, text[start:end]
        start = end
