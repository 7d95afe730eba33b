"""The kind `embed`: vectors of texts."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from shared.bounds import ModelName, Text
from shared.config import Settings
from shared.kinds.kind import Kind, StepType
from shared.models import embedding_models
from shared.vocabulary import Queue, Shape

TEXTS_LIMIT = 10_000


class EmbedInput(Shape):
    texts: Annotated[list[Text], Field(fail_fast=True, min_length=1, max_length=TEXTS_LIMIT)]
    model: ModelName | None = None
    input_type: Literal["query", "passage"] = "passage"
    """What the texts are for models that have a prompt for each; of other models the vectors are
    the same."""
    dimensions: Annotated[int, Field(ge=1, le=2**16)] | None = None
    """How long the vectors are to be: shorter than the model's own only of models that were trained
    for it."""


class EmbedResult(Shape):
    """`tokens` counts those of all texts, with what the model adds."""

    model: str
    dimension: int
    embeddings: list[list[float]]
    tokens: int = 0


SMALL_CHARS = 4096
"""A job with more text than this is run alone: others would wait for it."""


def batch_key_of(input_: Mapping[str, Any]) -> str | None:
    """Small jobs of one model may run in one batch, passages and queries apart.

    Rows that were written by hand may hold anything: those run alone.
    """
    texts = input_.get("texts")
    if not isinstance(texts, list) or sum(len(str(text)) for text in texts) > SMALL_CHARS:
        return None
    return f"embed:{input_.get('input_type')}:{input_.get('model') or ''}"


def _check(job_input: EmbedInput, settings: Settings) -> None:
    named = job_input.model is not None
    where = "input.model" if named else "SLUICE_EMBEDDING_MODEL"
    embedding_models.check(job_input.model or settings.embedding_model, settings, where=where)


EMBED = Kind(
    name="embed",
    summary="vectors of texts",
    input=EmbedInput,
    result=EmbedResult,
    steps=[
        StepType(
            name="embed",
            queue=Queue.EMBED,
            handler="workers.retrieval.steps:EMBED",
            only_computes=True,
        )
    ],
    example={"texts": ["We open at nine.", "아홉 시에 엽니다."]},
    check=_check,
    batch_key=batch_key_of,
)
