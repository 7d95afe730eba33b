"""The kind `search`: the passages of collections that answer a query."""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator
from sqlalchemy.orm import Session

from shared.bounds import CollectionName, ModelName, Text, nfc
from shared.documents import collections
from shared.filters import FilterField
from shared.kinds.kind import Kind, StepType
from shared.vocabulary import Queue, Shape

PASSAGES_LIMIT = 100
FETCH_LIMIT = 1000
QUERIES_LIMIT = 1000
COLLECTIONS_LIMIT = 20
NEIGHBOURS_LIMIT = 10


class SearchType(StrEnum):
    """How passages are chosen and scored; a higher score is always better.

    `hybrid` weighs words and meaning as the collection has shown to be right, and scores from 0 to
    1. `lexical` counts words: BM25. `similarity` is the cosine of the vectors; so it is with
    `similarity_score_threshold`, whose hits reach `score_threshold`, and with `mmr`, whose hits
    also differ from each other.
    """

    HYBRID = "hybrid"
    SIMILARITY = "similarity"
    MMR = "mmr"
    SIMILARITY_SCORE_THRESHOLD = "similarity_score_threshold"
    LEXICAL = "lexical"


_OWNERS: Mapping[str, SearchType] = {
    "score_threshold": SearchType.SIMILARITY_SCORE_THRESHOLD,
    "fetch_k": SearchType.MMR,
    "lambda_mult": SearchType.MMR,
}
"""Options of one type only."""

DEFAULT_FETCH_K = 20
DEFAULT_LAMBDA_MULT = 0.5
"""As LangChain's stores have them."""


class SearchOptions(Shape):
    type: SearchType = SearchType.HYBRID
    score_threshold: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)] | None = None
    """The least cosine of a hit: of the type `similarity_score_threshold`, which needs it."""
    fetch_k: Annotated[int, Field(ge=1, le=FETCH_LIMIT)] | None = None
    """`mmr` chooses from so many nearest passages: 20, or as many as are to be hits."""
    lambda_mult: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] | None = None
    """Of `mmr`: 1 is similarity to the query alone, 0 is difference from each other alone; 0.5."""
    filter: FilterField | None = None
    """What a hit's metadata has to be; `source` is also the document's own."""
    rerank: ModelName | None = None
    """A cross-encoder that reads each candidate with the query; its scores are then the hits'."""
    expand: Annotated[int, Field(ge=0, le=NEIGHBOURS_LIMIT)] = 0
    """So many chunks before and after a hit are joined to its text."""
    join: bool | None = None
    """Whether hits that follow each other in a text become one: with `hybrid`, unless told."""
    debug: bool = False
    """Whether hits say how their score came about."""

    @property
    def joins(self) -> bool:
        return self.type is SearchType.HYBRID if self.join is None else self.join

    @model_validator(mode="after")
    def _options_are_of_the_type(self) -> Self:
        for name, type_ in _OWNERS.items():
            if getattr(self, name) is not None and self.type is not type_:
                raise ValueError(
                    f"{name} is for the type {type_}, and this is {self.type}; leave it out, or "
                    "name that type"
                )
        if self.type is SearchType.SIMILARITY_SCORE_THRESHOLD and self.score_threshold is None:
            raise ValueError(
                f"the type {self.type} needs score_threshold, the least cosine of a hit, such as "
                "0.5"
            )
        return self


PassageCount = Annotated[int, Field(ge=1, le=PASSAGES_LIMIT)]
Query = Annotated[Text, AfterValidator(nfc)]


VECTOR_TYPES = (SearchType.SIMILARITY, SearchType.SIMILARITY_SCORE_THRESHOLD, SearchType.MMR)
VECTOR_LIMIT = 16_384
NUMBER_LIMIT = 1e9
"""Of a vector's numbers, so that its length is a number, too."""
Vector = Annotated[
    list[Annotated[float, Field(ge=-NUMBER_LIMIT, le=NUMBER_LIMIT, allow_inf_nan=False)]],
    Field(fail_fast=True, min_length=1, max_length=VECTOR_LIMIT),
]


class SearchInput(Shape):
    """One query or several, in one collection or several; or a vector that the client has made."""

    collection: CollectionName | None = None
    collections: (
        Annotated[
            list[CollectionName],
            Field(fail_fast=True, min_length=1, max_length=COLLECTIONS_LIMIT),
        ]
        | None
    ) = None
    query: Query | None = None
    queries: (
        Annotated[list[Query], Field(fail_fast=True, min_length=1, max_length=QUERIES_LIMIT)] | None
    ) = None
    vector: Vector | None = None
    """Of the collection's model. It has no words, so that only cosines are compared with it."""
    k: PassageCount = 6
    search: SearchOptions = SearchOptions()

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if (self.collection is None) == (self.collections is None):
            raise ValueError("give either collection or collections")
        if [self.query, self.queries, self.vector].count(None) != 2:
            raise ValueError("give either query or queries or vector")
        return self

    @model_validator(mode="after")
    def _vector_is_compared(self) -> Self:
        if self.vector is None:
            return self
        if self.search.type not in VECTOR_TYPES:
            raise ValueError(
                f"a vector is for the types {', '.join(VECTOR_TYPES)}, and this is "
                f"{self.search.type}; name one in search.type, or send a query"
            )
        if self.search.rerank is not None:
            raise ValueError("rerank reads the query, and a vector has none; leave it out")
        return self

    @property
    def collection_names(self) -> list[str]:
        """Without repetition, in order."""
        names = self.collections if self.collection is None else [self.collection]
        return list(dict.fromkeys(names or ()))

    @property
    def query_texts(self) -> list[str]:
        """An empty one for a vector."""
        return [self.query or ""] if self.queries is None else list(self.queries)


class Span(Shape):
    """The part of a hit's text that fits the query best, in characters of that text."""

    start: int
    end: int


class HitDebug(Shape):
    """How the score of a hit came about. `similarity` is its cosine, `lexical` its BM25 score,
    and `halves` names those whose best passages it was among. `index` is the vector index that
    was read, and `embedding_model` is its model; without them no vectors were."""

    similarity: float | None = None
    lexical: float | None = None
    dense_weight: float | None = None
    halves: list[str] = []
    index: str | None = None
    embedding_model: str | None = None


class Hit(Shape):
    """A chunk that matches; `start` is an offset in characters of its document's text.

    Where further chunks are joined to it, `text` and `start` are those of all of them.
    What `score` is depends on the type of the search; a higher one is always better.
    """

    chunk_id: str
    document_id: str
    source: str
    text: str
    start: int
    score: float
    metadata: dict[str, Any] = {}
    collection: str | None = None
    """Where several were searched."""
    span: Span | None = None
    debug: HitDebug | None = None


class QueryHits(Shape):
    query: str
    hits: list[Hit]


class SearchResult(Shape):
    """`hits` of `query`; `results` of `queries`, in their order."""

    hits: list[Hit] | None = None
    results: list[QueryHits] | None = None


def _require_collections(session: Session, inputs: Sequence[Mapping[str, Any]]) -> None:
    names = {name for input_ in inputs for name in input_.get("collections") or ()}
    for name in sorted(names):
        collections.get(session, name)
    if names:
        collections.note_use(session, sorted(names))


RERANK_STEPS: Mapping[str, str] = {"search": "search.rerank", "rag.find": "rag.rerank"}
"""What follows a step that looks for passages where these are to be ranked again."""


def rerank_key(step: str, model: str) -> str:
    """Steps of one name that rank with one model may run in one batch."""
    return f"{RERANK_STEPS[step]}:{model}"


SMALL_CHARS = 4096


def batch_key_of(input_: Mapping[str, Any]) -> str | None:
    """Short queries of one collection may be answered in one batch."""
    query, collection = input_.get("query"), input_.get("collection")
    if not isinstance(query, str) or collection is None or len(query) > SMALL_CHARS:
        return None
    return f"search:{collection}"


SEARCH = Kind(
    name="search",
    summary="the passages that answer a query",
    input=SearchInput,
    result=SearchResult,
    steps=[
        StepType(
            name="search",
            queue=Queue.QUERY,
            handler="workers.retrieval.steps:SEARCH",
            only_computes=True,
        ),
        StepType(
            name=RERANK_STEPS["search"], queue=Queue.HF, handler="workers.hf.rerank:SEARCH_RERANK"
        ),
    ],
    example={"collection": "handbook", "query": "When do you open?", "k": 3},
    require=_require_collections,
    batch_key=batch_key_of,
)
