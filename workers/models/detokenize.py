"""The text that a model writes, as it can be shown: from token ids, up to a stop string.

Never half a character, never a stop string or the beginning of what may become one: such text is
held back until it is clear. Nor characters that PostgreSQL keeps in no text: NUL and halves of
surrogate pairs, which models may write like any others, become U+FFFD here, before anybody has
seen them. Feeding the same ids again gives the same pieces, so that a stream can be rebuilt from
the ids that an earlier attempt generated.
"""

from collections.abc import Callable, Sequence
from typing import Final

from shared.bounds import UNSTORABLE


class StopFilter:
    """Holds back what may be the beginning of a stop string until it is known whether it is."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = [string for string in stop if string]
        self._held = ""
        self.has_stopped = False

    def feed(self, piece: str) -> str:
        """The text that may be shown now. After a stop string there is none any more."""
        if self.has_stopped:
            return ""
        text = self._held + UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", piece)
        starts = [at for string in self._stop if (at := text.find(string)) >= 0]
        if starts:
            self.has_stopped = True
            self._held = ""
            return text[: min(starts)]
        keep = max((_overlap(text, string) for string in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, string: str) -> int:
    """How many characters at the end of the text are the beginning of the string."""
    for length in range(min(len(text), len(string) - 1), 0, -1):
        if text.endswith(string[:length]):
            return length
    return 0


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
