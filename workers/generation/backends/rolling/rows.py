"""The requests that are under way, and which slot of the slab each one has.

Rows that decode have the slots 0..n, rows whose prompt is still being read the ones behind. There
are never holes: when a row leaves, others move into its place.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from shared.errors import SluiceError
from workers.generation.answers.stop import StopFilter
from workers.generation.backends.interface import (
    Completion,
    Delta,
    FinishReason,
    Generation,
    Request,
)
from workers.generation.backends.rolling.sampling import Chooser
from workers.generation.backends.rolling.slab import Slab

# Token ids, one at a time -> text that can be shown.
#
# Never half a character, never a stop string or the beginning of what may become one: such
# text is held back until it is clear. Feeding the same ids again gives the same pieces, so
# that a stream can be rebuilt from the ids that an earlier attempt generated.

Decode = Callable[[Sequence[int]], str]
"""Ids to text, without special tokens."""

HALF_CHARACTER: Final = "\N{REPLACEMENT CHARACTER}"
# A character is at most four bytes; more tokens than this that end in none are no character.
HELD_TOKENS_LIMIT: Final = 8


class TextStream:
    """The text of one request."""

    def __init__(self, decode: Decode, stop: Sequence[str] = ()) -> None:
        self._decode = decode
        self._stop = StopFilter(stop)
        # Ids from a little before the end of the decoded text on: how a token reads may depend on
        # the one before (spaces). `_shown` is what the first `_read` of them read as.
        self._ids: list[int] = []
        self._read = 0
        self._shown = ""

    @property
    def is_stopped(self) -> bool:
        """Whether a stop string was met. The text ends before it."""
        return self._stop.has_stopped

    def feed(self, token: int) -> str:
        """The next piece; empty while a character or a stop string is open."""
        self._ids.append(token)
        text = self._decode(self._ids)
        is_open = text.endswith(HALF_CHARACTER) and len(self._ids) - self._read < HELD_TOKENS_LIMIT
        if is_open or len(text) <= len(self._shown):
            return ""
        piece = text[len(self._shown) :]
        self._ids = self._ids[self._read :]
        self._read = len(self._ids)
        self._shown = self._decode(self._ids)
        return self._stop.feed(piece)

    def close(self) -> str:
        """What was held back and can be shown now that the text has ended."""
        if self.is_stopped:
            return ""
        rest = self._decode(self._ids)[len(self._shown) :].rstrip(HALF_CHARACTER)
        return self._stop.feed(rest) + self._stop.flush()


SOON_TOKENS = 128
"""For so many more tokens a row should have room when it joins."""


@dataclass(eq=False, kw_only=True)
class Row:
    """A request. `tokens` are those of its prompt and those generated; the keys and values of the
    first `filled` of them are in the slab. `age` is its number in the order of arrival."""

    request: Request
    generation: Generation
    tokens: list[int]
    prompt_tokens: int
    max_tokens: int
    chooser: Chooser
    text: TextStream
    age: int
    pieces: list[str]
    """The text so far."""
    repeated_chars: int
    """How much of the text that comes next was shown by an earlier attempt."""
    filled: int = 0
    times_passed: int = 0
    was_preempted: bool = False

    def show(self, piece: str, ids: tuple[int, ...] = ()) -> None:
        self.pieces.append(piece)
        known = min(len(piece), self.repeated_chars)
        self.repeated_chars -= known
        self.generation.put(Delta(text=piece[known:], token_ids=ids))

    def finish(self, reason: FinishReason) -> None:
        if rest := self.text.close():
            self.show(rest)
        self.generation.finish(
            Completion(
                text="".join(self.pieces),
                finish_reason=reason,
                prompt_tokens=self.prompt_tokens,
                completion_tokens=self.generated_tokens,
            )
        )

    def fail(self, error: SluiceError, cause: BaseException | None = None) -> None:
        error.__cause__ = cause
        self.generation.fail(error)

    @property
    def generated_tokens(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def missing_tokens(self) -> int:
        """How many tokens the model has to read before the next one can be chosen."""
        return len(self.tokens) - self.filled

    @property
    def tokens_soon(self) -> int:
        return min(len(self.tokens) + SOON_TOKENS, self.prompt_tokens + self.max_tokens)


class Batch:
    """Rows with a slot. Lets the slab move their keys and values along."""

    def __init__(self, slab: Slab) -> None:
        self.decoding: list[Row] = []
        self.prefilling: list[Row] = []
        self._slab = slab

    def __len__(self) -> int:
        return len(self.decoding) + len(self.prefilling)

    def __iter__(self) -> Iterator[Row]:
        yield from self.decoding
        yield from self.prefilling

    def slot(self, row: Row) -> int:
        if row in self.prefilling:
            return len(self.decoding) + self.prefilling.index(row)
        return self.decoding.index(row)

    def active(self, fair_key: str) -> int:
        return sum(row.request.fair_key == fair_key for row in self)

    def longest(self) -> int:
        return max((len(row.tokens) for row in self), default=0)

    def longest_soon(self) -> int:
        return max((row.tokens_soon for row in self), default=0)

    def join(self, row: Row) -> None:
        """Into the next free slot; the slab has room for it."""
        self.prefilling.append(row)

    def promote(self, row: Row) -> None:
        """The row's prompt has been read; from now on it decodes."""
        at = self.prefilling.index(row)
        if at:
            first = self.prefilling[0]
            slot = len(self.decoding)
            self._slab.swap(slot, slot + at, max(first.filled, row.filled))
            self.prefilling[at] = first
        del self.prefilling[0]
        self.decoding.append(row)

    def remove(self, row: Row) -> None:
        """The last row of its kind moves into the slot, then the last of all behind that."""
        if row in self.prefilling:
            at = self.prefilling.index(row)
            self._close_gap(self.prefilling, at, len(self.decoding))
            return
        self._close_gap(self.decoding, self.decoding.index(row), 0)
        if self.prefilling:
            # The slot behind the rows that decode is free now, and the last one takes it.
            last = self.prefilling.pop()
            slot = len(self.decoding)
            self._slab.move(slot + 1 + len(self.prefilling), slot, last.filled)
            self.prefilling.insert(0, last)

    def clear(self) -> None:
        self.decoding.clear()
        self.prefilling.clear()

    def _close_gap(self, rows: list[Row], at: int, first_slot: int) -> None:
        last = rows.pop()
        if at < len(rows):
            self._slab.move(first_slot + len(rows), first_slot + at, last.filled)
            rows[at] = last
