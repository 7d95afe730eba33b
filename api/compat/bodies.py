"""Bodies as programs send them to the inference API: JSON, a text, or the bytes of a file.

Many send JSON without saying so (`requests.post(url, data=json.dumps(...))`, `curl -d`), so what
is not called JSON, audio or an image is looked at. What comes without `inputs` is taken for the
inputs, as that API does: a bare string or list, a bare text, or the object that a task takes. A
body is spooled to disk while it comes.
"""

import io
import re
from contextlib import suppress
from dataclasses import dataclass, field
from tempfile import SpooledTemporaryFile
from typing import IO, Any

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from api.body import MalformedBody, check_structure, parse
from shared import base64_data
from shared.config import Settings
from shared.errors import InvalidInput, TooLarge
from shared.hf import BINARY, OBJECTS, Task

SPOOL_BYTES = 2**20
FILE_BODY_VALUES = 1000
"""What stands around a file in base64: parameters and options."""
INLINE_CHARS = 64 * 1024
"""Longer base64 becomes an upload: rows of jobs, and lists of them, are no place for audio."""
MEDIA = ("audio/", "image/", "video/")
FORM = "multipart/form-data"
FIELDS = "application/x-www-form-urlencoded"
UTF8_MARK = b"\xef\xbb\xbf"
HEAD_BYTES = 64
BINARY_CHARS = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f]")
"""Control characters that texts have none of."""
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
        return _of_json(_parsed(body, settings), body, task, settings)
    text = None if type_.startswith(MEDIA) else _text(type_, body, task, settings)
    if text is None:
        return Asked(file=body.file)
    if type_ == FIELDS and text.startswith("inputs="):
        raise InvalidInput(f"The body is a form. {SEND}")
    return _of_json(_value(text), body, task, settings)


def media_type(content_type: str | None) -> str | None:
    """The type of a file's bytes, where the sender knew it (`curl` calls all it sends a form)."""
    return content_type if content_type and content_type.lower().startswith(MEDIA) else None


def _is_json(type_: str, body: UploadFile) -> bool:
    if type_ == "application/json" or type_.endswith("+json"):
        return True
    if type_.startswith(MEDIA):
        return False
    head = body.file.read(HEAD_BYTES).removeprefix(UTF8_MARK).lstrip()
    body.file.seek(0)
    return head.startswith(b"{")


def _text(type_: str, body: UploadFile, task: Task | None, settings: Settings) -> str | None:
    """The body as a text; None for a file's bytes. Where neither type nor task tells which of them
    it is, its characters do."""
    is_text = type_ == "text/plain" or (task is not None and task not in BINARY)
    size = body.size or 0
    if size > settings.max_body_bytes and not is_text:
        return None
    _check_size(size, settings)
    if not is_text and _begins_like_a_file(body, task):
        return None
    data = body.file.read()
    body.file.seek(0)
    if is_text:
        return _decoded(data)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    return None if BINARY_CHARS.search(text) else text


def _begins_like_a_file(body: UploadFile, task: Task | None) -> bool:
    """Most files need not be read to be told from texts."""
    head = body.file.read(HEAD_BYTES)
    body.file.seek(0)
    if task is not None:
        # The bytes of no audio and no image begin like a string or a list in JSON.
        return not head.removeprefix(UTF8_MARK).lstrip().startswith((b'"', b"["))
    return BINARY_CHARS.search(head.decode("utf-8", "ignore")) is not None


def _parsed(body: UploadFile, settings: Settings) -> Any:
    """The JSON of a body. One that is larger than others may be is refused before it is parsed,
    unless nearly all of it is one string: a file in base64."""
    data = body.file.read()
    if len(data) > settings.max_body_bytes:
        try:
            check_structure(data, limit_values=FILE_BODY_VALUES)
        except MalformedBody:
            _check_size(len(data), settings)
    return parse(data, limit_values=settings.max_body_values)


def _value(text: str) -> Any:
    """A string or a list where the text is one in JSON, else the text: `[MASK]` may begin one."""
    if text.lstrip().startswith(('"', "[")):
        try:
            return parse(text.encode())
        except MalformedBody:
            return text
    return text


def _of_json(asked: Any, body: UploadFile, task: Task | None, settings: Settings) -> Asked:
    if isinstance(asked, bool | None):
        raise InvalidInput(f"The body is {'null' if asked is None else 'a boolean'}. {SEND}")
    if not isinstance(asked, dict):
        # A number is a text of digits for that API, too.
        asked = {"inputs": asked if isinstance(asked, str | list) else str(asked)}
    inputs = asked.pop("inputs", None)
    if inputs is None:
        inputs = _bare_object(asked, task)
    if asked.pop("stream", None):
        raise InvalidInput(
            "stream must be false: the answer comes whole. Submit the job with POST /v1/jobs to "
            "follow it while it runs."
        )
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


def _bare_object(asked: dict[str, Any], task: Task | None) -> dict[str, Any] | None:
    """The inputs that stand in the body itself, as older clients send them; taken out of it."""
    for of_task, names in OBJECTS.items():
        if task == of_task or (task is None and names <= asked.keys()):
            return {name: asked.pop(name) for name in names & asked.keys()} or None
    return None


def _object(asked: dict[str, Any], name: str) -> dict[str, Any]:
    value = asked.pop(name, None)
    if value is not None and not isinstance(value, dict):
        raise InvalidInput(f"{name} must be an object.")
    return value or {}


def _file_of(inputs: Any, task: Task | None) -> IO[bytes] | None:
    """The bytes that long base64 stands for; None for anything else. Raises InvalidInput where a
    task takes nothing else."""
    if not isinstance(inputs, str) or len(inputs) <= INLINE_CHARS:
        return None
    if task in BINARY:
        try:
            return io.BytesIO(base64_data.decode(inputs))
        except InvalidInput as error:
            raise InvalidInput(f"inputs: {error.message}") from None
    if task is None and base64_data.is_surely(inputs):
        with suppress(InvalidInput):
            return io.BytesIO(base64_data.decode(inputs))
    return None


def _check_size(size: int, settings: Settings) -> None:
    if size > settings.max_body_bytes:
        raise TooLarge(
            f"The body is larger than {settings.max_body_bytes / 2**20:g} MiB. Send less at once, "
            "or raise SLUICE_MAX_BODY_BYTES on the server."
        )


def _decoded(data: bytes) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"The text is not UTF-8 (byte {error.start}).") from error
    if "\0" in text:
        raise InvalidInput(
            f"The text holds a NUL character (position {text.index(chr(0))}), which cannot be "
            "stored; remove it."
        )
    return text
