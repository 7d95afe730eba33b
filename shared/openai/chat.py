"""Chat completions of OpenAI's API: request -> job, and the job's result -> answer.

A model `rag/<collection>` answers from the passages of a collection, by the default model or by the
model that follows, as in `rag/handbook/ollama/llama3.2`.
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import AfterValidator, Discriminator, Field, Tag, model_validator

from shared.bounds import COLLECTION_NAME, JsonSchema, Line, ModelName, Paragraph, shown
from shared.config import EXTRACTIVE, Settings
from shared.errors import InvalidInput
from shared.kinds.batch import EndedJob, Endpoint, JobSpec
from shared.kinds.chat import CALLS_LIMIT, CHAT, CHOICES_LIMIT, FunctionSpec
from shared.kinds.rag import RAG, RAG_PREFIX, RagModel, rag_of
from shared.openai.completions import (
    FINISH_REASONS,
    Alternatives,
    SamplingFields,
    StreamOptions,
    body_of,
)
from shared.openai.wire import (
    TEXT_CHARS,
    NoEffect,
    Unsupported,
    WireArguments,
    WireContent,
    without_stream,
)
from shared.vocabulary import WireShape

# Messages


class FunctionOfCall(WireShape):
    name: Line
    arguments: WireArguments = {}


class ToolCall(WireShape):
    id: Line
    type: Literal["function"] = "function"
    function: FunctionOfCall


class SystemMessage(WireShape):
    role: Literal["system", "developer"]
    content: WireContent
    name: NoEffect = None

    def to_input(self) -> dict[str, Any]:
        return {"role": "system", "content": self.content}


class UserMessage(WireShape):
    role: Literal["user"]
    content: WireContent
    name: NoEffect = None

    def to_input(self) -> dict[str, Any]:
        return {"role": "user", "content": self.content}


class AssistantMessage(WireShape):
    """An answer; it has all fields of our answers, so that clients can send them back unchanged."""

    role: Literal["assistant"]
    content: WireContent = ""
    refusal: Annotated[str, Field(max_length=TEXT_CHARS)] = ""
    name: NoEffect = None
    tool_calls: Annotated[list[ToolCall], Field(fail_fast=True, max_length=CALLS_LIMIT)] = []
    annotations: NoEffect = None
    reasoning_content: NoEffect = None
    """The reasoning of a model before an earlier answer; models do not read it again."""
    audio: Annotated[Any, AfterValidator(Unsupported("send the text of the answer"))] = None
    function_call: Annotated[Any, AfterValidator(Unsupported("send tool_calls"))] = None

    def to_input(self) -> dict[str, Any]:
        values: dict[str, Any] = {"role": "assistant", "content": self.content or self.refusal}
        if self.tool_calls:
            values["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        return values


class ToolMessage(WireShape):
    role: Literal["tool"]
    content: WireContent
    tool_call_id: Line
    name: NoEffect = None

    def to_input(self) -> dict[str, Any]:
        return {"role": "tool", "content": self.content, "tool_call_id": self.tool_call_id}


WireMessage = Annotated[
    SystemMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")
]


# Tools and formats


class FunctionTool(WireShape):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$", max_length=64)]
    description: Paragraph = ""
    parameters: JsonSchema = {"type": "object", "properties": {}}
    strict: NoEffect = None

    def to_input(self) -> dict[str, Any]:
        spec = FunctionSpec(
            name=self.name,
            description=self.description,
            parameters=self.parameters or {"type": "object", "properties": {}},
        )
        return {"type": "function", "function": spec.model_dump()}


class Tool(WireShape):
    type: Literal["function"]
    function: FunctionTool


class JsonSchemaFormat(WireShape):
    name: Line
    description: Paragraph = ""
    schema_: JsonSchema | None = Field(default=None, alias="schema")
    strict: NoEffect = None


class TextFormat(WireShape):
    type: Literal["text"]

    def to_input(self) -> dict[str, Any]:
        return {"type": "text"}


class JsonObjectFormat(WireShape):
    type: Literal["json_object"]

    def to_input(self) -> dict[str, Any]:
        return {"type": "json"}


class SchemaFormat(WireShape):
    type: Literal["json_schema"]
    json_schema: JsonSchemaFormat

    def to_input(self) -> dict[str, Any]:
        schema = self.json_schema.schema_
        return {"type": "json"} if schema is None else {"type": "json", "schema": schema}


WireFormat = Annotated[TextFormat | JsonObjectFormat | SchemaFormat, Field(discriminator="type")]


MESSAGES_LIMIT = 1000
TOOLS_LIMIT = 64


class NamedFunction(WireShape):
    name: Line


class ChosenTool(WireShape):
    """The one tool that the model has to call."""

    type: Literal["function"]
    function: NamedFunction


class AllowedTools(WireShape):
    mode: Literal["auto", "required"]
    tools: Annotated[list[ChosenTool], Field(fail_fast=True, min_length=1, max_length=TOOLS_LIMIT)]


class AllowedToolsChoice(WireShape):
    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


def _kind_of_choice(value: Any) -> str | None:
    if isinstance(value, str):
        return "mode"
    type_ = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return type_ if type_ in ("function", "allowed_tools") else None


ToolChoice = Annotated[
    Annotated[Literal["none", "auto", "required"], Tag("mode")]
    | Annotated[ChosenTool, Tag("function")]
    | Annotated[AllowedToolsChoice, Tag("allowed_tools")],
    Discriminator(
        _kind_of_choice,
        custom_error_type="tool_choice",
        custom_error_message="must be none, auto, required, or an object of the type function or "
        "allowed_tools",
    ),
]


class ChatRequest(SamplingFields):
    """A chat completion. Unknown fields are refused."""

    model: ModelName
    messages: Annotated[
        list[WireMessage], Field(fail_fast=True, min_length=1, max_length=MESSAGES_LIMIT)
    ]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1, le=CHOICES_LIMIT)] = 1
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    tools: Annotated[list[Tool], Field(fail_fast=True, max_length=TOOLS_LIMIT)] = []
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool = True
    response_format: WireFormat = TextFormat(type="text")
    logprobs: bool = False
    top_logprobs: Alternatives | None = None
    modalities: Annotated[Any, AfterValidator(Unsupported("answers are text", ["text"]))] = None
    audio: Annotated[Any, AfterValidator(Unsupported("answers are text"))] = None
    functions: Annotated[Any, AfterValidator(Unsupported("send tools", []))] = None
    function_call: Annotated[Any, AfterValidator(Unsupported("send tool_choice", "none"))] = None
    reasoning_effort: Annotated[
        Any, AfterValidator(Unsupported("say in a message how long to think", "none"))
    ] = None
    verbosity: Annotated[
        Any, AfterValidator(Unsupported("say in a message how long to be", "medium"))
    ] = None
    web_search_options: Annotated[
        Any, AfterValidator(Unsupported("name a model rag/<collection> to search documents"))
    ] = None
    moderation: Annotated[Any, AfterValidator(Unsupported("leave it out"))] = None
    # The following cannot change an answer.
    metadata: Annotated[dict[Line, Line], Field(max_length=16)] = {}
    user: NoEffect = None
    store: NoEffect = None
    service_tier: NoEffect = None
    safety_identifier: NoEffect = None
    prompt_cache_key: NoEffect = None
    prompt_cache_retention: NoEffect = None
    prompt_cache_options: NoEffect = None
    prediction: NoEffect = None

    @model_validator(mode="after")
    def _fits_together(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs goes with logprobs: true")
        if self.tool_choice not in (None, "none", "auto") and not self.tools:
            raise ValueError("tool_choice needs tools")
        known = {tool.function.name for tool in self.tools}
        for name in self.chosen_names:
            if name not in known:
                raise ValueError(f"tool_choice names the tool {shown(name)}, which is not in tools")
        return self

    @property
    def chosen_names(self) -> list[str]:
        """The names of the tools that may be called; empty if all may."""
        choice = self.tool_choice
        if isinstance(choice, ChosenTool):
            return [choice.function.name]
        if isinstance(choice, AllowedToolsChoice):
            return [tool.function.name for tool in choice.allowed_tools.tools]
        return []

    @property
    def mode(self) -> str:
        """Whether tools may be called (`auto`), must not (`none`), or must be (`required`)."""
        choice = self.tool_choice
        if isinstance(choice, ChosenTool):
            return "required"
        if isinstance(choice, AllowedToolsChoice):
            return choice.allowed_tools.mode
        return choice or "auto"

    @property
    def alternatives(self) -> int | None:
        """How many alternatives each token's log-probability comes with; None without any."""
        return (self.top_logprobs or 0) if self.logprobs else None

    def sampling(self) -> dict[str, Any]:
        limit = self.max_completion_tokens or self.max_tokens
        return self.parameters(max_tokens=limit, choices=self.n, logprobs=self.alternatives)


# Models `rag/<collection>`, also for responses


def require_collection_name(rag: RagModel) -> None:
    """Raises InvalidInput for a model `rag/<collection>` whose collection is no valid name."""
    if re.fullmatch(COLLECTION_NAME, rag.collection) is None:
        raise InvalidInput(
            f"model: {shown(rag.collection)} is no name of a collection; name one as "
            f"{RAG_PREFIX}handbook."
        )


def quotes(rag: RagModel, settings: Settings) -> bool:
    """Whether the answer consists of quoted passages: no token is generated."""
    return (rag.model or settings.generation_model) == EXTRACTIVE


def needs_generation(model: str | None, rag: RagModel) -> str:
    """Why a parameter is refused if `quotes`, and what to do."""
    return (
        f"is for models that generate text; {model} quotes passages. Name a model behind the "
        f"collection, as {RAG_PREFIX}{rag.collection}/ollama/llama3.2"
    )


def rag_values(
    rag: RagModel,
    settings: Settings,
    *,
    question: str,
    earlier: Sequence[Mapping[str, Any]],
    system: Sequence[str],
    parameters: Mapping[str, Any],
    response_format: Mapping[str, Any],
) -> dict[str, Any]:
    """The input of a `rag` job. `earlier` are the messages before the question, `system` are the
    texts of system messages. A model that quotes passages reads neither, and samples no token."""
    values: dict[str, Any] = {"collection": rag.collection, "question": question}
    if rag.model is not None:
        values["model"] = rag.model
    if quotes(rag, settings):
        return values
    return values | {
        "parameters": parameters,
        "response_format": response_format,
        "earlier": earlier,
        "instructions": "\n\n".join(system) or None,
    }


# Request -> job


def chat_job(request: ChatRequest, settings: Settings, base_url: str = "") -> JobSpec:
    """A `chat`, or a `rag` for a model `rag/<collection>`. Raises InvalidInput or ValidationError.

    `base_url` is the address of this server, for links; by default the one it listens at.
    """
    options = {
        "model": request.model,
        "base_url": base_url or f"http://{settings.api_host}:{settings.api_port}",
    }
    rag = rag_of(request.model)
    if rag is not None:
        require_collection_name(rag)
        values = _rag_input(request, rag, settings)
        return JobSpec(kind=RAG, input=RAG.input.model_validate(values), options=options)
    chosen = request.chosen_names
    values = {
        "model": request.model,
        "messages": [message.to_input() for message in request.messages if _says(message)],
        "tools": [
            tool.function.to_input()
            for tool in request.tools
            if not chosen or tool.function.name in chosen
        ],
        "tool_choice": request.mode,
        "parallel_tool_calls": request.parallel_tool_calls,
        "n": request.n,
        "parameters": request.sampling(),
        "response_format": request.response_format.to_input(),
    }
    return JobSpec(kind=CHAT, input=CHAT.input.model_validate(values), options=options)


def _rag_input(request: ChatRequest, rag: RagModel, settings: Settings) -> dict[str, Any]:
    """The last message is the question; the model reads the earlier ones, too."""
    refusals = {
        "tools": bool(request.tools),
        "n": request.n > 1,
        "logprobs": request.logprobs,
    }
    for name, is_sent in refusals.items():
        if is_sent:
            raise InvalidInput(f"{name} is not supported by models rag/<collection>; leave it out.")
    *earlier, last = request.messages
    if not isinstance(last, UserMessage):
        raise InvalidInput("messages must end with the question, a message of the user.")
    system = [message.content for message in earlier if isinstance(message, SystemMessage)]
    spoken = [m for m in earlier if not isinstance(m, SystemMessage) and _says(m)]
    if any(isinstance(message, ToolMessage) or _calls(message) for message in spoken):
        raise InvalidInput("messages must be without tools for models rag/<collection>.")
    if quotes(rag, settings) and (request.stop or request.response_format.type != "text"):
        name = "stop" if request.stop else "response_format"
        raise InvalidInput(f"{name} {needs_generation(request.model, rag)}.")
    return rag_values(
        rag,
        settings,
        question=last.content,
        earlier=[message.to_input() for message in spoken],
        system=system,
        parameters=request.sampling(),
        response_format=request.response_format.to_input(),
    )


def _says(message: Any) -> bool:
    """False for an empty answer: programs keep one if an answer broke off, and no model reads
    it."""
    return not isinstance(message, AssistantMessage) or bool(
        message.content or message.refusal or message.tool_calls
    )


def _calls(message: Any) -> bool:
    return isinstance(message, AssistantMessage) and bool(message.tool_calls)


# Result of the job -> answer


@dataclass(frozen=True, kw_only=True)
class ChatAnswer:
    """One of the choices of an answer, in the shapes of OpenAI's API."""

    content: str
    finish_reason: str
    tool_calls: Sequence[Mapping[str, Any]] = ()
    annotations: Sequence[Mapping[str, Any]] = ()
    logprobs: Sequence[Mapping[str, Any]] | None = None


def choices_of(job: EndedJob) -> list[ChatAnswer]:
    """The answers of a `chat` or `rag` job."""
    result = job.result
    if "answer" in result:
        choice = ChatAnswer(
            content=result["answer"],
            finish_reason=FINISH_REASONS.get(result["finish_reason"], "stop"),
            annotations=list(
                annotations(result["answer"], result["citations"], job.options["base_url"])
            ),
        )
        return [choice]
    choices = result.get("choices") or [result]
    return list(map(_choice, choices))


def _choice(values: Mapping[str, Any]) -> ChatAnswer:
    message = values["message"]
    tool_calls = [wire_call(call) for call in message.get("tool_calls") or ()]
    reason = FINISH_REASONS.get(values["finish_reason"], "stop")
    return ChatAnswer(
        content=message["content"],
        finish_reason="tool_calls" if tool_calls else reason,
        tool_calls=tool_calls,
        logprobs=values.get("logprobs"),
    )


def wire_call(call: Mapping[str, Any]) -> dict[str, Any]:
    """A tool call, with its arguments as JSON in a string."""
    function = call["function"]
    arguments = json.dumps(function["arguments"], ensure_ascii=False)
    return {
        "id": call["id"],
        "type": "function",
        "function": {"name": function["name"], "arguments": arguments},
    }


def annotations(
    text: str, citations: Sequence[Mapping[str, Any]], base_url: str
) -> Iterator[dict[str, Any]]:
    """A `url_citation` for each marker in the text that cites a passage."""
    by_marker = {citation["marker"]: citation for citation in citations}
    for place in MARKER.finditer(text):
        citation = by_marker.get(place[0])
        if citation is not None:
            yield {
                "type": "url_citation",
                "url_citation": {
                    "start_index": place.start(),
                    "end_index": place.end(),
                    "title": citation["source"],
                    "url": url_of(citation, base_url),
                },
            }


MARKER = re.compile(r"\[\d{1,9}\]")


def url_of(hit: Mapping[str, Any], base_url: str) -> str:
    """Where a passage can be read: the address of its source, or its document on this server."""
    for value in (hit["source"], hit["metadata"].get("url")):
        if isinstance(value, str) and urlsplit(value).scheme in ("http", "https"):
            return value
    return f"{base_url.rstrip('/')}/v1/documents/{hit['document_id']}"


def logprobs_body(entries: Sequence[Mapping[str, Any]] | None) -> dict[str, Any] | None:
    if entries is None:
        return None
    content = [
        {
            "token": entry["token"],
            "logprob": entry["logprob"],
            "bytes": entry["bytes"],
            "top_logprobs": entry["top"],
        }
        for entry in entries
    ]
    return {"content": content, "refusal": None}


def chat_body(job: EndedJob) -> dict[str, Any]:
    """The answer to a request whose job has succeeded."""
    choices = []
    for index, choice in enumerate(choices_of(job)):
        message: dict[str, Any] = {
            "role": "assistant",
            "content": choice.content if choice.content or not choice.tool_calls else None,
            "refusal": None,
            "annotations": list(choice.annotations),
        }
        if choice.tool_calls:
            message["tool_calls"] = list(choice.tool_calls)
        choices.append(
            {
                "index": index,
                "message": message,
                "logprobs": logprobs_body(choice.logprobs),
                "finish_reason": choice.finish_reason,
            }
        )
    return body_of(job, prefix=ID_PREFIX, object_="chat.completion", choices=choices)


ID_PREFIX = "chatcmpl-"


def _read(body: Any, settings: Settings) -> JobSpec:
    without_stream(body)
    return chat_job(ChatRequest.model_validate(body), settings)


CHAT_COMPLETIONS = Endpoint(url="/v1/chat/completions", read=_read, answer=chat_body)
