"""LangChain's classes over a server of Sluice: chat model, embeddings, retriever, vector store.

    from sluice.langchain import ChatSluice, SluiceEmbeddings, SluiceRetriever, SluiceVectorStore

Each call is a job of the server's queue. This module needs langchain-core, which the extra
`sluice-client[langchain]` installs.

What each does is written once, as coroutines over the calls of a client (`sluice/client.py`):
their asynchronous methods await these, the others drive them over a client that blocks.
"""

import asyncio
import json
import logging
import re
import uuid
import weakref
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, suppress
from typing import Any, ClassVar, Final, Literal, TypeVar, cast
from unicodedata import normalize

import httpx
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, model_validator

from sluice.client import AsyncClient, Client, Tasks, blocking_items
from sluice.errors import ConfigurationError, InvalidInput, NotFound, SluiceError
from sluice.events import StreamItem, TextPiece
from sluice.inputs import SEARCH, tool_spec
from sluice.kinds import Lane
from sluice.shapes import ChatAnswer, Chunk, Hit, Job, SourceError
from sluice.transport import drive

try:
    from langchain_core.callbacks import (
        AsyncCallbackManagerForLLMRun,
        AsyncCallbackManagerForRetrieverRun,
        CallbackManagerForLLMRun,
        CallbackManagerForRetrieverRun,
    )
    from langchain_core.documents import Document
    from langchain_core.embeddings import Embeddings
    from langchain_core.language_models import BaseChatModel, LanguageModelInput
    from langchain_core.messages import (
        AIMessage,
        AIMessageChunk,
        BaseMessage,
        ChatMessage,
        HumanMessage,
        SystemMessage,
        ToolMessage,
    )
    from langchain_core.messages.ai import UsageMetadata
    from langchain_core.messages.tool import tool_call, tool_call_chunk
    from langchain_core.output_parsers import JsonOutputParser, PydanticOutputParser
    from langchain_core.output_parsers.openai_tools import (
        JsonOutputKeyToolsParser,
        PydanticToolsParser,
    )
    from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
    from langchain_core.retrievers import BaseRetriever
    from langchain_core.runnables import Runnable, RunnableMap, RunnablePassthrough
    from langchain_core.tools import BaseTool
    from langchain_core.utils import from_env, secret_from_env
    from langchain_core.utils.function_calling import (
        convert_to_json_schema,
        convert_to_openai_tool,
    )
    from langchain_core.utils.pydantic import TypeBaseModel, is_basemodel_subclass
    from langchain_core.vectorstores import VectorStore, VectorStoreRetriever
except ImportError as error:
    raise ImportError(
        "sluice.langchain needs langchain-core; install the client as sluice-client[langchain]."
    ) from error

log = logging.getLogger("sluice")

T = TypeVar("T")
Calls = Tasks[Any]
SearchType = Literal["hybrid", "similarity", "mmr", "similarity_score_threshold", "lexical"]
SEARCH_TYPES: Final = ("hybrid", "similarity", "mmr", "similarity_score_threshold", "lexical")

_CANCEL_S = 5.0
"""Whoever leaves a job does not wait longer for its cancellation."""


# The connection, which each of the classes has in the same way.


class _Connection:
    """Clients of one server, made at the first call."""

    def __init__(
        self,
        *,
        url: str | None = None,
        api_key: SecretStr | str | None = None,
        client: Client | None = None,
        async_client: AsyncClient | None = None,
    ) -> None:
        self._url = url
        self._api_key = api_key.get_secret_value() if isinstance(api_key, SecretStr) else api_key
        self._client = client
        self._async_client = async_client
        self._of_loops: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncClient]
        self._of_loops = weakref.WeakKeyDictionary()

    def blocking(self) -> Calls:
        if self._client is None:
            self._client = Client(self._url, self._api_key)
            weakref.finalize(self, self._client.close)
        return self._client.tasks

    def waiting(self) -> Calls:
        """An asyncio client belongs to one event loop, which a chain may be run on by anybody."""
        if self._async_client is not None:
            return self._async_client
        loop = asyncio.get_running_loop()
        client = self._of_loops.get(loop)
        if client is None:
            # A loop ends without telling, so no connection is kept for the next call.
            limits = httpx.Limits(max_keepalive_connections=0)
            client = AsyncClient(self._url, self._api_key, limits=limits)
            self._of_loops[loop] = client
        return client

    def run(self, work: Callable[[Calls], Coroutine[Any, Any, T]]) -> T:
        return drive(work(self.blocking()))


class _Connected(BaseModel):
    """The fields of a connection: without `url` it is SLUICE_URL, or the stack on this machine."""

    model_config = ConfigDict(
        arbitrary_types_allowed=True, populate_by_name=True, extra="forbid", protected_namespaces=()
    )

    url: str | None = Field(default_factory=from_env("SLUICE_URL", default=None))
    api_key: SecretStr | None = Field(
        default_factory=secret_from_env("SLUICE_API_KEY", default=None)
    )
    client: Client | None = Field(default=None, exclude=True, repr=False)
    """A client to use instead of one of its own."""
    async_client: AsyncClient | None = Field(default=None, exclude=True, repr=False)
    """One for asyncio, whose connections are kept between calls; it belongs to one event loop."""
    timeout_s: float | None = Field(default=None, alias="timeout")
    """How long a call may take; None waits for as long as the job goes on."""
    _connection: _Connection | None = PrivateAttr(default=None)

    @property
    def connection(self) -> _Connection:
        if self._connection is None:
            self._connection = _Connection(
                url=self.url,
                api_key=self.api_key,
                client=self.client,
                async_client=self.async_client,
            )
        return self._connection


# Chat


_SAMPLING: Final = ("temperature", "max_tokens", "top_p", "top_k", "seed", "repetition_penalty")
_TEXT_BLOCKS: Final = frozenset({"text", "text-plain"})
_SILENT_BLOCKS: Final = frozenset(
    {"tool_use", "tool_call", "tool_call_chunk", "input_json_delta", "reasoning", "thinking",
     "redacted_thinking", "function_call"}
)  # fmt: skip
"""Of the assistant's messages: calls of tools are sent as such, and thoughts are not sent back."""


class ChatSluice(_Connected, BaseChatModel):
    """A model that answers, as `ChatSluice(model="hf/Qwen/Qwen3-4B-Instruct-2507")`.

    Without `model` it is the server's default. What is not set is left to the server. A call that
    is left (its stream is closed, its task cancelled, Ctrl-C) cancels its job.
    """

    model: str | None = Field(default=None, alias="model_name")
    temperature: float | None = None
    max_tokens: int | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    repetition_penalty: float | None = None
    stop: list[str] | None = Field(default=None, alias="stop_sequences")
    parameters: dict[str, Any] = {}
    """Further ones of the server (`sluice.kinds.Parameters`); the fields above win."""
    conversation_id: str | None = None
    """A conversation that the server stores: messages are then the new ones alone."""
    streaming: bool = False
    """Whether `invoke` reads its answer as a stream, so that callbacks see each piece."""
    max_retries: int | None = None
    """How often the server tries again after a failure that may pass."""
    lane: Lane = "interactive"

    @property
    def _llm_type(self) -> str:
        return "sluice"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        named = {name: getattr(self, name) for name in ("model", *_SAMPLING, "stop", "parameters")}
        return {name: value for name, value in named.items() if value not in (None, {})}

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool | str],
        *,
        tool_choice: str | dict[str, Any] | bool | None = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Tools of the program, and tools that the server runs itself: `"calculator"`,
        `"fetch_url"`, `"search_collection:handbook"`, or whole specs of these.

        `tool_choice` is "auto", "none", "any" or "required" (at least one call), or the name of a
        tool, which is then the only one that is offered. Arguments are checked against their
        schema with or without `strict`.
        """
        del strict
        options: dict[str, Any] = {"tools": [_tool(tool) for tool in tools]}
        if tool_choice is not None:
            options["tool_choice"] = tool_choice
        if parallel_tool_calls is not None:
            options["parallel_tool_calls"] = parallel_tool_calls
        return self.bind(**options, **kwargs)

    def with_structured_output(
        self,
        schema: dict[str, Any] | type | None = None,
        *,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, dict[str, Any] | BaseModel]:
        """The answer as an object of a schema: a pydantic class, a `TypedDict`, or JSON Schema.

        `json_schema` shows the model the schema, and the server checks its answer, and asks once
        more where that is wrong; `function_calling` offers it as a tool; `json_mode` takes any
        JSON, whose form the prompt has to name.
        """
        if kwargs:
            raise TypeError(f"with_structured_output has no argument {next(iter(kwargs))!r}.")
        if method not in ("json_schema", "function_calling", "json_mode"):
            raise ValueError(
                f"The method {method!r} is none of json_schema, function_calling and json_mode."
            )
        if schema is None and method != "json_mode":
            raise ValueError(f"The method {method} needs a schema.")
        is_pydantic = isinstance(schema, type) and is_basemodel_subclass(schema)
        shape = cast("TypeBaseModel", schema)
        parser: Runnable[Any, Any]
        if method == "function_calling":
            tool = convert_to_openai_tool(cast("Any", schema))
            name = tool["function"]["name"]
            model = self.bind_tools(
                [tool],
                tool_choice=name,
                parallel_tool_calls=False,
                strict=strict,
                ls_structured_output_format={
                    "kwargs": {"method": method, "strict": strict},
                    "schema": tool,
                },
            )
            parser = (
                PydanticToolsParser(tools=[shape], first_tool_only=True)
                if is_pydantic
                else JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)
            )
        else:
            described = None if schema is None else convert_to_json_schema(cast("Any", schema))
            format_: dict[str, Any] = {"type": "json"}
            if method == "json_schema":
                format_ |= {"schema": described}
            model = self.bind(
                response_format=format_,
                ls_structured_output_format={"kwargs": {"method": method}, "schema": described},
            )
            parser = (
                PydanticOutputParser(pydantic_object=shape) if is_pydantic else JsonOutputParser()
            )
        if not include_raw:
            return model | parser
        parsed = RunnablePassthrough.assign(
            parsed=lambda answer: parser.invoke(answer["raw"]), parsing_error=lambda _: None
        )
        failed = RunnablePassthrough.assign(parsed=lambda _: None)
        return RunnableMap(raw=model) | parsed.with_fallbacks(
            [failed], exception_key="parsing_error"
        )

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        del run_manager  # which is told of the answer by the caller
        job_input = self._input(messages, stop, kwargs)
        return self.connection.run(lambda calls: self._answered(calls, job_input))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        del run_manager
        return await self._answered(self.connection.waiting(), self._input(messages, stop, kwargs))

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        job_input = self._input(messages, stop, kwargs)
        for chunk in blocking_items(self._chunks(self.connection.blocking(), job_input)):
            if run_manager is not None:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        job_input = self._input(messages, stop, kwargs)
        async with aclosing(self._chunks(self.connection.waiting(), job_input)) as chunks:
            async for chunk in chunks:
                if run_manager is not None:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _answered(self, calls: Calls, job_input: Mapping[str, Any]) -> ChatResult:
        async with aclosing(self._items(calls, job_input)) as items:
            async for item in items:
                if isinstance(item, Job):
                    return ChatResult(generations=[_generation(item)])
        raise AssertionError("the stream of a job ends with the job")

    async def _chunks(
        self, calls: Calls, job_input: Mapping[str, Any]
    ) -> AsyncGenerator[ChatGenerationChunk, None]:
        async with aclosing(self._items(calls, job_input)) as items:
            async for item in items:
                if isinstance(item, TextPiece):
                    yield ChatGenerationChunk(message=AIMessageChunk(content=item.text))
                elif isinstance(item, Job):
                    yield ChatGenerationChunk(message=_last_chunk(item))

    async def _items(
        self, calls: Calls, job_input: Mapping[str, Any]
    ) -> AsyncGenerator[StreamItem, None]:
        """What the job says, and at last the job, succeeded. One that is left is cancelled."""
        retries = self.max_retries
        job: Job = await calls.submit_untyped(
            "chat",
            job_input,
            lane=self.lane,
            max_attempts=None if retries is None else retries + 1,
        )
        has_ended = False
        try:
            async with aclosing(calls.stream(job.id, timeout_s=self.timeout_s)) as items:
                async for item in items:
                    if isinstance(item, Job):
                        has_ended = True
                        item.require_success()
                    yield item
        finally:
            if not has_ended:
                with suppress(SluiceError):
                    await calls.cancel(job.id, timeout_s=_CANCEL_S)

    def _input(
        self, messages: Sequence[BaseMessage], stop: list[str] | None, options: dict[str, Any]
    ) -> dict[str, Any]:
        """Raises `InvalidInput` or `TypeError` for what cannot be sent."""
        options = dict(options)
        options.pop("stream", None)
        model = options.pop("model", self.model)
        conversation_id = options.pop("conversation_id", self.conversation_id)
        parameters = {**self.parameters}
        for name in _SAMPLING:
            value = options.pop(name, None)
            value = getattr(self, name) if value is None else value
            if value is not None:
                parameters[name] = value
        parameters |= options.pop("parameters", None) or {}
        stop = self.stop if stop is None else stop
        if stop:
            parameters["stop"] = list(stop)
        tools = [_tool(tool) for tool in options.pop("tools", None) or ()]
        tools, choice = _chosen(tools, options.pop("tool_choice", None))
        job_input: dict[str, Any] = {
            "messages": [_message(message) for message in messages],
            "model": model,
            "conversation_id": conversation_id,
            "tools": tools,
            "parameters": parameters,
            "response_format": _response_format(options.pop("response_format", None)),
        }
        if choice is not None:
            job_input["tool_choice"] = choice
        if options.pop("parallel_tool_calls", None) is False and tools:
            job_input["parallel_tool_calls"] = False
        if options:
            raise TypeError(
                f"ChatSluice has no option {next(iter(options))!r}; sampling that has no field of "
                "its own goes into parameters={...}."
            )
        return {name: value for name, value in job_input.items() if value not in (None, [], {})}


def _tool(tool: Any) -> dict[str, Any]:
    """As the kind `chat` takes it."""
    if isinstance(tool, str):
        return tool_spec(tool)
    if isinstance(tool, dict) and tool.get("type") in ("calculator", "fetch_url", SEARCH):
        return tool
    function = convert_to_openai_tool(tool)["function"]
    known = {name: function[name] for name in ("name", "description") if function.get(name)}
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    return {"type": "function", "function": {**known, "parameters": parameters}}


def _chosen(
    tools: list[dict[str, Any]], choice: str | dict[str, Any] | bool | None
) -> tuple[list[dict[str, Any]], str | None]:
    """The tools to offer, and whether one has to be called."""
    if isinstance(choice, dict):
        choice = choice.get("function", {}).get("name") or choice.get("name") or ""
    if choice in (None, "auto", False, ""):
        return tools, None
    if choice == "none":
        return [], None
    if choice in ("any", "required", True):
        if not tools:
            raise InvalidInput(f"tool_choice is {choice!r}, and there are no tools.")
        return tools, "required"
    named = [tool for tool in tools if choice == tool.get("function", {}).get("name", tool["type"])]
    if not named:
        names = [tool.get("function", {}).get("name", tool["type"]) for tool in tools]
        raise InvalidInput(
            f"tool_choice is {choice!r}, which is none of auto, none, any, required, "
            f"{', '.join(names)}."
        )
    return named, "required"


def _response_format(format_: Any) -> dict[str, Any] | None:
    """The server's own, or as OpenAI has it."""
    if format_ is None:
        return None
    if not isinstance(format_, dict):
        return {"type": "json", "schema": convert_to_json_schema(format_)}
    if format_.get("type") == "json_object":
        return {"type": "json"}
    if format_.get("type") == "json_schema":
        return {"type": "json", "schema": format_.get("json_schema", {}).get("schema")}
    return format_


def _message(message: BaseMessage) -> dict[str, Any]:
    """Raises `InvalidInput` for what no model of the server reads. Names of speakers are not
    sent."""
    text = _text(message)
    if isinstance(message, SystemMessage):
        return {"role": "system", "content": text}
    if isinstance(message, HumanMessage):
        return {"role": "user", "content": text}
    if isinstance(message, AIMessage):
        calls = [_call(call) for call in message.tool_calls]
        return {"role": "assistant", "content": text} | ({"tool_calls": calls} if calls else {})
    if isinstance(message, ToolMessage):
        return {"role": "tool", "content": text, "tool_call_id": message.tool_call_id}
    if isinstance(message, ChatMessage) and message.role in ("system", "user", "assistant"):
        return {"role": message.role, "content": text}
    raise InvalidInput(
        f"A message of the type {message.type!r} cannot be sent to a model; messages are of the "
        "system, the user, the assistant or a tool."
    )


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = {"name": call["name"], "arguments": call["args"]}
    return {"id": call["id"] or f"call_{uuid.uuid4().hex}", "type": "function",
            "function": function}  # fmt: skip


def _text(message: BaseMessage) -> str:
    content = message.content
    if isinstance(content, str):
        return content
    texts: list[str] = []
    for block in content:
        type_ = "text" if isinstance(block, str) else str(block.get("type"))
        if type_ in _TEXT_BLOCKS:
            texts.append(block if isinstance(block, str) else str(block.get("text", "")))
        elif not (isinstance(message, AIMessage) and type_ in _SILENT_BLOCKS):
            raise InvalidInput(
                f"A message has content of the type {type_!r}, which no model here reads; send "
                "text alone."
            )
    return "".join(texts)


def _answer(job: Job) -> tuple[ChatAnswer, dict[str, Any], UsageMetadata | None]:
    answer = ChatAnswer.model_validate(job.result)
    metadata: dict[str, Any] = {
        "finish_reason": answer.finish_reason,
        "model_name": answer.model,
        "model_provider": "sluice",
        "job_id": job.id,
    }
    metadata |= {"steps": answer.steps} if answer.steps else {}
    metadata |= {"warnings": job.warnings} if job.warnings else {}
    logprobs = getattr(answer, "logprobs", None)
    metadata |= {"logprobs": logprobs} if logprobs else {}
    usage = answer.usage
    if usage.get("prompt_tokens") is None or usage.get("completion_tokens") is None:
        return answer, metadata, None
    read, written = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
    tokens = UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)
    return answer, metadata, tokens


def _generation(job: Job) -> ChatGeneration:
    answer, metadata, tokens = _answer(job)
    message = AIMessage(
        content=answer.text,
        tool_calls=[
            tool_call(
                name=call["function"]["name"], args=call["function"]["arguments"], id=call["id"]
            )
            for call in answer.tool_calls
        ],
        usage_metadata=tokens,
        response_metadata=metadata,
    )
    return ChatGeneration(message=message, generation_info={"finish_reason": answer.finish_reason})


def _last_chunk(job: Job) -> AIMessageChunk:
    """What the text lacks, which has come before."""
    answer, metadata, tokens = _answer(job)
    return AIMessageChunk(
        content="",
        tool_call_chunks=[
            tool_call_chunk(
                name=call["function"]["name"],
                args=json.dumps(call["function"]["arguments"], ensure_ascii=False),
                id=call["id"],
                index=index,
            )
            for index, call in enumerate(answer.tool_calls)
        ],
        usage_metadata=tokens,
        response_metadata=metadata,
        chunk_position="last",
    )


# Embeddings


_TEXTS_PER_JOB: Final = 1000
_CHARS_PER_JOB: Final = 2_000_000


class SluiceEmbeddings(_Connected, Embeddings):
    """Vectors of the server's embedding model, or of `model`."""

    model: str | None = None
    lane: Lane = "interactive"

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self.connection.run(lambda calls: self._vectors(calls, texts, "passage"))

    def embed_query(self, text: str) -> list[float]:
        return self.connection.run(lambda calls: self._vectors(calls, [text], "query"))[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        return await self._vectors(self.connection.waiting(), texts, "passage")

    async def aembed_query(self, text: str) -> list[float]:
        return (await self._vectors(self.connection.waiting(), [text], "query"))[0]

    async def _vectors(
        self, calls: Calls, texts: Sequence[str], input_type: Literal["query", "passage"]
    ) -> list[list[float]]:
        vectors: list[list[float]] = []
        for some in _parts(list(texts), len):
            answer = await calls.embed(
                some, model=self.model, input_type=input_type, timeout_s=self.timeout_s
            )
            vectors += answer.embeddings
        return vectors


def _parts(
    items: Sequence[T], chars: Callable[[T], int], *, limit: int = _TEXTS_PER_JOB
) -> Iterator[list[T]]:
    """The items in lists that one job takes."""
    some: list[T] = []
    total = 0
    for item in items:
        size = chars(item)
        if some and (len(some) >= min(limit, _TEXTS_PER_JOB) or total + size > _CHARS_PER_JOB):
            yield some
            some, total = [], 0
        some.append(item)
        total += size
    if some:
        yield some


# Passages as documents


OWN: Final = "langchain:"
"""The sources of documents that a vector store has added begin so; behind it comes their id."""
_CHUNK_ID: Final = re.compile(r"[0-9a-f]{32}-[0-9]{6,10}")


def _source(id_: str) -> str:
    # As the server keeps names.
    return OWN + normalize("NFC", id_)


def _document(hit: Hit, *, with_score: bool = False) -> Document:
    """What a vector store has added comes back as it was; a passage of another document has the
    chunk's id, and where it is from in its metadata."""
    metadata = dict(hit.metadata)
    is_own = hit.source.startswith(OWN)
    if not is_own:
        own = {
            "source": hit.source,
            "document_id": hit.document_id,
            "start_index": hit.start,
            "collection": hit.collection,
        }
        metadata = {name: value for name, value in own.items() if value is not None} | metadata
    if with_score:
        metadata.setdefault("score", hit.score)
    id_ = hit.source.removeprefix(OWN) if is_own else hit.chunk_id
    return Document(id=id_, page_content=hit.text, metadata=metadata)


async def _hits(
    calls: Calls,
    collection: str | Sequence[str],
    query: str | Sequence[float],
    *,
    k: int,
    filter: Mapping[str, Any] | None,
    options: Mapping[str, Any],
    timeout_s: float | None,
) -> list[Hit]:
    """Of a query, or of a vector."""
    search = {name: value for name, value in options.items() if value is not None}
    of_all: dict[str, Any] = {"k": k, "filter": filter, "search": search, "timeout_s": timeout_s}
    if isinstance(query, str):
        return await calls.search(collection, query, **of_all)
    return await calls.search_vector(collection, query, **of_all)


class SluiceRetriever(_Connected, BaseRetriever):
    """The passages of a collection, or of several, that answer a query, best first.

    `k` and the other options may also be given to `invoke`. The documents have their `score` in
    the metadata, and `source`, `document_id` and `start_index` where they lack these.
    """

    collection: str | list[str]
    k: int = 4
    search_type: SearchType = "hybrid"
    score_threshold: float | None = None
    """The least cosine of `similarity_score_threshold`."""
    fetch_k: int | None = None
    lambda_mult: float | None = None
    filter: dict[str, Any] | None = None
    rerank: str | None = None
    expand: int | None = None

    @model_validator(mode="after")
    def _threshold_goes_with_its_type(self) -> "SluiceRetriever":
        if (self.search_type == "similarity_score_threshold") != (self.score_threshold is not None):
            raise ValueError(
                "score_threshold goes with the search_type similarity_score_threshold, which "
                "needs it, as score_threshold=0.5"
            )
        return self

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        del run_manager
        return self.connection.run(lambda calls: self._documents(calls, query, kwargs))

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        del run_manager
        return await self._documents(self.connection.waiting(), query, kwargs)

    async def _documents(
        self, calls: Calls, query: str, changes: Mapping[str, Any]
    ) -> list[Document]:
        options = {
            name: changes.get(name, getattr(self, name))
            for name in (
                "score_threshold", "fetch_k", "lambda_mult", "rerank", "expand",
            )
        }  # fmt: skip
        known = {*options, "k", "filter", "search_type"}
        if unknown := changes.keys() - known:
            raise TypeError(
                f"SluiceRetriever has no option {min(unknown)!r}; it has "
                f"{', '.join(sorted(known))}."
            )
        hits = await _hits(
            calls,
            self.collection,
            query,
            k=changes.get("k", self.k),
            filter=changes.get("filter", self.filter),
            options={"type": changes.get("search_type", self.search_type), **options},
            timeout_s=self.timeout_s,
        )
        return [_document(hit, with_score=True) for hit in hits]


# The vector store


class RefusedTexts(SluiceError):
    """The server has not taken some of the texts; `errors` names each."""

    def __init__(self, errors: Sequence[SourceError]) -> None:
        self.errors = tuple(errors)
        shown = "; ".join(error.message for error in self.errors[:3])
        more = f"; and {len(self.errors) - 3} more" if len(self.errors) > 3 else ""
        super().__init__(f"{len(self.errors)} texts were not added: {shown}{more}")


class SluiceVectorStoreRetriever(VectorStoreRetriever):
    """LangChain's own, which also knows the types `hybrid` and `lexical`."""

    allowed_search_types: ClassVar[tuple[str, ...]] = SEARCH_TYPES

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        del run_manager
        return self.vectorstore.search(query, self.search_type, **(self.search_kwargs | kwargs))

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        del run_manager
        options = self.search_kwargs | kwargs
        return await self.vectorstore.asearch(query, self.search_type, **options)


class SluiceVectorStore(VectorStore):
    """A collection of the server as a vector store; it is made at the first call where it is
    missing.

    The server embeds texts and queries itself. `embedding` may be `SluiceEmbeddings`, whose model a
    new collection gets; other embeddings are refused, since nothing would be done with them.

    A text is one chunk, as it is. Scores are cosines: higher is better. Documents that came into
    the collection in another way are found as well, under the ids of their chunks; they are
    deleted as documents (`Client.delete_document`).
    """

    def __init__(
        self,
        collection: str = "langchain",
        embedding: Embeddings | None = None,
        *,
        url: str | None = None,
        api_key: SecretStr | str | None = None,
        client: Client | None = None,
        async_client: AsyncClient | None = None,
        timeout_s: float | None = None,
        lane: Lane = "normal",
    ) -> None:
        if embedding is not None and not isinstance(embedding, SluiceEmbeddings):
            raise ConfigurationError(
                f"The server embeds texts itself, so {type(embedding).__name__} would do nothing. "
                "Pass SluiceEmbeddings(model=...) to name the model of a new collection, or no "
                "embedding at all."
            )
        self.collection = collection
        self.timeout_s = timeout_s
        self.lane: Lane = lane
        """Of jobs that add and delete; searches are interactive."""
        self._embedding = embedding
        is_own = url is not None or client is not None or async_client is not None
        if embedding is not None and not is_own:
            self._connection = embedding.connection
        else:
            self._connection = _Connection(
                url=url, api_key=api_key, client=client, async_client=async_client
            )
        self._is_there = False

    @property
    def embeddings(self) -> Embeddings | None:
        return self._embedding

    # Adding

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int = _TEXTS_PER_JOB,
        **kwargs: Any,
    ) -> list[str]:
        """Their ids. A text with the id of another one takes its place.

        Metadata values are texts, numbers, truth values, or lists of one of these. A job has
        `batch_size` texts at most.
        """
        _no_more(kwargs, "add_texts")
        rows = _rows(texts, metadatas, ids)
        return self._connection.run(lambda calls: self._add(calls, rows, batch_size))

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        batch_size: int = _TEXTS_PER_JOB,
        **kwargs: Any,
    ) -> list[str]:
        _no_more(kwargs, "aadd_texts")
        rows = _rows(texts, metadatas, ids)
        return await self._add(self._connection.waiting(), rows, batch_size)

    async def _add(self, calls: Calls, rows: "Sequence[_Row]", batch_size: int) -> list[str]:
        if not rows:
            return []
        await self._ensure(calls)
        refused: list[SourceError] = []
        last = {row.id: row for row in rows}
        for some in _parts(list(last.values()), _Row.chars, limit=batch_size):
            sources = [row.source() for row in some]
            job_input = {"collection": self.collection, "sources": sources}
            job: Job = await calls.submit_untyped("ingest", job_input, lane=self.lane)
            ended: Job = await calls.wait(job.id, timeout_s=self.timeout_s)
            for warning in ended.require_success().warnings:
                log.warning("%s: %s", self.collection, warning)
            errors = ended.result.get("errors") or ()
            refused += [SourceError.model_validate(error) for error in errors]
        if refused:
            raise RefusedTexts(refused)
        return [row.id for row in rows]

    async def _ensure(self, calls: Calls) -> None:
        """The collection is there, with the model of `embedding`. Raises `ConfigurationError`."""
        if self._is_there:
            return
        model = None if self._embedding is None else self._embedding.model
        try:
            collection = await calls.collection(self.collection, timeout_s=self.timeout_s)
        except NotFound:
            collection = await calls.put_collection(
                self.collection, embedding_model=model, timeout_s=self.timeout_s
            )
        if model is not None and collection.embedding_model != model:
            raise ConfigurationError(
                f"The collection {self.collection} has the embedding model "
                f"{collection.embedding_model}, and not {model}. Leave the embedding out, or name "
                "another collection."
            )
        self._is_there = True

    # By ids

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """Those that are there, in the order of the ids."""
        return self._connection.run(lambda calls: self._by_ids(calls, ids))

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        return await self._by_ids(self._connection.waiting(), ids)

    async def _by_ids(self, calls: Calls, ids: Sequence[str]) -> list[Document]:
        chunks = await self._chunks(calls, ids)
        documents = {
            id_: _document(
                Hit.model_validate(chunk.model_dump() | {"chunk_id": chunk.id, "score": 0})
            )
            for id_, chunk in chunks.items()
        }
        return [documents[id_] for id_ in dict.fromkeys(ids) if id_ in documents]

    async def _chunks(self, calls: Calls, ids: Sequence[str]) -> dict[str, Chunk]:
        """By the ids as they were given."""
        await self._ensure(calls)
        sources = {_source(id_): id_ for id_ in ids if id_}
        chunk_ids = {id_ for id_ in ids if _CHUNK_ID.fullmatch(id_)}
        chunks = await calls.find_chunks(
            self.collection, sources=list(sources), ids=sorted(chunk_ids), timeout_s=self.timeout_s
        )
        chunks_by_id: dict[str, Chunk] = {}
        for chunk in chunks:
            if chunk.source in sources:
                chunks_by_id[sources[chunk.source]] = chunk
            elif chunk.id in chunk_ids:
                chunks_by_id[chunk.id] = chunk
        return chunks_by_id

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        """Without ids everything in the collection. What is not there is no error."""
        _no_more(kwargs, "delete")
        return self._connection.run(lambda calls: self._delete(calls, ids))

    async def adelete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        _no_more(kwargs, "adelete")
        return await self._delete(self._connection.waiting(), ids)

    async def _delete(self, calls: Calls, ids: Sequence[str] | None) -> bool:
        if ids is None:
            await self._empty(calls)
            return True
        chunks = await self._chunks(calls, ids)
        for id_, chunk in chunks.items():
            if not str(chunk.source).startswith(OWN):
                raise InvalidInput(
                    f"{id_} is a part of the document {chunk.source}, which this store has not "
                    f"added. Delete the whole of it: Client.delete_document({chunk.document_id!r})."
                )
        documents = sorted({str(chunk.document_id) for chunk in chunks.values()})
        for some in _parts(documents, len):
            job: Job = await calls.submit_untyped("erase", {"document_ids": some}, lane=self.lane)
            (await calls.wait(job.id, timeout_s=self.timeout_s)).require_success()
        return True

    async def _empty(self, calls: Calls) -> None:
        await self._ensure(calls)
        settings = await calls.collection(self.collection, timeout_s=self.timeout_s)
        await calls.delete_collection(self.collection, timeout_s=self.timeout_s)
        await calls.put_collection(
            self.collection,
            embedding_model=settings.embedding_model,
            distance=settings.distance,
            timeout_s=self.timeout_s,
        )

    def delete_collection(self) -> None:
        """The collection itself, with all that is in it, also from elsewhere."""
        self._connection.run(self._drop)

    async def adelete_collection(self) -> None:
        await self._drop(self._connection.waiting())

    async def _drop(self, calls: Calls) -> None:
        self._is_there = False
        with suppress(NotFound):
            await calls.delete_collection(self.collection, timeout_s=self.timeout_s)

    # Searching

    def search(self, query: str, search_type: str, **kwargs: Any) -> list[Document]:
        """`search_type` is any of Sluice's; see the methods of these names for the options."""
        return self._connection.run(
            lambda calls: self._documents(calls, query, search_type, kwargs)
        )

    async def asearch(self, query: str, search_type: str, **kwargs: Any) -> list[Document]:
        return await self._documents(self._connection.waiting(), query, search_type, kwargs)

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """Those with the nearest vectors; options are `filter`, `rerank`, `expand`."""
        return self.search(query, "similarity", k=k, **kwargs)

    async def asimilarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        return await self.asearch(query, "similarity", k=k, **kwargs)

    def similarity_search_with_score(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """With their cosines, from -1 to 1: higher is better."""
        options = {"k": k, **kwargs}
        return self._connection.run(lambda calls: self._scored(calls, query, "similarity", options))

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        options = {"k": k, **kwargs}
        return await self._scored(self._connection.waiting(), query, "similarity", options)

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        **kwargs: Any,
    ) -> list[Document]:
        """Those that are near, and different from each other."""
        options = {"k": k, "fetch_k": fetch_k, "lambda_mult": lambda_mult, **kwargs}
        return self.search(query, "mmr", **options)

    async def amax_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        **kwargs: Any,
    ) -> list[Document]:
        options = {"k": k, "fetch_k": fetch_k, "lambda_mult": lambda_mult, **kwargs}
        return await self.asearch(query, "mmr", **options)

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, **kwargs: Any
    ) -> list[Document]:
        """Those that are nearest to a vector of the collection's model."""
        options = {"k": k, **kwargs}
        return self._connection.run(
            lambda calls: self._documents(calls, embedding, "similarity", options)
        )

    async def asimilarity_search_by_vector(
        self, embedding: list[float], k: int = 4, **kwargs: Any
    ) -> list[Document]:
        options = {"k": k, **kwargs}
        return await self._documents(self._connection.waiting(), embedding, "similarity", options)

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        **kwargs: Any,
    ) -> list[Document]:
        options = {"k": k, "fetch_k": fetch_k, "lambda_mult": lambda_mult, **kwargs}
        return self._connection.run(lambda calls: self._documents(calls, embedding, "mmr", options))

    async def amax_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        **kwargs: Any,
    ) -> list[Document]:
        options = {"k": k, "fetch_k": fetch_k, "lambda_mult": lambda_mult, **kwargs}
        return await self._documents(self._connection.waiting(), embedding, "mmr", options)

    async def _documents(
        self,
        calls: Calls,
        query: str | Sequence[float],
        search_type: str,
        options: Mapping[str, Any],
    ) -> list[Document]:
        return [document for document, _ in await self._scored(calls, query, search_type, options)]

    async def _scored(
        self,
        calls: Calls,
        query: str | Sequence[float],
        search_type: str,
        options: Mapping[str, Any],
    ) -> list[tuple[Document, float]]:
        if search_type not in SEARCH_TYPES:
            raise ValueError(
                f"The search_type {search_type!r} is none of {', '.join(SEARCH_TYPES)}."
            )
        known = {"k", "filter", "score_threshold", "fetch_k", "lambda_mult", "rerank", "expand"}
        if unknown := options.keys() - known:
            raise TypeError(
                f"A search has no option {min(unknown)!r}; it has {', '.join(sorted(known))}."
            )
        await self._ensure(calls)
        rest = {name: value for name, value in options.items() if name not in ("k", "filter")}
        hits = await _hits(
            calls,
            self.collection,
            query,
            k=options.get("k", 4),
            filter=options.get("filter"),
            options={"type": search_type, **rest},
            timeout_s=self.timeout_s,
        )
        return [(_document(hit), hit.score) for hit in hits]

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        return _relevance

    def as_retriever(self, **kwargs: Any) -> SluiceVectorStoreRetriever:
        """As every store's, with the further types `hybrid` and `lexical`."""
        tags = [*(kwargs.pop("tags", None) or []), *self._get_retriever_tags()]
        return SluiceVectorStoreRetriever(vectorstore=self, tags=tags, **kwargs)

    # Making one

    @classmethod
    def from_texts(
        cls,
        texts: Iterable[str],
        embedding: Embeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> "SluiceVectorStore":
        """A store with these texts; other arguments are those of the class, such as
        `collection`."""
        store = cls(embedding=embedding, **kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    @classmethod
    async def afrom_texts(
        cls,
        texts: Iterable[str],
        embedding: Embeddings | None = None,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
        **kwargs: Any,
    ) -> "SluiceVectorStore":
        store = cls(embedding=embedding, **kwargs)
        await store.aadd_texts(texts, metadatas, ids=ids)
        return store

    @classmethod
    def from_documents(
        cls, documents: list[Document], embedding: Embeddings | None = None, **kwargs: Any
    ) -> "SluiceVectorStore":
        store = cls(embedding=embedding, **_constructing(kwargs))
        store.add_documents(documents, **_adding(kwargs))
        return store

    @classmethod
    async def afrom_documents(
        cls, documents: list[Document], embedding: Embeddings | None = None, **kwargs: Any
    ) -> "SluiceVectorStore":
        store = cls(embedding=embedding, **_constructing(kwargs))
        await store.aadd_documents(documents, **_adding(kwargs))
        return store


def _constructing(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "ids"}


def _adding(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name == "ids"}


def _relevance(cosine: float) -> float:
    return min(1.0, max(0.0, cosine))


def _no_more(options: Mapping[str, Any], where: str) -> None:
    if options:
        raise TypeError(f"{where} has no option {min(options)!r}.")


class _Row:
    """A text to add."""

    def __init__(self, id_: str, text: str, metadata: Mapping[str, Any]) -> None:
        self.id, self.text, self.metadata = id_, text, metadata

    def chars(self) -> int:
        return len(self.text) + len(str(self.metadata))

    def source(self) -> dict[str, Any]:
        return {
            "type": "chunk",
            "text": self.text,
            "name": _source(self.id),
            "metadata": dict(self.metadata),
        }


def _rows(
    texts: Iterable[str],
    metadatas: Sequence[Mapping[str, Any]] | None,
    ids: Sequence[str | None] | None,
) -> list[_Row]:
    """Raises ValueError where there are not as many of each."""
    texts = list(texts)
    for name, values in (("metadatas", metadatas), ("ids", ids)):
        if values and len(values) != len(texts):
            raise ValueError(f"There are {len(texts)} texts, and {len(values)} {name}.")
    empty = [n for n, text in enumerate(texts) if not text.strip()]
    if empty:
        raise InvalidInput(f"Text number {empty[0]} is empty; leave it out.")
    return [
        _Row(
            (ids[n] if ids else None) or str(uuid.uuid4()),
            text,
            (metadatas[n] if metadatas else None) or {},
        )
        for n, text in enumerate(texts)
    ]
