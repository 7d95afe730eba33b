"""A program that speaks Ollama's protocol: `python -m tests.wire.ollama_server --port N`.

Its models are in `Wire.models`, by name; a pull finds all but those that begin with `nosuch`.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from tests.wire import script
from tests.wire.behaviour import Wire, application, note, refusal, run, serving, stream, vectors

NOW = "2026-11-24T00:00:00.000000Z"
NDJSON = "application/x-ndjson"
MODEL = "tiny"
CONTEXT_LENGTH = 4096
LAYERS = (("sha256:aaa", 1000), ("sha256:bbb", 500))
LAYER_PARTS = 5


@contextmanager
def served_ollama() -> Iterator[Wire]:
    wire = _wire()
    with serving(wire, make_app(wire)):
        yield wire


def make_app(wire: Wire) -> Starlette:
    async def chat(request: Request) -> Response:
        body = await note(wire, request)
        options = body.get("options", {})
        answer = None
        if wire.of(body["model"]).is_obliging:
            answer = script.obliging(body["messages"], tools=body.get("tools") or [])
        if answer is None:
            answer = script.to_messages(
                body["messages"],
                has_tools=bool(body.get("tools")),
                max_tokens=options.get("num_predict"),
                stop=_stop(wire, body),
            )
        calls = [
            {"function": {"name": name, "arguments": json.loads(arguments)}}
            for name, arguments in answer.calls
        ]
        parts: list[dict[str, Any]] = [
            {"message": {"role": "assistant", "content": token}} for token in answer.tokens
        ]
        if calls:
            parts.append({"message": {"role": "assistant", "content": "", "tool_calls": calls}})
        end = {"message": {"role": "assistant", "content": ""}}
        return await _answer(request, body, parts, end, answer)

    async def generate(request: Request) -> Response:
        body = await note(wire, request)
        answer = script.to_prompt(
            body["prompt"],
            max_tokens=body.get("options", {}).get("num_predict"),
            stop=_stop(wire, body),
        )
        parts = [{"response": token} for token in answer.tokens]
        return await _answer(request, body, parts, {"response": ""}, answer)

    async def _answer(
        request: Request,
        body: dict[str, Any],
        parts: list[dict[str, Any]],
        end: dict[str, Any],
        answer: script.Answer,
    ) -> Response:
        model = body["model"]
        refused = await refusal(wire, request, model, _error) or _unknown(model)
        if refused is not None:
            return refused
        behaviour = wire.of(model)
        lines = [part | {"done": False} for part in parts]
        if not behaviour.ends_without_marker:
            last = end | {"done": True, "done_reason": "length" if answer.is_cut else "stop"}
            if behaviour.reports_usage:
                counts = {"prompt_eval_count": answer.prompt_tokens, "eval_count": len(parts)}
                last |= counts | {"total_duration": 1, "eval_duration": 1}
            lines.append(last)
        stamped = [{"model": model, "created_at": NOW} | line for line in lines]
        return _ndjson(model, stamped)

    async def embed(request: Request) -> Response:
        body = await note(wire, request)
        model = body["model"]
        refused = await refusal(wire, request, model, _error) or _unknown(model)
        if refused is not None:
            return refused
        texts = [body["input"]] if isinstance(body["input"], str) else body["input"]
        window = body.get("options", {}).get("num_ctx", CONTEXT_LENGTH)
        if not body.get("truncate", True) and any(len(text.split()) > window for text in texts):
            return JSONResponse(_error("the input length exceeds the context length"), 400)
        return JSONResponse({"model": model, "embeddings": vectors(wire, model, texts)})

    async def pull(request: Request) -> Response:
        body = await note(wire, request)
        model = body["model"]
        refused = await refusal(wire, request, model, _error)
        if refused is not None:
            return refused
        lines: list[dict[str, Any]] = [{"status": "pulling manifest"}]
        if model.startswith("nosuch"):
            lines.append(_error("pull model manifest: file does not exist"))
            return _ndjson(model, lines)
        for digest, total in LAYERS:
            pulling = {"status": f"pulling {digest}", "digest": digest, "total": total}
            lines.append(pulling)  # The first one of a layer does not tell `completed`.
            lines += [
                pulling | {"completed": total * part // LAYER_PARTS}
                for part in range(1, LAYER_PARTS + 1)
            ]
        lines += [{"status": "verifying sha256 digest"}, {"status": "writing manifest"}]
        if not wire.of(model).ends_without_marker:
            lines.append({"status": "success"})
            wire.models[model] = {}
        return _ndjson(model, lines)

    async def create(request: Request) -> Response:
        body = await note(wire, request)
        refused = await refusal(wire, request, body["model"], _error)
        if refused is not None:
            return refused
        lines = [{"status": "gathering model components"}]
        if body.get("from") not in wire.models:
            lines.append(_error("pull model manifest: file does not exist"))
        elif "no_such_parameter" in body.get("parameters", {}):
            lines.append(_error("unknown parameter 'no_such_parameter'"))
        else:
            wire.models[body["model"]] = {
                key: body[key]
                for key in ("from", "system", "template", "parameters")
                if key in body
            }
            lines += [{"status": "writing manifest"}, {"status": "success"}]
        return _ndjson(body["model"], lines)

    async def delete(request: Request) -> Response:
        body = await note(wire, request)
        refused = await refusal(wire, request, body["model"], _error) or _unknown(body["model"])
        if refused is not None:
            return refused
        del wire.models[body["model"]]
        return Response(status_code=200)

    async def show(request: Request) -> Response:
        body = await note(wire, request)
        # Apart from how the model behaves when it is asked to write.
        shown = f"show {body['model']}"
        refused = await refusal(wire, request, shown, _error) or _unknown(body["model"])
        if refused is not None:
            return refused
        return JSONResponse(
            {
                "modelfile": f"FROM {body['model']}",
                "template": "{{ .Prompt }}",
                "details": {"family": "llama", "parameter_size": "1M"},
                "model_info": {
                    "general.architecture": "llama",
                    "llama.context_length": CONTEXT_LENGTH,
                    "tokenizer.ggml.model": wire.models[body["model"]].get("tokenizer", "gpt2"),
                },
                "capabilities": ["completion", "tools"],
            }
        )

    async def tags(_: Request) -> Response:
        listed = [
            {"name": name, "model": name, "modified_at": NOW, "size": 1500, "digest": "aaa"}
            for name in sorted(wire.models)
        ]
        return JSONResponse({"models": listed})

    async def version(_: Request) -> Response:
        return JSONResponse({"version": "0.13.0"})

    async def root(_: Request) -> Response:
        return PlainTextResponse("Ollama is running")

    def _unknown(model: str) -> Response | None:
        if model in wire.models:
            return None
        return JSONResponse(_error(f"model '{model}' not found"), status_code=404)

    def _ndjson(model: str, lines: list[dict[str, Any]]) -> Response:
        return stream(
            wire,
            model,
            [json.dumps(line, ensure_ascii=False) + "\n" for line in lines],
            error=json.dumps(_error("the runner has stopped")) + "\n",
            media_type=NDJSON,
        )

    return application(
        wire,
        [
            Route("/", root),
            Route("/api/version", version),
            Route("/api/tags", tags),
            Route("/api/show", show, methods=["POST"]),
            Route("/api/chat", chat, methods=["POST"]),
            Route("/api/generate", generate, methods=["POST"]),
            Route("/api/embed", embed, methods=["POST"]),
            Route("/api/pull", pull, methods=["POST"]),
            Route("/api/create", create, methods=["POST"]),
            Route("/api/delete", delete, methods=["DELETE"]),
        ],
    )


def _wire() -> Wire:
    return Wire(models={MODEL: {}})


def _stop(wire: Wire, body: dict[str, Any]) -> list[str]:
    is_ignored = wire.of(body["model"]).ignores_stop
    stop: list[str] = [] if is_ignored else body.get("options", {}).get("stop", [])
    return stop


def _error(message: str, _code: str | None = None) -> dict[str, Any]:
    return {"error": message}


if __name__ == "__main__":
    run(make_app(_wire()))
