"""The bytes of a binary input: those of an upload, or base64."""

from typing import Any
from uuid import UUID

from shared import base64_data, files
from shared.errors import InvalidInput, NotFound
from shared.kinds.hf import Task
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


# What kind of file some bytes are, by how they begin.

_BEGINNINGS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"fLaC", "audio/flac"),
    (8, b"WAVE", "audio/wav"),
    (0, b"OggS", "audio/ogg"),
    (0, b"ID3", "audio/mpeg"),
    (0, b"\xff\xfb", "audio/mpeg"),
    (0, b"\xff\xf3", "audio/mpeg"),
    (0, b"\x1aE\xdf\xa3", "audio/webm"),
    (4, b"ftyp", "audio/m4a"),
    (0, b"\x89PNG", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF8", "image/gif"),
    (8, b"WEBP", "image/webp"),
    (0, b"BM", "image/bmp"),
    (0, b"II*\0", "image/tiff"),
    (0, b"MM\0*", "image/tiff"),
)


def media_type(task: Task, data: bytes) -> str:
    """Never none: where it is not known, what the hub takes for any audio or image."""
    for at, beginning, name in _BEGINNINGS:
        if data.startswith(beginning, at):
            return name
    return "audio/x-audio" if task is Task.SPEECH_RECOGNITION else "image/x-image"
