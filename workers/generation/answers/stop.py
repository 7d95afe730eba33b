"""Stop strings in a text that comes in pieces: none of them, nor a part of one, gets through.

Nor do characters that PostgreSQL keeps in no text: NUL and halves of surrogate pairs, which models
may write like any others, become U+FFFD here, before anybody has seen them.
"""

import re
from collections.abc import Sequence
from typing import Final

_UNSTORABLE: Final = re.compile("[\0\ud800-\udfff]")


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
        text = self._held + _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", piece)
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
