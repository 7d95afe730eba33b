"""Responses: jobs of the kind `chat`, whose ids are made of the jobs' own.

Those of a model `rag/<collection>` are jobs of the kind `rag`. What a job's input does not have of
a request is in the job's metadata, under `openai.response`; so a response is there as long as its
job. One that names `previous_response_id` continues that job (`shared/conversations.py`); one with
a `conversation` is a turn of it.
"""

from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final
from uuid import UUID

from fastapi import APIRouter, Query, Response
from pydantic import TypeAdapter, ValidationError
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.compat import calls
from api.compat.calls import Caller, CallerDep, JobOutcome, StreamedAnswer, ToolNews
from api.compat.dialect import Problem, ProblemError
from api.compat.openai.conversations import conversation_of
from api.compat.openai.dialect import (
    EVENT_STREAM,
    OPENAI,
    answer_json,
    error_of,
    keep_alive,
    uuid_of,
)
from api.compat.openai.files import file_id_of
from api.compat.openai.lists import Included, ListOrder, page_of
from api.compat.openai.models import outcome_for, require_model, submit_for
from api.compat.openai.vector_stores import usable_store
from api.deps import FairKey, Parts, PartsDep
from api.http.body import StrictRoute
from api.http.errors import field_of, problem_of_job
from api.jobs import waiting
from api.jobs.texts import TextPiece
from api.routes.files import forget_folder
from shared import conversations, prompts
from shared.bounds import as_object, shown
from shared.documents import attachments
from shared.errors import Conflict, InvalidInput, NotFound
from shared.jobs import jobs
from shared.jobs.submission import Submitted
from shared.kinds.batch import JobSpec
from shared.kinds.chat import SEARCH_TOOL, ChatResult, TokenLogprob, ToolSearch
from shared.kinds.search import Hit
from shared.openai.file_search import shown_attributes
from shared.openai.items import (
    WITH_RESULTS,
    CitedFile,
    InputItem,
    ItemWriter,
    Passages,
    no_item,
    owner_of,
    read_result,
)
from shared.openai.response_events import ResponseEvent, ResponseEvents, frame
from shared.openai.responses import (
    PREFIX,
    ResponseRequest,
    as_wire,
    finished_response,
    logprobs_of,
    new_response,
    response_job,
    result_items,
)
from shared.openai.wire import id_of
from shared.prompts import reference_of
from shared.tables import Job, Step
from shared.vocabulary import ENDED, State

KEY: Final = "openai.response"
"""The key of a job's metadata under which the fields of the request are stored."""
ITEM: Final[TypeAdapter[InputItem]] = TypeAdapter(InputItem)


# Stored objects that a request refers to


def wrong(param: str, detail: str, *, code: str | None = None, status: int = 400) -> ProblemError:
    """An error that names the parameter."""
    fields = {"param": param} | ({} if code is None else {"code": code})
    return ProblemError(Problem(status=status, detail=f"{param}: {detail}", fields=fields))


@dataclass(frozen=True, kw_only=True)
class StoredLookup:
    """A `Lookup` for the objects of one API key. Its methods raise ProblemError."""

    parts: Parts
    session: Session
    fair_key: str

    def collections(self, ids: Sequence[str], param: str) -> list[str]:
        stores = [usable_store(self.session, id_, param) for id_ in ids]
        return list(dict.fromkeys(store.name for store in stores))

    def item(self, id_: str) -> InputItem:
        owner = owner_of(id_)
        if owner is not None:
            with suppress(NotFound, ProblemError, ValidationError, StopIteration):
                job = _job(self.session, id_of(PREFIX, owner), self.fair_key)
                items = _all_items(self.parts, self.session, job)
                return next(ITEM.validate_python(item) for item in items if item["id"] == id_)
        raise wrong("input", no_item(id_), status=404)

    def require_prompt(self, request: ResponseRequest) -> None:
        reference = None if request.prompt is None else reference_of(request.prompt.reference)
        if reference is None:
            return
        try:
            prompts.get(self.session, reference)
        except NotFound as error:
            raise wrong("prompt", error.message, status=404) from error

    def previous(self, id_: str) -> str:
        try:
            job = _job(self.session, id_, self.fair_key)
            conversations.require_continuable(self.session, job.id, self.fair_key)
        except NotFound as error:
            raise wrong(
                "previous_response_id",
                f"there is no response {shown(id_)}; it may have been deleted, not stored, or "
                "removed by retention (SLUICE_RETENTION_DAYS). Send its items as input",
                code="previous_response_not_found",
            ) from error
        except Conflict as error:
            raise wrong(
                "previous_response_id",
                f"the response {shown(id_)} is not completed; wait for its end, or continue "
                "another one",
                code="previous_response_not_completed",
            ) from error
        return str(job.id)

    def conversation(self, id_: str) -> str:
        try:
            return str(conversation_of(self.session, id_, self.fair_key).id)
        except NotFound as error:
            raise wrong("conversation", error.message, status=404) from error


# Jobs as responses


def _new_response(job: Job) -> dict[str, Any]:
    return new_response(job.id, job.created_at.timestamp(), _echo(job))


def _echo(job: Job) -> Mapping[str, Any]:
    return as_object(as_object(job.meta).get(KEY))


def _failed_response(new: Mapping[str, Any], job: Job) -> dict[str, Any]:
    if job.state == State.CANCELLED:
        return {**new, "status": "cancelled"}
    problem = problem_of_job(job.error or {})
    code = "invalid_prompt" if problem.status < 500 else "server_error"
    return {**new, "status": "failed", "error": {"code": code, "message": problem.detail}}


def cited_files(parts: Parts, hits: Iterable[Hit]) -> dict[str, CitedFile]:
    """Id of a document -> its file, for the documents of hits that were not erased since.
    Blocks."""
    ids = list({UUID(hit.document_id) for hit in hits})
    if not ids:
        return {}
    with parts.ledger.read() as session:
        owners = attachments.of_documents(session, ids)
    return {
        str(document_id): CitedFile(
            file_id=file_id_of(file_id), name=name, attributes=shown_attributes(attributes)
        )
        for document_id, (file_id, name, attributes) in owners.items()
    }


def _result_items(
    parts: Parts, job_id: UUID, values: Mapping[str, Any], *, with_results: bool
) -> tuple[ChatResult, list[dict[str, Any]]]:
    """The result of a job, and its output items. Blocks."""
    passages = Passages()
    passages.files = _files(parts, read_result(values, passages), passages)
    return result_items(job_id, values, passages, with_results=with_results)


def _files(parts: Parts, result: ChatResult, passages: Passages) -> dict[str, CitedFile]:
    return cited_files(parts, [*_hits(result.searches), *passages.hits.values()])


def _hits(searches: Sequence[ToolSearch]) -> list[Hit]:
    return [hit for search in searches for hit in search.hits]


def body_of(
    parts: Parts, outcome: JobOutcome, echo: Mapping[str, Any], *, with_results: bool
) -> dict[str, Any]:
    """The response of a job that has succeeded. Blocks."""
    result, output = _result_items(parts, outcome.id, outcome.result, with_results=with_results)
    new = new_response(outcome.id, outcome.created_at.timestamp(), echo)
    job = _job_now(parts, outcome.id)
    finished_s = outcome.created_at.timestamp() if job is None else _finished_s(job)
    return {**finished_response(new, result, finished_s), "output": output}


def response_of(parts: Parts, job: Job, *, with_results: bool) -> dict[str, Any]:
    """The response of a job in any state. Blocks."""
    new = _new_response(job)
    if job.state == State.SUCCEEDED:
        values = calls.outcome_of(parts, job, {}).result
        result, output = _result_items(parts, job.id, values, with_results=with_results)
        return {**finished_response(new, result, _finished_s(job)), "output": output}
    if job.state in ENDED:
        return _failed_response(new, job)
    is_waiting = job.state == State.QUEUED and new.get("background")
    return {**new, "status": "queued" if is_waiting else "in_progress"}


def _finished_s(job: Job) -> float:
    return (job.finished_at or job.created_at).timestamp()


# Streams


def _failed_frame(problem: Problem) -> bytes:
    """The last frame of a stream that fails while the response goes on. It is no event of the
    response and so has no number."""
    error = error_of(problem)
    event = {
        "type": "error", "code": error["code"], "message": error["message"],
        "param": error["param"], "sequence_number": 0,
    }  # fmt: skip
    return frame(event)


async def _frames(
    parts: Parts,
    caller: Caller,
    made: Submitted,
    new: Mapping[str, Any],
    *,
    with_results: bool,
    starting_after: int = -1,
    keeps_on: bool,
) -> AsyncGenerator[bytes, None]:
    """The frames of a response's events. `new` is the response without output."""
    events = ResponseEvents(
        writer=ItemWriter(owner=made.id, with_results=with_results),
        is_queued=bool(new.get("background")),
        starting_after=starting_after,
    )
    for event in events.begin(new):
        yield frame(event)
    try:
        async with aclosing(calls.follow(parts, caller, made, keeps_on=keeps_on)) as news:
            async for item in news:
                for event in await _events_of_news(parts, events, item, new):
                    yield frame(event)
                if isinstance(item, calls.Pause):
                    yield keep_alive(item)
    except ProblemError:
        job = await run_in_threadpool(_job_now, parts, made.id)
        if job is None or job.state not in (State.FAILED, State.CANCELLED):
            raise
        for event in events.fail(_failed_response(new, job)):
            yield frame(event)


async def _events_of_news(
    parts: Parts, events: ResponseEvents, item: calls.News, new: Mapping[str, Any]
) -> list[ResponseEvent]:
    match item:
        case TextPiece():
            before: list[ResponseEvent] = []
            if item.step_id != events.step_id:
                before = await _settled_events(parts, events, item.step_id, new)
            logprobs = as_wire(map(TokenLogprob.model_validate, item.logprobs))
            text = events.text(item.step_id, item.text, new, logprobs, item.logprobs_before)
            return [*before, *text]
        case ToolNews(data={"name": name, "step": int(step_id)}) if name == SEARCH_TOOL:
            return await _settled_events(parts, events, step_id, new)
        case JobOutcome():
            return await run_in_threadpool(_last_events, parts, events, item, new)
    return []


async def _settled_events(
    parts: Parts, events: ResponseEvents, step_id: int, new: Mapping[str, Any]
) -> list[ResponseEvent]:
    """The events of everything before a step."""

    def read() -> list[ResponseEvent]:
        payload = _payload(parts, step_id)
        searches = [ToolSearch.model_validate(search) for search in payload.get("searches", ())]
        events.writer.passages.files |= cited_files(parts, _hits(searches))
        return list(events.settled(payload.get("messages", ()), searches, new))

    return await run_in_threadpool(read)


def _last_events(
    parts: Parts, events: ResponseEvents, outcome: JobOutcome, new: Mapping[str, Any]
) -> list[ResponseEvent]:
    passages = events.writer.passages
    result = read_result(outcome.result, passages)
    passages.files |= _files(parts, result, passages)
    job = _job_now(parts, outcome.id)
    finished_s = outcome.created_at.timestamp() if job is None else _finished_s(job)
    response = finished_response(new, result, finished_s)
    return list(events.end(result, response, logprobs_of(result)))


def _payload(parts: Parts, step_id: int) -> Mapping[str, Any]:
    with parts.ledger.read_single() as session:
        step = session.get(Step, step_id)
        return {} if step is None else as_object(step.payload)


def _job_now(parts: Parts, job_id: UUID) -> Job | None:
    with parts.ledger.read() as session, suppress(NotFound):
        return jobs.get(session, job_id)
    return None


def _stream(
    parts: Parts,
    caller: Caller,
    made: Submitted,
    new: Mapping[str, Any],
    **options: Any,
) -> StreamedAnswer:
    return StreamedAnswer(
        _frames(parts, caller, made, new, **options),
        media_type=EVENT_STREAM,
        failed=_failed_frame,
        headers=calls.headers_of(made),
    )


# Routes

router = APIRouter(route_class=StrictRoute)

DOCUMENTED = OPENAI.documented(400, 401, 404, 429, 500, 503, 504)


def _job(session: Session, id_: str, fair_key: str) -> Job:
    """The job of a stored response. Raises NotFound, also if it belongs to another key."""
    job_id = uuid_of(PREFIX, id_, "response")
    job = session.get(Job, job_id)
    if job is None or job.fair_key != fair_key or not _echo(job).get("store"):
        raise NotFound(
            f"There is no response {shown(id_)}; it may have been deleted, not stored, or removed "
            "by retention."
        )
    return job


def _stored_job(parts: Parts, id_: str, fair_key: str) -> Job:
    with parts.ledger.read() as session:
        return _job(session, id_, fair_key)


@router.post("/responses", responses=DOCUMENTED)
async def create_response(parts: PartsDep, caller: CallerDep, request: ResponseRequest) -> Response:
    """Make a response: text, function calls, and searches of vector stores."""
    model = request.model or parts.settings.generation_model
    if request.model is not None:
        await require_model(parts, request.model)

    def read() -> JobSpec:
        with parts.ledger.read() as session:
            lookup = StoredLookup(parts=parts, session=session, fair_key=caller.fair_key)
            lookup.require_prompt(request)
            return response_job(request, parts.settings, lookup)

    try:
        spec = await run_in_threadpool(read)
    except ValidationError as error:
        wrong_ = error.errors(include_url=False, include_input=False)[0]
        where = field_of(wrong_) or "input"
        raise InvalidInput(f"{where}: {wrong_['msg'].removeprefix('Value error, ')}") from error
    identity = request.model_dump(mode="json", exclude_unset=True)
    job = calls.new_job(parts, caller, spec.kind, spec.input, identity=identity, lane=request.lane)
    echo = spec.options["echo"]
    # Not by `new_job`: the request may be larger than the metadata that clients may send.
    job = replace(job, metadata={**request.metadata, KEY: echo})
    made = await submit_for(parts, job, model)
    new = new_response(made.id, made.created_at.timestamp(), echo)
    with_results = request.with_results
    if request.stream:
        keeps_on = request.background or caller.comes_back
        return _stream(parts, caller, made, new, with_results=with_results, keeps_on=keeps_on)
    if request.background:
        return answer_json({**new, "status": "queued"}, calls.headers_of(made))
    outcome = await outcome_for(parts, caller, made, model)
    body = await run_in_threadpool(body_of, parts, outcome, echo, with_results=with_results)
    return answer_json(body, outcome.headers)


@router.get("/responses/{response_id}", responses=DOCUMENTED)
async def get_response(
    parts: PartsDep,
    caller: CallerDep,
    response_id: str,
    include: Included,
    stream: bool = False,
    starting_after: Annotated[int | None, Query(ge=-1, le=2**31)] = None,
    include_obfuscation: bool | None = None,  # noqa: ARG001  (nothing is added to deltas here)
) -> Response:
    """A response in its present state; with `stream`, its events after `starting_after`."""
    with_results = WITH_RESULTS in include
    job = await run_in_threadpool(_stored_job, parts, response_id, caller.fair_key)
    if not stream:
        if starting_after is not None:
            raise wrong("starting_after", "goes with stream: true")
        body = await run_in_threadpool(response_of, parts, job, with_results=with_results)
        return answer_json(body, {})
    parts.followers.check_room()
    made = Submitted(job.id, False, job.created_at)
    return _stream(
        parts,
        caller,
        made,
        _new_response(job),
        with_results=with_results,
        starting_after=-1 if starting_after is None else starting_after,
        keeps_on=True,
    )


CANCEL_WAIT_S = 5.0


@router.post("/responses/{response_id}/cancel", responses=DOCUMENTED)
async def cancel_response(parts: PartsDep, fair_key: FairKey, response_id: str) -> Response:
    """Cancel a response in the background."""
    job = await run_in_threadpool(_stored_job, parts, response_id, fair_key)
    if not _echo(job).get("background"):
        raise wrong(
            "response_id",
            "only a response that was made with background: true can be cancelled; others are "
            "when their client closes the connection",
        )
    await _cancel(parts, job.id)
    job = await run_in_threadpool(_stored_job, parts, response_id, fair_key)
    body = await run_in_threadpool(response_of, parts, job, with_results=False)
    if job.state not in ENDED:
        body["status"] = "cancelled"
    return answer_json(body, {})


async def _cancel(parts: Parts, job_id: UUID) -> None:
    """Cancel a job, and wait for its end."""
    await calls.cancel(parts, job_id)
    with suppress(NotFound):
        await waiting.until_end(parts, job_id, wait_s=CANCEL_WAIT_S)


@router.delete("/responses/{response_id}", responses=DOCUMENTED)
async def delete_response(parts: PartsDep, fair_key: FairKey, response_id: str) -> Response:
    """Erase a response with its job, which is cancelled if it runs. Responses that continue it
    cannot be continued any more."""
    job = await run_in_threadpool(_stored_job, parts, response_id, fair_key)
    if job.state not in ENDED:
        await _cancel(parts, job.id)
    await run_in_threadpool(_erase, parts, job.id)
    return answer_json({"id": response_id, "object": "response", "deleted": True}, {})


def _erase(parts: Parts, job_id: UUID) -> None:
    with parts.ledger.begin() as session:
        folder = jobs.erase(session, job_id)
    forget_folder(parts, folder)


@router.get("/responses/{response_id}/input_items", responses=DOCUMENTED)
async def list_response_input_items(
    parts: PartsDep,
    fair_key: FairKey,
    response_id: str,
    include: Included,  # noqa: ARG001  (of input items there is nothing more to show)
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: ListOrder = "desc",
    after: Annotated[str | None, Query(max_length=200)] = None,
) -> Response:
    """The input items of a response, including those of the responses that it continues."""

    def read() -> dict[str, Any]:
        with parts.ledger.read() as session:
            job = _job(session, response_id, fair_key)
            items = _input_items(parts, session, job)
        return page_of(items, limit=limit, order=order, after=after)

    return answer_json(await run_in_threadpool(read), {})


def _input_items(parts: Parts, session: Session, job: Job) -> list[dict[str, Any]]:
    previous = as_object(job.input).get("previous_job_id")
    before: list[dict[str, Any]] = []
    if previous is not None:
        before = conversations.earlier(session, UUID(previous), job.fair_key, parts.storage)
    messages = [*before, *conversations.said_by_client(job)]
    return list(ItemWriter(owner=job.id).input_items(messages))


def _all_items(parts: Parts, session: Session, job: Job) -> list[dict[str, Any]]:
    """The input and output items of a response. Raises ProblemError if it has not succeeded."""
    values = calls.outcome_of(parts, job, {}).result
    _, output = _result_items(parts, job.id, values, with_results=True)
    return [*_input_items(parts, session, job), *output]
