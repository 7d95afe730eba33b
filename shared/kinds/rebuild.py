"""The kind `rebuild`: another vector index takes the place of a collection's own, made from the
text in Postgres.

Of another model it is how a collection changes its model; of the same one it repairs what the
store has lost. Searches go on meanwhile, with one index or the other.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any

from pydantic import Field, model_validator
from sqlalchemy.orm import Session

from shared.bounds import CollectionName, ModelName
from shared.config import Settings
from shared.documents import collections, indexes
from shared.kinds.eval import JudgedQuery
from shared.kinds.kind import Kind, StepType
from shared.models import embedding_models
from shared.models.embedding_models import canonical
from shared.vocabulary import KeyScope, Lane, Queue, Shape

STEP = "rebuild"
QUERIES_LIMIT = 1000

Share = Annotated[float, Field(ge=0, le=1, strict=True)]


class RollbackOptions(Shape):
    """Below `min_overlap` or `min_recall` the job fails before anything has changed."""

    queries: Annotated[list[JudgedQuery], Field(fail_fast=True, max_length=QUERIES_LIMIT)] = []
    """Asked of both indexes before the switch; sentences of the documents where there are none."""
    k: Annotated[int, Field(ge=1, le=100)] = 10
    min_overlap: Share | None = None
    min_recall: Share | None = None


class RebuildOptions(RollbackOptions):
    """`model` is the collection's own unless it is given. Below `min_overlap` or `min_recall` the
    job fails before anything has changed."""

    model: ModelName | None = None


class RebuildInput(RebuildOptions):
    """`model` is the collection's own unless it is given. Below `min_overlap` or `min_recall` the
    job fails before anything has changed."""

    collection: CollectionName
    rollback: bool = False
    """Go back to the index that was active before, brought up to date."""

    @model_validator(mode="after")
    def _goes_one_way(self) -> "RebuildInput":
        if self.rollback and self.model is not None:
            raise ValueError("give either model or rollback: the index before has its own model")
        return self


class IndexComparison(Shape):
    """What both indexes gave before the switch, as means over the queries.

    `overlap` is the share of the old index's best `k` chunks that the new one has as well; null
    where the old index could not be asked. `recall` is the share of what is relevant that is among
    the best `k`: of judged queries what their judgements name, else the chunk that the sentence is
    from.
    """

    queries: int
    are_judged: bool
    k: int
    overlap: float | None
    recall: float | None
    recall_before: float | None


class RebuildResult(Shape):
    """`chunks` is how many the collection has."""

    collection: str
    embedding_model: str
    embedding_model_before: str
    dimension: int | None
    chunks: int
    comparison: IndexComparison | None
    """Null of a collection without text."""
    rollback_until: datetime | None
    """How long the index before is kept."""


def _require_index_before(session: Session, inputs: Sequence[Mapping[str, Any]]) -> None:
    """Raises Conflict where a rollback has nothing to go back to."""
    for input_ in inputs:
        if input_.get("rollback"):
            indexes.require_kept(session, collections.get(session, input_["collection"]).id)


def _note_model(session: Session, inputs: Sequence[dict[str, Any]]) -> None:
    """Notes the model: that of the collection where none is named. References of the same model get
    one form, as those of collections."""
    for input_ in inputs:
        if input_.get("rollback"):
            continue
        if input_.get("model") is None:
            _, index = collections.get_with_index(session, input_["collection"])
            input_["model"] = index.embedding_model
        input_["model"] = canonical(input_["model"])


def _check(job_input: RebuildInput, settings: Settings) -> None:
    if job_input.model is not None:
        embedding_models.check(job_input.model, settings, where="model")


REBUILD = Kind(
    name="rebuild",
    scope=KeyScope.WRITE,
    summary="make the vectors of a collection anew, also of another model",
    input=RebuildInput,
    result=RebuildResult,
    steps=[StepType(name=STEP, queue=Queue.EMBED, handler="workers.ingest.rebuild:REBUILD")],
    example={"collection": "handbook", "model": "intfloat/multilingual-e5-small"},
    check=_check,
    require=_require_index_before,
    resolve=_note_model,
    lane=Lane.BULK,
)
