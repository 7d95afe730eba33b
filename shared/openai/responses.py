"""Responses of OpenAI's API: request -> job, and the job's result -> answer.

A response is a job of the kind `chat`, or `rag` if the model is `rag/<collection>`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Final, Literal, Protocol
from uuid import UUID

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag

from shared.bounds import COLLECTION_NAME, JsonSchema, Line, ModelName, Paragraph, shown
from shared.config import Settings
from shared.errors import InvalidInput
from shared.kinds.batch import EndedJob, Endpoint, JobSpec
from shared.kinds.chat import (
    CALLS_LIMIT,
    CHAT,
    SEARCH_TOOL,
    ChatResult,
    Parameters,
    TokenLogprob,
)
from shared.kinds.rag import RAG, RagModel, rag_of
from shared.kinds.search import COLLECTIONS_LIMIT
from shared.openai.chat import (
    TOOLS_LIMIT,
    FunctionTool,
    JsonObjectFormat,
    TextFormat,
    needs_generation,
    quotes,
    rag_values,
    require_collection_name,
)
from shared.openai.file_search import RANKERS, SearchRanking, WireFilter, translate_filter
from shared.openai.items import (
    ITEMS_LIMIT,
    WITH_LOGPROBS,
    WITH_RESULTS,
    Include,
    InputItem,
    ItemWriter,
    Passages,
    WireMetadata,
    chat_messages,
    none_of,
    read_result,
    tag_of,
)
from shared.openai.response_events import output_of
from shared.openai.wire import TEXT_CHARS, NoEffect, Unsupported, id_of, without_stream
from shared.vocabulary import Lane, WireShape

PREFIX: Final = "resp_"
CONVERSATION_PREFIX: Final = "conv_"

# Requests. Unknown fields are refused.

RESULTS_LIMIT = 50
MODES = ("none", "auto", "required")
SPEAKERS = ("user", "system")
FORMATS = ("text", "json_object", "json_schema")
TOOLS = ("function", "file_search")


class ResponseFunctionTool(FunctionTool):
    type: Literal["function"]
    strict: bool = False
    output_schema: NoEffect = None
    defer_loading: Annotated[Any, AfterValidator(Unsupported("leave it out", False))] = None
    allowed_callers: Annotated[Any, AfterValidator(Unsupported("leave it out", ["direct"]))] = None

    def echo(self) -> dict[str, Any]:
        return {
            "type": "function",
            "name": self.name,
            "description": self.description or None,
            "parameters": self.parameters,
            "strict": self.strict,
        }


class FileSearchTool(WireShape):
    type: Literal["file_search"]
    vector_store_ids: Annotated[
        list[Line], Field(fail_fast=True, min_length=1, max_length=COLLECTIONS_LIMIT)
    ]
    max_num_results: Annotated[int, Field(ge=1, le=RESULTS_LIMIT)] = 20
    ranking_options: SearchRanking = SearchRanking()
    filters: WireFilter | None = None

    def to_input(self, names: Sequence[str]) -> dict[str, Any]:
        """The tool in the input of a `chat`; `names` are the names of the collections."""
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


ResponseTool = Annotated[
    Annotated[ResponseFunctionTool, Tag("<function>")]
    | Annotated[FileSearchTool, Tag("<file_search>")],
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


class ToolChoiceAllowed(WireShape):
    type: Literal["allowed_tools"]
    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(fail_fast=True, min_length=1, max_length=TOOLS_LIMIT)]


def _choice_tag_of(value: Any) -> str:
    return "<mode>" if isinstance(value, str) else tag_of(value)


ResponseToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("<mode>")]
    | Annotated[FunctionChoice, Tag("<function>")]
    | Annotated[FileSearchChoice, Tag("<file_search>")]
    | Annotated[ToolChoiceAllowed, Tag("<allowed_tools>")],
    Discriminator(
        _choice_tag_of, **none_of((*MODES, *TOOLS, "allowed_tools"), "name one of these")
    ),
]


class ResponseJsonSchema(WireShape):
    type: Literal["json_schema"]
    name: Line
    schema_: JsonSchema = Field(alias="schema")
    description: Paragraph | None = None
    strict: bool | None = None

    def to_input(self) -> dict[str, Any]:
        return {"type": "json", "schema": self.schema_}


class TextOptions(WireShape):
    format: Annotated[
        Annotated[TextFormat, Tag("<text>")]
        | Annotated[JsonObjectFormat, Tag("<json_object>")]
        | Annotated[ResponseJsonSchema, Tag("<json_schema>")],
        Discriminator(tag_of, **none_of(FORMATS, "name one of these")),
    ] = TextFormat(type="text")
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
    context: NoEffect = None
    mode: NoEffect = None


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
    """A prompt of `/v1/prompts` with values for its variables. With `input` it is a system message,
    without it is the message of the user."""

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


class ResponseStreamOptions(WireShape):
    include_obfuscation: NoEffect = None


class BackgroundOptions(WireShape):
    completion_window: Literal["soonest", "2h", "8h"] = "soonest"
    continuation_id: NoEffect = None


class ResponseRequest(WireShape):
    """A response to be made. Unknown fields are refused."""

    model: ModelName | None = None
    """By default the server's model."""
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
    tools: Annotated[list[ResponseTool], Field(fail_fast=True, max_length=TOOLS_LIMIT)] = []
    tool_choice: ResponseToolChoice = "auto"
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
    stream_options: ResponseStreamOptions = ResponseStreamOptions()
    include: Annotated[list[Include], Field(fail_fast=True, max_length=32)] = []
    metadata: WireMetadata = {}
    reasoning: Reasoning = Reasoning()
    # The following cannot change an answer.
    user: Line | None = None
    safety_identifier: Line | None = None
    prompt_cache_key: Line | None = None
    prompt_cache_retention: NoEffect = None
    prompt_cache_options: NoEffect = None
    service_tier: NoEffect = None
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


# Request -> job


def wrong(param: str, detail: str) -> InvalidInput:
    """An error that names the parameter."""
    return InvalidInput(f"{param}: {detail}.")


class Lookup(Protocol):
    """Looks up what a request refers to. All methods raise for what does not exist."""

    def collections(self, ids: Sequence[str], param: str) -> list[str]:
        """Ids of vector stores -> names of collections."""

    def item(self, id_: str) -> InputItem:
        """The item with this id."""

    def previous(self, id_: str) -> str:
        """Id of a response -> id of its job."""

    def conversation(self, id_: str) -> str:
        """Id of a conversation -> its id in Sluice."""


def response_job(request: ResponseRequest, settings: Settings, lookup: Lookup) -> JobSpec:
    """A `chat`, or a `rag` for a model `rag/<collection>`. Raises InvalidInput, ValidationError,
    and what `lookup` raises."""
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
    if any(not message["content"] for message in messages if message["role"] in SPEAKERS):
        raise wrong("input", "has a message without a text; leave it out, or write one")
    limit = settings.max_tokens_limit
    if (request.max_output_tokens or 0) > limit:
        raise wrong(
            "max_output_tokens",
            f"is {request.max_output_tokens:,}; this server allows {limit:,} "
            "(SLUICE_MAX_TOKENS_LIMIT)",
        )
    rag = None if request.model is None else rag_of(request.model)
    if rag is not None:
        require_collection_name(rag)
        kind, values = RAG, _rag_values(request, messages, rag, settings)
    else:
        kind, values = CHAT, _chat_values(request, messages, lookup)
    if request.previous_response_id is not None:
        values["previous_job_id"] = lookup.previous(request.previous_response_id)
    if request.conversation is not None:
        values["conversation_id"] = lookup.conversation(request.conversation.id)
    echo = echo_of(request, request.model or settings.generation_model)
    options = {"echo": echo, "with_results": request.with_results}
    return JobSpec(kind=kind, input=kind.input.model_validate(values), options=options)


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
        "response_format": request.text.format.to_input(),
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
    """The last message is the question; the model reads the earlier ones, too."""
    refusals = {
        "tools": request.tools,
        "prompt": request.prompt,
        "top_logprobs": request.top_logprobs,
    }
    for name, value in refusals.items():
        if value:
            raise wrong(name, "is not supported by models rag/<collection>; leave it out")
    system = [message["content"] for message in messages if message["role"] == "system"]
    *earlier, last = (message for message in messages if message["role"] != "system")
    has_tools = any(m["role"] == "tool" or m.get("tool_calls") for m in (*earlier, last))
    if has_tools or last["role"] != "user":
        raise wrong("input", "must be without calls of tools for models rag/<collection>")
    if quotes(rag, settings):
        if not isinstance(request.text.format, TextFormat):
            raise wrong("text.format", needs_generation(request.model, rag))
    elif earlier and (request.conversation or request.previous_response_id):
        raise wrong("input", "must be one message for models rag/<collection> that go on")
    if request.instructions:
        system.insert(0, request.instructions)
    return rag_values(
        rag,
        settings,
        question=last["content"],
        earlier=[{"role": one["role"], "content": one["content"]} for one in earlier],
        system=system,
        parameters=_parameters(request),
        response_format=request.text.format.to_input(),
    )


def _parameters(request: ResponseRequest) -> dict[str, Any]:
    values = {
        "max_tokens": request.max_output_tokens,
        "temperature": request.temperature,
        # `top_p` of 0 means the most probable token only, which is a `top_k` of 1 here.
        "top_p": request.top_p if request.top_p != 0 else None,
        "top_k": 1 if request.top_p == 0 else None,
        "logprobs": (request.top_logprobs or 0) if request.with_logprobs else None,
    }
    return {name: value for name, value in values.items() if value is not None}


def _tools(
    request: ResponseRequest, lookup: Lookup
) -> tuple[list[dict[str, Any]], Literal["auto", "none", "required"]]:
    """The tools that the model may call, and whether it has to call one."""
    tools: dict[str, dict[str, Any]] = {}
    for number, tool in enumerate(request.tools):
        if isinstance(tool, FileSearchTool):
            if SEARCH_TOOL in tools:
                raise wrong(
                    f"tools.{number}",
                    "there is one file_search already; name all vector_store_ids there",
                )
            param = f"tools.{number}.vector_store_ids"
            tools[SEARCH_TOOL] = tool.to_input(lookup.collections(tool.vector_store_ids, param))
        elif tool.name in tools or tool.name == SEARCH_TOOL:
            raise wrong(f"tools.{number}.name", f"{tool.name} is taken; give another name")
        else:
            tools[tool.name] = tool.to_input()
    choice = request.tool_choice
    if isinstance(choice, str):
        if choice == "required" and not tools:
            raise wrong("tool_choice", "is required, and there are no tools")
        return list(tools.values()), choice
    chosen = choice.tools if isinstance(choice, ToolChoiceAllowed) else [choice]
    names = {tool.name if isinstance(tool, FunctionChoice) else SEARCH_TOOL for tool in chosen}
    for name in sorted(names - tools.keys()):
        wire_name = "file_search" if name == SEARCH_TOOL else name
        raise wrong("tool_choice", f"names the tool {shown(wire_name)}, which is not in tools")
    mode = choice.mode if isinstance(choice, ToolChoiceAllowed) else "required"
    return [tool for name, tool in tools.items() if name in names], mode


class NoLookup:
    """A `Lookup` for the lines of a batch, which are checked without the database. It checks names
    and ids; whether they exist is checked when the job is submitted."""

    def collections(self, ids: Sequence[str], param: str) -> list[str]:
        for id_ in ids:
            if id_.startswith("vs_") or not re.fullmatch(COLLECTION_NAME, id_):
                raise wrong(param, f"name the collection itself here, not {shown(id_)}")
        return list(dict.fromkeys(ids))

    def item(self, id_: str) -> InputItem:
        raise wrong("input", f"send the item itself here, not a reference to {shown(id_)}")

    def previous(self, id_: str) -> str:
        return _uuid(PREFIX, id_, "previous_response_id")

    def conversation(self, id_: str) -> str:
        return _uuid(CONVERSATION_PREFIX, id_, "conversation")


def _uuid(prefix: str, id_: str, param: str) -> str:
    digits = id_.removeprefix(prefix)
    if digits == id_ or not re.fullmatch(r"[0-9a-f]{32}", digits):
        raise wrong(param, f"{shown(id_)} is none; such an id is {prefix!r} and 32 hex digits")
    return str(UUID(hex=digits))


# Result of the job -> answer


def echo_of(request: ResponseRequest, model: str) -> dict[str, Any]:
    """The fields of the request that its response repeats."""
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


def new_response(job_id: UUID, created_s: float, echo: Mapping[str, Any]) -> dict[str, Any]:
    """A response in progress, without output."""
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


def finished_response(
    new: Mapping[str, Any], result: ChatResult, completed_s: float
) -> dict[str, Any]:
    """A finished response, still without its output. `new` is what `new_response` returned."""
    is_cut = result.finish_reason == "length"
    usage = result.usage
    return {
        **new,
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


def logprobs_of(result: ChatResult) -> list[dict[str, Any]]:
    return as_wire(result.logprobs or ())


def as_wire(logprobs: Iterable[TokenLogprob]) -> list[dict[str, Any]]:
    """Log-probabilities in the shape that items have."""
    return [
        {
            **_likely(one.token, one.logprob, one.bytes),
            "top_logprobs": [_likely(top.token, top.logprob, top.bytes) for top in one.top],
        }
        for one in logprobs
    ]


def _likely(token: str, logprob: float, bytes_: list[int] | None) -> dict[str, Any]:
    known = list(token.encode(errors="replace")) if bytes_ is None else bytes_
    return {"token": token, "logprob": logprob, "bytes": known}


def result_items(
    owner: UUID, values: Mapping[str, Any], passages: Passages, *, with_results: bool
) -> tuple[ChatResult, list[dict[str, Any]]]:
    """The result of a job, and its output items. `passages` has the files of what was found, if
    they are known; otherwise documents stand for files."""
    result = read_result(values, passages)
    items = output_of(
        ItemWriter(owner=owner, passages=passages, with_results=with_results),
        result,
        is_incomplete=result.finish_reason == "length",
        logprobs=logprobs_of(result),
    )
    return result, items


def _read(body: Any, settings: Settings) -> JobSpec:
    without_stream(body)
    request = ResponseRequest.model_validate(body)
    if request.background:
        raise wrong("background", "is not for a line of a batch; leave it out")
    return response_job(request, settings, NoLookup())


def _answer(job: EndedJob) -> dict[str, Any]:
    result, output = result_items(
        job.id, job.result, Passages(), with_results=job.options["with_results"]
    )
    created_s = job.created_at.timestamp()
    new = new_response(job.id, created_s, job.options["echo"])
    return {**finished_response(new, result, created_s), "output": output}


RESPONSES = Endpoint(url="/v1/responses", read=_read, answer=_answer)
