"""The kind `batch`: the lines of an uploaded JSONL file, each a job of its own in the lane `bulk`.

A line names an *endpoint*: a path of the API. The endpoint's record says how a body becomes a job,
and how the job's result becomes an answer; `ENDPOINTS` lists them. Lines are checked one by one,
and each mistake is an error that names the line and says what to do.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cache
from importlib import import_module
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, AwareDatetime, Field, ValidationError
from sqlalchemy.orm import Session

from shared import files
from shared.bounds import Line as ShortText
from shared.bounds import SourceName, check_json, cut, shown
from shared.config import BatchSettings, HttpSettings, Settings
from shared.errors import InvalidInput
from shared.kinds.chat import CHAT
from shared.kinds.embed import EMBED
from shared.kinds.hf import HF, TASKS
from shared.kinds.kind import Kind, StepType
from shared.kinds.rag import RAG
from shared.kinds.search import SEARCH
from shared.vocabulary import Lane, Queue, Shape

MIXED = "mixed"
"""The endpoint of a batch whose lines may each name another one."""
WINDOW_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}
FINISH_AHEAD = timedelta(days=366)


# Endpoints


@dataclass(frozen=True, kw_only=True)
class JobSpec:
    """What a line asks for: the input of a kind, without the server's defaults yet.

    `options` is JSON: what the answer needs from the body and the job's input does not have.
    """

    kind: Kind
    input: Shape
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class EndedJob:
    """A job that has succeeded, as endpoints make an answer of it. `options` are those of its
    `JobSpec`, with `base_url`: the address of this server, or empty."""

    id: UUID
    input: Mapping[str, Any]
    result: Any
    created_at: datetime
    options: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A path that lines may name.

    `read` takes the body of a line. It raises InvalidInput, or pydantic's ValidationError.
    """

    url: str
    read: Callable[[Any, Settings], JobSpec]
    answer: Callable[[EndedJob], Any]


def _result(job: EndedJob) -> Any:
    return job.result


def _native(url: str, kind: Kind) -> Endpoint:
    def read(body: Any, _settings: Settings) -> JobSpec:
        return JobSpec(kind=kind, input=kind.input.model_validate(body))

    return Endpoint(url=url, read=read, answer=_result)


RAG_ENDPOINT = _native("/v1/rag", RAG)
SEARCH_ENDPOINT = _native("/v1/search", SEARCH)
EMBED_ENDPOINT = _native("/v1/embed", EMBED)
CHAT_ENDPOINT = _native("/v1/chat", CHAT)

HF_URL = "/v1/hf/"

ENDPOINTS: Mapping[str, str] = {
    "/v1/chat/completions": "shared.openai.chat:CHAT_COMPLETIONS",
    "/v1/completions": "shared.openai.completions:COMPLETIONS",
    "/v1/embeddings": "shared.openai.embeddings:EMBEDDINGS",
    "/v1/rag": "shared.kinds.batch:RAG_ENDPOINT",
    "/v1/search": "shared.kinds.batch:SEARCH_ENDPOINT",
    "/v1/embed": "shared.kinds.batch:EMBED_ENDPOINT",
    "/v1/chat": "shared.kinds.batch:CHAT_ENDPOINT",
    "/v1/responses": "shared.openai.responses:RESPONSES",
}
"""Where the record of each stands, as `module:name`. `/v1/hf/<task>` is made by `_hf_endpoint`."""


def endpoint_of(url: str) -> Endpoint | None:
    """The endpoint of a path; None where there is none."""
    if url.startswith(HF_URL):
        return _hf_endpoint(url.removeprefix(HF_URL))
    return _loaded(ENDPOINTS[url]) if url in ENDPOINTS else None


def normal_url(url: str) -> str:
    """The path as `ENDPOINTS` has it: programs for OpenAI's API may write it with our prefix."""
    return url.removeprefix("/openai")


@cache
def _loaded(name: str) -> Endpoint:
    module, _, attribute = name.partition(":")
    endpoint = getattr(import_module(module), attribute)
    assert isinstance(endpoint, Endpoint), name
    return endpoint


def _hf_endpoint(task: str) -> Endpoint | None:
    if task not in TASKS:
        return None

    def read(body: Any, _settings: Settings) -> JobSpec:
        if not isinstance(body, dict):
            raise InvalidInput('body is to be an object such as {"inputs": "..."}.')
        if body.get("task", task) != task:
            raise InvalidInput(f"body.task is {shown(body['task'])}, and url names {task}.")
        return JobSpec(kind=HF, input=HF.input.model_validate(body | {"task": task}))

    return Endpoint(url=HF_URL + task, read=read, answer=_result)


def endpoints_in_words() -> str:
    return f"{', '.join(ENDPOINTS)} and {HF_URL}<task>"


# The input of the kind


def _known(url: str) -> str:
    normal = normal_url(url)
    if normal != MIXED and endpoint_of(normal) is None:
        raise ValueError(
            f"{shown(url)} is no endpoint of batches; there are {endpoints_in_words()}; or "
            f"{MIXED!r}, where each line may name another one"
        )
    return normal


EndpointName = Annotated[ShortText, AfterValidator(_known)]
WINDOW = r"^[1-9][0-9]{0,6}[smhd]$"


def _window(text: str) -> str:
    if re.fullmatch(WINDOW[1:-1], text) is None:
        raise ValueError(f"{shown(text)} is no time such as 24h, 90m or 3d")
    return text


Window = Annotated[
    str, Field(max_length=8, json_schema_extra={"pattern": WINDOW}), AfterValidator(_window)
]
"""A time to finish in, as `24h`."""


def _storable(moment: datetime) -> datetime:
    """Raises ValueError for dates that cannot be stored. `_check` compares them with today."""
    if not 2000 <= moment.year <= 2999:
        raise ValueError("must be a date between the years 2000 and 2999")
    return moment


class BatchInput(Shape):
    """The lines of an uploaded file. Lines that are not done by `finish_by`, or `completion_window`
    after the submission, expire; the answers of the others stay."""

    file_id: UUID
    endpoint: EndpointName = MIXED
    completion_window: Window | None = None
    finish_by: Annotated[AwareDatetime, AfterValidator(_storable)] | None = None
    output_expires_after_s: Annotated[int, Field(ge=3600, le=366 * 86_400)] | None = None
    """How long after they were made its answer files are deleted; retention may be earlier."""


class BatchResult(Shape):
    """How its lines ended. The files are complete shortly after the job has ended."""

    total: int
    succeeded: int
    failed: int
    output_file_id: UUID | None
    error_file_id: UUID | None


def window_s(window: str) -> int:
    return int(window[:-1]) * WINDOW_UNITS[window[-1]]


def _check(job_input: BatchInput, _settings: Settings) -> None:
    now = datetime.now(UTC)
    moment, window = job_input.finish_by, job_input.completion_window
    if moment is not None and window is not None:
        raise InvalidInput("Give either input.finish_by or input.completion_window, not both.")
    if moment is not None and not now < moment <= now + FINISH_AHEAD:
        raise InvalidInput(
            f"input.finish_by is to lie ahead, at most {FINISH_AHEAD.days} days; give a moment "
            f"such as {(now + timedelta(days=1)).isoformat(timespec='seconds')}."
        )
    if window is not None and window_s(window) > FINISH_AHEAD.total_seconds():
        raise InvalidInput(
            f"input.completion_window is {window}; a batch has {FINISH_AHEAD.days} days at most."
        )


def _defaults(job_input: BatchInput, settings: BatchSettings) -> dict[str, Any]:
    """`finish_by`, from the completion window or the setting."""
    if job_input.finish_by is not None:
        return {}
    window = job_input.completion_window
    left_s = settings.batch_finish_s if window is None else window_s(window)
    return {"finish_by": (datetime.now(UTC) + timedelta(seconds=left_s)).isoformat()}


def _require(session: Session, inputs: Sequence[Mapping[str, Any]]) -> None:
    files.require(session, [UUID(input_["file_id"]) for input_ in inputs])


RUN_STEP = "batch.run"
CLOSING = StepType(
    name="batch.close",
    queue=Queue.CONTROL,
    handler="workers.batches:BATCH_CLOSE",
    is_absorbed=True,
)

BATCH = Kind(
    name="batch",
    summary="the lines of a file, each a job",
    input=BatchInput,
    result=BatchResult,
    steps=[
        StepType(name=RUN_STEP, queue=Queue.CONTROL, handler="workers.batches:BATCH_RUN"),
        CLOSING,
    ],
    example={"file_id": "0198c0de-0000-7000-8000-000000000000", "endpoint": "/v1/embed"},
    check=_check,
    defaults=_defaults,
    require=_require,
    lane=Lane.BULK,
    file_path="$.file_id",
    closing_step=CLOSING,
)


# Lines


class LineShape(Shape):
    custom_id: SourceName
    """Returned exactly as it was sent, also if it is not in NFC: programs look answers up by it."""
    method: Literal["POST"] = "POST"
    url: ShortText
    body: Any


@dataclass(frozen=True, kw_only=True)
class ValidLine:
    custom_id: str
    url: str
    request: JobSpec
    job_input: dict[str, Any]
    """The input of its job, with the server's defaults."""

    @property
    def queue_model(self) -> str:
        """What the line waits for: see `BatchLine.queue_model`."""
        model = self.job_input.get("model")
        queue = self.request.kind.first_step.queue.value
        return f"{queue}.{model}" if isinstance(model, str) and model else queue


@dataclass(frozen=True, kw_only=True)
class LineError:
    """What is wrong with a line of the file. `line` counts from 1; None means the whole file."""

    line: int | None
    code: str
    message: str
    param: str | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "line": self.line, "code": self.code, "message": self.message, "param": self.param,
        }  # fmt: skip


class BadLine(InvalidInput):
    """A line of a batch cannot be run."""

    code = InvalidInput.code

    def __init__(self, reason: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.reason = reason
        self.param = param

    def at(self, line: int) -> LineError:
        return LineError(line=line, code=self.reason, message=self.message, param=self.param)


FORM = (
    '{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", '
    '"body": {"model": "...", "messages": [...]}}'
)


def parse_line(raw: bytes, *, endpoint: str, settings: Settings) -> ValidLine:
    """Check a line of a batch whose endpoint is `endpoint`, which may be `MIXED`. Raises
    BadLine."""
    value = _value(raw, settings)
    if not isinstance(value, dict):
        raise BadLine("invalid_json_line", f"is no JSON object. A line reads {FORM}.")
    try:
        line = LineShape.model_validate(value)
    except ValidationError as error:
        raise _bad_field(error, "") from None
    url = normal_url(line.url)
    record = endpoint_of(url)
    if record is None:
        raise BadLine(
            "invalid_url",
            f"url is {shown(line.url)}; there are {endpoints_in_words()}.",
            "url",
        )
    if endpoint not in (MIXED, url):
        raise BadLine(
            "mismatched_url",
            f"url is {shown(line.url)}, and the endpoint of the batch is {endpoint}; make a batch "
            f"for each, or name the endpoint {MIXED!r}.",
            "url",
        )
    try:
        request = record.read(line.body, settings)
        if getattr(request.input, "conversation_id", None) is not None:
            raise InvalidInput(
                "conversation_id is not for batches, whose lines run in any order; send the "
                "messages themselves."
            )
        request.kind.check(request.input, settings)
        job_input = request.input.model_dump(mode="json") | request.kind.defaults(
            request.input, settings
        )
    except ValidationError as error:
        raise _bad_field(error, "body") from None
    except InvalidInput as error:
        param = getattr(error, "param", None)
        raise BadLine(
            "invalid_request", cut(error.message), f"body.{param}" if param else "body"
        ) from error
    return ValidLine(custom_id=line.custom_id, url=url, request=request, job_input=job_input)


def _value(raw: bytes, settings: HttpSettings) -> Any:
    """The JSON of a line, if it can be stored. Raises BadLine."""
    values = raw.count(b",") + raw.count(b"[") + raw.count(b"{")
    if values > settings.max_body_values:
        raise BadLine(
            "too_large",
            f"holds more than {settings.max_body_values:,} values (SLUICE_MAX_BODY_VALUES). Make "
            "several lines of it.",
        )
    try:
        value = json.loads(raw.decode())
    except UnicodeDecodeError:
        raise BadLine("invalid_json_line", "is no UTF-8 text. Save the file as UTF-8.") from None
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, json.JSONDecodeError) else "it is nested too deep"
        raise BadLine(
            "invalid_json_line", f"is no JSON ({cut(reason, 200)}). A line reads {FORM}."
        ) from None
    try:
        return check_json(value, limit_bytes=2**40, limit_depth=128)
    except ValueError as error:
        raise BadLine("invalid_json_line", f"{cut(str(error))}.") from None


def _bad_field(error: ValidationError, within: str) -> BadLine:
    first = error.errors(include_url=False, include_input=False)[0]
    path = ".".join(cut(str(part), 64) for part in (within, *first["loc"]) if part != "")
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return BadLine(
            "missing_required_parameter", f"{path} is missing. A line reads {FORM}.", path
        )
    if first["type"] == "extra_forbidden":
        return BadLine("unknown_parameter", f"{path}: there is no such field; check its name", path)
    return BadLine("invalid_request", f"{path}: {cut(message, 500)}", path or None)
