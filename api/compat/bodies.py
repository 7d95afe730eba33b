"""Bodies as programs send them to the inference API: JSON, a text, or the bytes of a file.

Many send JSON without saying so (`requests.post(url, data=json.dumps(...))`, `curl -d`), so what
is not called JSON, audio or an image is looked at. A body is spooled to disk while it comes.
"""

import base64
import binascii
import io
import re
from dataclasses import dataclass, field
from tempfile import SpooledTemporaryFile
from typing import IO, Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from api.body import parse
from shared.config import Settings
from shared.errors import InvalidInput, TooLarge
from shared.hf import BINARY, Task

SPOOL_BYTES = 2**20
INLINE_CHARS = 64 * 1024
"""Longer base64 becomes an upload: rows of jobs, and lists of them, are no place for audio."""
BASE64 = re.compile(r"(?:data:[\w/.+;=-]{0,200},)?([A-Za-z0-9+/]+={0,2})", re.ASCII)
MEDIA = ("audio/", "image/", "video/")
FORM = "multipart/form-data"
UTF8_MARK = b"\xef\xbb\xbf"
SEND = 'Send {"inputs": ...} as JSON, or the bytes of an audio file or an image.'


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What a body asks for: with `file` instead of `inputs` where those are a file's bytes."""

    inputs: Any = None
    file: IO[bytes] | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    waits: bool | None = None
    """What `options.wait_for_model` says, if it is there."""


async def receive(request: Request) -> UploadFile:
    """The whole body, from its start. Close it when done."""
    # Typeshed's spooled file is no BinaryIO; it is what Starlette's own uploads are made of.
    spool: Any = SpooledTemporaryFile(max_size=SPOOL_BYTES)  # noqa: SIM115  (closed with the body)
    body = UploadFile(spool, size=0)
    try:
        async for block in request.stream():
            await body.write(block)
        await body.seek(0)
    except ClientDisconnect as error:
        await body.close()
        raise HTTPException(400, "The body broke off.") from error
    except BaseException:
        await body.close()
        raise
    return body


def read(body: UploadFile, content_type: str, task: Task | None, settings: Settings) -> Asked:
    """What a received body asks for. Raises InvalidInput, TooLarge, or MalformedBody."""
    type_ = content_type.partition(";")[0].strip().lower()
    if not body.size:
        raise InvalidInput(f"The body is empty. {SEND}")
    if type_ == FORM:
        raise InvalidInput(f"The body is a form. {SEND}")
    if _is_json(type_, body):
        return _of_json(body, task, settings)
    if type_ == "text/plain":
        _check_size(body.size, settings)
        return Asked(inputs=_decoded(body.file.read()))
    return Asked(file=body.file)


def media_type(content_type: str | None) -> str | None:
    """The type of a file's bytes, where the sender knew it (`curl` calls all it sends a form)."""
    return content_type if content_type and content_type.lower().startswith(MEDIA) else None


def _is_json(type_: str, body: UploadFile) -> bool:
    if type_ == "application/json" or type_.endswith("+json"):
        return True
    if type_.startswith(MEDIA):
        return False
    head = body.file.read(64).removeprefix(UTF8_MARK).lstrip()
    body.file.seek(0)
    return head.startswith(b"{")


def _of_json(body: UploadFile, task: Task | None, settings: Settings) -> Asked:
    asked = parse(body.file.read())
    if not isinstance(asked, dict):
        raise InvalidInput(f"The body is no object. {SEND}")
    inputs = asked.pop("inputs", None)
    parameters = _object(asked, "parameters")
    waits = _object(asked, "options").get("wait_for_model")
    if waits is not None and not isinstance(waits, bool):
        raise InvalidInput("options.wait_for_model must be true or false.")
    file = _file_of(inputs, task)
    if file is None:
        _check_size(body.size or 0, settings)
    return Asked(
        inputs=None if file else inputs,
        file=file,
        # Some tasks' parameters stand beside the inputs.
        parameters=asked | parameters,
        waits=waits,
    )


def _object(asked: dict[str, Any], name: str) -> dict[str, Any]:
    value = asked.pop(name, None)
    if value is not None and not isinstance(value, dict):
        raise InvalidInput(f"{name} must be an object.")
    return value or {}


def _file_of(inputs: Any, task: Task | None) -> IO[bytes] | None:
    """The bytes that long base64 stands for; None for anything else."""
    if not isinstance(inputs, str) or len(inputs) <= INLINE_CHARS:
        return None
    if task is not None and task not in BINARY:
        return None
    found = BASE64.fullmatch(inputs)
    if found is None:
        return None
    try:
        return io.BytesIO(base64.b64decode(found[1], validate=True))
    except binascii.Error:
        return None


def _check_size(size: int, settings: Settings) -> None:
    if size > settings.max_body_bytes:
        raise TooLarge(
            f"The body is larger than {settings.max_body_bytes / 2**20:g} MiB. Send less at once, "
            "or raise SLUICE_MAX_BODY_BYTES on the server."
        )


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise InvalidInput(f"The text is not UTF-8 (byte {error.start}).") from error
