"""Citation markers in an answer, checked while it streams.

A marker is `[n]`, or several numbers as `[n, m]` or `[n; m]`. Numbers that are of no passage are
taken out and counted, a marker without others goes with the space before it. Code between
backticks is left alone: `rows[0]` cites nothing. What comes out does not depend on how the text
was cut into pieces.
"""

import re
from typing import Final

from shared.bounds import comparable
from workers.generation.prompts.prompt import NOT_FOUND, NOT_FOUND_KOREAN

_LONGEST_MARKER_CHARS: Final = 64
_MARKER: Final = re.compile(r"\[ *(\d+(?: *[,;] *\d+)*) *\]", re.ASCII)
_IN_MARKER: Final = frozenset("0123456789,; ")
_SPACES: Final = frozenset(" \t")
_FENCE_TICKS: Final = 3
_DECORATION: Final = " \t\r\n\"'“”‘’«»*_`.。!！"


class MarkerFilter:
    """`feed` it the answer piece by piece, then `close` it; both return text to show.

    Held back are only an open bracket that may become a marker, and spaces that may stand before
    a removed one. `cited` has the passage numbers in the order of first use.
    """

    def __init__(self, passages: int) -> None:
        self.removed = 0
        self.cited: list[int] = []
        self._passages = passages
        self._out: list[str] = []
        self._marker = ""  # from an open bracket on
        self._outer = ""  # open brackets before that one, which are markers once it is removed
        self._spaces = ""
        self._spaces_before_removed = False
        self._at_line_start = True
        self._ticks = 0  # of the run of backticks that is being read
        self._code = 0  # how many backticks opened the code that this is in

    def feed(self, text: str) -> str:
        for char in text:
            self._take(char)
        return self._flushed()

    def close(self) -> str:
        self._give_up_marker()
        self._write_spaces(before="")
        return self._flushed()

    def _flushed(self) -> str:
        text = "".join(self._out)
        self._out.clear()
        return text

    def _take(self, char: str) -> None:
        if self._ticks and char != "`":
            self._end_ticks()
        if self._marker:
            if char in _IN_MARKER and len(self._marker) < _LONGEST_MARKER_CHARS:
                self._marker += char
                return
            if char == "]" and (match := _MARKER.fullmatch(self._marker + char)):
                self._settle(match)
                return
            if char == "[" and len(self._outer) < _LONGEST_MARKER_CHARS:
                self._outer, self._marker = self._outer + self._marker, char
                return
            self._give_up_marker()
        if self._code:
            self._ticks += char == "`"
            if char == "\n" and self._code < _FENCE_TICKS:
                self._code = 0  # a backtick alone was no code after all
            self._write(char)
        elif char == "[":
            self._marker = char
        elif char in _SPACES:
            self._take_space(char)
        else:
            self._ticks += char == "`"
            self._write_spaces(before=char)
            self._write(char)

    def _end_ticks(self) -> None:
        """Code ends with as many backticks as it began with."""
        if not self._code:
            self._code = self._ticks
        elif self._code == self._ticks or self._ticks > self._code >= _FENCE_TICKS:
            self._code = 0
        self._ticks = 0

    def _settle(self, marker: re.Match[str]) -> None:
        written = [digits.strip() for digits in re.split("[,;]", marker[1])]
        numbers = [_number(digits) for digits in written]
        valid = [number for number in numbers if 1 <= number <= self._passages]
        self.removed += len(numbers) - len(valid)
        self._marker = ""
        if not valid and self._outer:
            # Of "[[9]9]" is left "[9]", which must not pass for text.
            at = self._outer.rindex("[")
            self._outer, self._marker = self._outer[:at], self._outer[at:]
            return
        if not valid:
            self._spaces_before_removed = True
            return
        self._write_outer()
        self.cited += [number for number in dict.fromkeys(valid) if number not in self.cited]
        self._write_spaces(before="[")
        is_kept = written == list(map(str, valid))
        self._write(marker[0] if is_kept else f"[{', '.join(map(str, valid))}]")

    def _write_outer(self) -> None:
        if self._outer:
            self._write_spaces(before="[")
            self._write(self._outer)
            self._outer = ""

    def _give_up_marker(self) -> None:
        """What was held back is text: no marker has its beginning in it."""
        if self._marker:
            self._write_outer()
            self._write_spaces(before="[")
            marker, self._marker = self._marker, ""
            bare = marker.rstrip(" ")
            self._write(bare)
            self._spaces = marker[len(bare) :]

    def _take_space(self, char: str) -> None:
        if self._spaces_before_removed:
            # "a [9] b": one of the two spaces goes with the marker; at a line's start all do.
            self._spaces_before_removed = self._at_line_start
            self._spaces = "" if self._at_line_start else char
            return
        self._spaces += char

    def _write_spaces(self, *, before: str) -> None:
        if self._spaces_before_removed:
            self._spaces_before_removed = False
            if not (before.isalnum() or before in ("[", "(")):
                self._spaces = ""
        if self._spaces:
            self._write(self._spaces)
            self._spaces = ""

    def _write(self, text: str) -> None:
        self._out.append(text)
        self._at_line_start = text.endswith("\n")


def says_not_found(answer: str) -> bool:
    """Whether the answer is the sentence for a question that the passages do not answer."""
    bare = comparable(" ".join(_MARKER.sub("", answer).split()).strip(_DECORATION))
    return bare in {comparable(one.strip(_DECORATION)) for one in (NOT_FOUND, NOT_FOUND_KOREAN)}


def _number(digits: str) -> int:
    """Of no passage where there are too many digits for one."""
    return int(digits) if len(digits) <= 9 else 0
