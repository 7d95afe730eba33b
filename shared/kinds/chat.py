"""The kind `chat`: an answer of a model to messages, with tools and stored conversations.

What it has in common with `rag` is here, too.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field, model_validator
from sqlalchemy.orm import Session

from shared import named_models, prompts
from shared.bounds import (
    INT32_MAX,
    CollectionName,
    JsonSchema,
    Line,
    McpServerName,
    Natural,
    Paragraph,
    ToolArguments,
    shown,
)
from shared.config import Settings
from shared.documents import collections
from shared.errors import InvalidInput
from shared.kinds.kind import Kind, StepType
from shared.kinds.search import COLLECTIONS_LIMIT, Hit, PassageCount, SearchOptions
from shared.models.providers import ModelReference, is_reference, provider_of, route_of
from shared.named_models import Preset
from shared.prompts import RENDERED_LIMIT_CHARS, PromptReference, VariableValues
from shared.vocabulary import Queue, Shape

# What the kinds that generate text, `chat` and `rag`, have in common.

STOP_LIMIT = 16
CHOICES_LIMIT = 128
ALTERNATIVES_LIMIT = 20
LOGPROBS_LIMIT = 256
"""Of all choices together: so many log-probabilities are kept for each place in the text."""


class Parameters(Shape):
    """Sampling. `temperature` 0 always takes the likeliest token; `max_tokens` has a default and
    a limit among the server's settings.

    The penalties are taken off the logit of a token that was written already: `presence_penalty`
    once, `frequency_penalty` for each time. With `logprobs` the result has the log-probability of
    each token, and so many of the likeliest at its place.
    """

    max_tokens: Natural | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0, le=1_000_000)] = 0
    stop: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=256)]],
        Field(fail_fast=True, max_length=STOP_LIMIT),
    ] = []
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] = 1.0
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] = 0.0
    logprobs: Annotated[int, Field(ge=0, le=ALTERNATIVES_LIMIT)] | None = None
    window_tokens: Annotated[int, Field(ge=16, le=INT32_MAX)] | None = None
    """How many tokens prompt and answer may have together, where the model's window is larger."""


def check_choices(choices: int, parameters: Parameters) -> None:
    """Raises ValueError for more choices than a job may have, or than it may tell of so much."""
    if choices > CHOICES_LIMIT:
        raise ValueError(f"n makes {choices:,} choices; a job takes {CHOICES_LIMIT}")
    if parameters.logprobs is not None and choices * (parameters.logprobs + 1) > LOGPROBS_LIMIT:
        raise ValueError(
            f"makes {choices} choices with {parameters.logprobs} logprobs at each place; a job "
            f"keeps {LOGPROBS_LIMIT} for a place, the token's own included. Send fewer at once"
        )


class Likely(Shape):
    """A token and its log-probability. `bytes` are its own in UTF-8, where they are known: a token
    may be a part of a character, and `token` is then no text."""

    token: str
    logprob: float
    bytes: list[int] | None = None


class TokenLogprob(Likely):
    """A token of a text, and the likeliest at its place, best first."""

    top: list[Likely] = []


class ResponseFormat(Shape):
    """`json` makes the model answer with JSON, valid by `schema` where there is one."""

    type: Literal["text", "json"] = "text"
    json_schema: JsonSchema | None = Field(default=None, alias="schema")


Rendered = Annotated[str, Field(max_length=2 * RENDERED_LIMIT_CHARS)]
"""What the server makes of a stored prompt when a job is submitted; clients leave it out."""


def check_variables(prompt: str | None, variables: Mapping[str, Any]) -> None:
    """Raises ValueError where there is nothing that has variables."""
    if variables and (prompt is None or prompts.reference_of(prompt) is None):
        raise ValueError("variables goes with a prompt that is the name of a stored one")


class Usage(Shape):
    prompt_tokens: int
    completion_tokens: int


def model_of(model: str | None, settings: Settings) -> tuple[str, str]:
    """The model that a job runs with, and where that was said."""
    if model is not None:
        return model, "input.model"
    return settings.generation_model, "SLUICE_GENERATION_MODEL"


def check(model: str | None, parameters: Parameters, settings: Settings) -> None:
    """Raises InvalidInput for what this server cannot generate."""
    name, where = model_of(model, settings)
    provider = provider_of(name)
    if provider is not None and provider.server is not None and not provider.is_set_up(settings):
        raise InvalidInput(
            f"{where} is {name!r}, but no server is set for such models: set "
            f"{provider.server.setting} for the API and the generation workers."
        )
    limit = settings.max_tokens_limit
    if parameters.max_tokens is not None and parameters.max_tokens > limit:
        raise InvalidInput(
            f"input.parameters.max_tokens is {parameters.max_tokens:,}; this server allows "
            f"{limit:,} (SLUICE_MAX_TOKENS_LIMIT)."
        )


def defaults(job_input: Any, settings: Settings) -> dict[str, Any]:
    """The model; and of the parameters for a named one those alone that were set, since it has
    others."""
    model, _ = model_of(job_input.model, settings)
    noted: dict[str, Any] = {"model": model}
    if not is_reference(model):
        noted["parameters"] = job_input.parameters.model_dump(mode="json", exclude_unset=True)
    return noted


CALLS_LIMIT = 1000


class FunctionCall(Shape):
    """A call of a declared tool; `arguments` is the decoded JSON object."""

    name: Line
    arguments: ToolArguments = {}


class CallOfTool(Shape):
    id: Line
    type: Literal["function"] = "function"
    function: FunctionCall


class ChatMessage(Shape):
    """`tool_calls` belong to the assistant's messages, `tool_call_id` to those of a tool."""

    role: Literal["system", "user", "assistant", "tool"]
    content: Annotated[str, Field(max_length=1_000_000)] = ""
    tool_calls: Annotated[list[CallOfTool], Field(fail_fast=True, max_length=CALLS_LIMIT)] = []
    tool_call_id: Line | None = None

    @model_validator(mode="after")
    def _has_content(self) -> "ChatMessage":
        if not self.content and not self.tool_calls and self.role != "tool":
            raise ValueError(f"a message of the {self.role} needs content")
        if self.tool_calls and self.role != "assistant":
            raise ValueError("only messages of the assistant have tool_calls")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise ValueError("tool_call_id goes with the role tool, which needs it")
        return self


SEARCH_TOOL: Literal["search_collection"] = "search_collection"


class BuiltInTool(Shape):
    """A tool that Sluice runs itself. `search_collection` looks in `collection`, or in all of
    `collections` at once."""

    type: Literal["search_collection", "calculator", "fetch_url"]
    collection: CollectionName | None = None
    collections: (
        Annotated[
            list[CollectionName],
            Field(fail_fast=True, min_length=1, max_length=COLLECTIONS_LIMIT),
        ]
        | None
    ) = None
    k: PassageCount | None = None
    """How many passages a search gives; the model chooses where this is not set."""
    search: SearchOptions | None = None
    least_score: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    """Passages with a lower score are left out."""

    @model_validator(mode="after")
    def _options_go_with_search(self) -> "BuiltInTool":
        places = [self.collection, self.collections]
        if self.type != SEARCH_TOOL:
            options = [*places, self.k, self.search, self.least_score]
            if any(option is not None for option in options):
                raise ValueError(
                    "collection, collections, k, search and least_score go with search_collection"
                )
        elif places.count(None) != 1:
            raise ValueError("search_collection needs either collection or collections")
        elif self.search is not None and self.search.rerank is not None:
            raise ValueError("search.rerank is not for tools; leave it out")
        return self

    @property
    def places(self) -> list[str]:
        """The collections that `search_collection` looks in."""
        return [self.collection] if self.collection is not None else list(self.collections or ())


class FunctionSpec(Shape):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$", max_length=64)]
    description: Paragraph = ""
    parameters: JsonSchema = {"type": "object", "properties": {}}


class DeclaredTool(Shape):
    """A tool of the client: its calls are returned, and the client sends what came of them."""

    type: Literal["function"]
    function: FunctionSpec


class McpTool(Shape):
    """Tools of an MCP server that the operator has set up (`SLUICE_MCP_SERVERS`): all that it
    allows, or those of them that are named."""

    type: Literal["mcp"]
    server: McpServerName
    allowed_tools: Annotated[list[Line], Field(fail_fast=True, max_length=64)] | None = None


class RemoteTool(Shape):
    """A tool of an MCP server as it was when the job asked for it; `name` is what models call it
    by."""

    server: str
    tool: str
    name: str
    description: str
    parameters: JsonSchema


ToolSpec = Annotated[BuiltInTool | DeclaredTool | McpTool, Field(discriminator="type")]


class ChatInput(Shape):
    """With `conversation_id`, `messages` are the new ones; the earlier ones are stored. With
    `previous_job_id`, the earlier ones are those of that chat and of the chats that it continues;
    several may continue the same one.

    `prompt` names a stored prompt: beside `messages` it is the system's message in front of them,
    alone it is the user's.

    `tool_choice` says whether the model may call tools, and `required` that it has to, in its
    first answer; without `parallel_tool_calls` one answer has one call at most. `n` answers are
    written side by side, each with a seed of its own.
    """

    messages: Annotated[list[ChatMessage], Field(fail_fast=True, max_length=1000)] = []
    prompt: PromptReference | None = None
    variables: VariableValues = {}
    rendered: Rendered | None = None
    model: ModelReference | None = None
    preset: Preset | None = None
    """What the server notes of a named model when a job is submitted; clients leave it out."""
    instructions: Annotated[str, Field(min_length=1, max_length=1_000_000)] | None = None
    """A system prompt of this turn alone, in front of all messages."""
    conversation_id: UUID | None = None
    previous_job_id: UUID | None = None
    history: Literal["trim", "whole"] = "trim"
    """Whether the oldest messages are dropped that find no room in the model's window, or the job
    fails."""
    tools: Annotated[list[ToolSpec], Field(fail_fast=True, max_length=64)] = []
    tool_choice: Literal["auto", "none", "required"] = "auto"
    parallel_tool_calls: bool = True
    n: Annotated[int, Field(ge=1, le=CHOICES_LIMIT)] = 1
    parameters: Parameters = Parameters()
    tool_calls_limit: Annotated[int, Field(ge=0, le=CALLS_LIMIT)] | None = None
    """How many calls of Sluice's own tools are run; further ones are ignored."""
    response_format: ResponseFormat = ResponseFormat()

    @model_validator(mode="after")
    def _has_question(self) -> "ChatInput":
        check_variables(self.prompt, self.variables)
        if not self.messages and self.prompt is not None:
            return self
        if not self.messages:
            raise ValueError("messages is required, at least 1 message, or else prompt")
        spoken = [message for message in self.messages if message.role != "system"]
        if not spoken or spoken[-1].role == "assistant":
            raise ValueError("messages must end with one of the user or of a tool")
        return self

    @model_validator(mode="after")
    def _continues_one(self) -> "ChatInput":
        if self.conversation_id is not None and self.previous_job_id is not None:
            raise ValueError("give either conversation_id or previous_job_id")
        return self

    @model_validator(mode="after")
    def _knows_where_to_search(self) -> "ChatInput":
        searches = [tool for tool in self.tools if tool.type == SEARCH_TOOL]
        if len(searches) > 1 and any(tool.collection is None for tool in searches):
            raise ValueError(
                "one tool search_collection with `collections`, or several with a `collection` of "
                "their own: the model chooses among these"
            )
        return self

    @model_validator(mode="after")
    def _choices_are_possible(self) -> "ChatInput":
        if self.tool_choice == "required" and not self.tools:
            raise ValueError("tool_choice is required, and there are no tools")
        if self.n > 1 and self.conversation_id is not None:
            raise ValueError("a turn of a conversation has one answer; leave n out")
        check_choices(self.n, self.parameters)
        return self

    @property
    def all_messages(self) -> list[ChatMessage]:
        """With that of the prompt."""
        if self.rendered is None:
            return self.messages
        return list(map(ChatMessage.model_validate, messages_of(self.model_dump(mode="json"))))


def messages_of(stored_input: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The messages of a job's stored input, with that of its prompt."""
    messages = list(stored_input.get("messages", ()))
    rendered = stored_input.get("rendered")
    if rendered is None:
        return messages
    return [{"role": "system" if messages else "user", "content": rendered}, *messages]


class ChatChoice(Shape):
    """One of several answers."""

    message: dict[str, Any]
    finish_reason: str = "stop"
    parsed: Any = None
    logprobs: list[TokenLogprob] | None = None


class ToolSearch(Shape):
    """What a call of `search_collection` has shown to the model: its passages are numbered on from
    `first`, and cited by these numbers."""

    call_id: str
    query: str
    first: int
    hits: list[Hit]


class ChatResult(Shape):
    """`turns` counts the model's answers, `steps` are its calls of tools and their results, of
    which `searches` has the passages; `messages_dropped` of the history found no room in its
    window. With `n` above 1, `choices` are all answers, of which `message` is the first."""

    message: dict[str, Any]
    model: str
    usage: Usage
    finish_reason: str = "stop"
    turns: int = 1
    steps: list[dict[str, Any]] = []
    searches: list[ToolSearch] = []
    messages_dropped: int = 0
    parsed: Any = None
    logprobs: list[TokenLogprob] | None = None
    choices: list[ChatChoice] = []


def _check(job_input: ChatInput, settings: Settings) -> None:
    model, where = model_of(job_input.model, settings)
    provider = provider_of(model)
    if provider is not None and CHAT.name not in provider.kinds:
        raise InvalidInput(
            f"{where} is {model!r}, which answers `rag` jobs only. Name a model that can "
            "chat, as `ollama/llama3.2` or `hf/Qwen/Qwen3-4B-Instruct-2507`."
        )
    check(job_input.model, job_input.parameters, settings)
    for tool in job_input.tools:
        if isinstance(tool, McpTool):
            _check_server(tool, settings)


def _check_server(tool: McpTool, settings: Settings) -> None:
    server = settings.mcp_servers.get(tool.server)
    if server is None:
        known = ", ".join(settings.mcp_servers) or "none"
        raise InvalidInput(
            f"input.tools: there is no MCP server {tool.server!r}; there are: {known}. "
            "SLUICE_MCP_SERVERS names them, for the API and for CPU workers."
        )
    if server.allowed_tools is None:
        return
    refused = [name for name in tool.allowed_tools or () if name not in server.allowed_tools]
    if refused:
        raise InvalidInput(
            f"input.tools: {shown(refused[0])} of the MCP server {tool.server!r} is not allowed "
            f"here (SLUICE_MCP_SERVERS); allowed are: {', '.join(server.allowed_tools) or 'none'}."
        )


def _require(session: Session, inputs: Sequence[Mapping[str, Any]]) -> None:
    """The collections of the tools."""
    tools = [tool for input_ in inputs for tool in input_.get("tools", ())]
    names = {tool.get("collection") for tool in tools}
    names.update(name for tool in tools for name in tool.get("collections") or ())
    for name in sorted(names - {None}):
        collections.get(session, name)


def _resolve(session: Session, inputs: Sequence[dict[str, Any]]) -> None:
    prompts.use(session, inputs)
    named_models.use(session, inputs)


CHAT = Kind(
    name="chat",
    summary="an answer of a model",
    input=ChatInput,
    result=ChatResult,
    steps=[
        StepType(
            name="chat.answer", queue=Queue.GENERATE, handler="workers.generation.chat:CHAT_ANSWER"
        ),
        StepType(
            name="chat.choice", queue=Queue.GENERATE, handler="workers.generation.chat:CHAT_CHOICE"
        ),
        StepType(
            name="chat.tools", queue=Queue.QUERY, handler="workers.generation.chat:CHAT_TOOLS"
        ),
    ],
    example={
        "model": "ollama/llama3.2",
        "messages": [{"role": "user", "content": "Say good morning in Korean."}],
        "parameters": {"max_tokens": 64, "temperature": 0.7},
    },
    check=_check,
    defaults=defaults,
    require=_require,
    resolve=_resolve,
    route=lambda input_: route_of(input_["model"]),
    is_generated=True,
)
