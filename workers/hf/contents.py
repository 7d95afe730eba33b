"""The bytes of a binary input: those of an upload, or base64."""

import base64
import binascii
from typing import Any
from uuid import UUID

from shared import files
from shared.errors import InvalidInput, NotFound
from workers.process import Process

DATA_URL = "data:"


def read(process: Process, value: Any) -> bytes:
    """Raises InvalidInput for what is no base64, and for an upload that is not there."""
    if isinstance(value, dict):
        return _upload(process, UUID(str(value["file_id"])))
    text = str(value)
    if text.startswith(DATA_URL):
        text = text.partition(",")[2]
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise InvalidInput(
            'this is no base64; send the file in base64, or as {"file_id": "..."} of an upload.'
        ) from None


def _upload(process: Process, file_id: UUID) -> bytes:
    try:
        with process.ledger.read() as session:
            path = files.get(session, file_id).path
        return process.storage.read(path)
    except NotFound as error:
        raise InvalidInput(error.message) from error
