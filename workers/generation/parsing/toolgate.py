"""A stream of a model's text without its tool calls.

What comes out is what `toolcalls.parse` leaves of the whole text, however it was cut into pieces.
"""

from collections.abc import Collection

from workers.generation.parsing.toolcalls import OPENINGS, may_be_bare, parse


class ToolCallGate:
    """`feed` it the text piece by piece, then `close` it; both return text to show.

    From where a call may begin, everything is held back up to the end. White space is held back
    until something follows it.
    """

    def __init__(self, *, names: Collection[str] | None = None) -> None:
        """`names` as for `parse`."""
        self._names = names
        self._pieces: list[str] = []
        self._waiting = ""  # not shown yet
        self._shown = 0
        self._is_held = False

    def feed(self, text: str) -> str:
        self._pieces.append(text)
        if self._is_held:
            return ""
        self._waiting += text
        if not self._shown and may_be_bare(self._waiting):
            return ""
        end = _end_of_text(self._waiting)
        shown, self._waiting = self._waiting[:end], self._waiting[end:]
        self._shown += len(shown)
        self._is_held = self._waiting.lstrip().startswith(OPENINGS)
        return shown

    def close(self) -> str:
        remaining, _ = parse("".join(self._pieces), names=self._names)
        return remaining[self._shown :]


def _end_of_text(text: str) -> int:
    """Up to where the text cannot belong to a call, nor be space before one."""
    found = [at for opening in OPENINGS if (at := text.find(opening)) >= 0]
    if found:
        return len(text[: min(found)].rstrip())
    longest = max(map(len, OPENINGS)) - 1
    for at in range(max(0, len(text) - longest), len(text)):
        if any(opening.startswith(text[at:]) for opening in OPENINGS):
            return len(text[:at].rstrip())
    return len(text.rstrip())
