"""Embeddings: jobs of the kind `embed`."""

from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from api.compat import calls
from api.compat.calls import CallerDep
from api.compat.openai.dialect import OPENAI, answer_json, ended_job_of
from api.compat.openai.models import outcome_for
from api.deps import PartsDep
from api.http.body import StrictRoute
from shared.openai.embeddings import EmbeddingRequest, embedding_body, embedding_job

router = APIRouter(route_class=StrictRoute)


class OpenAIEmbedding(BaseModel):
    object: str
    index: int
    embedding: list[float] | str


class OpenAIEmbeddingList(BaseModel):
    """Vectors as OpenAI describes them: lists of numbers, or texts in base64."""

    object: str
    data: list[OpenAIEmbedding]
    model: str
    usage: dict[str, Any]


@router.post(
    "/embeddings",
    response_model=OpenAIEmbeddingList,
    responses=OPENAI.documented(400, 401, 404, 409, 413, 429, 500, 503, 504),
)
async def create_embedding(
    parts: PartsDep, caller: CallerDep, request: EmbeddingRequest
) -> Response:
    """Vectors of texts."""
    with calls.naming_fields():
        spec = embedding_job(request, parts.settings)
    new = calls.new_job(parts, caller, spec.kind, spec.input)
    made = await calls.submit(parts, new, is_waited=True)
    outcome = await outcome_for(parts, caller, made, request.model, spec.kind.name)
    # In a thread, because thousands of vectors take long to serialize.
    return await run_in_threadpool(
        lambda: answer_json(embedding_body(ended_job_of(outcome, spec.options)), outcome.headers)
    )
