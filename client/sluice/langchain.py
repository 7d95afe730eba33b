"""LangChain's classes over a server of Sluice: chat model, embeddings, retriever, vector store.

    from sluice.langchain import ChatSluice, SluiceEmbeddings, SluiceRetriever, SluiceVectorStore

Each call is a job in a queue of the server. This module needs langchain-core, which the extra
`sluice-client[langchain]` installs.

Each operation is written once, as a coroutine over the calls of a client (`sluice/client.py`). The
asynchronous methods await it; the others run it over a blocking client.
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
from sluice.shapes import ChatAnswer, Chunk, Collection, Hit, Job, SourceError
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
"""How long a call that is left waits for the cancellation of its job."""


# The connection


class _Connection:
    """The clients of one server, made at the first call."""

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

    def asynchronous(self) -> Calls:
        """The client of the running event loop: an asyncio client belongs to one loop, and a chain
        may be used from several."""
        if self._async_client is not None:
            return self._async_client
        loop = asyncio.get_running_loop()
        client = self._of_loops.get(loop)
        if client is None:
            # Nothing reports the end of a loop, so no connection is kept open between calls.
            limits = httpx.Limits(max_keepalive_connections=0)
            client = AsyncClient(self._url, self._api_key, limits=limits)
            self._of_loops[loop] = client
        return client

    def run(self, work: Callable[[Calls], Coroutine[Any, Any, T]]) -> T:
        return drive(work(self.blocking()))


class _ConnectionFields(BaseModel):
    """The fields of a connection. The default of `url` is SLUICE_URL, or the local stack."""

    model_config = ConfigDict(
        arbitrary_types_allowed=True, populate_by_name=True, extra="forbid", protected_namespaces=()
    )

    url: str | None = Field(default_factory=from_env("SLUICE_URL", default=None))
    api_key: SecretStr | None = Field(
        default_factory=secret_from_env("SLUICE_API_KEY", default=None)
    )
    client: Client | None = Field(default=None, exclude=True, repr=False)
    """A client to use; else one is made."""
    async_client: AsyncClient | None = Field(default=None, exclude=True, repr=False)
    """A client for asyncio, which keeps its connections between calls. It belongs to one loop."""
    timeout_s: float | None = Field(default=None, alias="timeout")
    """How long a call may take; None waits until the job ends."""
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
"""Blocks of the assistant's messages that are not sent as text: tool calls, which are sent as
such, and reasoning, which is not sent back."""


class ChatSluice(_ConnectionFields, BaseChatModel):
    """A chat model of the server, such as `ChatSluice(model="hf/Qwen/Qwen3-4B-Instruct-2507")`.

    Fields that are not set, also `model`, get the server's defaults. Leaving a call (closing its
    stream, cancelling its task, Ctrl-C) cancels its job.
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
    """Further parameters of the server (`sluice.kinds.Parameters`); the fields above override
    them."""
    conversation_id: str | None = None
    """A conversation that the server stores. Only new messages are sent then."""
    streaming: bool = False
    """Whether `invoke` reads its answer as a stream, so that callbacks get each piece."""
    max_retries: int | None = None
    """How often the server tries again after a temporary failure."""
    lane: Lane = "interactive"

    @property
    def _llm_type(self) -> str:
        return "sluice"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        fields = {name: getattr(self, name) for name in ("model", *_SAMPLING, "stop", "parameters")}
        return {name: value for name, value in fields.items() if value not in (None, {})}

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool | str],
        *,
        tool_choice: str | dict[str, Any] | bool | None = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Offer tools of the program, and tools that the server runs: `"calculator"`,
        `"fetch_url"`, `"search_collection:handbook"`, or their complete specs.

        `tool_choice` is "auto", "none", "any" or "required" (at least one call), or the name of a
        tool: then only this one is offered. Arguments are always checked against their schema,
        also without `strict`.
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

        - `json_schema`: the model gets the schema; the server checks the answer, and asks once more
          if it does not match.
        - `function_calling`: the schema is offered as a tool.
        - `json_mode`: any JSON is accepted; the prompt has to describe its form.
        """
        if kwargs:
            raise TypeError(f"with_structured_output has no argument {next(iter(kwargs))!r}.")
        if method not in ("json_schema", "function_calling", "json_mode"):
            raise ValueError(
                f"The method {method!r} is none of json_schema, function_calling and json_mode."
            )
        if schema is None and method != "json_mode":
            raise ValueError(f"The method {method} needs a schema.")
        if method == "function_calling":
            model, parser = self._with_schema_as_tool(schema, strict=strict)
        else:
            model, parser = self._with_response_format(schema, method)
        if not include_raw:
            return model | parser
        success = RunnablePassthrough.assign(
            parsed=lambda answer: parser.invoke(answer["raw"]), parsing_error=lambda _: None
        )
        failure = RunnablePassthrough.assign(parsed=lambda _: None)
        return RunnableMap(raw=model) | success.with_fallbacks(
            [failure], exception_key="parsing_error"
        )

    def _with_schema_as_tool(
        self, schema: dict[str, Any] | type | None, *, strict: bool | None
    ) -> tuple[Runnable[LanguageModelInput, AIMessage], Runnable[Any, Any]]:
        """The model with its options, and the parser of its answers."""
        tool = convert_to_openai_tool(cast("Any", schema))
        name = tool["function"]["name"]
        model = self.bind_tools(
            [tool],
            tool_choice=name,
            parallel_tool_calls=False,
            strict=strict,
            ls_structured_output_format={
                "kwargs": {"method": "function_calling", "strict": strict},
                "schema": tool,
            },
        )
        if _is_pydantic(schema):
            tools = [cast("TypeBaseModel", schema)]
            return model, PydanticToolsParser(tools=tools, first_tool_only=True)
        return model, JsonOutputKeyToolsParser(key_name=name, first_tool_only=True)

    def _with_response_format(
        self, schema: dict[str, Any] | type | None, method: str
    ) -> tuple[Runnable[LanguageModelInput, AIMessage], Runnable[Any, Any]]:
        """The model with its options, and the parser of its answers."""
        json_schema = None if schema is None else convert_to_json_schema(cast("Any", schema))
        format_: dict[str, Any] = {"type": "json"}
        if method == "json_schema":
            format_ |= {"schema": json_schema}
        model = self.bind(
            response_format=format_,
            ls_structured_output_format={"kwargs": {"method": method}, "schema": json_schema},
        )
        if _is_pydantic(schema):
            return model, PydanticOutputParser(pydantic_object=cast("TypeBaseModel", schema))
        return model, JsonOutputParser()

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        del run_manager  # LangChain itself passes the answer to it
        job_input = self._input(messages, stop, kwargs)
        return self.connection.run(lambda calls: self._chat_result(calls, job_input))

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        del run_manager
        job_input = self._input(messages, stop, kwargs)
        return await self._chat_result(self.connection.asynchronous(), job_input)

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
        async with aclosing(self._chunks(self.connection.asynchronous(), job_input)) as chunks:
            async for chunk in chunks:
                if run_manager is not None:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    async def _chat_result(self, calls: Calls, job_input: Mapping[str, Any]) -> ChatResult:
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
        """The stream of a new job, which is cancelled if the stream is left before its end."""
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
        """The input of the job. Raises `InvalidInput` or `TypeError`."""
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
        tools, choice = _offered_tools(tools, options.pop("tool_choice", None))
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


def _is_pydantic(schema: dict[str, Any] | type | None) -> bool:
    return isinstance(schema, type) and is_basemodel_subclass(schema)


def _tool(tool: Any) -> dict[str, Any]:
    """The tool in the form of the kind `chat`."""
    if isinstance(tool, str):
        return tool_spec(tool)
    if isinstance(tool, dict) and tool.get("type") in ("calculator", "fetch_url", SEARCH):
        return tool
    function = convert_to_openai_tool(tool)["function"]
    texts = {name: function[name] for name in ("name", "description") if function.get(name)}
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    return {"type": "function", "function": {**texts, "parameters": parameters}}


def _offered_tools(
    tools: list[dict[str, Any]], choice: str | dict[str, Any] | bool | None
) -> tuple[list[dict[str, Any]], str | None]:
    """The tools to offer, and the job's `tool_choice`."""
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
    names = [tool.get("function", {}).get("name", tool["type"]) for tool in tools]
    if choice not in names:
        raise InvalidInput(
            f"tool_choice is {choice!r}, which is none of auto, none, any, required, "
            f"{', '.join(names)}."
        )
    return [tool for tool, name in zip(tools, names, strict=True) if name == choice], "required"


def _response_format(format_: Any) -> dict[str, Any] | None:
    """The server's form of a `response_format`, which may have the form of OpenAI's API."""
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
    """The message in the form of the kind `chat`, without the name of its speaker.

    Raises `InvalidInput` for content that no model of the server reads.
    """
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
    prompt, completion = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
    tokens = UsageMetadata(
        input_tokens=prompt, output_tokens=completion, total_tokens=prompt + completion
    )
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
    """The end of a stream: tool calls, usage and metadata. The text has come before."""
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


class SluiceEmbeddings(_ConnectionFields, Embeddings):
    """Vectors of the server's embedding model, or of `model`."""

    model: str | None = None
    lane: Lane = "interactive"

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return self.connection.run(lambda calls: self._vectors(calls, texts, "passage"))

    def embed_query(self, text: str) -> list[float]:
        return self.connection.run(lambda calls: self._vectors(calls, [text], "query"))[0]

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        return await self._vectors(self.connection.asynchronous(), texts, "passage")

    async def aembed_query(self, text: str) -> list[float]:
        return (await self._vectors(self.connection.asynchronous(), [text], "query"))[0]

    async def _vectors(
        self, calls: Calls, texts: Sequence[str], input_type: Literal["query", "passage"]
    ) -> list[list[float]]:
        vectors: list[list[float]] = []
        for batch in _batches(list(texts), len):
            answer = await calls.embed(
                batch, model=self.model, input_type=input_type, timeout_s=self.timeout_s
            )
            vectors += answer.embeddings
        return vectors


def _batches(
    items: Sequence[T], chars: Callable[[T], int], *, limit: int = _TEXTS_PER_JOB
) -> Iterator[list[T]]:
    """The items in batches, each for one job."""
    batch: list[T] = []
    total = 0
    for item in items:
        size = chars(item)
        if batch and (len(batch) >= min(limit, _TEXTS_PER_JOB) or total + size > _CHARS_PER_JOB):
            yield batch
            batch, total = [], 0
        batch.append(item)
        total += size
    if batch:
        yield batch


# Passages as documents


OWN: Final = "langchain:"
"""The prefix of sources of documents that a vector store has added; their id follows."""
_CHUNK_ID: Final = re.compile(r"[0-9a-f]{32}-[0-9]{6,10}")


def _source(id_: str) -> str:
    # The server stores names in this form.
    return OWN + normalize("NFC", id_)


def _document(hit: Hit, *, with_score: bool = False) -> Document:
    """A hit as a LangChain document.

    A text that a vector store has added gets its own id and metadata. A passage of another document
    gets the id of its chunk, and its source in the metadata.
    """
    metadata = dict(hit.metadata)
    is_own = hit.source.startswith(OWN)
    if not is_own:
        place = {
            "source": hit.source,
            "document_id": hit.document_id,
            "start_index": hit.start,
            "collection": hit.collection,
        }
        metadata = {name: value for name, value in place.items() if value is not None} | metadata
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
    """The hits of a query text or of a vector."""
    search = {name: value for name, value in options.items() if value is not None}
    arguments: dict[str, Any] = {"k": k, "filter": filter, "search": search, "timeout_s": timeout_s}
    if isinstance(query, str):
        return await calls.search(collection, query, **arguments)
    return await calls.search_vector(collection, query, **arguments)


class SluiceRetriever(_ConnectionFields, BaseRetriever):
    """The passages of one or several collections that answer a query, best first.

    `k` and the other options may also be passed to `invoke`. The metadata of the documents have a
    `score`, and `source`, `document_id` and `start_index` unless they have these keys themselves.
    """

    collection: str | list[str]
    k: int = 4
    search_type: SearchType = "hybrid"
    score_threshold: float | None = None
    """The lowest cosine similarity, for `similarity_score_threshold`."""
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
        return await self._documents(self.connection.asynchronous(), query, kwargs)

    async def _documents(
        self, calls: Calls, query: str, changes: Mapping[str, Any]
    ) -> list[Document]:
        options = {
            name: changes.get(name, getattr(self, name))
            for name in ("score_threshold", "fetch_k", "lambda_mult", "rerank", "expand")
        }
        allowed = {*options, "k", "filter", "search_type"}
        if unknown := changes.keys() - allowed:
            raise TypeError(
                f"SluiceRetriever has no option {min(unknown)!r}; it has "
                f"{', '.join(sorted(allowed))}."
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
    """The server has refused some of the texts; `errors` names each."""

    def __init__(self, errors: Sequence[SourceError]) -> None:
        self.errors = tuple(errors)
        shown = "; ".join(error.message for error in self.errors[:3])
        more = f"; and {len(self.errors) - 3} more" if len(self.errors) > 3 else ""
        super().__init__(f"{len(self.errors)} texts were not added: {shown}{more}")


class SluiceVectorStoreRetriever(VectorStoreRetriever):
    """LangChain's retriever with the further search types `hybrid` and `lexical`."""

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
    """A collection of the server as a vector store. The first call makes a missing collection.

    The server embeds texts and queries itself. `embedding` may be `SluiceEmbeddings`, which sets
    the model of a new collection; other embeddings are refused, since they would have no effect.

    A text is one chunk and is not split. Scores are cosine similarities: higher is better. A search
    also finds documents that were added in another way; their ids are those of chunks, and they are
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
        """The lane of jobs that add and delete. Searches are interactive."""
        self._embedding = embedding
        has_target = url is not None or client is not None or async_client is not None
        if embedding is not None and not has_target:
            self._connection = embedding.connection
        else:
            self._connection = _Connection(
                url=url, api_key=api_key, client=client, async_client=async_client
            )
        self._is_checked = False
        """Whether the collection exists, with the right model."""

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
        """Add texts and return their ids. A text replaces one with the same id.

        Metadata values are texts, numbers, booleans, or lists of one of these. A job has at most
        `batch_size` texts.
        """
        _refuse_options(kwargs, "add_texts")
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
        _refuse_options(kwargs, "aadd_texts")
        rows = _rows(texts, metadatas, ids)
        return await self._add(self._connection.asynchronous(), rows, batch_size)

    async def _add(self, calls: Calls, rows: "Sequence[_Row]", batch_size: int) -> list[str]:
        if not rows:
            return []
        await self._ensure(calls)
        refused: list[SourceError] = []
        rows_by_id = {row.id: row for row in rows}  # of several with one id, the last
        for batch in _batches(list(rows_by_id.values()), _Row.chars, limit=batch_size):
            sources = [row.source() for row in batch]
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
        """Make a missing collection. Raises `ConfigurationError` if it has another model."""
        if self._is_checked:
            return
        model = None if self._embedding is None else self._embedding.model
        collection: Collection
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
        self._is_checked = True

    # By ids

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents that exist, in the order of the ids."""
        return self._connection.run(lambda calls: self._by_ids(calls, ids))

    async def aget_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        return await self._by_ids(self._connection.asynchronous(), ids)

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
        """The chunks by the ids that were passed."""
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
        """Delete texts; without ids, all of the collection. Unknown ids are ignored."""
        _refuse_options(kwargs, "delete")
        return self._connection.run(lambda calls: self._delete(calls, ids))

    async def adelete(self, ids: list[str] | None = None, **kwargs: Any) -> bool:
        _refuse_options(kwargs, "adelete")
        return await self._delete(self._connection.asynchronous(), ids)

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
        for batch in _batches(documents, len):
            job: Job = await calls.submit_untyped("erase", {"document_ids": batch}, lane=self.lane)
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
        """Delete the collection with all its documents, also those that were added elsewhere."""
        self._connection.run(self._drop)

    async def adelete_collection(self) -> None:
        await self._drop(self._connection.asynchronous())

    async def _drop(self, calls: Calls) -> None:
        self._is_checked = False
        with suppress(NotFound):
            await calls.delete_collection(self.collection, timeout_s=self.timeout_s)

    # Searching

    def search(self, query: str, search_type: str, **kwargs: Any) -> list[Document]:
        """`search_type` is one of `SEARCH_TYPES`; for the options see the methods of each type."""
        return self._connection.run(
            lambda calls: self._documents(calls, query, search_type, kwargs)
        )

    async def asearch(self, query: str, search_type: str, **kwargs: Any) -> list[Document]:
        return await self._documents(self._connection.asynchronous(), query, search_type, kwargs)

    def similarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        """The texts with the nearest vectors. Options are `filter`, `rerank`, `expand`."""
        return self.search(query, "similarity", k=k, **kwargs)

    async def asimilarity_search(self, query: str, k: int = 4, **kwargs: Any) -> list[Document]:
        return await self.asearch(query, "similarity", k=k, **kwargs)

    def similarity_search_with_score(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """The texts with their cosine similarities, from -1 to 1."""
        options = {"k": k, **kwargs}
        return self._connection.run(
            lambda calls: self._hits_with_scores(calls, query, "similarity", options)
        )

    async def asimilarity_search_with_score(
        self, query: str, k: int = 4, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        options = {"k": k, **kwargs}
        return await self._hits_with_scores(
            self._connection.asynchronous(), query, "similarity", options
        )

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        **kwargs: Any,
    ) -> list[Document]:
        """Texts with near vectors that differ from each other."""
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
        """The texts nearest to a vector of the collection's model."""
        options = {"k": k, **kwargs}
        return self._connection.run(
            lambda calls: self._documents(calls, embedding, "similarity", options)
        )

    async def asimilarity_search_by_vector(
        self, embedding: list[float], k: int = 4, **kwargs: Any
    ) -> list[Document]:
        options = {"k": k, **kwargs}
        return await self._documents(
            self._connection.asynchronous(), embedding, "similarity", options
        )

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
        return await self._documents(self._connection.asynchronous(), embedding, "mmr", options)

    async def _documents(
        self,
        calls: Calls,
        query: str | Sequence[float],
        search_type: str,
        options: Mapping[str, Any],
    ) -> list[Document]:
        return [
            document
            for document, _ in await self._hits_with_scores(calls, query, search_type, options)
        ]

    async def _hits_with_scores(
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
        allowed = {"k", "filter", "score_threshold", "fetch_k", "lambda_mult", "rerank", "expand"}
        if unknown := options.keys() - allowed:
            raise TypeError(
                f"A search has no option {min(unknown)!r}; it has {', '.join(sorted(allowed))}."
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
        """A retriever over this store, also for the search types `hybrid` and `lexical`."""
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
        """A store with these texts. `kwargs` are arguments of the class, such as `collection`."""
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
        ids = {"ids": kwargs.pop("ids")} if "ids" in kwargs else {}
        store = cls(embedding=embedding, **kwargs)
        store.add_documents(documents, **ids)
        return store

    @classmethod
    async def afrom_documents(
        cls, documents: list[Document], embedding: Embeddings | None = None, **kwargs: Any
    ) -> "SluiceVectorStore":
        ids = {"ids": kwargs.pop("ids")} if "ids" in kwargs else {}
        store = cls(embedding=embedding, **kwargs)
        await store.aadd_documents(documents, **ids)
        return store


def _relevance(cosine: float) -> float:
    return min(1.0, max(0.0, cosine))


def _refuse_options(options: Mapping[str, Any], method: str) -> None:
    if options:
        raise TypeError(f"{method} has no option {min(options)!r}.")


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
    """Raises ValueError if the lists have different lengths."""
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
