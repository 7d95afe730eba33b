"""Responses: jobs of the kind `chat`, whose ids are made of the jobs' own.

What a chat's input does not have of a request is in the job's metadata, under `openai.response`; so
a response is there as long as its job. One that names `previous_response_id` continues that job
(`shared/conversations.py`); one with a `conversation` is a turn of it.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Annotated, Any, Final, Literal
from uuid import UUID

from fastapi import APIRouter, Query, Response
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.compat import calls
from api.compat.calls import Caller, CallerDep, Outcome, StreamedAnswer, ToolNews
from api.compat.dialect import Problem, ProblemError
from api.compat.openai.conversations import conversation_of
from api.compat.openai.dialect import (
    OPENAI,
    WireShape,
    error_of,
    id_of,
    uuid_of,
)
from api.compat.openai.items import (
    EVENT_STREAM,
    ITEMS_LIMIT,
    WITH_LOGPROBS,
    WITH_RESULTS,
    Include,
    Included,
    InputItem,
    ItemWriter,
    ListOrder,
    Metadata,
    Taken,
    Unsupported,
    answer_json,
    chat_messages,
    keep_alive,
    no_item,
    owner_of,
    page_of,
)
from api.compat.openai.response_events import Event, ResponseEvents, frame, output_of
from api.deps import FairKey, Parts, PartsDep
from api.http.body import StrictRoute
from api.http.errors import problem_of_job
from api.jobs import waiting
from api.jobs.texts import TextPiece
from api.routes.files import forget_folder
from shared import conversations
from shared.bounds import JsonSchema, Line, ModelName, Paragraph, as_object
from shared.errors import Conflict, NotFound
from shared.filters import escaped
from shared.jobs import jobs
from shared.jobs.submission import NewJob, Submitted
from shared.kinds.chat import (
    CALLS_LIMIT,
    CHAT,
    SEARCH_TOOL,
    ChatInput,
    ChatResult,
    FunctionSpec,
    ToolSearch,
    messages_of,
)
from shared.kinds.search import COLLECTIONS_LIMIT
from shared.tables import Collection, Job, Step
from shared.vocabulary import ENDED, Lane, State

PREFIX: Final = "resp_"
KEY: Final = "openai.response"
"""Where a job's metadata has the request."""

# Requests. What is no field here is refused.

TEXT_CHARS = 1_000_000
TOOLS_LIMIT = 64
RESULTS_LIMIT = 50


class FunctionTool(WireShape):
    type: Literal["function"]
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$", max_length=64)]
    description: Paragraph = ""
    parameters: JsonSchema = {"type": "object", "properties": {}}
    strict: bool = False
    output_schema: Taken = None
    defer_loading: Annotated[Any, AfterValidator(Unsupported("leave it out", False))] = None
    allowed_callers: Annotated[Any, AfterValidator(Unsupported("leave it out", ["direct"]))] = None

    def ours(self) -> dict[str, Any]:
        spec = FunctionSpec(
            name=self.name,
            description=self.description,
            parameters=self.parameters or {"type": "object", "properties": {}},
        )
        return {"type": "function", "function": spec.model_dump()}

    def echo(self) -> dict[str, Any]:
        return {
            "type": "function",
            "name": self.name,
            "description": self.description or None,
            "parameters": self.parameters,
            "strict": self.strict,
        }


class RankingOptions(WireShape):
    ranker: Taken = None
    score_threshold: Annotated[float, Field(ge=0, le=1)] | None = None
    hybrid_search: Annotated[
        Any, AfterValidator(Unsupported("a collection weighs words and meaning itself"))
    ] = None


class FileSearchTool(WireShape):
    type: Literal["file_search"]
    vector_store_ids: Annotated[
        list[Line], Field(fail_fast=True, min_length=1, max_length=COLLECTIONS_LIMIT)
    ]
    max_num_results: Annotated[int, Field(ge=1, le=RESULTS_LIMIT)] = 20
    ranking_options: RankingOptions = RankingOptions()
    filters: dict[str, Any] | None = None

    def ours(self, names: Sequence[str]) -> dict[str, Any]:
        """`names` are the collections'."""
        tool: dict[str, Any] = {
            "type": SEARCH_TOOL, "collections": list(names), "k": self.max_num_results,
            "least_score": self.ranking_options.score_threshold,
        }  # fmt: skip
        if self.filters is not None:
            tool["search"] = {"filter": filter_of(self.filters)}
        return tool

    def echo(self) -> dict[str, Any]:
        echo: dict[str, Any] = {
            "type": "file_search",
            "vector_store_ids": self.vector_store_ids,
            "max_num_results": self.max_num_results,
            "filters": self.filters,
            "ranking_options": {"ranker": self.ranking_options.ranker or "auto"},
        }
        if self.ranking_options.score_threshold is not None:
            echo["ranking_options"]["score_threshold"] = self.ranking_options.score_threshold
        return echo


Tool = Annotated[FunctionTool | FileSearchTool, Field(discriminator="type")]


class FunctionChoice(WireShape):
    type: Literal["function"]
    name: Line


class FileSearchChoice(WireShape):
    type: Literal["file_search"]


NamedTool = Annotated[FunctionChoice | FileSearchChoice, Field(discriminator="type")]


class AllowedTools(WireShape):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(fail_fast=True, min_length=1, max_length=TOOLS_LIMIT)]


ToolChoice = Annotated[
    FunctionChoice | FileSearchChoice | AllowedTools, Field(discriminator="type")
]


class TextFormat(WireShape):
    type: Literal["text"] = "text"

    def ours(self) -> dict[str, Any]:
        return {"type": "text"}


class JsonObjectFormat(WireShape):
    type: Literal["json_object"]

    def ours(self) -> dict[str, Any]:
        return {"type": "json"}


class JsonSchemaFormat(WireShape):
    type: Literal["json_schema"]
    name: Line
    schema_: JsonSchema = Field(alias="schema")
    description: Paragraph | None = None
    strict: bool | None = None

    def ours(self) -> dict[str, Any]:
        return {"type": "json", "schema": self.schema_}


class TextOptions(WireShape):
    format: Annotated[
        TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")
    ] = TextFormat()
    verbosity: Annotated[
        Any, AfterValidator(Unsupported("ask for it in the instructions", "medium"))
    ] = None

    def echo(self) -> dict[str, Any]:
        return {"format": self.format.model_dump(exclude_none=True), "verbosity": "medium"}


class Reasoning(WireShape):
    effort: Annotated[
        Any, AfterValidator(Unsupported("ask for it in the instructions", "none"))
    ] = None
    summary: Annotated[Any, AfterValidator(Unsupported("leave it out", "auto"))] = None
    generate_summary: Annotated[Any, AfterValidator(Unsupported("leave it out", "auto"))] = None
    context: Taken = None
    mode: Taken = None


class ConversationReference(WireShape):
    id: Line


class InputText(WireShape):
    type: Literal["input_text"]
    text: Annotated[str, Field(max_length=TEXT_CHARS)]


class StoredPrompt(WireShape):
    """A prompt of `/v1/prompts`, and what its variables stand for. Beside `input` it is a system
    message, alone it is the user's."""

    id: Annotated[str, Field(max_length=80)]
    version: Annotated[str, Field(max_length=10)] | None = None
    variables: Annotated[
        dict[Line, Annotated[str, Field(max_length=TEXT_CHARS)] | InputText], Field(max_length=100)
    ] = {}

    @property
    def reference(self) -> str:
        return self.id if self.version is None else f"{self.id}@{self.version}"

    def values(self) -> dict[str, str]:
        return {
            name: value if isinstance(value, str) else value.text
            for name, value in self.variables.items()
        }


class StreamOptions(WireShape):
    include_obfuscation: Taken = None


class BackgroundOptions(WireShape):
    completion_window: Literal["soonest", "2h", "8h"] = "soonest"
    continuation_id: Taken = None


class ResponseRequest(WireShape):
    """A response to be made. What is no field here is refused."""

    model: ModelName | None = None
    """The server's own where none is named."""
    input: (
        Annotated[str, Field(min_length=1, max_length=TEXT_CHARS)]
        | Annotated[list[InputItem], Field(fail_fast=True, min_length=1, max_length=ITEMS_LIMIT)]
        | None
    ) = None
    prompt: StoredPrompt | None = None
    instructions: Annotated[str, Field(max_length=TEXT_CHARS)] | None = None
    previous_response_id: Line | None = None
    conversation: Line | ConversationReference | None = None
    tools: Annotated[list[Tool], Field(fail_fast=True, max_length=TOOLS_LIMIT)] = []
    tool_choice: Literal["none", "auto", "required"] | ToolChoice = "auto"
    parallel_tool_calls: bool = True
    max_tool_calls: Annotated[int, Field(ge=0, le=CALLS_LIMIT)] | None = None
    text: TextOptions = TextOptions()
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(ge=0, le=1)] | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    truncation: Literal["auto", "disabled"] = "disabled"
    background: bool = False
    background_options: BackgroundOptions = BackgroundOptions()
    store: bool = True
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    include: Annotated[list[Include], Field(fail_fast=True, max_length=32)] = []
    metadata: Metadata = {}
    reasoning: Reasoning = Reasoning()
    # These cannot change an answer.
    user: Line | None = None
    safety_identifier: Line | None = None
    prompt_cache_key: Line | None = None
    prompt_cache_retention: Taken = None
    prompt_cache_options: Taken = None
    service_tier: Taken = None
    context_management: Annotated[
        Any, AfterValidator(Unsupported("send truncation: auto, which drops the oldest messages"))
    ] = None
    moderation: Annotated[Any, AfterValidator(Unsupported("leave it out"))] = None
    image: Annotated[Any, AfterValidator(Unsupported("only text is"))] = None
    access_programs: Annotated[Any, AfterValidator(Unsupported("leave it out"))] = None

    @property
    def items(self) -> Sequence[InputItem]:
        if self.input is None:
            return []
        if isinstance(self.input, str):
            return ITEMS.validate_python([{"role": "user", "content": self.input}])
        return self.input

    @property
    def with_results(self) -> bool:
        return WITH_RESULTS in self.include

    @property
    def with_logprobs(self) -> bool:
        return WITH_LOGPROBS in self.include or self.top_logprobs is not None

    @property
    def lane(self) -> Lane:
        if not self.background or self.stream:
            return Lane.INTERACTIVE
        window = self.background_options.completion_window
        return Lane.NORMAL if window == "soonest" else Lane.BULK


ITEMS: Final[TypeAdapter[list[InputItem]]] = TypeAdapter(list[InputItem])
ITEM: Final[TypeAdapter[InputItem]] = TypeAdapter(InputItem)


# Vector stores are collections.

COMPARISONS = {
    "eq": "$eq", "ne": "$ne", "gt": "$gt", "gte": "$gte", "lt": "$lt", "lte": "$lte",
    "in": "$in", "nin": "$nin",
}  # fmt: skip


def filter_of(value: Any, depth: int = 1) -> dict[str, Any]:
    type_ = value.get("type") if isinstance(value, dict) else None
    if type_ in ("and", "or") and isinstance(value.get("filters"), list) and depth < 16:
        return {f"${type_}": [filter_of(part, depth + 1) for part in value["filters"]]}
    if type_ in COMPARISONS and isinstance(value.get("key"), str) and "value" in value:
        return {escaped(value["key"]): {COMPARISONS[type_]: value["value"]}}
    raise ValueError("is no filter")


def names_of(session: Session, ids: Sequence[str], param: str) -> list[str]:
    names = []
    for id_ in ids:
        if id_.startswith("vs_"):
            row = session.get(Collection, uuid_of("vs_", id_, "vector store"))
        else:
            row = session.scalar(select(Collection).where(Collection.name == id_))
        if row is None or row.erasing_at is not None:
            raise wrong(param, f"there is no vector store {id_!r}", status=404)
        names.append(row.name)
    return list(dict.fromkeys(names))


# From a request to a job.


def wrong(param: str, detail: str, *, code: str | None = None, status: int = 400) -> ProblemError:
    """An error that names the parameter."""
    fields = {"param": param} | ({} if code is None else {"code": code})
    return ProblemError(Problem(status=status, detail=f"{param}: {detail}", fields=fields))


def new_response(parts: Parts, caller: Caller, request: ResponseRequest) -> NewJob:
    """The job of a response. Blocks. Raises ProblemError or InvalidInput for what cannot be run."""
    with parts.ledger.read() as session:
        values = _chat_values(parts, session, caller.fair_key, request)
    values = {k: v for k, v in values.items() if k in ChatInput.model_fields}  # HACK
    values["parameters"].pop("logprobs", None)  # HACK
    job_input = calls.input_of(CHAT, values)
    identity = request.model_dump(mode="json", exclude_unset=True)
    new = calls.new_job(parts, caller, CHAT, job_input, identity=identity, lane=request.lane)
    return replace(new, metadata={**request.metadata, KEY: echo_of(request, job_input)})


def _chat_values(
    parts: Parts, session: Session, fair_key: str, request: ResponseRequest
) -> dict[str, Any]:
    if request.previous_response_id is not None and request.conversation is not None:
        raise wrong("conversation", "give either previous_response_id or conversation")
    if request.background and not request.store:
        raise wrong("store", "a response in the background is stored; send store: true")

    def resolve(id_: str) -> Any:
        return _stored_item(parts, session, fair_key, id_)

    messages = chat_messages(request.items, resolve)
    spoken = [message["role"] for message in messages if message["role"] != "system"]
    if request.input is None and request.prompt is None:
        raise wrong("input", "is required: a text, or a list of items")
    if request.input is not None and (not spoken or spoken[-1] == "assistant"):
        raise wrong("input", "must end with a message of the user, or with a function_call_output")
    tools, choice = _tools(session, request)
    values: dict[str, Any] = {
        "model": request.model,
        "messages": messages,
        "instructions": request.instructions or None,
        "tools": tools,
        "tool_choice": choice,
        "parallel_tool_calls": request.parallel_tool_calls,
        "tool_calls_limit": request.max_tool_calls,
        "history": "trim" if request.truncation == "auto" else "whole",
        "response_format": request.text.format.ours(),
        "parameters": _parameters(request),
    }
    if request.prompt is not None:
        values |= {"prompt": request.prompt.reference, "variables": request.prompt.values()}
    if request.previous_response_id is not None:
        values["previous_job_id"] = _previous(session, fair_key, request.previous_response_id)
    if request.conversation is not None:
        values["conversation_id"] = _conversation(session, fair_key, request.conversation)
    return values


def _parameters(request: ResponseRequest) -> dict[str, Any]:
    values = {
        "max_tokens": request.max_output_tokens,
        "temperature": request.temperature,
        # 0 leaves the likeliest token alone.
        "top_p": request.top_p if request.top_p != 0 else None,
        "top_k": 1 if request.top_p == 0 else None,
        "logprobs": (request.top_logprobs or 0) if request.with_logprobs else None,
    }
    return {name: value for name, value in values.items() if value is not None}


def _tools(
    session: Session, request: ResponseRequest
) -> tuple[list[dict[str, Any]], Literal["auto", "none", "required"]]:
    """The tools that the model may call, and whether it has to call one."""
    searches = [n for n, tool in enumerate(request.tools) if isinstance(tool, FileSearchTool)]
    if len(searches) > 1:
        raise wrong(
            f"tools.{searches[1]}",
            "there is one file_search already; name all vector_store_ids there",
        )
    ours: list[tuple[str, dict[str, Any]]] = []
    for number, tool in enumerate(request.tools):
        if isinstance(tool, FunctionTool):
            if tool.name == SEARCH_TOOL:
                raise wrong(f"tools.{number}.name", f"{tool.name} is taken; give another name")
            ours.append((tool.name, tool.ours()))
        else:
            names = names_of(session, tool.vector_store_ids, f"tools.{number}.vector_store_ids")
            try:
                ours.append((SEARCH_TOOL, tool.ours(names)))
            except ValueError as error:
                raise wrong(f"tools.{number}.filters", str(error)) from error
    choice = request.tool_choice
    if isinstance(choice, str):
        if choice == "required" and not ours:
            raise wrong("tool_choice", "is required, and there are no tools")
        return [tool for _, tool in ours], choice
    named = choice.tools if isinstance(choice, AllowedTools) else [choice]
    names_ = {tool.name if isinstance(tool, FunctionChoice) else SEARCH_TOOL for tool in named}
    unknown = names_ - {name for name, _ in ours}
    if unknown:
        raise wrong("tool_choice", f"names {sorted(unknown)[0]!r}, which is not among tools")
    mode = choice.mode if isinstance(choice, AllowedTools) else "required"
    return [tool for name, tool in ours if name in names_], mode


def _previous(session: Session, fair_key: str, id_: str) -> str:
    try:
        job = _job(session, id_, fair_key)
        conversations.require_continuable(session, job.id, fair_key)
    except NotFound as error:
        raise wrong(
            "previous_response_id",
            f"there is no response {id_!r}; it may have been deleted, not stored, or removed by "
            "retention (SLUICE_RETENTION_DAYS). Send its items as input",
            code="previous_response_not_found",
        ) from error
    except Conflict as error:
        raise wrong(
            "previous_response_id",
            f"the response {id_!r} is not completed; wait for its end, or continue another one",
            code="previous_response_not_completed",
        ) from error
    return str(job.id)


def _conversation(session: Session, fair_key: str, value: str | ConversationReference) -> str:
    id_ = value if isinstance(value, str) else value.id
    return str(conversation_of(session, id_, fair_key).id)


def _stored_item(parts: Parts, session: Session, fair_key: str, id_: str) -> Any:
    """The item that a reference means. Raises ProblemError."""
    owner = owner_of(id_)
    if owner is not None:
        with suppress(NotFound, ProblemError, ValidationError):
            job = _job(session, id_of(PREFIX, owner), fair_key)
            result = _result(parts, job)
            writer = ItemWriter(owner=job.id, with_results=True)
            items = [
                *writer.input_items(_input_messages(parts, session, job)),
                *output_of(writer, result, is_incomplete=False),
            ]
            return next(ITEM.validate_python(item) for item in items if item["id"] == id_)
    raise wrong("input", no_item(id_), status=404)


# How a response is written.


def echo_of(request: ResponseRequest, job_input: ChatInput) -> dict[str, Any]:
    """What a response says of its request."""
    choice = request.tool_choice
    conversation = request.conversation
    echo: dict[str, Any] = {
        "background": request.background,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "metadata": request.metadata,
        "parallel_tool_calls": request.parallel_tool_calls,
        "previous_response_id": request.previous_response_id,
        "prompt": None if request.prompt is None else request.prompt.model_dump(exclude_none=True),
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": {"effort": request.reasoning.effort, "summary": None},
        "safety_identifier": request.safety_identifier,
        "service_tier": "default",
        "store": request.store,
        "temperature": job_input.parameters.temperature,
        "text": request.text.echo(),
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
        "tools": [tool.echo() for tool in request.tools],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": job_input.parameters.top_p,
        "truncation": request.truncation,
    }
    if conversation is not None:
        id_ = conversation if isinstance(conversation, str) else conversation.id
        echo["conversation"] = {"id": id_}
    if request.user is not None:
        echo["user"] = request.user
    return echo


def snapshot(
    job_id: UUID, created_at: float, model: str, echo: Mapping[str, Any]
) -> dict[str, Any]:
    """A response of which nothing has come yet."""
    return {
        "id": id_of(PREFIX, job_id),
        "object": "response",
        "created_at": int(created_at),
        "status": "in_progress",
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "model": model,
        "output": [],
        **echo,
    }


def _begun(job: Job) -> dict[str, Any]:
    model = str(as_object(job.input).get("model", ""))
    return snapshot(job.id, job.created_at.timestamp(), model, _echo(job))


def _echo(job: Job) -> Mapping[str, Any]:
    return as_object(as_object(job.meta).get(KEY))


def _ended(begun: Mapping[str, Any], result: ChatResult, completed_at: float) -> dict[str, Any]:
    """A response that has been answered, less its output."""
    is_cut = result.finish_reason == "length"
    usage = result.usage
    return {
        **begun,
        "status": "incomplete" if is_cut else "completed",
        "completed_at": None if is_cut else int(completed_at),
        "incomplete_details": {"reason": "max_output_tokens"} if is_cut else None,
        "usage": {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        },
    }


def _failed(begun: Mapping[str, Any], job: Job) -> dict[str, Any]:
    if job.state == State.CANCELLED:
        return {**begun, "status": "cancelled"}
    problem = problem_of_job(job.error or {})
    code = "invalid_prompt" if problem.status < 500 else "server_error"
    if problem.status == 429:
        code = "rate_limit_exceeded"
    return {**begun, "status": "failed", "error": {"code": code, "message": problem.detail}}


def logprobs_of(result: ChatResult) -> list[dict[str, Any]]:
    return [
        {
            "token": one.token,
            "logprob": one.logprob,
            "bytes": _bytes(one),
            "top_logprobs": [
                {"token": other.token, "logprob": other.logprob, "bytes": _bytes(other)}
                for other in one.top
            ],
        }
        for one in getattr(result, "logprobs", None) or ()
    ]


def _bytes(token: Any) -> list[int]:
    return token.bytes if token.bytes is not None else list(token.token.encode())


def response_of(parts: Parts, job: Job, *, with_results: bool) -> dict[str, Any]:
    """The response as it is now. Blocks."""
    begun = _begun(job)
    if job.state == State.SUCCEEDED:
        result = _result(parts, job)
        ended = _ended(begun, result, _finished(job))
        return {**ended, "output": _output(job.id, result, with_results=with_results)}
    if job.state in ENDED:
        return _failed(begun, job)
    is_waiting = job.state == State.QUEUED and begun.get("background")
    return {**begun, "status": "queued" if is_waiting else "in_progress"}


def _output(job_id: UUID, result: ChatResult, *, with_results: bool) -> list[dict[str, Any]]:
    return output_of(
        ItemWriter(owner=job_id, with_results=with_results),
        result,
        is_incomplete=result.finish_reason == "length",
        logprobs=logprobs_of(result),
    )


def _finished(job: Job) -> float:
    return (job.finished_at or job.created_at).timestamp()


def _result(parts: Parts, job: Job) -> ChatResult:
    """Raises ProblemError where the job has not succeeded."""
    return ChatResult.model_validate(calls.outcome_of(parts, job, {}).result)


def body_of(outcome: Outcome, echo: Mapping[str, Any], *, with_results: bool) -> dict[str, Any]:
    """The response of a job that has succeeded."""
    result = ChatResult.model_validate(outcome.result)
    begun = snapshot(outcome.id, outcome.created_at.timestamp(), str(outcome.input["model"]), echo)
    ended = _ended(begun, result, outcome.created_at.timestamp())
    return {**ended, "output": _output(outcome.id, result, with_results=with_results)}


# The stream of a response.


def _failed_frame(problem: Problem) -> bytes:
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
    begun: Mapping[str, Any],
    *,
    with_results: bool,
    starting_after: int = -1,
    keeps_on: bool,
) -> AsyncGenerator[bytes, None]:
    events = ResponseEvents(
        writer=ItemWriter(owner=made.id, with_results=with_results),
        is_queued=bool(begun.get("background")),
        starting_after=starting_after,
    )
    for event in events.begin(begun):
        yield frame(event)
    try:
        async with aclosing(calls.follow(parts, caller, made, keeps_on=keeps_on)) as news:
            async for item in news:
                for event in await _of_news(parts, events, item, begun):
                    yield frame(event)
                if isinstance(item, calls.Pause):
                    yield keep_alive(item)
    except ProblemError:
        job = await run_in_threadpool(_job_now, parts, made.id)
        if job is None or job.state not in (State.FAILED, State.CANCELLED):
            raise
        for event in events.fail(_failed(begun, job)):
            yield frame(event)


async def _of_news(
    parts: Parts, events: ResponseEvents, item: calls.News, begun: Mapping[str, Any]
) -> list[Event]:
    match item:
        case TextPiece():
            new: list[Event] = []
            if item.step_id != events.step_id:
                new += await _settled(parts, events, item.step_id, begun)
            return [*new, *events.text(item.step_id, item.text, begun)]
        case ToolNews(data={"name": name, "step": int(step_id)}) if name == SEARCH_TOOL:
            return await _settled(parts, events, step_id, begun)
        case Outcome():
            result = ChatResult.model_validate(item.result)
            job = await run_in_threadpool(_job_now, parts, item.id)
            finished_s = item.created_at.timestamp() if job is None else _finished(job)
            ended = _ended(begun, result, finished_s)
            return list(events.end(result, ended, logprobs_of(result)))
    return []


async def _settled(
    parts: Parts, events: ResponseEvents, step_id: int, begun: Mapping[str, Any]
) -> list[Event]:
    """What was written and called before a step."""
    payload = await run_in_threadpool(_payload, parts, step_id)
    searches = [ToolSearch.model_validate(search) for search in payload.get("searches", ())]
    return list(events.settled(payload.get("messages", ()), searches, begun))


def _payload(parts: Parts, step_id: int) -> Mapping[str, Any]:
    with parts.ledger.read_single() as session:
        step = session.get(Step, step_id)
        return {} if step is None else as_object(step.payload)


def _job_now(parts: Parts, job_id: UUID) -> Job | None:
    with parts.ledger.read() as session:
        try:
            return jobs.get(session, job_id)
        except NotFound:
            return None


def _streamed(
    parts: Parts,
    caller: Caller,
    made: Submitted,
    begun: Mapping[str, Any],
    **options: Any,
) -> StreamedAnswer:
    return StreamedAnswer(
        _frames(parts, caller, made, begun, **options),
        media_type=EVENT_STREAM,
        failed=_failed_frame,
        headers=calls.headers_of(made),
    )


# Routes.

router = APIRouter(route_class=StrictRoute)

DOCUMENTED = OPENAI.documented(400, 401, 404, 429, 500, 503, 504)


def _job(session: Session, id_: str, fair_key: str) -> Job:
    """The job of a stored response. Raises NotFound, also where it is another key's."""
    job_id = uuid_of(PREFIX, id_, "response")
    job = session.get(Job, job_id)
    if job is None or job.fair_key != fair_key or not _echo(job).get("store"):
        raise NotFound(
            f"There is no response {id_!r}; it may have been deleted, not stored, or removed by "
            "retention."
        )
    return job


def _stored(parts: Parts, id_: str, fair_key: str) -> Job:
    with parts.ledger.read() as session:
        return _job(session, id_, fair_key)


@router.post("/responses", responses=DOCUMENTED)
async def create_response(parts: PartsDep, caller: CallerDep, request: ResponseRequest) -> Response:
    """Make a response: its text, calls of functions, searches of vector stores."""
    new = await run_in_threadpool(new_response, parts, caller, request)
    made = await calls.submit(parts, new)
    echo = new.metadata[KEY]
    begun = snapshot(made.id, made.created_at.timestamp(), new.input["model"], echo)
    keeps_on = request.background or caller.comes_back
    if request.stream:
        return _streamed(
            parts, caller, made, begun, with_results=request.with_results, keeps_on=keeps_on
        )
    if request.background:
        return answer_json({**begun, "status": "queued"}, calls.headers_of(made))
    outcome = await calls.outcome(parts, caller, made, keeps_on=keeps_on)
    body = body_of(outcome, echo, with_results=request.with_results)
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
    """A response as it is now; with `stream`, its events, those behind `starting_after`."""
    with_results = WITH_RESULTS in include
    job = await run_in_threadpool(_stored, parts, response_id, caller.fair_key)
    if not stream:
        if starting_after is not None:
            raise wrong("starting_after", "goes with stream: true")
        body = await run_in_threadpool(response_of, parts, job, with_results=with_results)
        return answer_json(body, {})
    parts.followers.check_room()
    made = Submitted(job.id, False, job.created_at)
    return _streamed(
        parts,
        caller,
        made,
        _begun(job),
        with_results=with_results,
        starting_after=-1 if starting_after is None else starting_after,
        keeps_on=True,
    )


CANCEL_WAIT_S = 5.0


@router.post("/responses/{response_id}/cancel", responses=DOCUMENTED)
async def cancel_response(parts: PartsDep, fair_key: FairKey, response_id: str) -> Response:
    """Cancel a response in the background."""
    job = await run_in_threadpool(_stored, parts, response_id, fair_key)
    if not _echo(job).get("background"):
        raise wrong(
            "response_id",
            "only a response that was made with background: true can be cancelled; others are "
            "when their client closes the connection",
        )
    await _cancel(parts, job.id)
    job = await run_in_threadpool(_stored, parts, response_id, fair_key)
    body = await run_in_threadpool(response_of, parts, job, with_results=False)
    if job.state not in ENDED:
        body["status"] = "cancelled"
    return answer_json(body, {})


async def _cancel(parts: Parts, job_id: UUID) -> None:
    """End a job, and wait for its end."""
    await calls.cancel(parts, job_id)
    with suppress(NotFound):
        await waiting.until_end(parts, job_id, wait_s=CANCEL_WAIT_S)


@router.delete("/responses/{response_id}", responses=DOCUMENTED)
async def delete_response(parts: PartsDep, fair_key: FairKey, response_id: str) -> Response:
    """Erase a response with its job; one that is at work is cancelled. What continues it cannot be
    continued any more."""
    job = await run_in_threadpool(_stored, parts, response_id, fair_key)
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
    """The items that a response was made from, also those of the responses that it continues."""

    def read() -> dict[str, Any]:
        with parts.ledger.read() as session:
            job = _job(session, response_id, fair_key)
            messages = _input_messages(parts, session, job)
        items = list(ItemWriter(owner=job.id).input_items(messages))
        return page_of(items, limit=limit, order=order, after=after)

    return answer_json(await run_in_threadpool(read), {})


def _input_messages(parts: Parts, session: Session, job: Job) -> list[Mapping[str, Any]]:
    input_ = as_object(job.input)
    previous = input_.get("previous_job_id")
    before: list[dict[str, Any]] = []
    if previous is not None:
        before = conversations.earlier(session, UUID(previous), job.fair_key, parts.storage)
    return [*before, *messages_of(input_)]
