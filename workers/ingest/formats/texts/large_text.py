"""Plain text that is too large for memory: decoded and normalized in sections.

The sections together are exactly the text that `text.py` makes of the whole. The bytes are read
three times: to detect the encoding, to decode all of them strictly before anything is written, and
to use the text. Memory does not grow with the text, unless it has no point where a section can end:
white space, or a character that does not combine with the one before.
"""

import codecs
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from shared.bounds import Metadata, nfc
from shared.errors import DocumentError
from shared.formats import PLAIN_TEXT
from shared.kinds.ingest import LoadOptions
from workers.ingest.formats.loader import DocumentKey, too_long
from workers.ingest.formats.texts.text import (
    NO_CP932,
    decode,
    nearest_encoding,
    storable,
)

LARGE_TEXT_BYTES: Final = 8 * 2**20
"""Larger texts are read in this way."""
SECTION_CHARS: Final = 300_000
_SAMPLE_BYTES: Final = 2**20
_UNIT_BYTES: Final = 4
"""The size of the longest character."""
_SLICE_CHARS: Final = 100
_SLICES: Final = 40
_NEAR_CHARS: Final = 32
"""Characters farther apart do not affect each other's normalization."""
_TRIED_PLACES: Final = 1000
_SEVEN_BIT_SIGNS: Final = (b"\x1b$", b"\x1b(I", b"~{", b"+")
"""How text in encodings with ASCII bytes only begins an escape (`text.py`)."""


class Digest(Protocol):
    """A hash of `hashlib`."""

    def update(self, data: bytes, /) -> None: ...


@dataclass(frozen=True, kw_only=True)
class LargeText:
    """A text of any size. `blocks` returns an iterator over the bytes, from the beginning at each
    call."""

    name: str
    blocks: Callable[[], Iterable[bytes]]
    charset: str | None
    options: LoadOptions
    max_chars: int

    def encoding(self, digests: Sequence[Digest]) -> str:
        """The codec of the text; updates the digests with all bytes. Raises DocumentError."""
        looks = _Looks()
        for block in self.blocks():
            for digest in digests:
                digest.update(block)
            looks.add(block)
        if self.options.encoding is None:
            if looks.is_utf8:
                return "utf-8"
            if looks.nul_at is not None and not looks.is_wide:
                raise DocumentError(
                    f"{self.name}: looks like binary data, not text: there is a NUL byte at offset "
                    f"{looks.nul_at:,}."
                )
        sample = looks.sample(whole_lines=self.options.encoding is None)
        try:
            return self._encoding_of(sample)
        except DocumentError as error:
            if self.options.encoding is not None or sample == looks.head:
                raise
            # Offsets in the message count from the beginning of the sample.
            if (nearest := nearest_encoding(sample)) is not None:
                for _ in _decoded(self.blocks(), nearest[0], name=self.name):
                    pass  # the error names the first bad byte
            raise DocumentError(
                f"{self.name}: byte 0x{looks.bad_byte:02x} at offset {looks.bad_at:,} is not valid "
                "UTF-8, and no other encoding fits. Save it as UTF-8, or name the encoding: "
                "`encoding` of the job or of the source."
            ) from error

    def _encoding_of(self, sample: bytes) -> str:
        """Raises DocumentError if no encoding fits."""
        for cut in range(_UNIT_BYTES):
            try:
                return decode(
                    sample[: len(sample) - cut],
                    name=self.name,
                    encoding=self.options.encoding,
                    declared=[self.charset],
                    hint="Save it as UTF-8.",
                ).encoding
            except DocumentError:  # a character may have been cut
                if cut == _UNIT_BYTES - 1:
                    raise
        raise AssertionError

    def sections(self, encoding: str) -> Iterator[str]:
        """The text in storable form, in parts that are not empty. Raises DocumentError if the bytes
        do not fit the encoding, or if the text is too long."""
        text, retry_at, chars, is_first = "", SECTION_CHARS, 0, True
        for decoded in _decoded(self.blocks(), encoding, name=self.name):
            text += decoded
            while len(text) >= retry_at:
                end = _section_end(text[:retry_at])
                if not end:
                    retry_at *= 2
                    continue
                chars += end
                if chars > self.max_chars:
                    raise too_long(self.name, self.max_chars)
                yield storable(text[:end].removeprefix("\ufeff") if is_first else text[:end])
                text, retry_at, is_first = text[end:], SECTION_CHARS, False
        if chars + len(text) > self.max_chars:
            raise too_long(self.name, self.max_chars)
        if last := storable(text.removeprefix("\ufeff") if is_first else text):
            yield last

    def measured(self, encoding: str, check: Callable[[], None]) -> "Measures":
        """Decode all of it; `check` is called for each section. Raises DocumentError."""
        letters, slices = 0, []
        for section in self.sections(encoding):
            check()
            letters += sum(map(len, section.split()))
            slices.append(section[:_SLICE_CHARS])
        if not letters:
            raise DocumentError(
                f"{self.name}: has no text in it. There is nothing to ingest; leave it out."
            )
        every = max(1, len(slices) // _SLICES)
        return Measures(letters=letters, sample="\n".join(slices[::every]))


@dataclass(frozen=True, kw_only=True)
class Measures:
    letters: int
    """Characters that are not white space."""
    sample: str
    """Slices from all parts of the text."""


def metadata_of(encoding: str) -> Metadata:
    """Metadata of the document."""
    return {
        DocumentKey.MEDIA_TYPE.value: PLAIN_TEXT.media_types[0],
        DocumentKey.ENCODING.value: encoding,
    }


class _Looks:
    """Collects what the bytes show of their encoding."""

    def __init__(self) -> None:
        self.head = b""
        self.nul_at: int | None = None
        self.bad_at, self.bad_byte = 0, 0
        """The offset and the value of the first byte that is not UTF-8."""
        self._is_valid = self._is_ascii = True
        self._has_signs = False
        self._lines: list[bytes] = []
        """Some lines with non-ASCII bytes, or with escapes of seven-bit encodings."""
        self._lines_bytes = self._size = 0
        self._decoder = codecs.getincrementaldecoder("utf-8")()

    def add(self, block: bytes) -> None:
        if len(self.head) < _SAMPLE_BYTES:
            self.head += block[: _SAMPLE_BYTES - len(self.head)]
        if self.nul_at is None and b"\0" in block:
            self.nul_at = self._size + block.index(b"\0")
        if self._is_valid:
            try:
                self._decoder.decode(block)
            except UnicodeDecodeError as error:
                # The decoder received this block after the rest of the one before.
                at = self._size + len(block) - len(error.object)
                self.bad_at, self.bad_byte = at + error.start, error.object[error.start]
                self._is_valid = False
        is_ascii = block.isascii()
        has_signs = is_ascii and any(sign in block for sign in _SEVEN_BIT_SIGNS)
        if (has_signs or not is_ascii) and self._lines_bytes < _SAMPLE_BYTES:
            self._keep_lines(block)
        self._is_ascii &= is_ascii
        self._has_signs |= has_signs
        self._size += len(block)

    def _keep_lines(self, block: bytes) -> None:
        """Without the first and the last line of the block, which may be incomplete."""
        for line in block.split(b"\n")[1:-1]:
            if not line.isascii() or any(sign in line for sign in _SEVEN_BIT_SIGNS):
                self._lines.append(line)
                self._lines_bytes += len(line) + 1
                if self._lines_bytes >= _SAMPLE_BYTES:
                    return

    @property
    def is_utf8(self) -> bool:
        return self._is_valid and self.nul_at is None and not (self._is_ascii and self._has_signs)

    @property
    def is_wide(self) -> bool:
        """Whether its units may have two or four bytes."""
        return b"\0" in self.head or self.head.startswith((b"\xff\xfe", b"\xfe\xff"))

    def sample(self, *, whole_lines: bool) -> bytes:
        """Bytes that show the encoding; from the beginning of the text where necessary."""
        if self.is_wide:
            self.head = self.head[: len(self.head) // _UNIT_BYTES * _UNIT_BYTES]
        if self.is_wide or not (whole_lines and self._lines):
            return self.head
        return b"\n" + b"\n".join(self._lines) + b"\n"  # none of them begins with a byte order mark


def _decoded(blocks: Iterable[bytes], encoding: str, *, name: str) -> Iterator[str]:
    """The text in parts, with `\\n` as line ends."""
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder(encoding)(), translate=True)
    size = 0

    def decoded(block: bytes, *, is_last: bool = False) -> str:
        try:
            text = decoder.decode(block, final=is_last)
        except UnicodeDecodeError as error:
            at = size - len(error.object) + error.start
            raise DocumentError(
                f"{name}: cannot be read as {encoding}, which it seems to be: byte "
                f"0x{error.object[error.start]:02x} at offset {at:,} does not fit. Save the file "
                "as UTF-8."
            ) from error
        if encoding == "cp932" and NO_CP932.search(text) is not None:
            raise DocumentError(
                f"{name}: cannot be read as {encoding}, which it seems to be: some bytes before "
                f"offset {size:,} are no characters. Save the file as UTF-8."
            )
        return text

    for block in blocks:
        size += len(block)
        yield decoded(block)
    yield decoded(b"", is_last=True)


def _section_end(text: str) -> int:
    """The last offset where the text can be divided: before a blank line, else before a line end, a
    space, or any character that does not combine with the one before; 0 if there is none."""
    for sign in ("\n\n", "\n", " "):
        end = text.rfind(sign, len(text) // 2)
        while end > 0 and text[end - 1] == sign[0]:
            end -= 1
        if end > 0:
            return end
    for end in range(len(text) - _NEAR_CHARS, len(text) - _NEAR_CHARS - _TRIED_PLACES, -1):
        before, behind = text[end - _NEAR_CHARS : end], text[end : end + _NEAR_CHARS]
        if nfc(before + behind) == nfc(before) + nfc(behind):
            return end
    return 0
