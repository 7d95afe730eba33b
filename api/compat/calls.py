"""A call of the inference API as a job: submitted, waited for, answered.

Bytes that came as the body are an upload until their job has succeeded. Those of jobs that failed
or run on stay, so that they can be retried, and go when retention takes them.
"""

import math
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response

from api import streams, submission, uploads
from api.compat import bodies, outcomes
from api.compat.bodies import Asked
from api.compat.dialect import hugging_face_error
from api.deps import Parts
from api.requests import NewHf
from shared import files, jobs, loading
from shared.bounds import cut, shown
from shared.document_models import File
from shared.errors import InvalidInput, NotFound
from shared.hf import HfInput, Task
from shared.loading import Loading
from shared.payloads import Kind
from shared.queue import Lane
from shared.states import State
from shared.submission import NewJob, Submitted

JOB_ID = "x-sluice-job-id"
NO = {"0", "false", "no"}
UPLOAD_NAME = "inputs"


class ModelIsLoading(Exception):
    """The caller asked not to wait for a model, and it is being loaded."""

    def __init__(self, found: Loading) -> None:
        super().__init__(found.model)
        self.found = found


@dataclass(frozen=True, kw_only=True)
class Caller:
    """Who calls, and what the headers ask for."""

    fair_key: str
    idempotency_key: str | None
    wait_for_model: str | None

    def waits(self, asked: Asked) -> bool:
        """The header goes before the body's option; without either, the model is waited for."""
        if self.wait_for_model is not None:
            return self.wait_for_model.strip().lower() not in NO
        return asked.waits is not False


@dataclass(frozen=True, kw_only=True)
class Call:
    """A request, less its body."""

    model: str
    task: Task | None
    caller: Caller


def call_of(model_id: str, task: str | None, caller: Caller) -> Call:
    """Raises NotFound without a model, InvalidInput for an unknown task."""
    model = model_id.rstrip("/")
    if not model:
        raise NotFound("Name a model in the path: POST /models/<owner>/<name>.")
    try:
        known = None if task is None else Task(task)
    except ValueError:
        tasks = ", ".join(Task)
        raise InvalidInput(f"There is no task {shown(task)}; there are {tasks}.") from None
    return Call(model=model, task=known, caller=caller)


async def run(parts: Parts, call: Call, http: Request) -> Response:
    """The answer of the model, or why there is none."""
    parts.news.check_room()
    content_type = http.headers.get("content-type", "")
    body = await bodies.receive(http)
    try:
        asked = await run_in_threadpool(bodies.read, body, content_type, call.task, parts.settings)
        waits = call.caller.waits(asked)
        if not waits and (found := await loading.of(parts.redis, call.model)):
            return _loading(found, {})
        media_type = bodies.media_type(content_type)
        made, upload = await run_in_threadpool(_submit, parts, call, asked, media_type)
    finally:
        await body.close()

    async def notice_loading() -> None:
        found = await loading.of(parts.redis, call.model)
        if found is not None:
            raise ModelIsLoading(found)

    headers = {JOB_ID: str(made.id)}
    if not made.is_new:
        headers["Idempotent-Replayed"] = "true"
    try:
        await streams.until_end(
            parts,
            made.id,
            wait_s=parts.settings.compat_wait_s,
            meanwhile=None if waits else notice_loading,
        )
    except ModelIsLoading as error:
        # The job goes on: it is what the model is loaded for, to be there for the next call.
        return _loading(error.found, headers)
    return await run_in_threadpool(_answer, parts, made, upload, headers)


def _submit(
    parts: Parts, call: Call, asked: Asked, media_type: str | None
) -> tuple[Submitted, File | None]:
    """The job, and the upload that was made for it."""
    if asked.file is None:
        new = _new_job(parts, call, asked, asked.inputs, told=asked.inputs)
        return submission.submit(parts, new), None
    upload = uploads.keep(parts, asked.file, name=UPLOAD_NAME, content_type=media_type)
    try:
        inputs = {"file_id": str(upload.id)}
        new = _new_job(parts, call, asked, inputs, told={"sha256": upload.sha256})
        made = submission.submit(parts, new)
    except BaseException:
        _forget(parts, upload)
        raise
    if not made.is_new:
        _forget(parts, upload)
        return made, None
    return made, upload


def _new_job(parts: Parts, call: Call, asked: Asked, inputs: Any, *, told: Any) -> NewJob:
    """`told` is what tells the inputs of one call from those of another."""
    try:
        request = NewHf(
            kind=Kind.HF,
            input=HfInput(
                task=call.task, model=call.model, inputs=inputs, parameters=asked.parameters
            ),
        )
    except ValidationError as error:
        wrong = error.errors(include_url=False, include_input=False)[0]
        place = cut(".".join(map(str, wrong["loc"])), 200) or "The request"
        raise InvalidInput(f"{place}: {wrong['msg'].removeprefix('Value error, ')}") from error
    return submission.new_job(
        request,
        parts.settings,
        fair_key=call.caller.fair_key,
        lane=Lane.INTERACTIVE,
        idempotency_key=call.caller.idempotency_key,
        body=[call.model, call.task, told, asked.parameters],
    )


def _answer(
    parts: Parts, made: Submitted, upload: File | None, headers: dict[str, str]
) -> Response:
    with parts.ledger.read() as session:
        job = jobs.get(session, made.id)
    answer = outcomes.answer(parts, job, headers)
    if upload is not None and job.state == State.SUCCEEDED:
        _forget(parts, upload)
    return answer


def _forget(parts: Parts, upload: File) -> None:
    try:
        with parts.ledger.begin() as session:
            path = files.delete(session, upload.id)
    except NotFound:  # its owner was faster
        return
    uploads.forget(parts, path)


def _loading(found: Loading, headers: dict[str, str]) -> Response:
    return hugging_face_error(
        503,
        f"Model {found.model} is currently loading",
        headers={"Retry-After": str(math.ceil(found.estimated_s)), **headers},
        estimated_time=found.estimated_s,
    )
