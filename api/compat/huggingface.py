"""The dialect of Hugging Face's inference API: its clients need nothing changed but the URL.

Each request waits for a job in the lane `interactive`. If the client disconnects, or
SLUICE_COMPAT_WAIT_S is over, the job goes on.
"""

import io
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from tempfile import SpooledTemporaryFile
from typing import IO, Annotated, Any

from fastapi import APIRouter, Header, Path, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from api.compat import calls
from api.compat.calls import Caller, CallerDep
from api.compat.dialect import Dialect, Problem, ProblemError
from api.compat.openai.completions import create_chat_completion
from api.deps import Parts, PartsDep
from api.http.answers import result_response
from api.http.body import MalformedBody, check_structure, parse
from shared import bounds, named_models
from shared.bounds import shown
from shared.config import HttpSettings
from shared.errors import InvalidInput, NotFound, TooLarge
from shared.jobs.submission import NewJob, Submitted
from shared.kinds.hf import HF, TASKS, Task, takes_files
from shared.kinds.rag import RAG_PREFIX
from shared.models.providers import HF as HF_PROVIDER
from shared.models.providers import is_reference
from shared.openai.chat import ChatRequest
from shared.redis import events
from shared.tables import File, Job
from shared.vocabulary import State

# The dialect: errors are `{"error": "..."}`.

CREDENTIALS = "Invalid credentials in Authorization header. "
"""Clients of that API look for these words."""


def _error(problem: Problem) -> dict[str, Any]:
    words = CREDENTIALS if problem.status == 401 else ""
    return {"error": words + problem.detail, **problem.fields}


HUGGING_FACE = Dialect(
    name="huggingface",
    summary="The inference API of Hugging Face, on its own paths",
    tag="compatible",
    prefixes=("/models/", "/pipeline/"),
    routers=("api.compat.huggingface:router",),
    error=_error,
    error_schema={
        "type": "object",
        "required": ["error"],
        "properties": {"error": {"type": "string"}, "estimated_time": {"type": "number"}},
    },
    # That API answers 400 to everything that is wrong with the content of a request.
    statuses={422: 400},
    descriptions={
        400: "The inputs or parameters are wrong, or are not of the model's task",
        404: "No such model",
        409: "The Idempotency-Key was used for another request",
        500: "The job failed",
        503: "The model is loading (`estimated_time`), or a server does not answer",
        504: "The job runs on; its id is in the header x-sluice-job-id",
    },
    takes_files=True,
)

# Bodies: JSON, a text, or the bytes of a file.
#
# Many programs send JSON with another content type (`requests.post(url, data=json.dumps(...))`,
# `curl -d`), so a body whose type is not JSON, audio, image or video is inspected. As in the
# original API, a body without `inputs` is the inputs itself: a string or a list, a text, or the
# object that a task takes. A body is spooled to disk while it arrives.

SPOOL_BYTES = 2**20
FILE_BODY_VALUES = 1000
"""How many JSON values a body with a file in base64 may have, for parameters and options."""
INLINE_CHARS = 64 * 1024
"""Longer base64 becomes an upload, so that rows of jobs stay small."""
MEDIA = ("audio/", "image/", "video/")
FORM = "multipart/form-data"
FIELDS = "application/x-www-form-urlencoded"
UTF8_MARK = b"\xef\xbb\xbf"
HEAD_BYTES = 64
BINARY_CHARS = re.compile("[\x00-\x08\x0e-\x1a\x1c-\x1f]")
"""Control characters that do not occur in texts."""
OBJECTS = {name: task.input.fields for name, task in TASKS.items() if task.input.fields}
"""Task whose input is an object -> the fields of the object."""
SEND = 'Send {"inputs": ...} as JSON, or the bytes of an audio file or an image.'


@dataclass(frozen=True, kw_only=True)
class Payload:
    """The content of a body. `file` is set instead of `inputs` if those are the bytes of a file."""

    inputs: Any = None
    file: IO[bytes] | None = None
    parameters: dict[str, Any] = field(default_factory=dict)
    waits: bool | None = None
    """The option `wait_for_model`, if it was sent."""


async def receive(request: Request) -> UploadFile:
    """Read the whole body into a spooled file, which the caller has to close."""
    # `Any`, because typeshed's SpooledTemporaryFile is no BinaryIO, which UploadFile asks for.
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


def read(body: UploadFile, content_type: str, task: Task | None, settings: HttpSettings) -> Payload:
    """The content of a body. Raises InvalidInput, TooLarge, or MalformedBody."""
    type_ = content_type.partition(";")[0].strip().lower()
    if not body.size:
        raise InvalidInput(f"The body is empty. {SEND}")
    if type_ == FORM:
        raise InvalidInput(f"The body is a form. {SEND}")
    if _is_json(type_, body):
        return _of_json(_parse(body, settings), body, task, settings)
    text = None if type_.startswith(MEDIA) else _text(type_, body, task, settings)
    if text is None:
        return Payload(file=body.file)
    if type_ == FIELDS and text.startswith("inputs="):
        raise InvalidInput(f"The body is a form. {SEND}")
    return _of_json(_value(text), body, task, settings)


def media_type_of(content_type: str | None) -> str | None:
    """The content type if it is one of a file; `curl` sends everything as a form."""
    return content_type if content_type and content_type.lower().startswith(MEDIA) else None


def _is_json(type_: str, body: UploadFile) -> bool:
    if type_ == "application/json" or type_.endswith("+json"):
        return True
    if type_.startswith(MEDIA):
        return False
    head = body.file.read(HEAD_BYTES).removeprefix(UTF8_MARK).lstrip()
    body.file.seek(0)
    return head.startswith(b"{")


def _text(type_: str, body: UploadFile, task: Task | None, settings: HttpSettings) -> str | None:
    """The body as text; None for the bytes of a file. If neither the content type nor the task
    decide that, the characters do."""
    is_text = type_ == "text/plain" or (task is not None and not takes_files(task))
    size = body.size or 0
    if size > settings.max_body_bytes and not is_text:
        return None
    _check_size(size, settings)
    if not is_text and _begins_like_a_file(body, task):
        return None
    data = body.file.read()
    body.file.seek(0)
    if is_text:
        return _decode(data)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return None
    return None if BINARY_CHARS.search(text) else text


def _begins_like_a_file(body: UploadFile, task: Task | None) -> bool:
    """Whether the first bytes are those of a file rather than of a text."""
    head = body.file.read(HEAD_BYTES)
    body.file.seek(0)
    if task is not None:
        # No format of audio or images begins like a string or a list in JSON.
        return not head.removeprefix(UTF8_MARK).lstrip().startswith((b'"', b"["))
    return BINARY_CHARS.search(head.decode("utf-8", "ignore")) is not None


def _parse(body: UploadFile, settings: HttpSettings) -> Any:
    """The JSON of a body. A body above the limit is refused before it is parsed, unless nearly all
    of it is one string: a file in base64."""
    data = body.file.read()
    if len(data) > settings.max_body_bytes:
        try:
            check_structure(data, limit_values=FILE_BODY_VALUES)
        except MalformedBody:
            _check_size(len(data), settings)
    return parse(data, limit_values=settings.max_body_values)


def _value(text: str) -> Any:
    """The JSON string or list that a text is, otherwise the text: one may begin with `[MASK]`."""
    if text.lstrip().startswith(('"', "[")):
        try:
            return parse(text.encode())
        except MalformedBody:
            return text
    return text


def _of_json(value: Any, body: UploadFile, task: Task | None, settings: HttpSettings) -> Payload:
    if isinstance(value, bool | None):
        raise InvalidInput(f"The body is {'null' if value is None else 'a boolean'}. {SEND}")
    if not isinstance(value, dict):
        # The original API treats a number as a text of digits, too.
        value = {"inputs": value if isinstance(value, str | list) else str(value)}
    inputs = value.pop("inputs", None)
    if inputs is None:
        inputs = _bare_object(value, task)
    if value.pop("stream", None):
        raise InvalidInput(
            "stream must be false: the answer comes whole. Submit the job with POST /v1/jobs to "
            "follow it while it runs."
        )
    parameters = _object(value, "parameters")
    waits = _object(value, "options").get("wait_for_model")
    if waits is not None and not isinstance(waits, bool):
        raise InvalidInput("options.wait_for_model must be true or false.")
    file = _file_of(inputs, task)
    if file is None:
        _check_size(body.size or 0, settings)
    return Payload(
        inputs=None if file else inputs,
        file=file,
        # Clients of some tasks send parameters beside the inputs.
        parameters=value | parameters,
        waits=waits,
    )


def _bare_object(fields: dict[str, Any], task: Task | None) -> dict[str, Any] | None:
    """Remove and return inputs that are fields of the body itself, as older clients send them."""
    for of_task, names in OBJECTS.items():
        if task == of_task or (task is None and set(names) <= fields.keys()):
            return {name: fields.pop(name) for name in names if name in fields} or None
    return None


def _object(fields: dict[str, Any], name: str) -> dict[str, Any]:
    value = fields.pop(name, None)
    if value is not None and not isinstance(value, dict):
        raise InvalidInput(f"{name} must be an object.")
    return value or {}


def _file_of(inputs: Any, task: Task | None) -> IO[bytes] | None:
    """The bytes of inputs that are long base64; None for anything else. Raises InvalidInput if the
    task takes only files and the inputs are no base64."""
    if not isinstance(inputs, str) or len(inputs) <= INLINE_CHARS:
        return None
    if takes_files(task):
        try:
            return io.BytesIO(bounds.decode(inputs))
        except InvalidInput as error:
            raise InvalidInput(f"inputs: {error.message}") from None
    if task is None and bounds.is_surely(inputs):
        with suppress(InvalidInput):
            return io.BytesIO(bounds.decode(inputs))
    return None


def _check_size(size: int, settings: HttpSettings) -> None:
    if size > settings.max_body_bytes:
        raise TooLarge(
            f"The body is larger than {settings.max_body_bytes / 2**20:g} MiB. Send less at once, "
            "or raise SLUICE_MAX_BODY_BYTES on the server."
        )


def _decode(data: bytes) -> str:
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


# A request as a job, whose bare result is the answer.
#
# A file that was sent as the body is an upload, which is deleted when the job has succeeded. If the
# job fails or goes on, the upload stays for a retry, until retention deletes it.

NO = {"0", "false", "no"}
UPLOAD_NAME = "inputs"


@dataclass(frozen=True, kw_only=True)
class TaskCall:
    """A request without its body."""

    model: str
    task: Task | None
    wait_for_model: str | None = None
    """The header `x-wait-for-model`."""

    def waits(self, payload: Payload) -> bool:
        """Whether to wait for the model to load: by the header, else by the option, else yes."""
        if self.wait_for_model is not None:
            return self.wait_for_model.strip().lower() not in NO
        return payload.waits is not False


def call_of(model_id: str, task: str | None, wait_for_model: str | None = None) -> TaskCall:
    """Raises NotFound without a model, InvalidInput for an unknown task."""
    model = model_id.rstrip("/")
    if not model:
        raise NotFound("Name a model in the path: POST /models/<owner>/<name>.")
    try:
        known = None if task is None else Task(task)
    except ValueError:
        tasks = ", ".join(Task)
        raise InvalidInput(f"There is no task {shown(task)}; there are {tasks}.") from None
    return TaskCall(model=model, task=known, wait_for_model=wait_for_model)


async def run(parts: Parts, caller: Caller, call: TaskCall) -> Response:
    """The answer of the model. Raises ProblemError if the job fails or does not end in time."""
    parts.followers.check_room()
    content_type = caller.http.headers.get("content-type", "")
    body = await receive(caller.http)
    try:
        payload = await run_in_threadpool(read, body, content_type, call.task, parts.settings)
        waits = call.waits(payload)
        if not waits:
            await _check_loaded(parts, call.model, {})
        made, upload = await run_in_threadpool(
            _submit, parts, caller, call, payload, media_type_of(content_type)
        )
    finally:
        await body.close()
    # If the client is told that the model is loading, the job goes on: it makes the worker load the
    # model for the next request.
    check_loaded = partial(_check_loaded, parts, call.model, calls.headers_of(made))
    return await calls.when_ended(
        parts,
        caller,
        made,
        partial(_answer, upload=upload),
        meanwhile=None if waits else check_loaded,
        keeps_on=True,
    )


def _submit(
    parts: Parts, caller: Caller, call: TaskCall, payload: Payload, media_type: str | None
) -> tuple[Submitted, File | None]:
    """Submit the job. Returns it with its upload, if there is one."""

    def new(inputs: Any, identity: Any) -> NewJob:
        values = {
            "task": call.task,
            "model": call.model,
            "inputs": inputs,
            "parameters": payload.parameters,
        }
        identity = [call.model, call.task, identity, payload.parameters]
        return calls.new_job(parts, caller, HF, calls.input_of(HF, values), identity=identity)

    if payload.file is None:
        return calls.submit_now(parts, new(payload.inputs, payload.inputs)), None
    return calls.submit_upload(
        parts,
        payload.file,
        lambda upload: new({"file_id": str(upload.id)}, {"sha256": upload.sha256}),
        name=UPLOAD_NAME,
        content_type=media_type,
    )


def _answer(parts: Parts, job: Job, headers: Mapping[str, str], *, upload: File | None) -> Response:
    """The answer for a job that has ended; warnings are in headers `x-warning`. Raises ProblemError
    if the job has not succeeded."""
    if job.state != State.SUCCEEDED:
        raise calls.naming_model(calls.failure_of(job, headers), job.input["model"])
    response = result_response(parts, job, headers)
    for warning in calls.shown_warnings(job.warnings, str(job.id)):
        response.headers.append(calls.WARNING, warning)
    if upload is not None:
        calls.forget_upload(parts, upload)
    return response


async def _check_loaded(parts: Parts, model: str, headers: Mapping[str, str]) -> None:
    """Raises ProblemError while the model is being loaded."""
    loading = await events.of(parts.redis, model)
    if loading is not None:
        raise ProblemError(
            Problem(
                status=503,
                detail=f"Model {loading.model} is currently loading",
                headers={"Retry-After": str(math.ceil(loading.estimated_s)), **headers},
                fields={"estimated_time": loading.estimated_s},
            )
        )


router = APIRouter()

_TEXT = {"type": "string"}
_TEXTS = {"type": "array", "items": _TEXT}
JSON_BODY = {
    "schema": {
        "anyOf": [
            {
                "type": "object",
                "required": ["inputs"],
                "properties": {
                    "inputs": {"not": {"type": "null"}},
                    "parameters": {"type": "object"},
                    "options": {
                        "type": "object",
                        "properties": {"wait_for_model": {"type": "boolean", "default": True}},
                    },
                },
            },
            *(
                {
                    "type": "object",
                    "description": f"The inputs of {task} alone",
                    "required": sorted(names),
                    "properties": TASKS[task].input.properties(),
                }
                for task, names in OBJECTS.items()
            ),
            _TEXT | {"description": "The inputs alone"},
            _TEXTS | {"description": "The inputs alone", "minItems": 1},
        ]
    },
    "example": {"inputs": "We open at nine."},
}
# One content type for all raw bodies, because generators of clients know it.
BYTES = {
    "schema": {
        "type": "string",
        "format": "binary",
        "description": "The bytes of an audio file or an image, better with its own type "
        "(`audio/...`, `image/...`); or, as `text/plain`, a text",
    }
}
DOCUMENTED: dict[str, Any] = {
    "responses": HUGGING_FACE.documented(400, 401, 404, 409, 413, 429, 500, 503, 504)
    | {
        200: {
            "description": "The output of the task; `x-warning` tells of what was cut off",
            "content": {"application/json": {"schema": {}}},
        }
    },
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": JSON_BODY,
                "application/octet-stream": BYTES,
            },
        }
    },
}


WaitForModel = Annotated[
    str | None,
    Header(
        alias="x-wait-for-model",
        description="`false`: while the model is being loaded, answer 503 and `estimated_time`. "
        "Else the answer comes when it is loaded.",
    ),
]
TaskName = Annotated[str, Path(json_schema_extra={"enum": [task.value for task in Task]})]


class ChatOfModel(ChatRequest):
    """The model is named by the path; the body's `model` is ignored, as TGI ignores `tgi`."""

    model: str = "tgi"


@router.post(
    "/models/{model_id:path}/v1/chat/completions",
    name="chat_with_model",
    responses=HUGGING_FACE.documented(400, 401, 404, 409, 413, 429, 500, 503, 504)
    | {200: {"description": "The answer of OpenAI's API, or a stream of it"}},
)
async def chat_with_model(
    parts: PartsDep, caller: CallerDep, model_id: str, request: ChatOfModel
) -> Response:
    """`chat_completion` of huggingface_hub, on a model's URL: the name of a model on the hub that
    generation workers hold, or the reference of any other model."""
    is_known = is_reference(model_id) or model_id.startswith(RAG_PREFIX)
    reference = model_id if is_known else HF_PROVIDER.prefix + model_id
    if not is_known and await run_in_threadpool(_is_named, parts, model_id):
        reference = model_id
    with_model = request.model_copy(update={"model": reference})
    return await create_chat_completion(parts, caller, with_model)


def _is_named(parts: Parts, name: str) -> bool:
    with parts.ledger.read() as session:
        return named_models.find(session, name) is not None


# The longer path comes first, because a model's name may have slashes.
@router.post("/models/{model_id:path}/pipeline/{task}", name="run_model_task", **DOCUMENTED)
@router.post("/pipeline/{task}/{model_id:path}", name="run_task", **DOCUMENTED)
async def run_task(
    parts: PartsDep,
    caller: CallerDep,
    model_id: str,
    task: TaskName,
    wait_for_model: WaitForModel = None,
) -> Response:
    """Run a task of a model, as Hugging Face's inference API does."""
    return await run(parts, caller, call_of(model_id, task, wait_for_model))


@router.post("/models/{model_id:path}", **DOCUMENTED)
async def run_model(
    parts: PartsDep, caller: CallerDep, model_id: str, wait_for_model: WaitForModel = None
) -> Response:
    """Run a model's own task, as Hugging Face's inference API does."""
    return await run(parts, caller, call_of(model_id, None, wait_for_model))
