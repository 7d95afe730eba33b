"""`/api/embed` and `/api/embeddings`: jobs of the kind `embed`."""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

from fastapi import APIRouter, Response
from pydantic import BaseModel, BeforeValidator, Field
from starlette.responses import JSONResponse

from api.compat import calls
from api.compat.calls import CallerDep
from api.compat.dialect import Problem, ProblemError
from api.compat.ollama.chat import KeepAlive
from api.compat.ollama.dialect import OLLAMA_API, AnyTypeRoute, ModelRequest, nanoseconds
from api.compat.ollama.names import ALIASES, show_behind
from api.deps import Parts, PartsDep
from shared.errors import InvalidInput, ModelNotFound
from shared.kinds.embed import EMBED
from shared.modelfiles.modelfile import parameters_of
from shared.models.embedding_models import canonical
from shared.models.providers import LATEST, OLLAMA

TEXTS_LIMIT: Final = 10_000
TEXT_CHARS: Final = 1_000_000


def _texts(value: Any) -> Any:
    if isinstance(value, str):
        return [value] if value else []
    return value


class OllamaEmbed(ModelRequest):
    input: Annotated[
        list[Annotated[str, Field(max_length=TEXT_CHARS)]],
        Field(fail_fast=True, max_length=TEXTS_LIMIT),
        BeforeValidator(_texts, json_schema_input_type=str | list[str]),
    ] = []
    truncate: bool = True
    dimensions: Annotated[int, Field(ge=0, le=100_000)] = 0
    options: Annotated[dict[str, Any], Field(max_length=64)] = {}
    keep_alive: KeepAlive = None


class OllamaEmbedOne(ModelRequest):
    prompt: Annotated[str, Field(max_length=TEXT_CHARS)] = ""
    options: Annotated[dict[str, Any], Field(max_length=64)] = {}
    keep_alive: KeepAlive = None


class OllamaVectors(BaseModel):
    model: str
    embeddings: list[list[float]]
    total_duration: int | None = None
    load_duration: int | None = None
    prompt_eval_count: int | None = None


class OllamaVector(BaseModel):
    embedding: list[float]


async def embedding_model_of(parts: Parts, name: str) -> str:
    """The embedding model of a request as jobs name it: a reference, a name of Ollama's library
    that has the same model on the hub, or a model of the Ollama server behind Sluice."""
    short = name.removesuffix(LATEST)
    default = parts.settings.embedding_model
    if short in (default, default.rpartition("/")[2]):
        return default
    if short in ALIASES:
        return ALIASES[short]
    model = canonical(short)
    if "/" not in model and await show_behind(parts.settings, short) is not None:
        return OLLAMA.prefix + short
    return model


def shorten(vector: Sequence[float], dimensions: int) -> list[float]:
    """The first numbers of a vector, scaled to length 1 again, as in Ollama."""
    part = list(vector[:dimensions])
    length = math.sqrt(sum(value * value for value in part))
    return [value / length for value in part] if length > 1e-12 else part


router = APIRouter(route_class=AnyTypeRoute)
DOCUMENTED: Mapping[int | str, dict[str, Any]] = OLLAMA_API.documented(
    400, 401, 404, 409, 413, 429, 500, 503, 504
)


@router.post("/api/embed", response_model=OllamaVectors, responses=dict(DOCUMENTED))
async def embed_as_ollama(parts: PartsDep, caller: CallerDep, request: OllamaEmbed) -> Response:
    """Vectors of texts, each of length 1."""
    began = time.time()
    parameters_of(request.options)
    name = request.model_name
    model = await embedding_model_of(parts, name)
    texts = _nonempty(request.input)
    if not texts:
        return JSONResponse({"model": name, "embeddings": []})
    outcome = await _vectors(parts, caller, name, model, texts)
    if not request.truncate and outcome.warnings:
        raise InvalidInput(f"the input length exceeds the context length: {outcome.warnings[0]}")
    vectors = outcome.result["embeddings"]
    dimensions = request.dimensions
    if dimensions and dimensions < outcome.result["dimension"]:
        vectors = [shorten(vector, dimensions) for vector in vectors]
    now = time.time()
    started = outcome.started_at.timestamp() if outcome.started_at is not None else now
    body = {
        "model": name,
        "embeddings": vectors,
        "total_duration": nanoseconds(now - began),
        "load_duration": nanoseconds(started - began),
        "prompt_eval_count": outcome.result["tokens"],
    }
    return JSONResponse(body, headers=dict(outcome.headers))


@router.post("/api/embeddings", response_model=OllamaVector, responses=dict(DOCUMENTED))
async def embed_one_as_ollama(
    parts: PartsDep, caller: CallerDep, request: OllamaEmbedOne
) -> Response:
    """The vector of one text; an older form of `/api/embed`."""
    parameters_of(request.options)
    name = request.model_name
    model = await embedding_model_of(parts, name)
    if not request.prompt:
        return JSONResponse({"embedding": []})
    outcome = await _vectors(parts, caller, name, model, [request.prompt])
    vector = outcome.result["embeddings"][0]
    return JSONResponse({"embedding": vector}, headers=dict(outcome.headers))


def _nonempty(texts: Sequence[str]) -> list[str]:
    """The texts as a list. Raises InvalidInput for an empty text among others, which has no
    vector."""
    for number, text in enumerate(texts):
        if not text:
            raise InvalidInput(f"input.{number} is empty; leave it out")
    return list(texts)


async def _vectors(
    parts: Parts, caller: calls.Caller, name: str, model: str, texts: Sequence[str]
) -> calls.JobOutcome:
    job_input = calls.input_of(EMBED, {"texts": list(texts), "model": model})
    try:
        return await calls.run(parts, caller, calls.new_job(parts, caller, EMBED, job_input))
    except ProblemError as error:
        problem = error.problem
        if problem.code != ModelNotFound.code:
            raise
        detail = f"model '{name}' not found; {problem.detail}"
        raise ProblemError(
            Problem(status=404, detail=detail, code=problem.code, headers=problem.headers)
        ) from error
