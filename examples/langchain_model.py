"""Any generator as a LangChain chat model: for chains (`prompt | model | parser`) and agents.

LangChain's own types stay in here. Tools are passed to the model, or described in the prompt where
its template knows none; either way their calls come back as LangChain's. A tool cannot be forced
on a model: of `tool_choice`, only "none" has an effect.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Final

from langchain_core.callbacks import CallbackManagerForLLMRun
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
from langchain_core.messages import ToolCall as LangChainCall
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ConfigDict, Field

from shared.errors import InvalidInput
from workers.generation.answers import tool_calls
from workers.generation.answers.tool_calls import ToolCallFilter, spell_out
from workers.generation.backends.interface import (
    Completion,
    Message,
    Request,
    Role,
    Sampling,
    TextGenerator,
    Tool,
    ToolCall,
)

_OF_SAMPLING: Final = (
    "max_tokens", "temperature", "top_p", "top_k", "seed", "repetition_penalty",
)  # fmt: skip


class GeneratorChatModel(BaseChatModel):
    """`sampling` is what applies unless a call says otherwise, as `model.bind(temperature=0.5)`."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    generator: TextGenerator = Field(exclude=True, repr=False)
    sampling: Sampling = Sampling()
    deadline: float | None = None
    lane: int = 1
    fair_key: str = ""

    @property
    def _llm_type(self) -> str:
        return "sluice"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {"model": self.generator.reference, "sampling": repr(self.sampling)}

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        offered = [] if tool_choice == "none" else [convert_to_openai_tool(tool) for tool in tools]
        return self.bind(tools=offered, **kwargs)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        whole: ChatGenerationChunk | None = None
        for chunk in self._stream(messages, stop, run_manager, **kwargs):
            whole = chunk if whole is None else whole + chunk
        assert whole is not None  # The last chunk tells the usage, whatever else there is.
        streamed = whole.message
        assert isinstance(streamed, AIMessageChunk)
        message = AIMessage(
            content=streamed.content,
            tool_calls=streamed.tool_calls,
            usage_metadata=streamed.usage_metadata,
            response_metadata=streamed.response_metadata,
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        tools = tuple(_tool(tool) for tool in kwargs.get("tools") or ())
        tool_filter = ToolCallFilter(names={tool.name for tool in tools}) if tools else None
        generation = self.generator.start(self._request(messages, stop, tools, kwargs))
        try:
            for delta in generation:
                text = tool_filter.feed(delta.text) if tool_filter is not None else delta.text
                if text:
                    yield _reported(AIMessageChunk(content=text), run_manager)
        finally:
            if not generation.is_over:
                # Whoever read has gone, or one of their callbacks has failed.
                generation.cancel()
        completion = generation.result()
        rest = tool_filter.close() if tool_filter is not None else ""
        yield _reported(self._last(completion, rest, tools, messages), run_manager)

    def _request(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None,
        tools: tuple[Tool, ...],
        kwargs: dict[str, Any],
    ) -> Request:
        said: Sequence[Message] = [_message(message) for message in messages]
        if not self.generator.has_native_tools:
            said, tools = spell_out(said, tools), ()
        changes: dict[str, Any] = {
            name: kwargs[name] for name in _OF_SAMPLING if kwargs.get(name) is not None
        }
        if stop is not None:
            changes["stop"] = tuple(stop)
        return Request(
            messages=tuple(said),
            tools=tools,
            sampling=replace(self.sampling, **changes),
            deadline=self.deadline,
            lane=self.lane,
            fair_key=self.fair_key,
        )

    def _last(
        self, completion: Completion, rest: str, tools: Sequence[Tool], messages: list[BaseMessage]
    ) -> AIMessageChunk:
        calls = completion.tool_calls
        if tools and not calls:
            before = sum(
                len(message.tool_calls) for message in messages if isinstance(message, AIMessage)
            )
            names = {tool.name for tool in tools}
            calls = tool_calls.parse(completion.text, names=names, first=before)[1]
        return AIMessageChunk(
            content=rest,
            tool_call_chunks=[
                tool_call_chunk(
                    name=call.name,
                    args=json.dumps(call.arguments, ensure_ascii=False),
                    id=call.id,
                    index=index,
                )
                for index, call in enumerate(calls)
            ],
            usage_metadata=UsageMetadata(
                input_tokens=completion.prompt_tokens,
                output_tokens=completion.completion_tokens,
                total_tokens=completion.prompt_tokens + completion.completion_tokens,
            ),
            response_metadata={
                "finish_reason": completion.finish_reason.value,
                "model_name": self.generator.reference,
            },
            chunk_position="last",
        )


def _reported(
    message: AIMessageChunk, run_manager: CallbackManagerForLLMRun | None
) -> ChatGenerationChunk:
    chunk = ChatGenerationChunk(message=message)
    if run_manager is not None:
        run_manager.on_llm_new_token(str(message.text), chunk=chunk)
    return chunk


def _message(message: BaseMessage) -> Message:
    """Raises InvalidInput for messages of kinds that models know nothing of."""
    text = str(message.text)
    if isinstance(message, SystemMessage):
        return Message(role=Role.SYSTEM, content=text)
    if isinstance(message, HumanMessage):
        return Message(role=Role.USER, content=text)
    if isinstance(message, AIMessage):
        calls = tuple(_call(call) for call in message.tool_calls)
        return Message(role=Role.ASSISTANT, content=text, tool_calls=calls)
    if isinstance(message, ToolMessage):
        return Message(role=Role.TOOL, content=text, tool_call_id=message.tool_call_id)
    if isinstance(message, ChatMessage) and message.role in tuple(Role):
        return Message(role=Role(message.role), content=text)
    raise InvalidInput(f"A message of the type {message.type!r} cannot be sent to a model.")


def _call(call: LangChainCall) -> ToolCall:
    return ToolCall(id=call["id"] or "", name=call["name"], arguments=call["args"])


def _tool(description: dict[str, Any]) -> Tool:
    function = description["function"]
    return Tool(
        name=function["name"],
        description=function.get("description", ""),
        parameters=function.get("parameters", {"type": "object", "properties": {}}),
    )
