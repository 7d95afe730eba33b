"""Token ids, one at a time -> text that can be shown.

Never half a character, never a stop string or the beginning of what may become one: such text is
held back until it is clear. Feeding the same ids again gives the same pieces, so that a stream
can be rebuilt from the ids that an earlier attempt generated.
"""

from collections.abc import Callable, Sequence
from typing import Final

from workers.generation.stopping import StopFilter

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
