"""The kind `eval`: how well searches find what is known to be relevant.

Each query is asked with each of the searches, on the collection as it is. What comes of it are
measures of information retrieval with bootstrap intervals, and how long the searches took.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, Field, ValidationError, model_validator
from sqlalchemy.orm import Session

from shared import files
from shared.bounds import CollectionName, SourceName, Text, nfc, shown
from shared.config import EvalSettings
from shared.errors import InvalidInput
from shared.kinds.kind import Kind, StepType
from shared.kinds.search import SearchOptions
from shared.vocabulary import Lane, Queue, Shape

SEARCHES_LIMIT = 16
INLINE_LIMIT_QUERIES = 10_000

FIRST = 6
"""How many hits a search gives unless the caller says."""
DEPTH = 10

Name = Annotated[SourceName, AfterValidator(nfc)]
"""A document's source, or the id of a document or of a chunk."""


class Judgement(Shape):
    """What is relevant to a query: a document or chunk by `id`, or the chunks that hold `text`.

    Of a document the first hit counts. `grade` is how relevant it is, which nDCG weighs; 0 is not.
    """

    id: Name | None = None
    text: Text | None = None
    grade: Annotated[int, Field(ge=0, le=1000)] = 1

    @model_validator(mode="after")
    def _names_one_thing(self) -> "Judgement":
        if (self.id is None) == (self.text is None):
            raise ValueError("give either id or text")
        return self


class JudgedQuery(Shape):
    """A query, and what is relevant to it: names alone have the grade 1.

    `answers` are texts of which one should stand in a good hit, word for word.
    """

    query: Annotated[Text, AfterValidator(nfc)]
    relevant: Annotated[
        list[Name | Judgement], Field(fail_fast=True, min_length=1, max_length=10_000)
    ]
    answers: Annotated[list[Text], Field(fail_fast=True, max_length=100)] = []

    @model_validator(mode="after")
    def _has_a_relevant_one(self) -> "JudgedQuery":
        if not any(judgement.grade for judgement in self.judgements):
            raise ValueError("relevant holds grades of 0 alone, so nothing can be found; leave out")
        return self

    @property
    def judgements(self) -> list[Judgement]:
        return [
            Judgement(id=judgement) if isinstance(judgement, str) else judgement
            for judgement in self.relevant
        ]


class EvalInput(Shape):
    """The queries are given as they are, or as an upload with one such object a line."""

    collection: CollectionName
    queries: (
        Annotated[
            list[JudgedQuery],
            Field(fail_fast=True, min_length=1, max_length=INLINE_LIMIT_QUERIES),
        ]
        | None
    ) = None
    file_id: UUID | None = None
    searches: Annotated[
        list[SearchOptions], Field(fail_fast=True, min_length=1, max_length=SEARCHES_LIMIT)
    ] = [SearchOptions()]
    k: Annotated[int, Field(ge=DEPTH, le=100)] = DEPTH
    """How many hits each search is asked for; the measures look at the first ten."""

    @model_validator(mode="after")
    def _has_queries(self) -> "EvalInput":
        if (self.queries is None) == (self.file_id is None):
            raise ValueError("give either queries or file_id")
        return self


class Estimate(Shape):
    """A mean over the queries, with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


class SearchTimes(Shape):
    """Milliseconds of the search within the worker: neither the queue nor HTTP are in it."""

    mean_ms: float
    p50_ms: float
    p99_ms: float


class SearchFigures(Shape):
    """What came of one search. The lists have an entry for each query, in their order: at which
    places, from 1, relevant hits stood, and how many milliseconds the search took."""

    search: SearchOptions
    measures: dict[str, Estimate]
    times: SearchTimes
    places: list[list[int]]
    times_ms: list[float]


class SearchDifference(Shape):
    """The measures of search number `search` less those of the first, query by query (paired)."""

    search: int
    measures: dict[str, Estimate]


def measure_names(k: int) -> list[str]:
    """All measures, in the order in which they are shown. `answer@6` is there only where queries
    have answers."""
    deeper = [f"recall@{k}"] if k > DEPTH else []
    return [
        "recall@1", f"recall@{FIRST}", *deeper, f"mrr@{DEPTH}", f"ndcg@{DEPTH}", f"answer@{FIRST}",
    ]  # fmt: skip


class EvalResult(Shape):
    """`measures` have the names of `measure_names`."""

    collection: str
    embedding_model: str
    query_count: int
    k: int
    searches: list[SearchFigures]
    differences: list[SearchDifference]


def parse_queries(data: bytes, *, name: str, limit: int) -> list[JudgedQuery]:
    """The queries of a JSONL file. Raises InvalidInput, which names the line and the remedy."""
    queries: list[JudgedQuery] = []
    for number, line in _lines(data, name):
        if len(queries) == limit:
            raise InvalidInput(
                f"{name} has more than {limit:,} queries (SLUICE_EVAL_LIMIT_QUERIES). Take a "
                "sample of them, or raise that limit."
            )
        queries.append(_parsed(line, f"{name}, line {number:,}"))
    if not queries:
        raise InvalidInput(f"{name} has no queries. {_FORM}")
    return queries


_FORM = (
    'A line reads {"query": "When do you open?", "relevant": ["opening-hours.md"]}; relevant are '
    'sources, ids of documents or chunks, or {"text": "..."} for a quotation.'
)


def _lines(data: bytes, name: str) -> Iterator[tuple[int, str]]:
    for number, raw in enumerate(data.split(b"\n"), start=1):
        try:
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
        except UnicodeDecodeError:
            raise InvalidInput(
                f"{name}, line {number:,}: is no UTF-8 text. Save the file as UTF-8."
            ) from None
        if line:
            yield number, line


def _parsed(line: str, where: str) -> JudgedQuery:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise InvalidInput(f"{where}: is no JSON: {shown(line)}. {_FORM}") from None
    try:
        return JudgedQuery.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InvalidInput(
            f"{where}: {f'{place}: ' if place else ''}{first['msg']}. {_FORM}"
        ) from None


def _check(job_input: EvalInput, settings: EvalSettings) -> None:
    count = len(job_input.queries or ())
    if count > settings.eval_limit_queries:
        raise InvalidInput(
            f"input.queries has {count:,} entries; a job takes {settings.eval_limit_queries:,} "
            "(SLUICE_EVAL_LIMIT_QUERIES). Submit several jobs."
        )


def _require(session: Session, inputs: Sequence[Mapping[str, Any]]) -> None:
    ids = [UUID(input_["file_id"]) for input_ in inputs if input_.get("file_id")]
    if ids:
        files.require(session, ids)


STEP = "eval.run"
RERANK_STEP = "eval.rerank"
"""What follows the first step where a search reranks: its model is one of Hugging Face tasks."""

EVAL = Kind(
    name="eval",
    summary="how well searches find what is relevant",
    input=EvalInput,
    result=EvalResult,
    steps=[
        StepType(name=STEP, queue=Queue.QUERY, handler="workers.retrieval.evaluation:EVAL"),
        StepType(name=RERANK_STEP, queue=Queue.HF, handler="workers.hf.rerank:EVAL_RERANK"),
    ],
    example={
        "collection": "handbook",
        "queries": [{"query": "When do you open?", "relevant": ["opening-hours.md"]}],
    },
    check=_check,
    require=_require,
    lane=Lane.BULK,
    file_path="$.file_id",
)
