"""What jobs that generate text are asked for: messages, sampling parameters, tools, formats.

The kinds `chat` and `rag` share these shapes; `shared/kinds/payloads.py` has the rest of `rag`.
"""

import re
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import AfterValidator, Field, model_validator

from shared.bounds import (
    CollectionName,
    JsonSchema,
    Line,
    ModelName,
    Natural,
    Paragraph,
    ToolArguments,
)
from shared.config import EXTRACTIVE
from shared.vocabulary import Shape

PROVIDERS = ("hf", "ollama", "openai")
SERVERS = ("ollama", "openai")

STOP_LIMIT = 16
CALLS_LIMIT = 1000
BUILT_IN_TOOLS = ("search_collection", "calculator", "fetch_url")


def is_reference(value: str) -> bool:
    provider, slash, name = value.partition("/")
    return value == EXTRACTIVE or bool(provider in PROVIDERS and slash and name)


def is_servable(value: str) -> bool:
    """What a worker may be told to serve: a model reference, or all models of a server."""
    return is_reference(value) or value in SERVERS


def _reference(value: str) -> str:
    if is_reference(value):
        return value
    raise ValueError(
        "a model reference is `hf/<repository or path>`, `ollama/<name>`, `openai/<name>` or "
        f"`{EXTRACTIVE}`"
    )


ModelReference = Annotated[ModelName, AfterValidator(_reference)]


def door_of(model: str) -> str:
    """The part of the queue `generate` that a model's steps wait in.

    Models of other servers share one per provider, since any generation worker can ask those
    servers; a model that a worker has to hold (`hf/...`) has one of its own.
    """
    provider = model.partition("/")[0]
    return model if provider == "hf" else provider


class Parameters(Shape):
    """Sampling. `temperature` 0 always takes the likeliest token; `max_tokens` has a default and
    a limit among the server's settings."""

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


class ResponseFormat(Shape):
    """`json` makes the model answer with JSON, valid by `schema` where one is given."""

    type: Literal["text", "json"] = "text"
    json_schema: JsonSchema | None = Field(default=None, alias="schema")


def _has_places(template: str) -> str:
    found = set(re.findall(r"{(\w*)}", template.replace("{{", "").replace("}}", "")))
    if found != {"context", "question"}:
        raise ValueError("a prompt has the places {context} and {question}, and no others")
    return template


PromptTemplate = Annotated[str, Field(max_length=100_000), AfterValidator(_has_places)]


class Usage(Shape):
    prompt_tokens: int
    completion_tokens: int


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
    def _says_something(self) -> "ChatMessage":
        if not self.content and not self.tool_calls and self.role != "tool":
            raise ValueError(f"a message of the {self.role} needs content")
        if self.tool_calls and self.role != "assistant":
            raise ValueError("only messages of the assistant have tool_calls")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise ValueError("tool_call_id goes with the role tool, which needs it")
        return self


class BuiltInTool(Shape):
    """A tool that Sluice runs itself; `collection` is where `search_collection` looks."""

    type: Literal["search_collection", "calculator", "fetch_url"]
    collection: CollectionName | None = None

    @model_validator(mode="after")
    def _collection_goes_with_search(self) -> "BuiltInTool":
        if (self.type == "search_collection") != (self.collection is not None):
            raise ValueError("collection goes with search_collection, which needs it")
        return self


class FunctionSpec(Shape):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$", max_length=64)]
    description: Paragraph = ""
    parameters: JsonSchema = {"type": "object", "properties": {}}


class DeclaredTool(Shape):
    """A tool of the client: its calls are returned, and the client sends what came of them."""

    type: Literal["function"]
    function: FunctionSpec


ToolSpec = Annotated[BuiltInTool | DeclaredTool, Field(discriminator="type")]


class ChatInput(Shape):
    """With `conversation_id`, `messages` are the new ones; the earlier ones are stored."""

    messages: Annotated[list[ChatMessage], Field(fail_fast=True, min_length=1, max_length=1000)]
    model: ModelReference | None = None
    conversation_id: UUID | None = None
    tools: Annotated[list[ToolSpec], Field(fail_fast=True, max_length=64)] = []
    parameters: Parameters = Parameters()
    response_format: ResponseFormat = ResponseFormat()

    @model_validator(mode="after")
    def _asks_something(self) -> "ChatInput":
        if self.messages[-1].role in ("system", "assistant"):
            raise ValueError("the last message must be of the user or of a tool")
        return self


class ChatResult(Shape):
    """`turns` counts how often the model was asked, `steps` are its calls of tools and their
    results; `messages_dropped` of the history found no room in its window."""

    message: dict[str, Any]
    model: str
    usage: Usage
    finish_reason: str = "stop"
    turns: int = 1
    steps: list[dict[str, Any]] = []
    messages_dropped: int = 0
    parsed: Any = None
