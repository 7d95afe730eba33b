"""The models that can run here."""

import asyncio

import httpx
from fastapi import APIRouter, Response

from api.deps import PartsDep
from api.http.answers import answer
from api.openapi import documented
from api.schemas import Items, ModelDetails, ModelView
from shared.bounds import MODEL_LIMIT_BYTES, is_storable_text, shown
from shared.config import EXTRACTIVE, Settings
from shared.errors import NotFound, Unavailable
from shared.jobs import queues
from shared.kinds.generation import PROVIDERS
from shared.kinds.hf import DEFAULT_MODELS, Task
from shared.kinds.registry import EMBED, HF, INGEST, KINDS, RAG, SEARCH

# What the servers behind `ollama/...` and `openai/...` offer, asked over plain HTTP.
#
# The API has no model library in it; these are three GET and POST calls.

ASK_S = 2.0
"""A listing does not wait longer for a server that is not there."""


async def ollama_models(settings: Settings) -> list[str]:
    answer = await _fetch(settings, f"{settings.ollama_url.rstrip('/')}/api/tags")
    models = answer.get("models") or []
    return sorted(f"ollama/{model['name'].removesuffix(':latest')}" for model in models)


async def openai_models(settings: Settings) -> list[str]:
    if settings.openai_base_url is None:
        return []
    answer = await _fetch(settings, f"{settings.openai_base_url.rstrip('/')}/models", key=True)
    return sorted(f"openai/{model['id']}" for model in answer.get("data") or [])


async def ollama_details(settings: Settings, reference: str) -> dict[str, object]:
    """Raises NotFound where the server has no such model, Unavailable where there is no server."""
    url = f"{settings.ollama_url.rstrip('/')}/api/show"
    try:
        async with _client() as client:
            answer = await client.post(url, json={"model": reference.removeprefix("ollama/")})
    except httpx.HTTPError as error:
        raise Unavailable(
            f"Ollama at {settings.ollama_url} (SLUICE_OLLAMA_URL) does not answer: {error}. Start "
            "it with `ollama serve`."
        ) from error
    if answer.status_code == 404:
        raise NotFound(
            f"Ollama has no model {reference.removeprefix('ollama/')!r}; get it with "
            f"`sluice models pull {reference}`."
        )
    if answer.status_code != 200:
        raise Unavailable(f"Ollama answered {answer.status_code}: {answer.text[:200]}")
    details = answer.json()
    kept = ("details", "parameters", "template", "system", "capabilities", "modelfile")
    return {name: details[name] for name in kept if name in details}


async def _fetch(
    settings: Settings, url: str, *, key: bool = False
) -> dict[str, list[dict[str, str]]]:
    headers = {}
    if key and settings.openai_api_key is not None:
        headers["Authorization"] = f"Bearer {settings.openai_api_key.get_secret_value()}"
    try:
        async with _client() as client:
            answer = await client.get(url, headers=headers)
        body = answer.json() if answer.status_code == 200 else {}
    except (httpx.HTTPError, ValueError):
        return {}
    return body if isinstance(body, dict) else {}


def _client() -> httpx.AsyncClient:
    return httpx.AsyncClient(timeout=ASK_S, trust_env=False)


router = APIRouter(prefix="/v1/models", tags=["models"])

GENERATING = [kind.name for kind in KINDS.values() if kind.is_generated]


@router.get("", responses=documented({200: Items[ModelView]}))
async def list_models(parts: PartsDep) -> Response:
    """The embedding model, the tasks' default models, what living workers hold, and what the
    servers behind them offer.

    A server that does not answer offers nothing.
    """
    settings = parts.settings
    served, ollama, openai = await asyncio.gather(
        asyncio.to_thread(_served, parts),
        ollama_models(settings),
        openai_models(settings),
    )
    default = settings.generation_model
    references = dict.fromkeys(
        [EXTRACTIVE, *(route for route in served if route.startswith("hf/")), *ollama, *openai]
    )
    if default not in references:
        references[default] = None
    generating = [_view(reference, default, served) for reference in references]
    models = [_embedding(settings), *_of_tasks(settings), *generating]
    return answer(Items[ModelView](items=models))


@router.get("/{reference:path}", responses=documented({200: ModelDetails}, 404))
async def get_model(parts: PartsDep, reference: str) -> Response:
    """One model; of those of Ollama, what that server tells of it."""
    settings = parts.settings
    is_short = len(reference.encode(errors="replace")) <= MODEL_LIMIT_BYTES
    if not is_short or not is_storable_text(reference):
        raise NotFound(f"There is no model {shown(reference)}; that is not a name of one.")
    if reference == settings.embedding_model:
        return answer(ModelDetails(**_embedding(settings).model_dump(), details={}))
    served = await asyncio.to_thread(_served, parts)
    details = {}
    if reference.startswith("ollama/"):
        details = await ollama_details(settings, reference)
    elif reference.partition("/")[0] not in (*PROVIDERS, EXTRACTIVE):
        raise NotFound(
            f"There is no model {shown(reference)}; `GET /v1/models` lists those that there are."
        )
    view = _view(reference, settings.generation_model, served)
    return answer(ModelDetails(**view.model_dump(), details=details))


def _embedding(settings: Settings) -> ModelView:
    return ModelView(
        reference=settings.embedding_model,
        kinds=[INGEST.name, EMBED.name, SEARCH.name],
        default=True,
    )


def _of_tasks(settings: Settings) -> list[ModelView]:
    """The models of the kind `hf`, each with the tasks that use it by default."""
    tasks: dict[str, list[Task]] = {}
    for task, model in DEFAULT_MODELS.items():
        tasks.setdefault(settings.hf_models.get(task, model), []).append(task)
    return [
        ModelView(reference=model, kinds=[HF.name], default=True, tasks=used_for)
        for model, used_for in tasks.items()
    ]


def _view(reference: str, default: str, served: dict[str, int]) -> ModelView:
    route = reference if reference in served else reference.partition("/")[0]
    return ModelView(
        reference=reference,
        kinds=[RAG.name] if reference == EXTRACTIVE else GENERATING,
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
