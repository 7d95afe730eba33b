"""A program that speaks OpenAI's protocol: `python -m tests.wire.openai_server --port N`.

Its base URL ends in `/v1`, as `Wire.url` does. With `continue_final_message` an answer that was
begun goes on, as at vLLM; a user's message that asks for it does the same, as with OpenAI.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.wire import script
from tests.wire.behaviour import Wire, application, note, refusal, run, serving, stream, vectors

MODEL = "tiny"
STOP_LIMIT = 4
TEXTS_LIMIT = 32
"""Texts of a request for embeddings, as TEI has it."""
LOCKED = "secret"
"""A model of this name wants the key of this name."""


@contextmanager
def served_openai() -> Iterator[Wire]:
    wire = _wire()
    with serving(wire, make_app(wire)):
        wire.url += "/v1"
        yield wire


def make_app(wire: Wire) -> Starlette:
    async def chat(request: Request) -> Response:
        body = await note(wire, request)
        refused = await _refused(request, body)
        if refused is not None:
            return refused
        begun = body["messages"][-1]["role"] == "assistant"
        if begun != bool(body.get("continue_final_message")):
            return JSONResponse(_error("the last message may not be the assistant's"), 400)
        answer = script.to_messages(
            _forgetful(wire, body),
            has_tools=bool(body.get("tools")),
            max_tokens=body.get("max_tokens", body.get("max_completion_tokens")),
            stop=_stop(wire, body),
        )
        deltas: list[dict[str, Any]] = [{"role": "assistant", "content": ""}]
        deltas += [{"content": token} for token in answer.tokens]
        for index, (name, arguments) in enumerate(answer.calls):
            deltas += _call_deltas(index, name, arguments)
        choices: list[dict[str, Any]] = [
            {"index": 0, "delta": delta, "finish_reason": None} for delta in deltas
        ]
        reason = "tool_calls" if answer.calls else "length" if answer.is_cut else "stop"
        end = {"index": 0, "delta": {}, "finish_reason": reason}
        return _sse(body, "chat.completion.chunk", choices, end, answer)

    async def completions(request: Request) -> Response:
        body = await note(wire, request)
        refused = await _refused(request, body)
        if refused is not None:
            return refused
        answer = script.to_prompt(
            body["prompt"], max_tokens=body.get("max_tokens"), stop=_stop(wire, body)
        )
        choices: list[dict[str, Any]] = [
            {"index": 0, "text": token, "finish_reason": None} for token in answer.tokens
        ]
        end = {"index": 0, "text": "", "finish_reason": "length" if answer.is_cut else "stop"}
        return _sse(body, "text_completion", choices, end, answer)

    async def embeddings(request: Request) -> Response:
        body = await note(wire, request)
        refused = await _refused(request, body)
        if refused is not None:
            return refused
        texts = body["input"]
        if len(texts) > TEXTS_LIMIT:
            return JSONResponse(_error(f"batch size {len(texts)} > {TEXTS_LIMIT}"), 422)
        data = [
            {"object": "embedding", "index": n, "embedding": vector}
            for n, vector in enumerate(vectors(wire, body["model"], texts))
        ]
        usage = {"prompt_tokens": 1, "total_tokens": 1}
        return JSONResponse(
            {"object": "list", "data": data[::-1], "model": body["model"], "usage": usage}
        )

    async def models(_: Request) -> Response:
        listed = [{"id": name, "object": "model", "created": 0, "owned_by": "tests"}
                  for name in sorted(wire.models)]  # fmt: skip
        return JSONResponse({"object": "list", "data": listed})

    async def _refused(request: Request, body: dict[str, Any]) -> Response | None:
        model = body["model"]
        refused = await refusal(wire, request, model, _error)
        if refused is not None:
            return refused
        if model == LOCKED and request.headers.get("authorization") != f"Bearer {LOCKED}":
            return JSONResponse(_error("Incorrect API key provided."), 401)
        if model not in wire.models:
            return JSONResponse(_error(f"The model `{model}` does not exist."), 404)
        if len(body.get("stop", [])) > STOP_LIMIT:
            return JSONResponse(_error("'stop' is too long."), 400)
        return None

    def _sse(
        body: dict[str, Any],
        kind: str,
        choices: list[dict[str, Any]],
        end: dict[str, Any],
        answer: script.Answer,
    ) -> Response:
        model = body["model"]
        behaviour = wire.of(model)
        head = {"id": "answer-1", "object": kind, "created": 0, "model": model}
        events = [
            json.dumps(head | {"choices": [choice]}, ensure_ascii=False) for choice in choices
        ]
        if not behaviour.ends_without_marker:
            events.append(json.dumps(head | {"choices": [end]}))
            if behaviour.reports_usage and body.get("stream_options", {}).get("include_usage"):
                new = len(answer.tokens) + len(answer.calls)
                usage = {
                    "prompt_tokens": answer.prompt_tokens,
                    "completion_tokens": new,
                    "total_tokens": answer.prompt_tokens + new,
                }
                events.append(json.dumps(head | {"choices": [], "usage": usage}))
            events.append("[DONE]")
        return stream(
            wire,
            model,
            [_event(event) for event in events],
            error=_event(json.dumps(_error("the engine has stopped"))),
            media_type="text/event-stream",
        )

    return application(
        wire,
        [
            Route("/v1/models", models),
            Route("/v1/embeddings", embeddings, methods=["POST"]),
            Route("/v1/chat/completions", chat, methods=["POST"]),
            Route("/v1/completions", completions, methods=["POST"]),
        ],
    )


def _wire() -> Wire:
    return Wire(models={MODEL: {}, LOCKED: {}})


def _forgetful(wire: Wire, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The conversation as a model remembers it that repeats some of its own words."""
    messages: list[dict[str, Any]] = body["messages"]
    again = wire.of(body["model"]).repeats_chars
    if not again or len(messages) < 3 or messages[-2]["role"] != "assistant":
        return messages
    begun = messages[-2]
    return [*messages[:-2], begun | {"content": begun["content"][:-again]}, messages[-1]]


def _call_deltas(index: int, name: str, arguments: str) -> list[dict[str, Any]]:
    """A call comes in pieces: its name first, then its arguments in two halves."""
    middle = len(arguments) // 2
    first = {"index": index, "id": f"call_{index}", "type": "function"}
    return [
        {"tool_calls": [first | {"function": {"name": name, "arguments": ""}}]},
        {"tool_calls": [{"index": index, "function": {"arguments": arguments[:middle]}}]},
        {"tool_calls": [{"index": index, "function": {"arguments": arguments[middle:]}}]},
    ]


def _event(data: str) -> str:
    return f"data: {data}\n\n"


def _stop(wire: Wire, body: dict[str, Any]) -> list[str]:
    stop: list[str] = [] if wire.of(body["model"]).ignores_stop else body.get("stop", [])
    return stop


def _error(message: str, code: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": "error", "param": None, "code": code}}


if __name__ == "__main__":
    run(make_app(_wire()))
