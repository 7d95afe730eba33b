"""The models that programs of OpenAI's API can name: ours, and `rag/<collection>`.

Model references are those of Sluice. A model `rag/<collection>` answers from the passages of a
collection, by the default model or by the one that follows: `rag/handbook/ollama/llama3.2`.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from api.compat.dialect import Problem
from api.compat.openai.dialect import OPENAI
from api.deps import Parts, PartsDep
from api.http.answers import answer
from api.http.body import StrictRoute
from api.routes.models import offered
from shared.bounds import shown
from shared.documents import collections

RAG_PREFIX = "rag/"
COLLECTIONS_SHOWN = 1000
NAMES_SHOWN = 20
"""How many models an error names."""


class OpenAIModel(BaseModel):
    id: str
    object: str = "model"
    created: int
    """0 where nobody knows."""
    owned_by: str = "sluice"


class OpenAIModelList(BaseModel):
    object: str = "list"
    data: list[OpenAIModel]


router = APIRouter(route_class=StrictRoute)


@router.get("/models", response_model=OpenAIModelList, responses=OPENAI.documented(401, 503))
async def list_openai_models(parts: PartsDep) -> Response:
    """All models that can be named here, and `rag/<collection>` for each collection."""
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
    return OPENAI.answer(unknown_model(model, [entry.id for entry in all_]))


async def entries(parts: Parts) -> list[OpenAIModel]:
    views = await offered(parts)
    names = await run_in_threadpool(_collections, parts)
    by_reference = {
        view.reference: OpenAIModel(
            id=view.reference, created=0, owned_by=view.reference.partition("/")[0]
        )
        for view in views
    }
    of_collections = [
        OpenAIModel(id=RAG_PREFIX + name, created=int(created_at.timestamp()))
        for name, created_at in names
    ]
    return [*by_reference.values(), *of_collections]


def _collections(parts: Parts) -> Sequence[tuple[str, datetime]]:
    with parts.ledger.read() as session:
        return collections.newest(session, limit=COLLECTIONS_SHOWN)


def unknown_model(model: str, known: Sequence[str], param: str | None = "model") -> Problem:
    """The error about a model that is not here, with those that are."""
    fields: dict[str, Any] = {"code": "model_not_found", "param": param}
    return Problem(
        status=404, detail=f"There is no model {shown(model)} here. {named(known)}", fields=fields
    )


def named(known: Sequence[str]) -> str:
    """The models that there are, for an error."""
    more = f", and {len(known) - NAMES_SHOWN} more" if len(known) > NAMES_SHOWN else ""
    return f"There are: {', '.join(known[:NAMES_SHOWN])}{more} (GET /openai/v1/models)."
