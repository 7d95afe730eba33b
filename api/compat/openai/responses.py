"""Responses: jobs of the kind `chat`, whose ids are made of the jobs' own.

Those of a model `rag/<collection>` are jobs of the kind `rag`. What a job's input does not have of
a request is in the job's metadata, under `openai.response`; so a response is there as long as its
job. One that names `previous_response_id` continues that job (`shared/conversations.py`); one with
a `conversation` is a turn of it.
"""

import re
from collections.abc import AsyncGenerator, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from typing import Annotated, Any, Final, Literal, Protocol
from uuid import UUID

from fastapi import APIRouter, Query, Response
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
)
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from api.compat import calls
from api.compat.calls import Caller, CallerDep, Outcome, StreamedAnswer, ToolNews
from api.compat.dialect import Problem, ProblemError
from api.compat.openai.conversations import CONVERSATION_PREFIX, conversation_of
from api.compat.openai.dialect import (
    EVENT_STREAM,
    OPENAI,
    Endpoint,
    JobOfCall,
    Taken,
    Unsupported,
    WireShape,
    answer_json,
    error_of,
    id_of,
    keep_alive,
    uuid_of,
)
from api.compat.openai.files import file_id_of
from api.compat.openai.items import (
    ITEMS_LIMIT,
    WITH_LOGPROBS,
    WITH_RESULTS,
    CitedFile,
    Include,
    Included,
    InputItem,
    ItemWriter,
    ListOrder,
    Metadata,
    Passages,
    chat_messages,
    no_item,
    none_of,
    owner_of,
    page_of,
    read_result,
    tag_of,
)
from api.compat.openai.models import RAG_PREFIX, RagModel, outcome_for, rag_of, submit_for, writes
from api.compat.openai.response_events import Event, ResponseEvents, frame, output_of
from api.compat.openai.vector_stores import (
    RANKERS,
    SearchRanking,
    shown_attributes,
    translate_filter,
    usable_store,
)
from api.deps import FairKey, Parts, PartsDep
from api.http.body import StrictRoute
from api.http.errors import problem_of_job
from api.jobs import waiting
from api.jobs.texts import TextPiece
from api.routes.files import forget_folder
from shared import conversations
from shared.bounds import COLLECTION_NAME, JsonSchema, Line, ModelName, Paragraph, as_object, shown
from shared.config import EXTRACTIVE, Settings
from shared.documents import attachments
from shared.errors import Conflict, NotFound
from shared.filters import MetadataFilter
from shared.jobs import jobs
from shared.jobs.submission import Submitted
from shared.kinds.chat import (
    CALLS_LIMIT,
    CHAT,
    SEARCH_TOOL,
    ChatResult,
    FunctionSpec,
    Parameters,
    ToolSearch,
)
from shared.kinds.rag import RAG
from shared.kinds.search import COLLECTIONS_LIMIT, Hit
from shared.tables import Job, Step
from shared.vocabulary import ENDED, Lane, State

PREFIX: Final = "resp_"
KEY: Final = "openai.response"
"""Where a job's metadata has the request."""

# Requests. What is no field here is refused.

TEXT_CHARS = 1_000_000
TOOLS_LIMIT = 64
RESULTS_LIMIT = 50
MODES = ("none", "auto", "required")
FORMATS = ("text", "json_object", "json_schema")
TOOLS = ("function", "file_search")


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


def _is_filter(value: Any) -> Any:
    MetadataFilter.read(translate_filter(value))
    return value


class FileSearchTool(WireShape):
    type: Literal["file_search"]
    vector_store_ids: Annotated[
        list[Line], Field(fail_fast=True, min_length=1, max_length=COLLECTIONS_LIMIT)
    ]
    max_num_results: Annotated[int, Field(ge=1, le=RESULTS_LIMIT)] = 20
    ranking_options: SearchRanking = SearchRanking()
    filters: Annotated[Any, AfterValidator(_is_filter)] = None

    def ours(self, names: Sequence[str]) -> dict[str, Any]:
        """`names` are the collections'."""
        where = None if self.filters is None else translate_filter(self.filters)
        return {
            "type": SEARCH_TOOL,
            "collections": list(names),
            "k": self.max_num_results,
            "least_score": self.ranking_options.score_threshold or None,
            "search": {"type": RANKERS[self.ranking_options.ranker], "filter": where},
        }

    def echo(self) -> dict[str, Any]:
        ranking = self.ranking_options
        return {
            "type": "file_search",
            "vector_store_ids": self.vector_store_ids,
            "max_num_results": self.max_num_results,
            "filters": self.filters,
            "ranking_options": {
                "ranker": "default-2024-11-15" if ranking.ranker != "auto" else "auto",
                "score_threshold": ranking.score_threshold,
            },
        }


Tool = Annotated[
    Annotated[FunctionTool, Tag("<function>")] | Annotated[FileSearchTool, Tag("<file_search>")],
    Discriminator(tag_of, **none_of(TOOLS, "describe it as a function, and run it yourself")),
]


class FunctionChoice(WireShape):
    type: Literal["function"]
    name: Line


class FileSearchChoice(WireShape):
    type: Literal["file_search"]


NamedTool = Annotated[
    Annotated[FunctionChoice, Tag("<function>")]
    | Annotated[FileSearchChoice, Tag("<file_search>")],
    Discriminator(tag_of, **none_of(TOOLS, "leave it out")),
]


class AllowedTools(WireShape):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(fail_fast=True, min_length=1, max_length=TOOLS_LIMIT)]


def _choice_tag_of(value: Any) -> str:
    return "<mode>" if isinstance(value, str) else tag_of(value)


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<mode>")]
    | Annotated[FunctionChoice, Tag("<function>")]
    | Annotated[FileSearchChoice, Tag("<file_search>")]
    | Annotated[AllowedTools, Tag("<allowed_tools>")],
    Discriminator(
        _choice_tag_of, **none_of((*MODES, *TOOLS, "allowed_tools"), "name one of these")
    ),
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
        Annotated[TextFormat, Tag("<text>")]
        | Annotated[JsonObjectFormat, Tag("<json_object>")]
        | Annotated[JsonSchemaFormat, Tag("<json_schema>")],
        Discriminator(tag_of, **none_of(FORMATS, "name one of these")),
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


def _as_reference(value: Any) -> Any:
    return {"id": value} if isinstance(value, str) else value


def _as_items(value: Any) -> Any:
    """A text is a message of the user."""
    return [{"role": "user", "content": value}] if isinstance(value, str) else value


class InputText(WireShape):
    type: Literal["input_text"]
    text: Annotated[str, Field(max_length=TEXT_CHARS)]


def _as_text(value: Any) -> Any:
    if isinstance(value, Mapping):
        return InputText.model_validate(value).text
    return value


class StoredPrompt(WireShape):
    """A prompt of `/v1/prompts`, and what its variables stand for. Beside `input` it is a system
    message, alone it is the user's."""

    id: Annotated[str, Field(max_length=80)]
    version: Annotated[str, Field(max_length=10)] | None = None
    variables: Annotated[
        dict[
            Line,
            Annotated[
                str,
                Field(max_length=TEXT_CHARS),
                BeforeValidator(_as_text, json_schema_input_type=str | InputText),
            ],
        ],
        Field(max_length=100),
    ] = {}

    @property
    def reference(self) -> str:
        return self.id if self.version is None else f"{self.id}@{self.version}"


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
        Annotated[
            list[InputItem],
            Field(fail_fast=True, min_length=1, max_length=ITEMS_LIMIT),
            BeforeValidator(_as_items, json_schema_input_type=str | list[InputItem]),
        ]
        | None
    ) = None
    prompt: StoredPrompt | None = None
    instructions: Annotated[str, Field(max_length=TEXT_CHARS)] | None = None
    previous_response_id: Line | None = None
    conversation: (
        Annotated[
            ConversationReference,
            BeforeValidator(_as_reference, json_schema_input_type=str | ConversationReference),
        ]
        | None
    ) = None
    tools: Annotated[list[Tool], Field(fail_fast=True, max_length=TOOLS_LIMIT)] = []
    tool_choice: ToolChoice = "auto"
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


ITEM: Final[TypeAdapter[InputItem]] = TypeAdapter(InputItem)


# From a request to a job.


def wrong(param: str, detail: str, *, code: str | None = None, status: int = 400) -> ProblemError:
    """An error that names the parameter."""
    fields = {"param": param} | ({} if code is None else {"code": code})
    return ProblemError(Problem(status=status, detail=f"{param}: {detail}", fields=fields))


class Lookup(Protocol):
    """What of a request is somewhere else."""

    def collections(self, ids: Sequence[str], param: str) -> list[str]:
        """The names of vector stores."""

    def item(self, id_: str) -> InputItem:
        """The item that a reference means."""

    def previous(self, id_: str) -> str:
        """The id of the job of a response that is continued."""

    def conversation(self, id_: str) -> str:
        """The id of a conversation of Sluice."""


def response_job(request: ResponseRequest, settings: Settings, lookup: Lookup) -> JobOfCall:
    """A `chat`, or a `rag` of a model `rag/<collection>`. Raises InvalidInput, and ProblemError
    where something is not there that the request names."""
    if request.previous_response_id is not None and request.conversation is not None:
        raise wrong("conversation", "give either previous_response_id or conversation")
    if request.background and not request.store:
        raise wrong("store", "a response in the background is stored; send store: true")
    if request.input is None and request.prompt is None:
        raise wrong("input", "is required: a text, or a list of items")
    messages = chat_messages(request.input or [], lookup.item)
    spoken = [message["role"] for message in messages if message["role"] != "system"]
    if request.input is not None and (not spoken or spoken[-1] == "assistant"):
        raise wrong("input", "must end with a message of the user, or with a function_call_output")
    rag = None if request.model is None else rag_of(request.model)
    if rag is None:
        kind, values = CHAT, _chat_values(request, messages, lookup)
    else:
        kind, values = RAG, _rag_values(request, messages, rag, settings)
    if request.previous_response_id is not None:
        values["previous_job_id"] = lookup.previous(request.previous_response_id)
    if request.conversation is not None:
        values["conversation_id"] = lookup.conversation(request.conversation.id)
    echo = echo_of(request, request.model or settings.generation_model)
    return JobOfCall(
        kind=kind,
        input=calls.input_of(kind, values),
        metadata={**request.metadata, KEY: echo},
    )


def _chat_values(
    request: ResponseRequest, messages: Sequence[Mapping[str, Any]], lookup: Lookup
) -> dict[str, Any]:
    tools, choice = _tools(request, lookup)
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
        values |= {"prompt": request.prompt.reference, "variables": request.prompt.variables}
    return values


def _rag_values(
    request: ResponseRequest,
    messages: Sequence[Mapping[str, Any]],
    rag: RagModel,
    settings: Settings,
) -> dict[str, Any]:
    """The last message is the question; what was said before goes to the model, too."""
    refused = {
        "tools": request.tools,
        "prompt": request.prompt,
        "top_logprobs": request.top_logprobs,
    }
    for name, value in refused.items():
        if value:
            raise wrong(name, "is not supported by models rag/<collection>; leave it out")
    system = [message["content"] for message in messages if message["role"] == "system"]
    *earlier, last = (message for message in messages if message["role"] != "system")
    has_tools = any(m["role"] == "tool" or m.get("tool_calls") for m in (*earlier, last))
    if has_tools or last["role"] != "user":
        raise wrong("input", "must be without calls of tools for models rag/<collection>")
    values: dict[str, Any] = {"collection": rag.collection, "question": last["content"]}
    if rag.model is not None:
        values["model"] = rag.model
    if (rag.model or settings.generation_model) == EXTRACTIVE:
        # It quotes: there is nothing to sample, and what was said before changes nothing.
        if not isinstance(request.text.format, TextFormat):
            raise wrong(
                "text.format",
                f"is for models that generate text; {request.model} quotes passages. Name a model "
                f"behind the collection, as {RAG_PREFIX}{rag.collection}/ollama/llama3.2",
            )
        return values
    if earlier and (request.conversation or request.previous_response_id):
        raise wrong("input", "must be one message for models rag/<collection> that go on")
    if request.instructions:
        system.insert(0, request.instructions)
    return values | {
        "parameters": _parameters(request),
        "response_format": request.text.format.ours(),
        "instructions": "\n\n".join(system) or None,
        "earlier": [
            {"role": message["role"], "content": message["content"]} for message in earlier
        ],
    }


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
    request: ResponseRequest, lookup: Lookup
) -> tuple[list[dict[str, Any]], Literal["auto", "none", "required"]]:
    """The tools that the model may call, and whether it has to call one."""
    ours: dict[str, dict[str, Any]] = {}
    for number, tool in enumerate(request.tools):
        if isinstance(tool, FileSearchTool):
            if SEARCH_TOOL in ours:
                raise wrong(
                    f"tools.{number}",
                    "there is one file_search already; name all vector_store_ids there",
                )
            param = f"tools.{number}.vector_store_ids"
            ours[SEARCH_TOOL] = tool.ours(lookup.collections(tool.vector_store_ids, param))
        elif tool.name in ours or tool.name == SEARCH_TOOL:
            raise wrong(f"tools.{number}.name", f"{tool.name} is taken; give another name")
        else:
            ours[tool.name] = tool.ours()
    choice = request.tool_choice
    if isinstance(choice, str):
        if choice == "required" and not ours:
            raise wrong("tool_choice", "is required, and there are no tools")
        return list(ours.values()), choice
    chosen = choice.tools if isinstance(choice, AllowedTools) else [choice]
    names = {tool.name if isinstance(tool, FunctionChoice) else SEARCH_TOOL for tool in chosen}
    for name in sorted(names - ours.keys()):
        known = "file_search" if name == SEARCH_TOOL else name
        raise wrong("tool_choice", f"names the tool {shown(known)}, which is not in tools")
    mode = choice.mode if isinstance(choice, AllowedTools) else "required"
    return [tool for name, tool in ours.items() if name in names], mode


@dataclass(frozen=True, kw_only=True)
class StoredLookup:
    """What the key has stored. Raises ProblemError."""

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


class NoLookup:
    """For requests that are read where nothing stored can be looked up, as lines of a batch. What
    they name is looked for when they are submitted."""

    def collections(self, ids: Sequence[str], param: str) -> list[str]:
        for id_ in ids:
            if id_.startswith("vs_") or not re.fullmatch(COLLECTION_NAME, id_):
                raise wrong(param, f"name the collection itself here, not {shown(id_)}")
        return list(dict.fromkeys(ids))

    def item(self, id_: str) -> InputItem:
        raise wrong("input", f"send the item itself here, not a reference to {shown(id_)}")

    def previous(self, id_: str) -> str:
        return str(uuid_of(PREFIX, id_, "response"))

    def conversation(self, id_: str) -> str:
        return str(uuid_of(CONVERSATION_PREFIX, id_, "conversation"))


# How a response is written.


def echo_of(request: ResponseRequest, model: str) -> dict[str, Any]:
    """What a response says of its request."""
    choice, prompt, default = request.tool_choice, request.prompt, Parameters()
    echo: dict[str, Any] = {
        "model": model,
        "background": request.background,
        "instructions": request.instructions,
        "max_output_tokens": request.max_output_tokens,
        "max_tool_calls": request.max_tool_calls,
        "metadata": request.metadata,
        "parallel_tool_calls": request.parallel_tool_calls,
        "previous_response_id": request.previous_response_id,
        "prompt": None if prompt is None else prompt.model_dump(exclude_none=True),
        "prompt_cache_key": request.prompt_cache_key,
        "reasoning": {"effort": request.reasoning.effort, "summary": None},
        "safety_identifier": request.safety_identifier,
        "service_tier": "default",
        "store": request.store,
        "temperature": default.temperature if request.temperature is None else request.temperature,
        "text": request.text.echo(),
        "tool_choice": choice if isinstance(choice, str) else choice.model_dump(),
        "tools": [tool.echo() for tool in request.tools],
        "top_logprobs": request.top_logprobs or 0,
        "top_p": default.top_p if request.top_p is None else request.top_p,
        "truncation": request.truncation,
    }
    if request.conversation is not None:
        echo["conversation"] = {"id": request.conversation.id}
    if request.user is not None:
        echo["user"] = request.user
    return echo


def snapshot(job_id: UUID, created_s: float, echo: Mapping[str, Any]) -> dict[str, Any]:
    """A response of which nothing has come yet."""
    return {
        "id": id_of(PREFIX, job_id),
        "object": "response",
        "created_at": int(created_s),
        "status": "in_progress",
        "completed_at": None,
        "error": None,
        "incomplete_details": None,
        "output": [],
        **echo,
    }


def _begun(job: Job) -> dict[str, Any]:
    return snapshot(job.id, job.created_at.timestamp(), _echo(job))


def _echo(job: Job) -> Mapping[str, Any]:
    return as_object(as_object(job.meta).get(KEY))


def _ended(begun: Mapping[str, Any], result: ChatResult, completed_s: float) -> dict[str, Any]:
    """A response that has been answered, less its output."""
    is_cut = result.finish_reason == "length"
    usage = result.usage
    return {
        **begun,
        "status": "incomplete" if is_cut else "completed",
        "completed_at": None if is_cut else int(completed_s),
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
    return {**begun, "status": "failed", "error": {"code": code, "message": problem.detail}}


def logprobs_of(result: ChatResult) -> list[dict[str, Any]]:
    return [
        {
            **_likely(one.token, one.logprob, one.bytes),
            "top_logprobs": [_likely(top.token, top.logprob, top.bytes) for top in one.top],
        }
        for one in result.logprobs or ()
    ]


def _likely(token: str, logprob: float, bytes_: list[int] | None) -> dict[str, Any]:
    known = list(token.encode(errors="replace")) if bytes_ is None else bytes_
    return {"token": token, "logprob": logprob, "bytes": known}


def cited_files(parts: Parts, hits: Iterable[Hit]) -> dict[str, CitedFile]:
    """The files that hits are of, by document; less what was erased since. Blocks."""
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


def _written(
    owner: UUID, values: Mapping[str, Any], parts: Parts | None, *, with_results: bool
) -> tuple[ChatResult, list[dict[str, Any]]]:
    """The result of a job, and the items that it is. Without `parts` documents stand for files."""
    passages = Passages()
    result = read_result(values, passages)
    if parts is not None:
        passages.files = cited_files(parts, [*_hits(result.searches), *passages.hits.values()])
    items = output_of(
        ItemWriter(owner=owner, passages=passages, with_results=with_results),
        result,
        is_incomplete=result.finish_reason == "length",
        logprobs=logprobs_of(result),
    )
    return result, items


def _hits(searches: Sequence[ToolSearch]) -> list[Hit]:
    return [hit for search in searches for hit in search.hits]


def body_of(
    outcome: Outcome, echo: Mapping[str, Any], parts: Parts | None, *, with_results: bool
) -> dict[str, Any]:
    """The response of a job that has succeeded. Blocks, with `parts`."""
    result, output = _written(outcome.id, outcome.result, parts, with_results=with_results)
    begun = snapshot(outcome.id, outcome.created_at.timestamp(), echo)
    finished_s = outcome.created_at.timestamp()
    if parts is not None and (job := _job_now(parts, outcome.id)) is not None:
        finished_s = _finished_s(job)
    return {**_ended(begun, result, finished_s), "output": output}


def response_of(parts: Parts, job: Job, *, with_results: bool) -> dict[str, Any]:
    """The response as it is now. Blocks."""
    begun = _begun(job)
    if job.state == State.SUCCEEDED:
        values = calls.outcome_of(parts, job, {}).result
        result, output = _written(job.id, values, parts, with_results=with_results)
        return {**_ended(begun, result, _finished_s(job)), "output": output}
    if job.state in ENDED:
        return _failed(begun, job)
    is_waiting = job.state == State.QUEUED and begun.get("background")
    return {**begun, "status": "queued" if is_waiting else "in_progress"}


def _finished_s(job: Job) -> float:
    return (job.finished_at or job.created_at).timestamp()


def _job_of_line(request: ResponseRequest, settings: Settings) -> JobOfCall:
    for name in ("stream", "background"):
        if getattr(request, name):
            raise wrong(name, "is not for a line of a batch; leave it out")
    return response_job(request, settings, NoLookup())


def _body_of_line(request: ResponseRequest, outcome: Outcome, _base_url: str) -> dict[str, Any]:
    echo = echo_of(request, request.model or str(outcome.input["model"]))
    return body_of(outcome, echo, None, with_results=request.with_results)


RESPONSES = Endpoint(
    path="/v1/responses", request=ResponseRequest, job=_job_of_line, body=_body_of_line
)


# The stream of a response.


def _failed_frame(problem: Problem) -> bytes:
    """The end of a stream whose response goes on. It has no number of its own in the order."""
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
            return await run_in_threadpool(_of_outcome, parts, events, item, begun)
    return []


async def _settled(
    parts: Parts, events: ResponseEvents, step_id: int, begun: Mapping[str, Any]
) -> list[Event]:
    """What was written and called before a step."""

    def read() -> list[Event]:
        payload = _payload(parts, step_id)
        searches = [ToolSearch.model_validate(search) for search in payload.get("searches", ())]
        events.writer.passages.files |= cited_files(parts, _hits(searches))
        return list(events.settled(payload.get("messages", ()), searches, begun))

    return await run_in_threadpool(read)


def _of_outcome(
    parts: Parts, events: ResponseEvents, outcome: Outcome, begun: Mapping[str, Any]
) -> list[Event]:
    passages = events.writer.passages
    result = read_result(outcome.result, passages)
    passages.files |= cited_files(parts, [*_hits(result.searches), *passages.hits.values()])
    job = _job_now(parts, outcome.id)
    finished_s = outcome.created_at.timestamp() if job is None else _finished_s(job)
    return list(events.end(result, _ended(begun, result, finished_s), logprobs_of(result)))


def _payload(parts: Parts, step_id: int) -> Mapping[str, Any]:
    with parts.ledger.read_single() as session:
        step = session.get(Step, step_id)
        return {} if step is None else as_object(step.payload)


def _job_now(parts: Parts, job_id: UUID) -> Job | None:
    with parts.ledger.read() as session, suppress(NotFound):
        return jobs.get(session, job_id)
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
            f"There is no response {shown(id_)}; it may have been deleted, not stored, or removed "
            "by retention."
        )
    return job


def _stored(parts: Parts, id_: str, fair_key: str) -> Job:
    with parts.ledger.read() as session:
        return _job(session, id_, fair_key)


@router.post("/responses", responses=DOCUMENTED)
async def create_response(parts: PartsDep, caller: CallerDep, request: ResponseRequest) -> Response:
    """Make a response: its text, calls of functions, searches of vector stores."""
    model = request.model or parts.settings.generation_model
    if request.model is not None:
        await writes(parts, request.model)

    def new_job() -> JobOfCall:
        with parts.ledger.read() as session:
            lookup = StoredLookup(parts=parts, session=session, fair_key=caller.fair_key)
            return response_job(request, parts.settings, lookup)

    job = await run_in_threadpool(new_job)
    identity = request.model_dump(mode="json", exclude_unset=True)
    new = calls.new_job(parts, caller, job.kind, job.input, identity=identity, lane=request.lane)
    # Requests may be larger than what clients keep with their jobs.
    made = await submit_for(parts, replace(new, metadata=dict(job.metadata)), model)
    echo = job.metadata[KEY]
    begun = snapshot(made.id, made.created_at.timestamp(), echo)
    with_results = request.with_results
    if request.stream:
        keeps_on = request.background or caller.comes_back
        return _streamed(parts, caller, made, begun, with_results=with_results, keeps_on=keeps_on)
    if request.background:
        return answer_json({**begun, "status": "queued"}, calls.headers_of(made))
    outcome = await outcome_for(parts, caller, made, model)
    body = await run_in_threadpool(body_of, outcome, echo, parts, with_results=with_results)
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
    """Those that a response was made from, and those that it is. Raises ProblemError for one that
    has not succeeded."""
    values = calls.outcome_of(parts, job, {}).result
    _, output = _written(job.id, values, parts, with_results=True)
    return [*_input_items(parts, session, job), *output]
