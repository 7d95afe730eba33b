"""HEAD wherever GET is answered, OPTIONS wherever there is something, and a true `Allow` on 405."""

from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.responses import Response
from starlette.routing import BaseRoute, Match, Mount
from starlette.types import ASGIApp, Message, Receive, Scope, Send

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")


def allowed(app: Starlette, path: str, root_path: str) -> str | None:
    """What a path takes, for the header `Allow`; None where there is nothing.

    Several routes may have one path, and a route knows only its own methods.
    """
    # `/v1/jobs/batch` is what it is, and not a job of that id.
    operations = app.openapi()["paths"].get(path) if isinstance(app, FastAPI) else None
    if operations is not None:
        found = [method for method in METHODS if method.lower() in operations]
    else:
        found = [
            method
            for method in METHODS
            if any(_takes(route, method, path, root_path) for route in app.routes)
        ]
    if not found:
        return None
    if "GET" in found:
        found.insert(1, "HEAD")
    return ", ".join([*found, "OPTIONS"])


def _takes(route: BaseRoute, method: str, path: str, root_path: str) -> bool:
    match, _ = route.matches(
        {"type": "http", "method": method, "path": path, "root_path": root_path, "headers": []}
    )
    # A mount takes all methods; those here have files.
    return match is Match.FULL and (method == "GET" or not isinstance(route, Mount))


class Methods:
    """Answers HEAD as GET without its body, and OPTIONS. Pure ASGI, next to the application."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        if scope["method"] == "OPTIONS":
            found = _allowed(scope)
            if found is not None:
                answer = Response(status_code=204, headers={"Allow": found})
                return await answer(scope, receive, send)
        elif scope["method"] == "HEAD":
            return await self._head(scope, receive, send)
        return await self._app(scope, receive, _with_allow(scope, send))

    async def _head(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The server drops the body; it is ended at its start, for some never end."""
        is_over = False

        async def start_only(message: Message) -> None:
            nonlocal is_over
            if is_over:
                return
            await send(message)
            if message["type"] == "http.response.start":
                is_over = True
                await send({"type": "http.response.body", "body": b"", "more_body": False})

        # What is left of the request's body is of no interest, and streams end when it is over.
        async def until_over() -> Message:
            return {"type": "http.disconnect"} if is_over else await receive()

        as_get = {**scope, "method": "GET"}
        await self._app(as_get, until_over, _with_allow(as_get, start_only))


def _with_allow(scope: Scope, send: Send) -> Send:
    # Routing changes the scope, so what is needed of it is taken before.
    probe = {name: scope[name] for name in ("app", "path", "root_path")}

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 405:
            MutableHeaders(scope=message)["Allow"] = _allowed(probe) or ""
        await send(message)

    return sending


def _allowed(scope: Scope) -> str | None:
    return allowed(scope["app"], scope["path"], scope["root_path"])
