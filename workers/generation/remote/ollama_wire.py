"""The shapes of Ollama's protocol: requests -> what is sent, parts -> what they tell."""

import json
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import ollama

from workers.generation.engine import FinishReason, Message, Request, Role, Tool, ToolCall
from workers.generation.remote.generator import Reply, tokens_left


def options(request: Request, window: int) -> dict[str, Any]:
    """All of those whose defaults at Ollama are others than ours."""
    sampling = request.sampling
    told: dict[str, Any] = {
        "num_ctx": window,
        "num_predict": tokens_left(request),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "repeat_penalty": sampling.repetition_penalty,
    }
    if sampling.stop:
        told["stop"] = list(sampling.stop)
    if sampling.seed is not None:
        told["seed"] = sampling.seed
    return told


def messages(said: Sequence[Message], resumed: str) -> list[dict[str, Any]]:
    names = {call.id: call.name for message in said for call in message.tool_calls}
    told: list[dict[str, Any]] = []
    for message in said:
        one: dict[str, Any] = {"role": message.role.value, "content": message.content}
        if message.tool_calls:
            one["tool_calls"] = [
                {"function": {"name": call.name, "arguments": call.arguments}}
                for call in message.tool_calls
            ]
        if message.tool_call_id is not None:
            # Ollama's tool calls have no ids; results go by the tool's name.
            one["tool_name"] = names.get(message.tool_call_id, message.tool_call_id)
        told.append(one)
    if resumed:
        told.append({"role": Role.ASSISTANT.value, "content": resumed})
    return told


def described(tool: Tool) -> dict[str, Any]:
    """The client drops what its types do not know, such as objects inside of parameters: then the
    description carries the whole schema."""
    function = {
        "name": tool.name,
        "description": tool.description,
        "parameters": tool.parameters,
    }
    told = {"type": "function", "function": function}
    kept = ollama.Tool.model_validate(told).model_dump(exclude_none=True, by_alias=True)
    if kept["function"].get("parameters") != tool.parameters:
        schema = json.dumps(tool.parameters, ensure_ascii=False)
        function["description"] = f"{tool.description}\nParameters as JSON Schema: {schema}".strip()
    return told


def calls(message: ollama.Message) -> list[ToolCall]:
    return [
        ToolCall(
            id=f"call_{uuid4().hex[:12]}",
            name=call.function.name,
            arguments=dict(call.function.arguments),
        )
        for call in message.tool_calls or ()
    ]


def note(part: ollama.ChatResponse | ollama.GenerateResponse, reply: Reply) -> None:
    reply.has_begun = True
    if part.done:
        is_cut = part.done_reason == "length"
        reply.finish_reason = FinishReason.LENGTH if is_cut else FinishReason.STOP
        reply.prompt_tokens = part.prompt_eval_count
        reply.completion_tokens = part.eval_count
