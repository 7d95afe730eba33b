"""The dialect of Text Embeddings Inference, below `/tei` or `/tei/<model>`.

Follows `router/src/http` of github.com/huggingface/text-embeddings-inference. Such a server has one
model. Here `/embed` uses the embedding model, `/rerank` and `/predict` the default models of their
tasks, unless the path names another model. Each request is a job of the kind `hf`.
"""

from dataclasses import replace
from operator import mul
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Body, Request, Response
from pydantic import BeforeValidator, Field
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from api.compat import calls
from api.compat.calls import CallerDep, JobOutcome
from api.compat.dialect import Dialect, Problem, ProblemError
from api.compat.openai.embeddings import create_embedding
from api.deps import Parts, PartsDep
from api.http.body import StrictRoute
from api.openapi import package_version
from shared.bounds import Line, shown
from shared.errors import InvalidInput
from shared.hf.classification import TEXT_CLASSIFICATION
from shared.hf.sentences import FEATURE_EXTRACTION, SENTENCE_SIMILARITY, TEXT_RANKING
from shared.hf.task import HfTask
from shared.kinds.embed import EMBED
from shared.kinds.hf import HF, default_models
from shared.models.embedding_models import HUGGING_FACE, canonical, provider_name
from shared.openai.embeddings import EmbeddingRequest
from shared.vocabulary import WireShape

PREFIX: Final = "/tei"
TEXTS_LIMIT: Final = 10_000
TEXT_CHARS: Final = 1_000_000
TYPES: Final = {424: "Backend", 429: "Overloaded", 503: "Unhealthy"}


def _body(problem: Problem) -> dict[str, Any]:
    type_ = TYPES.get(problem.status, "Backend" if problem.status >= 500 else "Validation")
    return {"error": problem.detail.removeprefix("body: "), "error_type": type_}


TEI = Dialect(
    name="tei",
    summary="The API of Text Embeddings Inference",
    tag="tei",
    prefixes=(f"{PREFIX}/",),
    route_prefix=PREFIX,
    routers=("api.compat.tei:router",),
    error=_body,
    error_schema={
        "type": "object",
        "required": ["error", "error_type"],
        "properties": {"error": {"type": "string"}, "error_type": {"type": "string"}},
    },
    # In TEI, 422 is for the shape of a request, and 413 for its texts.
    statuses={400: 422},
    descriptions={
        413: "Too large",
        422: "A field is wrong, or is not supported here; the error names it",
        424: "The job failed",
        404: "No such model",
        504: "No answer in time; the job was cancelled",
    },
)


def _as_list(value: Any) -> Any:
    return value if isinstance(value, list) else [value]


TeiText = Annotated[str, Field(max_length=TEXT_CHARS)]
TeiTexts = Annotated[list[TeiText], Field(fail_fast=True, min_length=1, max_length=TEXTS_LIMIT)]


def _lower(value: Any) -> Any:
    """TEI accepts these words in both cases."""
    return value.lower() if isinstance(value, str) else value


Direction = Annotated[Literal["left", "right"], BeforeValidator(_lower)]


class TeiEmbed(WireShape):
    """Texts to embed. Here `truncate` is true by default; if it is false, too long a text is an
    error."""

    inputs: Annotated[TeiTexts, BeforeValidator(_as_list, json_schema_input_type=str | list[str])]
    truncate: bool = True
    truncation_direction: Direction = "right"
    prompt_name: Line | None = None
    normalize: bool = True
    dimensions: Annotated[int, Field(ge=1, le=100_000)] | None = None
    parameters: Annotated[dict[str, Any], Field(default_factory=dict, max_length=64)]
    """`feature_extraction` of `huggingface_hub` sends these to a model's own URL."""


def _cuts(value: Any) -> Any:
    if value is not True:
        raise ValueError(
            "must be true or left out: the end of what is too long for the model is cut off here"
        )
    return value


def _from_the_right(value: Any) -> Any:
    if _lower(value) != "right":
        raise ValueError('must be "right" or left out: the end of a text is cut off here')
    return "right"


Cuts = Annotated[Literal[True], BeforeValidator(_cuts)]
FromTheRight = Annotated[Literal["right"], BeforeValidator(_from_the_right)]


class TeiRerank(WireShape):
    query: TeiText
    texts: TeiTexts
    truncate: Cuts = True
    truncation_direction: FromTheRight = "right"
    raw_scores: bool = False
    return_text: bool = False
    model: Any = None


def _text_as_list(value: Any) -> Any:
    if not isinstance(value, str | list):
        raise ValueError("must be a text, or a list of lists with a text each")
    return [value] if isinstance(value, str) else value


class TeiPredict(WireShape):
    inputs: Annotated[
        list[Any],
        Field(min_length=1, max_length=TEXTS_LIMIT),
        BeforeValidator(_text_as_list, json_schema_input_type=str | list[Any]),
    ]
    """A text, a list with one text, or a list of such lists."""
    truncate: Cuts = True
    truncation_direction: FromTheRight = "right"
    raw_scores: bool = False

    def texts(self) -> tuple[list[str], bool]:
        """The texts, and whether they were sent as a batch. Raises InvalidInput."""
        is_batch = isinstance(self.inputs[0], list)
        rows = self.inputs if is_batch else [self.inputs]
        for number, row in enumerate(rows):
            if not isinstance(row, list) or not row or not all(isinstance(t, str) for t in row):
                raise InvalidInput(f"inputs.{number} must be a list with a string")
            if len(row) > 1:
                raise InvalidInput(
                    f"inputs.{number} is a pair of texts, which is not supported here: send one "
                    "text in each list"
                )
        return [row[0] for row in rows], is_batch


class TeiPair(WireShape):
    source_sentence: TeiText
    sentences: TeiTexts


class TeiSimilarityParameters(WireShape):
    truncate: Cuts = True
    truncation_direction: FromTheRight = "right"
    prompt_name: Literal[""] = ""


class TeiSimilarity(WireShape):
    inputs: TeiPair
    parameters: TeiSimilarityParameters = TeiSimilarityParameters()


# Requests as jobs


def model_for(parts: Parts, task: HfTask, model: str) -> str:
    """The model that the path names, or the default of the task."""
    if model:
        return canonical(model)
    if task in (FEATURE_EXTRACTION, SENTENCE_SIMILARITY):
        return canonical(parts.settings.embedding_model)
    return next(m for t, m in default_models(parts.settings).items() if t == task.name)


async def _run(
    parts: Parts, caller: calls.Caller, task: HfTask, model: str, inputs: Any, **parameters: Any
) -> JobOutcome:
    values = {
        "task": task.name,
        "model": model_for(parts, task, model),
        "inputs": inputs,
        "parameters": {name: value for name, value in parameters.items() if value is not None},
    }
    new = calls.new_job(parts, caller, HF, calls.input_of(HF, values))
    try:
        return await calls.run(parts, caller, new)
    except ProblemError as error:
        if error.problem.status == 500:
            raise ProblemError(replace(error.problem, status=424)) from error
        raise calls.naming_model(error, values["model"]) from error


def _answer(outcome: JobOutcome, body: Any) -> Response:
    return JSONResponse(body, headers=dict(outcome.headers))


router = APIRouter(route_class=StrictRoute)
DOCUMENTED: dict[str, Any] = {
    "responses": TEI.documented(401, 404, 409, 413, 422, 424, 429, 503, 504)
    | {200: {"description": "As that API answers", "content": {"application/json": {"schema": {}}}}}
}


async def _embed_elsewhere(
    parts: Parts, caller: calls.Caller, model: str, request: TeiEmbed
) -> Response:
    """Vectors by a model that is no model of Hugging Face tasks: jobs of the kind `embed`. Raises
    InvalidInput for what only those can do."""
    if request.prompt_name or not request.normalize or request.parameters:
        raise InvalidInput(
            f"prompt_name, normalize and parameters are for models of Hugging Face; leave them out "
            f"for {model}"
        )
    values = {"texts": request.inputs, "model": model, "dimensions": request.dimensions}
    new = calls.new_job(parts, caller, EMBED, calls.input_of(EMBED, values))
    outcome = await calls.run(parts, caller, new)
    if outcome.warnings and not request.truncate:
        raise InvalidInput(outcome.warnings[0])
    return _answer(outcome, outcome.result["embeddings"])


async def _embed(parts: Parts, caller: calls.Caller, model: str, request: TeiEmbed) -> Response:
    named = model_for(parts, FEATURE_EXTRACTION, model)
    if provider_name(named) != HUGGING_FACE:
        return await _embed_elsewhere(parts, caller, named, request)
    parameters = {
        "truncate": request.truncate,
        "truncation_direction": request.truncation_direction.lower(),
        "prompt_name": request.prompt_name,
        "normalize": request.normalize,
        "dimensions": request.dimensions,
        **request.parameters,
    }
    outcome = await _run(parts, caller, FEATURE_EXTRACTION, model, request.inputs, **parameters)
    vectors = outcome.result
    if vectors and isinstance(vectors[0], list) and isinstance(vectors[0][0], list):
        raise InvalidInput(
            f"{model_for(parts, FEATURE_EXTRACTION, model)} has a vector for each token and none "
            "for a text: name a model of the library sentence-transformers"
        )
    return _answer(outcome, vectors)


@router.post("/embed", name="embed_as_tei", **DOCUMENTED)
@router.post("/", name="embed_at_root_as_tei", include_in_schema=False)
@router.post("", name="embed_at_address_as_tei", include_in_schema=False)
async def embed(parts: PartsDep, caller: CallerDep, request: TeiEmbed) -> Response:
    """Vectors of texts."""
    return await _embed(parts, caller, "", request)


@router.post("/rerank", name="rerank_as_tei", **DOCUMENTED)
async def rerank(parts: PartsDep, caller: CallerDep, request: TeiRerank) -> Response:
    """Rank texts by how well they fit a query, best first."""
    return await _rerank(parts, caller, "", request)


async def _rerank(parts: Parts, caller: calls.Caller, model: str, request: TeiRerank) -> Response:
    inputs = {"query": request.query, "texts": request.texts}
    flags = {"raw_scores": request.raw_scores, "return_text": request.return_text}
    outcome = await _run(parts, caller, TEXT_RANKING, model, inputs, **flags)
    return _answer(outcome, outcome.result)


@router.post("/predict", name="predict_as_tei", **DOCUMENTED)
async def predict(parts: PartsDep, caller: CallerDep, request: TeiPredict) -> Response:
    """Labels of texts with their scores, best first."""
    return await _predict(parts, caller, "", request)


async def _predict(parts: Parts, caller: calls.Caller, model: str, request: TeiPredict) -> Response:
    texts, is_batch = request.texts()
    raw = {"function_to_apply": "none"} if request.raw_scores else {}
    outcome = await _run(parts, caller, TEXT_CLASSIFICATION, model, texts, **raw)
    return _answer(outcome, outcome.result if is_batch else outcome.result[0])


@router.post("/similarity", name="compare_as_tei", **DOCUMENTED)
async def similarity(parts: PartsDep, caller: CallerDep, request: TeiSimilarity) -> Response:
    """The similarity of sentences to one sentence."""
    return await _similarity(parts, caller, "", request)


async def _similarity(
    parts: Parts, caller: calls.Caller, model: str, request: TeiSimilarity
) -> Response:
    inputs = request.inputs
    named = model_for(parts, SENTENCE_SIMILARITY, model)
    if provider_name(named) == HUGGING_FACE:
        outcome = await _run(parts, caller, SENTENCE_SIMILARITY, model, inputs.model_dump())
        return _answer(outcome, outcome.result)
    values = {"texts": [inputs.source_sentence, *inputs.sentences], "model": named}
    outcome = await calls.run(
        parts, caller, calls.new_job(parts, caller, EMBED, calls.input_of(EMBED, values))
    )
    first, *others = outcome.result["embeddings"]  # of length 1
    return _answer(outcome, [sum(map(mul, first, other)) for other in others])


@router.post("/v1/embeddings", name="embed_as_openai_of_tei", **DOCUMENTED)
async def embed_as_openai(
    parts: PartsDep, caller: CallerDep, request: Annotated[dict[str, Any], Body()]
) -> Response:
    """Vectors of texts in OpenAI's form, by the embedding model unless another one is named."""
    return await _embed_as_openai(parts, caller, "", request)


NO_MODEL: Final = "text-embeddings-inference"
"""The model name in TEI's documentation, which means the server's only model."""


async def _embed_as_openai(
    parts: Parts, caller: calls.Caller, model: str, request: dict[str, Any]
) -> Response:
    sent = {name: value for name, value in request.items() if value is not None}
    if model or sent.get("model", "") in ("", NO_MODEL):
        sent["model"] = model_for(parts, FEATURE_EXTRACTION, model)
    with calls.naming_fields():
        embedding_request = EmbeddingRequest.model_validate(sent)
    return await create_embedding(parts, caller, embedding_request)


REFUSED: Final = {
    "invocations": "send texts to /embed, /rerank or /predict",
    "vertex": "send texts to /embed, /rerank or /predict",
    "embed_all": "send texts to /embed, which has one vector for each",
    "embed_sparse": "search a collection with the type lexical or hybrid (POST /v1/jobs)",
    "tokenize": "tokenizers are with the workers; /embed cuts texts that are too long, and says so",
    "decode": "tokenizers are with the workers",
}


@router.get("/info", name="describe_as_tei", **DOCUMENTED)
async def info(parts: PartsDep) -> Response:
    """The embedding model, and the limits of a request."""
    return _info(parts, parts.settings.embedding_model)


def _info(parts: Parts, model: str) -> Response:
    settings = parts.settings
    return JSONResponse(
        {
            "model_id": model,
            "model_sha": None,
            "model_dtype": "float32",
            "served_model_name": model,
            "model_type": {"embedding": {"pooling": "mean"}},
            "max_concurrent_requests": settings.api_limit_streams,
            "max_input_length": settings.hf_batch_tokens,
            "max_batch_tokens": settings.hf_batch_tokens,
            "max_batch_requests": None,
            "max_client_batch_size": min(settings.hf_limit_inputs, TEXTS_LIMIT),
            "auto_truncate": True,
            "tokenization_workers": 0,
            "version": package_version(),
            "sha": None,
            "docker_label": None,
        }
    )


@router.get("/ping", include_in_schema=False, name="ping_as_tei")
@router.get("/", include_in_schema=False, name="check_root_as_tei")
@router.get("", include_in_schema=False, name="check_address_as_tei")
@router.get("/health", name="check_as_tei", responses=TEI.documented(401, 503))
async def health() -> Response:
    """Whether the API answers."""
    return Response(status_code=200)


def _refusal(name: str) -> ProblemError:
    detail = f"{name} is not supported here: {REFUSED[name]}"
    return ProblemError(Problem(status=422, detail=detail))


OPENAI_PATH: Final = "/v1/embeddings"
SHAPES: Final[dict[str, tuple[type[WireShape], Any]]] = {
    "embed": (TeiEmbed, _embed),
    "rerank": (TeiRerank, _rerank),
    "predict": (TeiPredict, _predict),
    "similarity": (TeiSimilarity, _similarity),
}


@router.get("/{model:path}", include_in_schema=False)
async def of_model(http: Request, model: str) -> Response:
    """`info` and `health` of a model, below its name."""
    name, _, last = model.rpartition("/")
    if last in SHAPES or last in REFUSED:
        raise HTTPException(405, headers={"Allow": "POST, OPTIONS"})
    if name and last == "info":
        return _info(http.app.state.parts, name)
    if name and last == "health":
        return Response(status_code=200)
    raise ProblemError(_nothing(model))


@router.post("/{model:path}", include_in_schema=False)
async def of_model_by_post(
    http: Request, parts: PartsDep, caller: CallerDep, model: str
) -> Response:
    """The routes below a model's name, which may have slashes; `feature_extraction` of
    huggingface_hub is sent to the name itself."""
    name, _, last = model.rstrip("/").rpartition("/")
    if last in REFUSED:
        raise _refusal(last)
    if model.endswith(OPENAI_PATH):
        body = await http.json()
        sent = body if isinstance(body, dict) else {"input": body}
        return await _embed_as_openai(parts, caller, model.removesuffix(OPENAI_PATH), sent)
    if last not in SHAPES:
        name, last = model.rstrip("/"), "embed"
    if not name:
        raise ProblemError(_nothing(model))
    shape, run = SHAPES[last]
    body = await http.json()
    values = body if isinstance(body, dict) else {"inputs": body}
    response: Response = await run(parts, caller, name, _validate(shape, values))
    return response


def _validate(shape: type[WireShape], values: dict[str, Any]) -> Any:
    with calls.naming_fields():
        return shape.model_validate(values)


def _nothing(path: str) -> Problem:
    paths = ", ".join(f"/{name}" for name in (*SHAPES, "info", "health"))
    return Problem(status=404, detail=f"There is nothing at {shown(path)}; there are {paths}.")
