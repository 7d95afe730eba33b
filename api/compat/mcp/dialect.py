"""The Model Context Protocol at `/mcp`, by its official SDK: streamable HTTP, without sessions.

Requests are independent, so any API process can answer any of them. The SDK is imported at the
first request, because that takes a second and many servers get none.
"""

from functools import partial
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from api.compat.dialect import Dialect, Problem, load
from api.http.body import StrictRoute

# Errors before the SDK is called, such as a missing key: JSON-RPC errors without a request id.

PARSE_ERROR, INVALID_REQUEST, INTERNAL_ERROR = -32700, -32600, -32603
JSON, EVENTS = "application/json", "text/event-stream"


def _error(problem: Problem) -> dict[str, Any]:
    data: dict[str, Any] = {"status": problem.status}
    if problem.errors:
        data["errors"] = [dict(entry) for entry in problem.errors]
    code = INVALID_REQUEST if problem.status < 500 else INTERNAL_ERROR
    if problem.status == 400:
        code = PARSE_ERROR
    error = {"code": code, "message": problem.detail, "data": data}
    return {"jsonrpc": "2.0", "id": None, "error": error}


ERROR_SCHEMA = {
    "type": "object",
    "required": ["jsonrpc", "error"],
    "properties": {
        "jsonrpc": {"const": "2.0"},
        "id": {"type": ["string", "integer", "null"]},
        "error": {
            "type": "object",
            "required": ["code", "message"],
            "properties": {"code": {"type": "integer"}, "message": {"type": "string"}, "data": {}},
        },
    },
}

MCP = Dialect(
    name="mcp",
    summary="The Model Context Protocol, with tools for agents",
    tag="mcp",
    prefixes=("/mcp/",),
    routers=("api.compat.mcp.dialect:router",),
    error=_error,
    error_schema=ERROR_SCHEMA,
    descriptions={
        400: "Not HTTP/1.1, or no JSON-RPC message of a protocol version that is spoken here",
        404: "There is no such method",
        405: "Only POST: there is no stream without a request, and no session to end",
        406: "The client has to accept application/json and text/event-stream",
    },
)

router = APIRouter(route_class=StrictRoute)


class SdkResponse(Response):
    """Lets the SDK answer a message that has been read."""

    def __init__(self, body: bytes, message: Any) -> None:
        super().__init__()
        self._body, self._message = body, message

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        serve = await run_in_threadpool(partial(load, "api.compat.mcp.server:serve"))
        await serve(scope, receive, send, body=self._body, message=self._message)


MEMBERS = ("method", "result", "error")
"""Every message has one of them: requests and notifications the first, responses one of the
others."""
MESSAGE = {
    "type": "object",
    "required": ["jsonrpc", "method"],
    "properties": {
        "jsonrpc": {"const": "2.0"},
        "id": {"type": ["string", "integer"]},
        "method": {"type": "string"},
        "params": {"type": "object"},
    },
}
DOCUMENTED: dict[str, Any] = {
    "responses": MCP.documented(400, 404, 406, 413, 415, 422, 500)
    | {
        200: {
            "description": "A JSON-RPC response, or a stream that ends with it",
            "content": {JSON: {"schema": {"type": "object"}}, EVENTS: {"schema": {}}},
        },
        202: {"description": "A notification was accepted"},
    },
    "openapi_extra": {
        "requestBody": {"required": True, "content": {JSON: {"schema": MESSAGE}}},
    },
}


@router.post("/mcp/", include_in_schema=False, name="answer_mcp_slash")
@router.post("/mcp", name="answer_mcp", **DOCUMENTED)
async def answer(http: Request) -> Response:
    """One JSON-RPC message of the Model Context Protocol. Requests are answered as JSON, or as a
    stream if the client asks for progress."""
    accepted = http.headers.get("accept", "")
    types = {type_.partition(";")[0].strip().lower() for type_ in accepted.split(",")}
    if not types & {"*/*", JSON, "application/*"} or not types & {"*/*", EVENTS, "text/*"}:
        raise HTTPException(406, f"Send `Accept: {JSON}, {EVENTS}`: the answer may be either.")
    sent = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    if sent != JSON:
        raise HTTPException(415, f"Send a JSON-RPC message with `Content-Type: {JSON}`.")
    message = await http.json()
    if not isinstance(message, dict):
        raise HTTPException(422, "Send one JSON-RPC message, which is an object.")
    if message.get("jsonrpc") != "2.0" or not any(name in message for name in MEMBERS):
        raise HTTPException(
            422, 'Send a JSON-RPC message, as {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}.'
        )
    return SdkResponse(await http.body(), message)
