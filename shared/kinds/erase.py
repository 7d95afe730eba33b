"""The kind `erase`: documents or a whole collection go, and it is verified that they are gone."""

from typing import Annotated
from uuid import UUID

from pydantic import Field, model_validator

from shared.bounds import CollectionName, Line, shown
from shared.config import Settings
from shared.documents import erasure
from shared.errors import InvalidInput
from shared.kinds.kind import Kind, StepType
from shared.vocabulary import KeyScope, Queue, Shape


class EraseInput(Shape):
    document_ids: (
        Annotated[list[Line], Field(fail_fast=True, min_length=1, max_length=10_000)] | None
    ) = None
    collection: CollectionName | None = None

    @model_validator(mode="after")
    def _one_target(self) -> "EraseInput":
        if (self.document_ids is None) == (self.collection is None):
            raise ValueError("give either document_ids or collection")
        return self


class EraseResult(Shape):
    documents: int
    chunks: int
    vectors: int


def _check(job_input: EraseInput, _settings: Settings) -> None:
    for n, document_id in enumerate(job_input.document_ids or ()):
        try:
            UUID(document_id)
        except ValueError:
            raise InvalidInput(
                f"input.document_ids.{n} is {shown(document_id)}; ids are UUIDs, as "
                "`GET /v1/collections/{name}/documents` lists them."
            ) from None


ERASE = Kind(
    name="erase",
    scope=KeyScope.WRITE,
    summary="remove documents or a whole collection, verified",
    input=EraseInput,
    result=EraseResult,
    steps=[StepType(name="erase", queue=Queue.CONTROL, handler="workers.ingest.erasure:ERASE")],
    example={"collection": "handbook"},
    check=_check,
    find_collection=erasure.require_collection,
)
