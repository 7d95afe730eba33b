"""The part of `fake_api` that is about models and conversations."""

import uuid
from typing import Any, Protocol

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from tests.integration.fake_shapes import NOW, page, problem


class Held(Protocol):
    """The part of the fake's state that these routes use."""

    conversations: dict[str, dict[str, Any]]
    models: dict[str, dict[str, Any]]


def generation_routes(state: Held) -> APIRouter:
    router = APIRouter(prefix="/v1")

    def missing(conversation_id: str) -> Response:
        return problem(404, "Not found", f"There is no conversation {conversation_id}.")

    @router.get("/models")
    def models() -> Response:
        found = [_model("extractive", ["rag"]), *(_model(name, ["chat"]) for name in state.models)]
        return JSONResponse({"items": found})

    @router.get("/models/{reference:path}")
    def model(reference: str) -> Response:
        if reference not in state.models:
            return problem(404, "Not found", f"There is no model {reference}.")
        view = _model(reference, ["chat"])
        return JSONResponse({**view, "details": state.models[reference]})

    @router.post("/conversations")
    async def start(request: Request) -> Response:
        id_ = str(uuid.uuid4())
        wanted = await request.json()
        state.conversations[id_] = {
            **wanted,
            "id": id_,
            "summary": None,
            "messages": 2,
            "created_at": NOW,
            "updated_at": NOW,
        }
        return JSONResponse(state.conversations[id_], 201)

    @router.get("/conversations")
    def conversations(limit: int, cursor: int = 0) -> Response:
        return page(list(reversed(state.conversations.values())), limit, cursor)

    @router.get("/conversations/{conversation_id}")
    def conversation(conversation_id: str) -> Response:
        found = state.conversations.get(conversation_id)
        return missing(conversation_id) if found is None else JSONResponse(found)

    @router.get("/conversations/{conversation_id}/messages")
    def messages(conversation_id: str) -> Response:
        if conversation_id not in state.conversations:
            return missing(conversation_id)
        call = {"id": "1", "function": {"name": "calculator", "arguments": {"expression": "6*7"}}}
        said: list[dict[str, Any]] = [
            {"role": "user", "content": "얼마예요?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        items = [{"message": each, "job_id": None, "created_at": NOW} for each in said]
        return JSONResponse({"items": items})

    @router.delete("/conversations/{conversation_id}")
    def erase(conversation_id: str) -> Response:
        if state.conversations.pop(conversation_id, None) is None:
            return missing(conversation_id)
        return Response(status_code=204)

    return router


def _model(reference: str, kinds: list[str]) -> dict[str, Any]:
    return {
        "reference": reference,
        "kinds": kinds,
        "default": reference == "extractive",
        "workers": 1,
    }
