"""Uploads: kept and forgotten; their names and content types, made fit to be stored and sent again.

A name is a document's identity (`docs/guide.md`), so slashes and all scripts stay; only what no
name can hold is taken out, and the letters are in Unicode's normal form C, as those of macOS are
not. No name is ever used as a path.
"""

import re
from contextlib import suppress
from urllib.parse import quote

from api.deps import Parts
from shared import files
from shared.bounds import NAME_LIMIT_BYTES
from shared.errors import InvalidInput
from shared.files import Readable
from shared.normal import nfc
from shared.tables import File

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
CONTENT_TYPE = re.compile(
    r"[\w.+-]{1,64}/[\w.+-]{1,64}(\s*;\s*[\w.-]{1,64}=[\w.\"-]{1,64}){0,4}", re.A
)
NAME_CHARS = 1024
DEFAULT_TYPE = "application/octet-stream"


def keep(parts: Parts, source: Readable, *, name: str, content_type: str | None) -> File:
    """Store a stream and record it. Raises what `Storage.store` does."""
    stored = parts.storage.store(source, name=name, limit_bytes=parts.settings.max_file_bytes)
    try:
        with parts.ledger.begin() as session:
            return files.record(
                session, stored, name=name, content_type=clean_content_type(content_type)
            )
    except BaseException:
        forget(parts, stored.path)
        raise


def forget(parts: Parts, path: str) -> None:
    """Bytes without a row harm nobody; failing to remove them is no error of the request."""
    with suppress(OSError):
        parts.storage.delete(path)


def forget_folder(parts: Parts, path: str) -> None:
    """As `forget`, with all that is in it."""
    with suppress(OSError):
        parts.storage.delete_folder(path)


def clean_name(name: str | None) -> str:
    """Raises InvalidInput where nothing is left, or too much."""
    # Browsers, curl and httpx write a quotation mark so, and nothing else but line breaks.
    cleaned = nfc(CONTROL.sub("", (name or "").replace("%22", '"')).strip())
    if not cleaned:
        raise InvalidInput("The part `file` has no file name; give it one (`filename=`).")
    if len(cleaned) > NAME_CHARS:
        raise InvalidInput(f"The file name is longer than {NAME_CHARS} characters; shorten it.")
    if len(cleaned.encode()) > NAME_LIMIT_BYTES:
        raise InvalidInput(f"The file name is longer than {NAME_LIMIT_BYTES:,} bytes; shorten it.")
    return cleaned


def clean_content_type(value: str | None) -> str | None:
    return value if value and CONTENT_TYPE.fullmatch(value) else None


def disposition(name: str) -> str:
    """`attachment`, so that an uploaded page never runs as one of the API's own."""
    return f"attachment; filename*=UTF-8''{quote(name, safe='')}"
