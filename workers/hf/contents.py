"""The bytes of a binary input: those of an upload, or base64."""

from typing import Any
from uuid import UUID

from shared import base64_data, files
from shared.errors import InvalidInput, NotFound
from workers.process import Process


def read(process: Process, value: Any) -> bytes:
    """Raises InvalidInput for what is no base64, and for an upload that is not there."""
    if isinstance(value, dict):
        return _upload(process, UUID(str(value["file_id"])))
    return base64_data.decode(str(value))


def _upload(process: Process, file_id: UUID) -> bytes:
    try:
        with process.ledger.read() as session:
            path = files.get(session, file_id).path
        return process.storage.read(path)
    except NotFound as error:
        raise InvalidInput(error.message) from error
