"""Base64 as programs write it: in lines, with spaces, unpadded, with the URL-safe alphabet, or as a
`data:` URL. What it stands for does not depend on which.
"""

import base64
import binascii
import re
from typing import Final
from urllib.parse import unquote_to_bytes

from shared.errors import InvalidInput

HEAD_CHARS: Final = 512
"""How long what stands before the data of a `data:` URL may be (its type and parameters)."""
LINE_CHARS: Final = 32
"""Shorter lines are rather words, one a line, than base64."""

_DATA_URL: Final = re.compile(r"\s*data:([^,]*),", re.IGNORECASE)
_URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")
_SPACE: Final = b" \t\r\n\v\f"
_LINES: Final = re.compile(r"[A-Za-z0-9+/_-]+(?:\r?\n[A-Za-z0-9+/_-]+)*={0,2}\s*", re.ASCII)


def decode(text: str) -> bytes:
    """The bytes that a text stands for. Raises InvalidInput where it is no base64."""
    try:
        data = _data(text).translate(_URL_SAFE, _SPACE).rstrip(b"=")
        padded = data + b"=" * (-len(data) % 4)
        decoded = base64.b64decode(padded, validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    if not decoded:
        raise InvalidInput(
            'this is no base64; send the file in base64, or as {"file_id": "..."} of an upload.'
        )
    return decoded


def is_surely(text: str) -> bool:
    """Whether a text is base64 that nobody would write as words: a `data:` URL, or lines of one
    length without spaces."""
    if data_url := _DATA_URL.match(text[:HEAD_CHARS]):
        return _is_base64_url(data_url[1])
    if not _LINES.fullmatch(text):
        return False
    *lines, last = text.split()
    size = len(lines[0]) if lines else len(last)
    return size >= LINE_CHARS and len(last) <= size and all(len(line) == size for line in lines)


def _data(text: str) -> bytes:
    data_url = _DATA_URL.match(text[:HEAD_CHARS])
    if data_url is None:
        return text.encode("ascii")
    if not _is_base64_url(data_url[1]):
        raise ValueError("the data of this URL is written in another way")
    data = text[data_url.end() :].encode("ascii")
    return unquote_to_bytes(data) if b"%" in data else data


def _is_base64_url(head: str) -> bool:
    return head.rpartition(";")[2].strip().lower() == "base64"
