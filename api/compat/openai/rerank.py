"""Reranking in the shape of Cohere's and Jina's APIs: jobs of the kind `hf`."""

from typing import Annotated, Any

from fastapi import APIRouter, Response
from pydantic import AfterValidator, BaseModel, BeforeValidator, Field

from api.compat import calls
from api.compat.calls import CallerDep
from api.compat.openai.dialect import OPENAI, answer_json
from api.compat.openai.models import outcome_for
from api.deps import PartsDep
from api.http.body import StrictRoute
from shared.bounds import ModelName, Text
from shared.hf.sentences import TEXT_RANKING
from shared.kinds.hf import HF
from shared.openai.wire import NoEffect, Unsupported, id_of
from shared.vocabulary import WireShape

DOCUMENTS_LIMIT = 10_000


def _text_of(document: Any) -> Any:
    """A document may be a text, or an object with a text."""
    if isinstance(document, dict) and "text" in document:
        return document["text"]
    return document


RerankText = Annotated[Text, BeforeValidator(_text_of, json_schema_input_type=str | dict[str, Any])]


class RerankRequest(WireShape):
    """Documents to be ranked. Unknown fields are refused."""

    model: ModelName | None = None
    query: Text
    documents: Annotated[
        list[RerankText], Field(fail_fast=True, min_length=1, max_length=DOCUMENTS_LIMIT)
    ]
    top_n: Annotated[int, Field(ge=1)] | None = None
    return_documents: bool = False
    rank_fields: Annotated[
        Any, AfterValidator(Unsupported("put the fields into the text of a document"))
    ] = None
    max_chunks_per_doc: Annotated[
        Any, AfterValidator(Unsupported("documents are read up to the model's window"))
    ] = None
    max_tokens_per_doc: Annotated[
        Any, AfterValidator(Unsupported("documents are read up to the model's window"))
    ] = None
    truncation: Annotated[
        Any, AfterValidator(Unsupported("documents are read up to the model's window", True))
    ] = None
    user: NoEffect = None


class RerankedDocument(BaseModel):
    text: str


class RerankResult(BaseModel):
    index: int
    relevance_score: float
    document: RerankedDocument | None = None


class Reranking(BaseModel):
    """The results, best first."""

    id: str
    model: str
    results: list[RerankResult]


router = APIRouter(route_class=StrictRoute)


@router.post(
    "/rerank",
    response_model=Reranking,
    responses=OPENAI.documented(400, 401, 404, 409, 413, 429, 500, 503, 504),
)
async def rerank_documents(parts: PartsDep, caller: CallerDep, request: RerankRequest) -> Response:
    """Rank documents by how well they answer a query, in the shape of Cohere's and Jina's APIs."""
    values = {
        "task": TEXT_RANKING.name,
        "model": request.model,
        "inputs": {"query": request.query, "texts": request.documents},
        "parameters": {} if request.top_n is None else {"top_k": request.top_n},
    }
    new = calls.new_job(parts, caller, HF, calls.input_of(HF, values))
    made = await calls.submit(parts, new, is_waited=True)
    model = str(new.input["model"])
    outcome = await outcome_for(parts, caller, made, model, HF.name)
    results: list[dict[str, Any]] = []
    for rank in outcome.result:
        result = {"index": rank["index"], "relevance_score": rank["score"]}
        if request.return_documents:
            result["document"] = {"text": request.documents[rank["index"]]}
        results.append(result)
    body = {"id": id_of("rerank-", outcome.id), "model": model, "results": results}
    return answer_json(body, outcome.headers)
