"""The models of OpenAI's API: Sluice's model references, and `rag/<collection>`.

A model `rag/<collection>` answers from the passages of a collection, by the default model or by the
model that follows, as in `rag/handbook/ollama/llama3.2`.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from api.compat import calls
from api.compat.calls import Caller, JobOutcome, News
from api.compat.dialect import Problem, ProblemError
from api.compat.openai.dialect import OPENAI
from api.deps import Parts, PartsDep
from api.http.answers import answer
from api.http.body import StrictRoute
from api.routes.models import available_models
from api.schemas import ModelView
from shared.bounds import shown
from shared.documents import collections
from shared.errors import ModelNotFound, ModelNotServed, NotFound
from shared.jobs.submission import NewJob, Submitted
from shared.kinds.chat import CHAT
from shared.kinds.rag import RAG, RAG_PREFIX, rag_of
from shared.models.providers import is_model_name, is_reference, provider_of

COLLECTIONS_SHOWN = 1000
NAMES_SHOWN = 20
"""How many models an error names."""


class OpenAIModel(BaseModel):
    id: str
    object: str = "model"
    created: int
    """0 if it is not known."""
    owned_by: str = "sluice"


class OpenAIModelList(BaseModel):
    object: str = "list"
    data: list[OpenAIModel]


router = APIRouter(route_class=StrictRoute)


@router.get("/models", response_model=OpenAIModelList, responses=OPENAI.documented(401, 503))
async def list_openai_models(parts: PartsDep) -> Response:
    """All models, and `rag/<collection>` for each collection."""
    return answer(OpenAIModelList(data=await entries(parts)))


@router.get(
    "/models/{model:path}", response_model=OpenAIModel, responses=OPENAI.documented(401, 404, 503)
)
async def get_openai_model(parts: PartsDep, model: str) -> Response:
    """One model."""
    all_ = await entries(parts)
    for entry in all_:
        if entry.id == model:
            return answer(entry)
    raise ProblemError(unknown_model(model, [entry.id for entry in all_]))


async def entries(parts: Parts, kind: str | None = None) -> list[OpenAIModel]:
    """All models, or those for jobs of a kind; for `chat` and `rag` including collections."""
    views = [view for view in await available_models(parts) if kind is None or kind in view.kinds]
    if kind not in (None, CHAT.name, RAG.name):
        return [_entry(view) for view in views]
    names = await run_in_threadpool(_collections, parts)
    by_reference = {view.reference: _entry(view) for view in views}
    of_collections = [
        OpenAIModel(id=RAG_PREFIX + name, created=int(created_at.timestamp()))
        for name, created_at in names
    ]
    return [*by_reference.values(), *of_collections]


def _entry(view: ModelView) -> OpenAIModel:
    return OpenAIModel(id=view.reference, created=0, owned_by=view.reference.partition("/")[0])


def _collections(parts: Parts) -> Sequence[tuple[str, datetime]]:
    with parts.ledger.read() as session:
        return collections.newest(session, limit=COLLECTIONS_SHOWN)


def unknown_model(model: str, known: Sequence[str], why: str = "") -> Problem:
    """The error for a model that does not exist; it lists those that do."""
    fields: dict[str, Any] = {"code": "model_not_found", "param": "model"}
    more = f", and {len(known) - NAMES_SHOWN} more" if len(known) > NAMES_SHOWN else ""
    names = f"There are: {', '.join(known[:NAMES_SHOWN])}{more} (GET /openai/v1/models)."
    detail = f"{why or f'There is no model {shown(model)} here.'} {names}"
    return Problem(status=404, detail=detail, fields=fields)


# The job of a request that names a model, and its outcome. Errors about the model list the models
# that there are.


async def require_model(parts: Parts, model: str, kind: str = CHAT.name) -> None:
    """Raises ProblemError for a model that cannot generate text: its name is no model reference, or
    it has to be loaded by a worker and no worker has it."""
    rag = rag_of(model)
    reference = model if rag is None else rag.model
    if reference is None:
        return
    if not is_reference(reference) and not is_model_name(reference):
        raise await unknown(parts, model, kind)
    provider = provider_of(reference) if is_reference(reference) else None
    is_default = reference == parts.settings.generation_model
    if provider is None or not provider.is_loaded or is_default:
        return
    if reference not in await run_in_threadpool(_routes, parts):
        raise await unknown(parts, model, kind, why=f"No worker serves the model {shown(model)}.")


def _routes(parts: Parts) -> frozenset[str]:
    with parts.ledger.read() as session:
        return parts.routes.of_workers(session)


async def unknown(
    parts: Parts, model: str, kind: str = CHAT.name, *, why: str = ""
) -> ProblemError:
    """The error for a model that jobs of this kind cannot use; it lists those that they can."""
    known = [entry.id for entry in await entries(parts, kind)]
    return ProblemError(unknown_model(model, known, why))


async def submit_for(parts: Parts, new: NewJob, model: str) -> Submitted:
    """Submit the job. Raises ProblemError if the named model or the collection does not exist."""
    try:
        return await calls.submit(parts, new, is_waited=True)
    except NotFound as error:
        raise await unknown(parts, model, why=error.message) from error


async def outcome_for(
    parts: Parts, caller: Caller, made: Submitted, model: str, kind: str = CHAT.name
) -> JobOutcome:
    """Wait for the job. Raises ProblemError if it does not succeed, or not in time."""
    try:
        return await calls.outcome(parts, caller, made)
    except ProblemError as error:
        raise await _with_models(parts, error, model, kind) from error


async def news_for(
    parts: Parts, caller: Caller, made: Submitted, model: str, kind: str = CHAT.name
) -> AsyncGenerator[News, None]:
    """As `calls.follow`, with errors that list the models."""
    try:
        async with aclosing(calls.follow(parts, caller, made)) as news:
            async for item in news:
                yield item
    except ProblemError as error:
        raise await _with_models(parts, error, model, kind) from error


async def _with_models(parts: Parts, error: ProblemError, model: str, kind: str) -> ProblemError:
    """The error; if it is about the model, it lists the models that there are."""
    if error.problem.code not in (ModelNotFound.code, ModelNotServed.code):
        return error
    listing = await unknown(parts, model, kind, why=error.problem.detail)
    return ProblemError(replace(listing.problem, headers=error.problem.headers))
