"""A server that speaks the hub's file API: what a repository is, its files, the files themselves.

`Shelf.gets` counts how often each file was sent. Weights are sent once `Shelf.open` is set; files
go out in blocks, so that a download can be under way. A program finds the server through
HF_ENDPOINT, which huggingface_hub reads as it is imported: `environment` makes one for it.
"""

import asyncio
import hashlib
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.wire.behaviour import Wire, application, refusal, serving

TOKEN = "hf_of_the_reader"
BLOCK_BYTES = 1 << 16
WEIGHTS = (".safetensors", ".bin")


@dataclass(kw_only=True)
class Shelf(Wire):
    """The server. `repositories` have the files of each model; `gated` are read with TOKEN only."""

    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    gets: Counter[str] = field(default_factory=Counter)
    open: threading.Event = field(default_factory=threading.Event)
    sending: threading.Event = field(default_factory=threading.Event)
    """Somebody waits for weights."""

    def put(self, model: str, folder: Path) -> None:
        """Take up the files of a folder."""
        paths = [path for path in folder.rglob("*") if path.is_file()]
        self.repositories[model] = {
            path.relative_to(folder).as_posix(): path.read_bytes() for path in paths
        }

    def environment(self, home: Path) -> dict[str, str]:
        return {"HF_ENDPOINT": self.url, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}


@contextmanager
def served_files() -> Iterator[Shelf]:
    shelf = Shelf()
    shelf.open.set()
    with serving(shelf, make_app(shelf)):
        yield shelf


def make_app(shelf: Shelf) -> Starlette:
    async def describe(request: Request) -> Response:
        model = request.path_params["model"]
        refused = await _refused(shelf, request, model)
        if refused is not None:
            return refused
        shelf.gets[f"description of {model}"] += 1
        files = shelf.repositories[model]
        siblings = [{"rfilename": name} for name in files]
        return JSONResponse({"id": model, "sha": commit_of(files), "siblings": siblings})

    async def listing(request: Request) -> Response:
        model = request.path_params["model"]
        refused = await _refused(shelf, request, model)
        if refused is not None:
            return refused
        return JSONResponse(
            [
                {"type": "file", "path": name, "size": len(data), "oid": _digest(data)}
                for name, data in shelf.repositories[model].items()
            ]
        )

    async def send(request: Request) -> Response:
        model, name = request.path_params["model"], request.path_params["name"]
        refused = await _refused(shelf, request, model, is_file=True)
        if refused is not None:
            return refused
        files = shelf.repositories[model]
        if name not in files:
            return _error(404, "EntryNotFound", "Entry not found")
        data = files[name]
        headers = {
            "X-Repo-Commit": commit_of(files),
            "ETag": f'"{_digest(data)}"',
            "Content-Length": str(len(data)),
        }
        if request.method == "HEAD":
            return Response(headers=headers)
        shelf.gets[f"{model}/{name}"] += 1
        return StreamingResponse(_blocks(shelf, name, data), headers=headers)

    return application(
        shelf,
        [
            Route("/api/models/{model:path}/revision/{revision}", describe),
            Route("/api/models/{model:path}/tree/{revision}", listing),
            Route("/{model:path}/resolve/{revision}/{name:path}", send, methods=["GET", "HEAD"]),
        ],
    )


def commit_of(files: dict[str, bytes]) -> str:
    return _digest(b"".join(name.encode() + data for name, data in sorted(files.items())))


async def _blocks(shelf: Shelf, name: str, data: bytes) -> AsyncIterator[bytes]:
    """The first block of weights goes out at once, the rest when the way is free."""
    for start in range(0, len(data), BLOCK_BYTES):
        if start and name.endswith(WEIGHTS):
            shelf.sending.set()
            while not shelf.open.is_set():
                await asyncio.sleep(0.01)
        yield data[start : start + BLOCK_BYTES]


async def _refused(
    shelf: Shelf, request: Request, model: str, *, is_file: bool = False
) -> Response | None:
    refused = await refusal(shelf, request, model, lambda message, _: {"error": message})
    if refused is not None:
        return refused
    authorization = request.headers.get("authorization")
    if authorization not in (None, f"Bearer {TOKEN}"):
        return _error(401, None, "Invalid credentials in Authorization header")
    if model not in shelf.repositories:
        return _error(404, "RepoNotFound", "Repository not found")
    if is_file and model in shelf.gated and authorization is None:
        return _error(401, "GatedRepo", f"Access to model {model} is restricted.")
    return None


def _error(status: int, code: str | None, message: str) -> Response:
    headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
    return JSONResponse({"error": message}, status, headers=headers)


def _digest(data: bytes) -> str:
    return hashlib.sha1(data, usedforsecurity=False).hexdigest()
