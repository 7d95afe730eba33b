"""Where a text that was interrupted meets what a model says when it is told to go on.

Models that are only told so tend to begin with words that were there already, or with the whole
text again. What repeats the end of the text is dropped, if it is too long to be chance.
"""

from typing import Final

CHANCE_CHARS: Final = 12


class Seam:
    """`feed` it the new text piece by piece, then `flush`; both return what is really new."""

    def __init__(self, before: str) -> None:
        self._before = before
        self._held = ""
        self._is_sewn = len(before) < CHANCE_CHARS

    def feed(self, piece: str) -> str:
        if self._is_sewn:
            return piece
        self._held += piece
        if self._may_repeat_more():
            return ""
        return self.flush()

    def flush(self) -> str:
        self._is_sewn = True
        held, self._held = self._held, ""
        return held[self._repeated(held) :]

    def _may_repeat_more(self) -> bool:
        """Whether all that came is in the text, and what follows there may be to come."""
        at = self._before.find(self._held)
        return at >= 0 and at + len(self._held) < len(self._before)

    def _repeated(self, text: str) -> int:
        for length in range(min(len(text), len(self._before)), CHANCE_CHARS - 1, -1):
            if self._before.endswith(text[:length]):
                return length
        return 0
