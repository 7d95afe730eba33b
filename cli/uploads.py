"""Sending one file to the API."""

import io
import mimetypes
from pathlib import Path
from typing import IO

from cli.transport import Transport
from cli.wire import StoredFile
from shared.errors import InvalidInput

_TRIES = 3
"""A server may close the connection on a body it refuses; sending it for a minute is no use."""

# The usual name for these differs between systems, and some systems know none.
_TYPES = {
    ".csv": "text/csv",
    ".htm": "text/html",
    ".html": "text/html",
    ".json": "application/json",
    ".jsonl": "application/x-ndjson",
    ".markdown": "text/markdown",
    ".md": "text/markdown",
    ".ndjson": "application/x-ndjson",
    ".tsv": "text/tab-separated-values",
    ".txt": "text/plain",
    ".xht": "application/xhtml+xml",
    ".xhtml": "application/xhtml+xml",
}


def upload(transport: Transport, source: str | Path | bytes, *, name: str | None) -> StoredFile:
    """Store a file or bytes under a name. Raises `OSError` for a file that cannot be read."""
    if isinstance(source, bytes):
        if name is None:
            raise InvalidInput("Bytes have no name of their own; give name=...")
        return _send(transport, name, io.BytesIO(source))
    with Path(source).open("rb") as stream:
        return _send(transport, name or Path(source).name, stream)


def _send(transport: Transport, name: str, stream: IO[bytes]) -> StoredFile:
    suffix = Path(name).suffix.lower()
    content_type = _TYPES.get(suffix) or mimetypes.guess_type(name)[0]
    answer = transport.json(
        "POST",
        "/v1/files",
        upload=(name, stream, content_type or "application/octet-stream"),
        tries=_TRIES,
    )
    return StoredFile.model_validate(answer)
