"""The kind `search`: the passages of a collection that are nearest to a query."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from shared.bounds import CollectionName, Metadata, Text, nfc, nfc_metadata
from shared.kinds.kind import Kind, StepType
from shared.vocabulary import Queue, Shape


class SearchOptions(Shape):
    type: Literal["similarity"] = "similarity"
    filter: Annotated[Metadata, AfterValidator(nfc_metadata)] | None = None
    """What a hit's metadata has to equal, all of it; `source` is also the document's own."""


PassageCount = Annotated[int, Field(ge=1, le=100)]


class SearchInput(Shape):
    collection: CollectionName
    query: Annotated[Text, AfterValidator(nfc)]
    k: PassageCount = 6
    search: SearchOptions = SearchOptions()


class Hit(Shape):
    """A chunk that matches; `score` is a cosine similarity, `start` an offset in characters."""

    chunk_id: str
    document_id: str
    source: str
    text: str
    start: int
    score: float
    metadata: dict[str, Any] = {}


class SearchResult(Shape):
    hits: list[Hit]


SEARCH = Kind(
    name="search",
    summary="the passages nearest to a query",
    input=SearchInput,
    result=SearchResult,
    steps=[StepType(name="search", queue=Queue.QUERY, handler="workers.retrieval.steps:SEARCH")],
    example={"collection": "handbook", "query": "When do you open?", "k": 3},
)
