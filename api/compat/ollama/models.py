"""Models in the dialect of Ollama: list, show, running, pull, create, copy, delete, version.

Named models are Sluice's (`shared/named_models.py`). Changes on the Ollama server behind Sluice are
jobs of the kind `model`.
"""

import hashlib
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Final

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, PlainTextResponse

from api.compat import calls
from api.compat.calls import Caller, CallerDep, JobOutcome
from api.compat.dialect import Problem, ProblemError
from api.compat.ollama.chat import OllamaMessage
from api.compat.ollama.dialect import (
    OLLAMA_API,
    VERSION,
    AnyTypeRoute,
    ModelRequest,
    moment,
    single_answer,
    stream_answer,
)
from api.compat.ollama.names import (
    ALIASES,
    ask_behind,
    is_set,
    model_of,
    no_server,
    routes,
)
from api.deps import Parts, PartsDep
from api.routes.models import available_models
from api.schemas import ModelView
from shared import named_models
from shared.bounds import Paragraph, shown
from shared.documents import collections
from shared.errors import InvalidInput, NotFound
from shared.kinds.chat import CHAT
from shared.kinds.embed import EMBED
from shared.kinds.model import MODEL
from shared.modelfiles import modelfile
from shared.modelfiles.modelfile import Description, parameter_text, read_modelfile
from shared.models.providers import HF, LATEST, OLLAMA, is_reference, provider_of
from shared.named_models import Definition
from shared.vocabulary import Lane, WireShape

LISTED_LIMIT: Final = 1000
UNKNOWN_SINCE: Final = datetime(2026, 1, 1, tzinfo=UTC)
"""The time of change of a model for which it is not known."""
HELD_FOR: Final = timedelta(days=36_500)
"""When the models of workers expire: never, as long as the worker lives."""

router = APIRouter(route_class=AnyTypeRoute)


class OllamaModel(BaseModel):
    model_config = ConfigDict(extra="allow")


class OllamaVersion(BaseModel):
    version: str


class OllamaModels(BaseModel):
    models: list[dict[str, Any]]


class OllamaStatus(BaseModel):
    """The status of an operation: its end, or a part of a stream before it."""

    model_config = ConfigDict(extra="allow")

    status: str


def _documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    return OLLAMA_API.documented(401, *statuses)


@router.get("", include_in_schema=False, name="is_at_address")
@router.get("/", response_class=PlainTextResponse, include_in_schema=False)
async def is_running() -> Response:
    return PlainTextResponse("Ollama is running")


@router.get("/api/version", response_model=OllamaVersion, responses=_documented())
async def version_as_ollama() -> Response:
    """The version of Ollama whose API this is."""
    return JSONResponse({"version": VERSION})


# Listing models


@router.get("/api/tags", response_model=OllamaModels, responses=_documented(503))
async def list_as_ollama(parts: PartsDep) -> Response:
    """All models: named ones, those of the Ollama server behind Sluice under its names, those of
    other providers under their references, collections as `rag/<collection>`, and embedding
    models."""
    return JSONResponse({"models": await list_models(parts)})


async def list_models(parts: Parts) -> list[dict[str, Any]]:
    """All models, the last changed first, as Ollama lists them."""
    behind = await _tags_behind(parts)
    definitions, names = await run_in_threadpool(_definitions_and_collections, parts)
    own_names = {definition.name for definition in definitions}
    entries = [_definition_entry(definition) for definition in definitions]
    entries += [
        entry
        for entry in behind
        if str(entry.get("name", "")).removesuffix(LATEST) not in own_names
    ]
    for view in await available_models(parts):
        is_behind = view.reference.startswith(OLLAMA.prefix) and behind
        capabilities = _capabilities(view)
        if view.base is None and capabilities and not is_behind:
            entries.append(_entry(view.reference, capabilities))
    entries += [_entry(f"rag/{name}", ["completion"], at) for name, at in names]
    return sorted(entries, key=lambda entry: str(entry["modified_at"]), reverse=True)


async def _tags_behind(parts: Parts) -> list[dict[str, Any]]:
    body = await ask_behind(parts.settings, "GET", "/api/tags")
    models = body.get("models") if isinstance(body, dict) else None
    return [
        {"modified_at": moment(UNKNOWN_SINCE), **model}
        for model in models or ()
        if isinstance(model, dict) and model.get("name")
    ]


def _definitions_and_collections(
    parts: Parts,
) -> tuple[Sequence[Definition], Sequence[tuple[str, datetime]]]:
    with parts.ledger.read() as session:
        definitions = named_models.page(session, limit=LISTED_LIMIT, after=None)
        return definitions, collections.newest(session, limit=LISTED_LIMIT)


def _capabilities(view: ModelView) -> list[str]:
    """Empty for models that Ollama's API has no routes for."""
    if CHAT.name in view.kinds:
        return ["completion", "tools"]
    return ["embedding"] if EMBED.name in view.kinds else []


def _entry(
    name: str, capabilities: Sequence[str], changed_at: datetime | None = None, **details: Any
) -> dict[str, Any]:
    return {
        "name": name,
        "model": name,
        "modified_at": moment(changed_at or UNKNOWN_SINCE),
        # Only the workers know the size of the weights.
        "size": 0,
        "digest": _digest(name),
        "details": _details(name, **details),
        "capabilities": list(capabilities),
    }


def _definition_entry(definition: Definition) -> dict[str, Any]:
    text = modelfile.write_modelfile(modelfile.description_of(definition))
    entry = _entry(
        definition.name, ["completion", "tools"], definition.updated_at,
        parent_model=definition.base,
    )  # fmt: skip
    return entry | {
        "name": _with_tag(definition.name),
        "model": _with_tag(definition.name),
        "digest": _digest(text),
    }


def _with_tag(name: str) -> str:
    return name if ":" in name else name + LATEST


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _details(reference: str, **fields: Any) -> dict[str, Any]:
    provider = provider_of(reference)
    is_held = provider is HF or "/" in reference
    return {
        "parent_model": "",
        "format": "safetensors" if is_held else "",
        "family": "" if provider is None else provider.name,
        "families": [] if provider is None else [provider.name],
        "parameter_size": "",
        "quantization_level": "",
        **fields,
    }


@router.get("/api/ps", response_model=OllamaModels, responses=_documented(503))
async def list_running_as_ollama(parts: PartsDep) -> Response:
    """The models of living workers, and those that the Ollama server behind Sluice has loaded."""
    body = await ask_behind(parts.settings, "GET", "/api/ps")
    behind = body.get("models") if isinstance(body, dict) else None
    held = sorted(route for route in await run_in_threadpool(routes, parts) if _is_held(route))
    until = moment(datetime.now(UTC) + HELD_FOR)
    own = [
        {
            "name": reference,
            "model": reference,
            "size": 0,
            "digest": _digest(reference),
            "details": _details(reference),
            "expires_at": until,
            "size_vram": 0,
            "context_length": 0,
        }
        for reference in held
    ]
    return JSONResponse({"models": [*own, *(behind or [])]})


def _is_held(route: str) -> bool:
    provider = provider_of(route)
    return provider is not None and provider.is_loaded


class OllamaShow(ModelRequest):
    """A model to be shown. Old clients send `system`, `template` and `options`, which have no
    effect."""

    verbose: bool = False
    system: Any = None
    template: Any = None
    options: Any = None


@router.post("/api/show", response_model=OllamaModel, responses=_documented(400, 404, 503))
async def show_as_ollama(parts: PartsDep, request: OllamaShow) -> Response:
    """One model. For a model of the Ollama server behind Sluice, that server's answer."""
    name = request.model_name
    entries = {entry["name"]: entry for entry in await list_models(parts)}
    short = name.removesuffix(LATEST)
    spellings = (name, _with_tag(name), short, ALIASES.get(short))
    entry = next((entries[other] for other in spellings if other in entries), None)
    if entry is not None and "embedding" in (entry.get("capabilities") or ()):
        return JSONResponse(_details_of(entry, Description(from_=name)))
    model = await model_of(parts, name)
    if model.shown is not None:
        return JSONResponse(dict(model.shown))
    if model.definition is not None:
        entry = _definition_entry(model.definition)
        return JSONResponse(_details_of(entry, modelfile.description_of(model.definition)))
    entry = entry or _entry(name, ["completion", "tools"])
    return JSONResponse(_details_of(entry, Description(from_=model.reference)))


def _details_of(entry: Mapping[str, Any], description: Description) -> dict[str, Any]:
    family = entry["details"]["family"] or "sluice"
    body: dict[str, Any] = {
        "modelfile": modelfile.write_modelfile(description),
        "parameters": _parameter_lines(description),
        "template": description.template or "",
        "details": entry["details"],
        "model_info": {"general.architecture": family},
        "capabilities": entry["capabilities"],
        "modified_at": entry["modified_at"],
    }
    if description.system:
        body["system"] = description.system
    if description.licenses:
        body["license"] = "\n".join(description.licenses)
    if description.messages:
        body["messages"] = [
            {"role": role, "content": content} for role, content in description.messages
        ]
    return body


def _parameter_lines(description: Description) -> str:
    rows = []
    for name, value in description.parameters.items():
        for item in value if isinstance(value, list) else [value]:
            text = f'"{item}"' if isinstance(item, str) else parameter_text(item)
            rows.append(f"{name:<30} {text}")
    return "\n".join(rows)


# Changing models


class OllamaPull(ModelRequest):
    stream: bool = True
    insecure: bool = False
    username: str = ""
    password: str = ""


CHANGES: dict[str, Any] = {
    "response_model": OllamaStatus,
    "responses": _documented(400, 404, 409, 413, 429, 500, 503, 504),
}


@router.post("/api/pull", **CHANGES)
async def pull_as_ollama(parts: PartsDep, caller: CallerDep, request: OllamaPull) -> Response:
    """Let the Ollama server behind Sluice fetch a model: a job of the kind `model`, whose progress
    is streamed. For a model that exists already, the answer comes at once."""
    name = request.model_name
    reference = name if is_reference(name) else OLLAMA.prefix + name.removesuffix(LATEST)
    if not reference.startswith(OLLAMA.prefix) or await _is_named(parts, name):
        await model_of(parts, name)
        return _answer(_bodies({"status": "success"}), stream=request.stream)
    if not is_set(parts.settings):
        raise no_server(parts.settings)
    return await _run_change(parts, caller, "pull", reference, stream=request.stream)


class OllamaPush(OllamaPull):
    pass


@router.post("/api/push", **CHANGES)
async def push_as_ollama(request: OllamaPush) -> Response:
    """Refused: models are not published from here."""
    raise ProblemError(
        Problem(
            status=501,
            detail=f"push is not supported: {shown(request.model_name)} is not published from "
            "here. Use `ollama push` on the machine of the Ollama server",
        )
    )


class OllamaDelete(ModelRequest):
    pass


@router.delete("/api/delete", status_code=200, responses=_documented(400, 404, 409, 500, 503, 504))
async def delete_as_ollama(parts: PartsDep, caller: CallerDep, request: OllamaDelete) -> Response:
    """Delete a named model, or a model of the Ollama server behind Sluice."""
    name = request.model_name
    if await _is_named(parts, name):
        await run_in_threadpool(_delete_named, parts, name)
        return Response(status_code=200)
    model = await model_of(parts, name)
    if not model.reference.startswith(OLLAMA.prefix):
        raise InvalidInput(
            f"{shown(name)} cannot be deleted here: it belongs to its worker or server"
        )
    new = _job(parts, caller, {"action": "delete", "name": model.reference})
    await calls.run(parts, caller, new)
    return Response(status_code=200)


class OllamaCopy(WireShape):
    source: Annotated[str, Field(min_length=1, max_length=1024)]
    destination: Annotated[str, Field(min_length=1, max_length=1024)]


@router.post("/api/copy", status_code=200, responses=_documented(400, 404, 503))
async def copy_as_ollama(parts: PartsDep, request: OllamaCopy) -> Response:
    """Copy a named model, or give another name to any other model."""
    source = await model_of(parts, request.source)
    description = Description(from_=source.reference)
    await run_in_threadpool(_define, parts, request.destination, description)
    return Response(status_code=200)


class OllamaCreate(ModelRequest):
    """A named model to be made. Old clients send the whole description in `modelfile`."""

    from_: Annotated[str, Field(max_length=1024)] | None = Field(default=None, alias="from")
    modelfile: Paragraph | None = None
    stream: bool = True
    system: Paragraph | None = None
    template: Paragraph | None = None
    parameters: Annotated[dict[str, Any], Field(max_length=64)] = {}
    messages: Annotated[list[OllamaMessage], Field(fail_fast=True, max_length=1000)] = []
    license: str | list[str] | None = None
    adapters: dict[str, str] = {}
    files: dict[str, str] = {}
    quantize: str = ""
    quantization: str = ""
    draft_quantize: str = ""
    draft_files: dict[str, str] = {}
    renderer: str = ""
    parser: str = ""
    requires: str = ""
    remote_host: str = ""
    info: dict[str, Any] = {}
    path: str = ""

    def description(self) -> Description:
        """Raises InvalidInput."""
        refused = {
            "files": "name a model that is here in from; weights are not uploaded here",
            "draft_files": "leave it out",
            "quantize": "workers choose the precision (SLUICE_GENERATION_PRECISION)",
            "quantization": "workers choose the precision (SLUICE_GENERATION_PRECISION)",
            "draft_quantize": "leave it out",
            "renderer": "write a template",
            "parser": "leave it out",
            "remote_host": "set SLUICE_OLLAMA_URL to that server",
            "path": "send its lines in modelfile",
            "info": "workers read what there is to know of a model from its files",
        }
        for name, remedy in refused.items():
            if getattr(self, name):
                raise InvalidInput(f"{name} is not supported here: {remedy}")
        read = Description() if self.modelfile is None else read_modelfile(self.modelfile)
        if self.from_ is None and read.from_ is None:
            raise InvalidInput("neither 'from' or 'files' was specified: name a model in from")
        licenses = [self.license] if isinstance(self.license, str) else self.license or ()
        return replace(
            read,
            from_=self.from_ or read.from_,
            system=read.system if self.system is None else self.system,
            template=read.template if self.template is None else self.template,
            parameters={**read.parameters, **self.parameters},
            messages=tuple((m.role, m.content) for m in self.messages) or read.messages,
            adapter=_adapter(self.adapters) or read.adapter,
            licenses=(*read.licenses, *licenses),
        )


def _adapter(adapters: Mapping[str, str]) -> str | None:
    if not adapters:
        return None
    if len(adapters) > 1 or any(digest.startswith("sha256:") for digest in adapters.values()):
        raise InvalidInput(
            "adapters is not supported as files: name one that workers can read, its folder or its "
            "name on the hub, with ADAPTER in modelfile or in PUT /v1/models/{name}"
        )
    return next(iter(adapters))


@router.post("/api/create", **CHANGES)
async def create_as_ollama(parts: PartsDep, request: OllamaCreate) -> Response:
    """Make or replace a named model: a preset over a model of any provider."""
    name = request.model_name
    description = request.description()
    source = await model_of(parts, description.from_ or "")
    description = replace(description, from_=source.reference)
    await run_in_threadpool(_define, parts, name, description)
    steps = ["reading model metadata"]
    steps += ["creating system layer"] if description.system else []
    steps += ["creating template layer"] if description.template else []
    steps += ["creating parameters layer"] if description.parameters else []
    bodies = _bodies(*({"status": step} for step in (*steps, "writing manifest", "success")))
    return _answer(bodies, stream=request.stream)


@router.get("/api/blobs/{digest}", include_in_schema=False)
async def find_blob_as_ollama(digest: str) -> Response:
    """Whether a blob exists, which clients ask by HEAD before they upload it: it never does."""
    raise NotFound(f"blob {shown(digest)} not found")


@router.post("/api/blobs/{digest}", status_code=201, include_in_schema=False)
async def upload_blob_as_ollama(digest: str) -> Response:
    raise ProblemError(
        Problem(
            status=501,
            detail=f"blob {shown(digest)} is not taken: weights are not uploaded here. Make a "
            "model from one that is here, or put the files where its worker finds them",
        )
    )


async def _is_named(parts: Parts, name: str) -> bool:
    def find() -> bool:
        with parts.ledger.read() as session:
            return named_models.find(session, name) is not None

    return not is_reference(name) and await run_in_threadpool(find)


def _delete_named(parts: Parts, name: str) -> None:
    with parts.ledger.begin() as session:
        named_models.delete(session, name)


def _define(parts: Parts, name: str, description: Description) -> None:
    with parts.ledger.begin() as session:
        modelfile.define(session, name, description, parts.settings)


def _job(parts: Parts, caller: Caller, values: Mapping[str, Any]) -> Any:
    return calls.new_job(parts, caller, MODEL, calls.input_of(MODEL, values), lane=Lane.INTERACTIVE)


async def _run_change(
    parts: Parts, caller: Caller, action: str, reference: str, *, stream: bool
) -> Response:
    made = await calls.submit(parts, _job(parts, caller, {"action": action, "name": reference}))
    name = reference.removeprefix(OLLAMA.prefix)
    bodies = _progress(calls.follow(parts, caller, made), name)
    return _answer(bodies, stream=stream, headers=calls.headers_of(made))


async def _progress(
    news: AsyncGenerator[calls.News, None], name: str
) -> AsyncGenerator[Mapping[str, Any], None]:
    """The progress of a pull in Ollama's words, with all layers of the model as one."""
    yield {"status": "pulling manifest"}
    digest = f"sha256:{_digest(name)}"
    async with aclosing(news):
        async for item in news:
            if isinstance(item, calls.Progress) and item.total:
                yield {
                    "status": f"pulling {digest[7:19]}",
                    "digest": digest,
                    "total": item.total,
                    "completed": min(item.done, item.total),
                }
            elif isinstance(item, JobOutcome):
                for status in ("verifying sha256 digest", "writing manifest", "success"):
                    yield {"status": status}


async def _bodies(*bodies: Mapping[str, Any]) -> AsyncGenerator[Mapping[str, Any], None]:
    for body in bodies:
        yield body


def _answer(
    bodies: AsyncGenerator[Mapping[str, Any], None],
    *,
    stream: bool,
    headers: Mapping[str, str] | None = None,
) -> Response:
    if stream:
        return stream_answer(bodies, headers or {})
    return single_answer(_last(bodies), headers or {})


async def _last(
    bodies: AsyncGenerator[Mapping[str, Any], None],
) -> AsyncGenerator[Mapping[str, Any], None]:
    last: Mapping[str, Any] | None = None
    async with aclosing(bodies):
        async for body in bodies:
            last = body
    if last is not None:
        yield last
