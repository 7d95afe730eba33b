"""The kind `embed`: vectors of texts."""

from typing import Annotated, Literal

from pydantic import Field

from shared.bounds import ModelName, Text
from shared.kinds.kind import Kind, StepType
from shared.vocabulary import Queue, Shape


class EmbedInput(Shape):
    texts: Annotated[list[Text], Field(fail_fast=True, min_length=1, max_length=10_000)]
    model: ModelName | None = None
    input_type: Literal["query", "passage"] = "passage"
    """What the texts are for models that have a prompt for each; of other models the vectors are
    the same."""


class EmbedResult(Shape):
    model: str
    dimension: int
    embeddings: list[list[float]]


EMBED = Kind(
    name="embed",
    summary="vectors of texts",
    input=EmbedInput,
    result=EmbedResult,
    steps=[StepType(name="embed", queue=Queue.EMBED, handler="workers.retrieval.steps:EMBED")],
    example={"texts": ["We open at nine.", "아홉 시에 엽니다."]},
)
