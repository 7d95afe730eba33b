"""The MCP server: its tools, and the stored prompts as prompts of the protocol.

A tool call is a job in the lane `interactive`. It is cancelled if the request is cancelled or its
connection closed. If a call fails, the result of the tool is marked as an error and says what to
do, for the model to read. Errors in the protocol itself, such as an unknown tool, are JSON-RPC
errors.
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Annotated, Any, Literal
from uuid import UUID, uuid4

import anyio
import mcp_types as types
from fastapi.exceptions import RequestValidationError
from mcp.server.context import ServerRequestContext
from mcp.server.lowlevel.server import Server
from mcp.server.streamable_http_manager import StreamableHTTPSessionManager
from mcp.shared.exceptions import MCPError
from pydantic import BaseModel, Field, ValidationError
from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from api.compat import calls
from api.compat.calls import Caller
from api.compat.dialect import ProblemError
from api.compat.openai.models import require_model
from api.deps import Parts
from api.http import answers
from api.http.answers import job_view
from api.http.errors import problem_of
from api.http.key_scopes import require
from api.jobs import waiting
from api.openapi import package_version
from api.schemas import CollectionView, JobView
from shared import prompts
from shared.bounds import CollectionName, DocumentText, Metadata, SourceName, check_json, shown
from shared.documents import collections
from shared.errors import Forbidden, InvalidInput, NotFound, SluiceError
from shared.jobs import jobs
from shared.jobs.submission import Submitted
from shared.kinds import registry as kinds
from shared.kinds.ingest import IngestDocuments, SourceError
from shared.kinds.kind import Kind
from shared.kinds.rag import Citation, RagResult
from shared.kinds.search import Hit, PassageCount, Query, SearchType
from shared.models import embedding_models
from shared.prompts import VariableValues, VersionedPrompt
from shared.vocabulary import OPEN, KeyScope, Shape, State

log = logging.getLogger(__name__)

INSTRUCTIONS = (
    "Documents lie in collections; list_collections names them. Use `search` for the passages that "
    "answer a query, `ask` for an answer with citations, `ingest_text` to store a text. Each call "
    "is a job; `get_job` tells of one that was not waited for."
)
PROGRESS_S = 1.0
"""The shortest time between two reports of progress."""
SHOWN_COLLECTIONS = 20
PROMPTS_ITEMS = 100
INVALID_PARAMS = -32602
SESSION_CHARS = 128

# Requests


async def serve(scope: Scope, receive: Receive, send: Send, *, body: bytes, message: Any) -> None:
    """Answer one HTTP request whose body has been read. The SDK's tasks end with the request."""
    http = Request(scope, receive)
    method = message.get("method") if isinstance(message, dict) else None
    if method == "notifications/cancelled" and SESSION in http.headers:
        await _cancel_earlier(http, message)
        await Response(status_code=202)(scope, receive, send)
        return
    if method == "initialize":
        send = _with_session_id(send)
    manager = StreamableHTTPSessionManager(
        app=_server(), stateless=True, max_request_body_size=max(1, len(body))
    )
    async with manager.run():
        await manager.handle_request(scope, _replay(body, receive), send)


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns the body once more, and then the client's disconnecting."""
    is_read = False

    async def replay() -> Message:
        nonlocal is_read
        if is_read:
            return await receive()
        is_read = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


# Before protocol version 2026-07-28, a client cancels a request by another message, which may reach
# any API process. So each client gets a session id with its first answer, and Redis maps session
# and request to a job. Nothing else is stored for a session. If Redis has lost the entry, the job
# goes on.

SESSION = "mcp-session-id"


def _with_session_id(send: Send) -> Send:
    async def send_with_id(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 200:
            MutableHeaders(scope=message)[SESSION] = uuid4().hex
        await send(message)

    return send_with_id


def _key(http: Request, request_id: object) -> str:
    session = f"{http.state.fair_key}:{http.headers[SESSION][:SESSION_CHARS]}:{request_id!r}"
    return f"sluice:mcp:{hashlib.sha256(session.encode()).hexdigest()}"


async def _note_request(call: "Call", job_id: UUID) -> None:
    http = call.caller.http
    if SESSION not in http.headers:
        return
    keep_s = math.ceil(call.parts.settings.compat_wait_s) + 1
    try:
        await call.parts.redis.set(_key(http, call.context.request_id), str(job_id), ex=keep_s)
    except (RedisError, OSError) as error:
        log.warning("a request of a session cannot be cancelled: %s", error)


async def _cancel_earlier(http: Request, message: Mapping[str, Any]) -> None:
    parts: Parts = http.app.state.parts
    params = message.get("params")
    request_id = params.get("requestId") if isinstance(params, dict) else None
    try:
        job_id = await parts.redis.get(_key(http, request_id))
    except (RedisError, OSError) as error:
        log.warning("a request of a session was not cancelled: %s", error)
        return
    if job_id:
        await calls.cancel(parts, UUID(str(job_id)))


@cache
def _server() -> "Server[dict[str, Any]]":
    return Server(
        "sluice",
        title="Sluice",
        version=package_version(),
        instructions=INSTRUCTIONS,
        on_list_tools=_list_tools,
        on_call_tool=_call_tool,
        on_list_prompts=_list_prompts,
        on_get_prompt=_get_prompt,
        get_tool_input_schema=lambda name: TOOLS[name].input_schema if name in TOOLS else None,
    )


RequestContext = ServerRequestContext[Any, Any]


@dataclass(kw_only=True)
class Call:
    """A tool call: who calls, and to whom progress is reported."""

    parts: Parts
    caller: Caller
    context: RequestContext
    reported: float = -1.0
    """The last progress that was reported; the protocol demands that it increases."""
    reported_at: float = field(default_factory=time.monotonic)

    async def report(self, done: float, total: float | None, message: str) -> None:
        now = time.monotonic()
        if done <= self.reported or (self.reported >= 0 and now - self.reported_at < PROGRESS_S):
            return
        self.reported, self.reported_at = done, now
        await self.context.session.report_progress(done, total, message)


def _call_of(context: RequestContext) -> Call:
    http = context.request
    assert isinstance(http, Request)  # the transport is HTTP
    parts = http.app.state.parts
    assert isinstance(parts, Parts)
    caller = Caller(http=http, fair_key=str(http.state.fair_key))
    return Call(parts=parts, caller=caller, context=context)


class ToolFailed(Exception):
    """A failed call, with the message for the model."""


# Jobs of calls


async def _submit(call: Call, kind: Kind, values: dict[str, Any]) -> Submitted:
    new = calls.new_job(call.parts, call.caller, kind, calls.input_of(kind, values))
    # Shielded: if the request is cancelled in between, no job may be left that nobody cancels.
    with anyio.CancelScope(shield=True):
        made = await calls.submit(call.parts, new)
        await _note_request(call, made.id)
    return made


async def _wait_for(call: Call, made: Submitted) -> calls.JobOutcome | None:
    """Wait for the job; None if the time is up and it goes on. Raises ProblemError if it does not
    succeed."""
    parts, since = call.parts, time.monotonic()

    async def meanwhile() -> None:
        if call.context.meta is None or call.context.meta.get("progress_token") is None:
            return
        view = await run_in_threadpool(job_view, parts, made.id, call.caller.fair_key)
        done, total = view.progress.done, view.progress.total
        if view.kind != kinds.INGEST.name:
            await call.report(round(time.monotonic() - since, 1), None, _status_text(view))
        elif total or call.reported < 0:
            await call.report(done, total, _status_text(view))

    try:
        has_ended = await waiting.until_end(
            parts,
            made.id,
            wait_s=parts.settings.compat_wait_s,
            meanwhile=meanwhile,
            is_new=made.is_new,
        )
        if not has_ended:
            return None
    except BaseException:
        await calls.cancel(parts, made.id)
        raise
    return await run_in_threadpool(_outcome, parts, made.id)


def _outcome(parts: Parts, job_id: UUID) -> calls.JobOutcome:
    with parts.ledger.read() as session:
        job = jobs.get(session, job_id)
    return calls.outcome_of(parts, job, {})


async def _result(call: Call, kind: Kind, values: dict[str, Any]) -> calls.JobOutcome:
    """Submit a job and wait for its outcome. Raises ToolFailed if that takes too long."""
    made = await _submit(call, kind, values)
    outcome = await _wait_for(call, made)
    if outcome is None:
        raise ToolFailed(f"{_still_runs(call, made.id)} get_job with this job_id has its result.")
    return outcome


def _still_runs(call: Call, job_id: UUID) -> str:
    if call.parts.stopping.is_set():
        return f"The server is being stopped; job {job_id} goes on."
    return (
        f"Job {job_id} goes on: it has not ended within {call.parts.settings.compat_wait_s:g} s "
        "(SLUICE_COMPAT_WAIT_S)."
    )


def _status_text(view: JobView) -> str:
    """What a job is doing, in words."""
    if view.waiting_for:
        return f"waits for: {view.waiting_for}"
    if view.state == State.QUEUED:
        eta = "" if view.eta_s is None else f", about {view.eta_s:.0f} s"
        return "queued" if view.position is None else f"queued at position {view.position}{eta}"
    progress = view.progress
    if progress.total and progress.unit:
        return f"{progress.done} of {progress.total} {progress.unit}"
    return str(view.state)


# Tools: arguments, answers, and what they do


class SearchToolArguments(Shape):
    collection: Annotated[CollectionName, Field(description="Where to look.")]
    query: Annotated[Query, Field(description="What to look for, as a question or in words.")]
    k: Annotated[PassageCount, Field(description="How many passages.")] = 6
    type: Annotated[
        Literal[tuple(type_.value for type_ in SearchType)] | None,  # type: ignore[valid-type]  # of the record
        Field(description="How passages are chosen; by words and meaning (`hybrid`) unless set."),
    ] = None
    score_threshold: Annotated[
        float | None,
        Field(ge=-1, le=1, description="The least cosine, of similarity_score_threshold."),
    ] = None
    filter: Annotated[
        dict[str, Any] | None,
        Field(description='Only passages with such metadata, as {"year": {"$gte": 2024}}.'),
    ] = None
    rerank: Annotated[
        str | None, Field(description="A cross-encoder that ranks the best passages anew.")
    ] = None

    def options(self) -> dict[str, Any]:
        """The options of a search in the input of a job."""
        names = ("type", "score_threshold", "filter", "rerank")
        values = {name: getattr(self, name) for name in names}
        return {name: value for name, value in values.items() if value is not None}


class SearchToolAnswer(BaseModel):
    job_id: UUID
    hits: list[Hit]
    warnings: list[str]


async def _search(call: Call, arguments: SearchToolArguments) -> SearchToolAnswer:
    values = {
        "collection": arguments.collection,
        "query": arguments.query,
        "k": arguments.k,
        "search": arguments.options(),
    }
    outcome = await _result(call, kinds.SEARCH, values)
    hits = [Hit.model_validate(hit) for hit in outcome.result["hits"]]
    return SearchToolAnswer(job_id=outcome.id, hits=hits, warnings=list(outcome.warnings))


class AskArguments(Shape):
    collection: Annotated[CollectionName, Field(description="Where the answer is looked for.")]
    question: Annotated[Query, Field(description="The question, in any language.")]
    k: Annotated[PassageCount, Field(description="How many passages are read.")] = 6
    filter: Annotated[
        dict[str, Any] | None,
        Field(description='Only passages with such metadata, as {"year": {"$gte": 2024}}.'),
    ] = None
    model: Annotated[
        str | None,
        Field(
            description="The model that answers, as `ollama/llama3.2`, `hf/...`, or `extractive`, "
            "which quotes; the server's own unless set."
        ),
    ] = None
    prompt: Annotated[
        str | None, Field(description="A stored prompt, as `answer` or `answer@3`, or a template.")
    ] = None
    variables: Annotated[
        VariableValues | None, Field(description="Values of the prompt's variables.")
    ] = None
    max_tokens: Annotated[int | None, Field(ge=1, description="The longest answer.")] = None


class AskAnswer(RagResult):
    """An answer that cites `citations` by markers such as `[1]`."""

    job_id: UUID
    citations: list[Citation]
    warnings: list[str]


async def _ask(call: Call, arguments: AskArguments) -> AskAnswer:
    values: dict[str, Any] = {
        name: value
        for name in ("collection", "question", "k", "model", "prompt", "variables")
        if (value := getattr(arguments, name)) is not None
    }
    if arguments.filter is not None:
        values["search"] = {"filter": arguments.filter}
    if arguments.model is not None:
        await require_model(call.parts, arguments.model, kinds.RAG.name)
    if arguments.max_tokens is not None:
        values["parameters"] = {"max_tokens": arguments.max_tokens}
    outcome = await _result(call, kinds.RAG, values)
    return AskAnswer.model_validate(
        {**outcome.result, "job_id": outcome.id, "warnings": outcome.warnings}
    )


class IngestArguments(Shape):
    collection: Annotated[CollectionName, Field(description="Where the text is stored.")]
    text: Annotated[DocumentText, Field(min_length=1, description="The text, whole.")]
    name: Annotated[
        SourceName | None,
        Field(
            description="What the document is called, as `notes/pass.md`: a text of the same name "
            "replaces it."
        ),
    ] = None
    metadata: Annotated[
        Metadata | None, Field(description="Kept with each passage, for filters.")
    ] = None
    create: Annotated[
        bool, Field(description="Make the collection if there is none of that name.")
    ] = False
    wait: Annotated[
        bool, Field(description="False: answer at once; get_job tells what becomes of it.")
    ] = True


class IngestAnswer(BaseModel):
    """`documents` and `chunks` are set if the job has succeeded; otherwise get_job returns them."""

    job_id: UUID
    state: State
    documents: IngestDocuments | None = None
    chunks: int | None = None
    warnings: list[str] = []


async def _ingest_text(call: Call, arguments: IngestArguments) -> IngestAnswer:
    source = {"type": "text", "text": arguments.text}
    if arguments.name is not None:
        source["name"] = arguments.name
    values = {
        "collection": arguments.collection,
        "sources": [source],
        "metadata": arguments.metadata or {},
    }
    if arguments.create:
        await run_in_threadpool(_make_collection, call.parts, arguments.collection)
    made = await _submit(call, kinds.INGEST, values)
    if not arguments.wait:
        return IngestAnswer(job_id=made.id, state=State.QUEUED)
    outcome = await _wait_for(call, made)
    if outcome is None:
        return IngestAnswer(
            job_id=made.id, state=State.RUNNING, warnings=[_still_runs(call, made.id)]
        )
    errors = [SourceError.model_validate(error) for error in outcome.result["errors"]]
    if errors:
        raise ToolFailed(f"Job {made.id}: {errors[0].source}: {errors[0].message}")
    return IngestAnswer(
        job_id=made.id,
        state=State.SUCCEEDED,
        documents=IngestDocuments.model_validate(outcome.result["documents"]),
        chunks=outcome.result["chunks"],
        warnings=list(outcome.warnings),
    )


def _make_collection(parts: Parts, name: str) -> None:
    with parts.ledger.begin() as session:
        try:
            collections.get(session, name)
        except NotFound:
            model = parts.settings.embedding_model
            embedding_models.check(model, parts.settings, where="SLUICE_EMBEDDING_MODEL")
            collections.put(session, name, collections.Spec(embedding_model=model))


class ListArguments(Shape):
    limit: Annotated[int, Field(ge=1, le=200, description="How many at once.")] = 50
    cursor: Annotated[
        str | None, Field(max_length=2048, description="`next_cursor` of the answer before.")
    ] = None


class CollectionList(BaseModel):
    collections: list[CollectionView]
    next_cursor: str | None


async def _list_collections(call: Call, arguments: ListArguments) -> CollectionList:
    return await run_in_threadpool(_collections, call.parts, arguments)


def _collections(parts: Parts, arguments: ListArguments) -> CollectionList:
    after = answers.decode("collections", arguments.cursor)
    with parts.ledger.read() as session:
        rows = collections.page(session, limit=arguments.limit + 1, after=after)
    views = [CollectionView.of(row, parts.settings) for row in rows[: arguments.limit]]
    has_more = len(rows) > arguments.limit
    cursor = answers.encode("collections", views[-1].name) if has_more else None
    return CollectionList(collections=views, next_cursor=cursor)


class JobArguments(Shape):
    job_id: Annotated[UUID, Field(description="What another tool has answered as job_id.")]
    wait_s: Annotated[
        float, Field(ge=0, le=60, description="Wait so many seconds for its end, at most.")
    ] = 0


async def _get_job(call: Call, arguments: JobArguments) -> JobView:
    parts, job_id = call.parts, arguments.job_id
    if arguments.wait_s:
        parts.followers.check_room()
        await waiting.until_end(parts, job_id, wait_s=arguments.wait_s)
    view = await run_in_threadpool(job_view, parts, job_id, call.caller.fair_key)
    # Without the input, which the caller has sent and which may be long.
    return view.model_copy(update={"input": None}) if view.state in OPEN else view


@dataclass(frozen=True, kw_only=True)
class ToolRecord:
    """A tool: the shapes of its arguments and its answer, and the function that runs it."""

    name: str
    title: str
    description: str
    arguments: type[Shape]
    answer: type[BaseModel]
    run: Callable[[Call, Any], Awaitable[BaseModel]]
    scope: KeyScope
    """The scope that the API key needs."""
    is_read_only: bool = True
    input_schema: dict[str, Any] = field(default_factory=dict)

    @property
    def description_for_clients(self) -> types.Tool:
        return types.Tool(
            name=self.name,
            title=self.title,
            description=self.description,
            input_schema=self.input_schema,
            output_schema=self.answer.model_json_schema(mode="serialization"),
            annotations=types.ToolAnnotations(
                read_only_hint=self.is_read_only,
                destructive_hint=False if not self.is_read_only else None,
                idempotent_hint=True,
                open_world_hint=False,
            ),
        )


def _schema(arguments: type[Shape]) -> dict[str, Any]:
    """The JSON Schema of arguments, without the titles that pydantic makes of names."""
    schema = arguments.model_json_schema()
    for name in ("title", "description"):
        schema.pop(name, None)
    for property_ in schema["properties"].values():
        property_.pop("title", None)
    return schema


TOOLS = {
    tool.name: replace(tool, input_schema=_schema(tool.arguments))
    for tool in (
        ToolRecord(
            name="search",
            title="Search a collection",
            description="The passages of a collection that answer a query best, with their source "
            "and score.",
            arguments=SearchToolArguments,
            answer=SearchToolAnswer,
            run=_search,
            scope=kinds.SEARCH.scope,
        ),
        ToolRecord(
            name="ask",
            title="Ask a collection",
            description="An answer from the documents of a collection, with citations.",
            arguments=AskArguments,
            answer=AskAnswer,
            run=_ask,
            scope=kinds.RAG.scope,
        ),
        ToolRecord(
            name="ingest_text",
            title="Store a text",
            description="Stores a text in a collection, so that `search` and `ask` find it. A text "
            "of the same name replaces the old one.",
            arguments=IngestArguments,
            answer=IngestAnswer,
            run=_ingest_text,
            scope=kinds.INGEST.scope,
            is_read_only=False,
        ),
        ToolRecord(
            name="list_collections",
            title="List the collections",
            description="The collections by name, with their counts and embedding models.",
            arguments=ListArguments,
            answer=CollectionList,
            run=_list_collections,
            scope=KeyScope.READ,
        ),
        ToolRecord(
            name="get_job",
            title="Look at a job",
            description="The state of a job, its progress, and its result or error once it has "
            "ended.",
            arguments=JobArguments,
            answer=JobView,
            run=_get_job,
            scope=KeyScope.READ,
        ),
    )
}


async def _list_tools(
    context: RequestContext, _params: types.PaginatedRequestParams | None
) -> types.ListToolsResult:
    """The tools that the key may use."""
    call = _call_of(context)
    allowed = [tool for tool in _descriptions() if _is_allowed(call, TOOLS[tool.name])]
    return types.ListToolsResult(tools=allowed, ttl_ms=3_600_000, cache_scope="private")


def _is_allowed(call: Call, tool: ToolRecord) -> bool:
    try:
        _require(call, tool)
    except Forbidden:
        return False
    return True


def _require(call: Call, tool: ToolRecord) -> None:
    """Raises Forbidden."""
    if tool.scope is not KeyScope.READ:
        require(call.parts.settings, call.caller.fair_key, frozenset({tool.scope}))


@cache
def _descriptions() -> list[types.Tool]:
    return [tool.description_for_clients for tool in TOOLS.values()]


async def _call_tool(
    context: RequestContext, params: types.CallToolRequestParams
) -> types.CallToolResult:
    tool = TOOLS.get(params.name)
    if tool is None:
        known = ", ".join(TOOLS)
        raise MCPError(
            INVALID_PARAMS, f"There is no tool {shown(params.name)}; there are: {known}."
        )
    call = _call_of(context)
    try:
        _require(call, tool)
        arguments = _arguments(tool, params.arguments or {}, call)
        answer = await tool.run(call, arguments)
    except Exception as error:
        text = await run_in_threadpool(_failure, call, error, params.arguments or {})
        return types.CallToolResult(content=[types.TextContent(text=text)], is_error=True)
    text = answers.as_json(answer)
    return types.CallToolResult(
        content=[types.TextContent(text=text)], structured_content=json.loads(text)
    )


def _arguments(tool: ToolRecord, values: dict[str, Any], call: Call) -> Shape:
    """Validate the arguments of a call. Raises InvalidInput, or RequestValidationError, which names
    the fields."""
    try:
        check_json(values, limit_bytes=call.parts.settings.max_body_bytes)
    except ValueError as error:
        raise InvalidInput(f"The arguments cannot be used: one {error}.") from error
    try:
        return tool.arguments.model_validate(values)
    except ValidationError as error:
        entries = error.errors(include_url=False)
        wrong = [{**entry, "loc": ("body", *entry["loc"])} for entry in entries]
        raise RequestValidationError(wrong) from error


def _failure(call: Call, error: Exception, values: dict[str, Any]) -> str:
    """The message for the model about a failed call: what is wrong, and what to do."""
    if isinstance(error, ToolFailed):
        return str(error)
    name = values.get("collection")
    if isinstance(error, NotFound) and isinstance(name, str):
        known = _known_collections(call.parts)
        if known is not None and name not in known:
            names = ", ".join(known[:SHOWN_COLLECTIONS]) or "none yet"
            return (
                f"There is no collection {shown(name)}. The collections are: {names} "
                "(list_collections has them all); ingest_text with create=true makes one."
            )
    if not isinstance(error, SluiceError | ProblemError | RequestValidationError):
        log.exception("a tool failed", exc_info=error)
    return problem_of(error, call.caller.http).detail


def _known_collections(parts: Parts) -> Sequence[str] | None:
    """The names of all collections; None if there are too many."""
    with parts.ledger.read() as session:
        rows = collections.page(session, limit=200, after=None)
    return None if len(rows) == 200 else [row.name for row in rows]


# Prompts


async def _list_prompts(
    context: RequestContext, params: types.PaginatedRequestParams | None
) -> types.ListPromptsResult:
    call = _call_of(context)
    cursor = params.cursor if params is not None else None
    try:
        rows = await run_in_threadpool(_prompts, call.parts, cursor)
    except SluiceError as error:
        raise MCPError(INVALID_PARAMS, error.message) from error
    page = rows[:PROMPTS_ITEMS]
    more = answers.encode("prompts", page[-1].name) if len(rows) > PROMPTS_ITEMS else None
    return types.ListPromptsResult(prompts=[_prompt(row) for row in page], next_cursor=more)


def _prompts(parts: Parts, cursor: str | None) -> list[VersionedPrompt]:
    with parts.ledger.read() as session:
        after = answers.decode("prompts", cursor)
        return prompts.page(session, limit=PROMPTS_ITEMS + 1, after=after)


def _prompt(version: VersionedPrompt) -> types.Prompt:
    return types.Prompt(
        name=version.name,
        description=version.content.description or None,
        arguments=[
            types.PromptArgument(
                name=name,
                description=variable.description or None,
                required=variable.default is None,
            )
            for name, variable in version.content.variables.items()
        ],
    )


async def _get_prompt(
    context: RequestContext, params: types.GetPromptRequestParams
) -> types.GetPromptResult:
    call = _call_of(context)
    try:
        version, text = await run_in_threadpool(
            _render, call.parts, params.name, params.arguments or {}
        )
    except SluiceError as error:
        raise MCPError(INVALID_PARAMS, error.message) from error
    content = types.TextContent(text=text)
    return types.GetPromptResult(
        description=version.content.description or None,
        messages=[types.PromptMessage(role="user", content=content)],
    )


def _render(parts: Parts, name: str, values: dict[str, str]) -> tuple[VersionedPrompt, str]:
    reference = prompts.reference_of(name)
    if reference is None:
        raise NotFound(f"There is no prompt {shown(name)}; prompts/list names them.")
    with parts.ledger.read() as session:
        version = prompts.get(session, reference)
    return version, prompts.render(version, values)
