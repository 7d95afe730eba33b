"""The models that can run here."""

import asyncio
from collections.abc import Sequence
from datetime import datetime

import httpx
from fastapi import APIRouter, Response
from sqlalchemy.orm import Session

from api.deps import Parts, PartsDep
from api.http.answers import answer
from api.http.body import StrictRoute
from api.openapi import documented
from api.schemas import Items, ModelDetails, ModelView, NamedModelSpec
from shared import named_models
from shared.addresses import server_options
from shared.bounds import MODEL_LIMIT_BYTES, is_storable_text, shown
from shared.config import HfSettings, ModelSettings, Settings
from shared.documents import collections
from shared.errors import NotFound, Unavailable
from shared.jobs import queues
from shared.kinds.hf import Task, default_models
from shared.kinds.registry import CHECK, EMBED, HF, INGEST, KINDS, REBUILD, SEARCH
from shared.modelfiles import modelfile
from shared.models.embedding_models import canonical
from shared.models.providers import PROVIDERS, Provider, provider_of
from shared.named_models import Definition

# The models of providers' servers, which are asked over plain HTTP: the API imports no model
# library.

LISTED_LIMIT = 1000
LISTING_TIMEOUT_S = 2.0
"""How long a listing waits for a server."""


async def _names(settings: Settings, provider: Provider) -> list[str]:
    """References of the models on the provider's server; none if it does not answer."""
    server = provider.server
    url = None if server is None else server.address(settings, server.list_path)
    if server is None or url is None:
        return []
    key = server.key(settings)
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    try:
        async with _client(url) as client:
            answer = await client.get(url, headers=headers)
        body = answer.json() if answer.status_code == 200 else {}
    except (httpx.HTTPError, ValueError):
        return []
    names = server.names(body) if isinstance(body, dict) else []
    return sorted(provider.prefix + name for name in names)


async def _details(settings: Settings, provider: Provider, reference: str) -> dict[str, object]:
    """What the server says about a model. Raises NotFound if it has no such model, Unavailable if
    it does not answer."""
    server = provider.server
    url = None if server is None else server.address(settings, server.show_path or "")
    if server is None or server.show_path is None or url is None:
        return {}
    name = reference.removeprefix(provider.prefix)
    try:
        async with _client(url) as client:
            answer = await client.post(url, json={"model": name})
    except httpx.HTTPError as error:
        raise Unavailable(
            f"{server.title} at {server.url(settings)} ({server.setting}) does not answer: "
            f"{error}. {server.remedy[0].upper()}{server.remedy[1:]}."
        ) from error
    if answer.status_code == 404:
        message = f"{server.title} has no model {name!r}"
        if server.can_pull is not None:
            message += f"; get it with `sluice models pull {reference}`"
        raise NotFound(f"{message}.")
    if answer.status_code != 200:
        raise Unavailable(f"{server.title} answered {answer.status_code}: {answer.text[:200]}")
    details = answer.json()
    return {name: details[name] for name in server.shown_fields if name in details}


def _client(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=LISTING_TIMEOUT_S, **server_options(url))


router = APIRouter(prefix="/v1/models", tags=["models"], route_class=StrictRoute)

GENERATING = [kind.name for kind in KINDS.values() if kind.is_generated]
EMBEDDING = [INGEST.name, EMBED.name, SEARCH.name, REBUILD.name, CHECK.name]


@router.get("", responses=documented({200: Items[ModelView]}))
async def list_models(parts: PartsDep) -> Response:
    """The embedding models (the default, and those of collections), the default models of tasks,
    named models, the models of living workers, and those of providers' servers.

    Models of a server that does not answer are missing.
    """
    return answer(Items[ModelView](items=await available_models(parts)))


async def available_models(parts: Parts) -> list[ModelView]:
    """All models that can run here, as far as that is known without running them."""
    settings = parts.settings
    (served, definitions, embedding), names = await asyncio.gather(
        asyncio.to_thread(_served_and_named, parts),
        asyncio.gather(*(_names(settings, provider) for provider in PROVIDERS.values())),
    )
    default = settings.generation_model
    references: dict[str, None] = {}
    for provider, of_provider in zip(PROVIDERS.values(), names, strict=True):
        if not provider.has_models:
            of_provider = [provider.name]
        elif provider.is_loaded:
            of_provider = [route for route in served if route.startswith(provider.prefix)]
        references |= dict.fromkeys(of_provider)
    if default not in references:
        references[default] = None
    generating = [
        _with_embedding(_view(reference, default, served), embedding) for reference in references
    ]
    presets = [_named_view(definition, served) for definition in definitions]
    used = [_embedding(settings, model) for model in embedding if model not in references]
    return [_embedding(settings), *used, *_of_tasks(settings), *presets, *generating]


@router.get("/{name:path}", responses=documented({200: ModelDetails}, 404))
async def get_model(parts: PartsDep, name: str) -> Response:
    """One model; for a model of Ollama, with the details from that server."""
    settings = parts.settings
    is_short = len(name.encode(errors="replace")) <= MODEL_LIMIT_BYTES
    if not is_short or not is_storable_text(name):
        raise NotFound(f"There is no model {shown(name)}; that is not a name of one.")
    if canonical(name) == canonical(settings.embedding_model):
        return answer(ModelDetails(**_embedding(settings).model_dump(), details={}))
    embedding = await asyncio.to_thread(_embedding_models, parts)
    served = await asyncio.to_thread(_served, parts)
    provider = provider_of(name)
    if provider is None:
        definition = await asyncio.to_thread(_find_named, parts, name)
        if definition is not None:
            view = _named_view(definition, served)
            return answer(ModelDetails(**view.model_dump(), details=_named_details(definition)))
        if canonical(name) in embedding:
            view = _embedding(settings, canonical(name))
            return answer(ModelDetails(**view.model_dump(), details={}))
        raise NotFound(
            f"There is no model {shown(name)}; `GET /v1/models` lists those that there are."
        )
    details = await _details(settings, provider, name)
    view = _with_embedding(_view(name, settings.generation_model, served), embedding)
    return answer(ModelDetails(**view.model_dump(), details=details))


@router.put(
    "/{name:path}",
    responses=documented({200: ModelDetails, 201: ModelDetails}, 400, 415, 422),
)
def put_model(parts: PartsDep, name: str, spec: NamedModelSpec) -> Response:
    """Make or replace a named model: 201 if it is new. Its name is then a model reference."""
    description = spec.description()
    with parts.ledger.begin() as session:
        is_new = modelfile.define(session, name, description, parts.settings)
        definition = named_models.get(session, name)
    view = _named_view(definition, _served(parts))
    details = ModelDetails(**view.model_dump(), details=_named_details(definition))
    return answer(details, 201 if is_new else 200)


@router.delete("/{name:path}", status_code=204, responses=documented({}, 404))
def delete_model(parts: PartsDep, name: str) -> Response:
    """Delete a named model. Jobs that were submitted with it are not affected. (Models of Ollama
    are deleted by a job of the kind `model`.)"""
    with parts.ledger.begin() as session:
        _require_named(session, name)
        named_models.delete(session, name)
    return Response(status_code=204)


def _require_named(session: Session, name: str) -> None:
    if len(name) > MODEL_LIMIT_BYTES or not is_storable_text(name):
        raise NotFound(f"There is no named model {shown(name)}; that is not a name of one.")
    named_models.get(session, name)


def _embedding_models(parts: PartsDep) -> Sequence[str]:
    with parts.ledger.read() as session:
        return collections.embedding_models(session, limit=LISTED_LIMIT)


def _find_named(parts: PartsDep, name: str) -> Definition | None:
    with parts.ledger.read() as session:
        return named_models.find(session, name)


def _served_and_named(
    parts: PartsDep,
) -> tuple[dict[str, int], Sequence[Definition], Sequence[str]]:
    """The models that workers serve, the named models, and the embedding models of collections
    beside the default."""
    with parts.ledger.read() as session:
        definitions = named_models.page(session, limit=LISTED_LIMIT, after=None)
        models = collections.embedding_models(session, limit=LISTED_LIMIT)
    default = canonical(parts.settings.embedding_model)
    return _served(parts), definitions, [model for model in models if model != default]


def _named_view(definition: Definition, served: dict[str, int]) -> ModelView:
    view = _view(definition.base, "", served)
    return view.model_copy(update={"reference": definition.name, "base": definition.base})


def _named_details(definition: Definition) -> dict[str, object]:
    description = modelfile.description_of(definition)
    preset = definition.preset.model_dump(mode="json")
    return {
        "from": definition.base,
        "system": preset["system"],
        "template": preset["template"],
        "parameters": definition.parameters,
        "messages": preset["messages"],
        "licenses": list(definition.licenses),
        "modelfile": modelfile.write_modelfile(description),
        "created_at": as_moment(definition.created_at),
        "updated_at": as_moment(definition.updated_at),
    }


def as_moment(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat()


def _embedding(settings: ModelSettings, reference: str | None = None) -> ModelView:
    """The view of an embedding model, by default that of the settings."""
    default = canonical(settings.embedding_model)
    return ModelView(
        reference=reference or settings.embedding_model,
        kinds=EMBEDDING,
        default=reference is None or reference == default,
    )


def _with_embedding(view: ModelView, embedding: Sequence[str]) -> ModelView:
    """The view of a model of a server, which may embed the documents of a collection, too."""
    if view.reference not in embedding:
        return view
    return view.model_copy(update={"kinds": [*view.kinds, *EMBEDDING]})


def _of_tasks(settings: HfSettings) -> list[ModelView]:
    """The default models of the kind `hf`, each with its tasks."""
    tasks_of: dict[str, list[Task]] = {}
    for task, model in default_models(settings).items():
        tasks_of.setdefault(model, []).append(task)
    return [
        ModelView(reference=model, kinds=[HF.name], default=True, tasks=tasks)
        for model, tasks in tasks_of.items()
    ]


def _view(reference: str, default: str, served: dict[str, int]) -> ModelView:
    route = reference if reference in served else reference.partition("/")[0]
    provider = provider_of(reference)
    return ModelView(
        reference=reference,
        kinds=[kind for kind in GENERATING if provider is None or kind in provider.kinds],
        default=reference == default,
        workers=served.get(route, 0),
    )


def _served(parts: PartsDep) -> dict[str, int]:
    """How many living workers serve each model."""
    with parts.ledger.read() as session:
        workers = queues.workers(session, worker_heartbeat_s=parts.settings.worker_heartbeat_s)
    counts: dict[str, int] = {}
    for worker in workers:
        for route in worker.models if worker.alive else ():
            counts[route] = counts.get(route, 0) + 1
    return counts
