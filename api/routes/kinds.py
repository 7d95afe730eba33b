"""`/v1/kinds`: what jobs there are, and what they take."""

from typing import Any

from fastapi import APIRouter, Response

from api.http.answers import answer, documented
from api.schemas import Items, KindView
from shared.kinds.registry import KINDS

router = APIRouter(prefix="/v1/kinds", tags=["jobs"])


@router.get("", responses=documented({200: Items[KindView]}))
def list_kinds() -> Response:
    """The kinds of jobs: for each its queue, JSON Schemas of input and result, and an input that
    works on a new installation. A `result` of null is any JSON."""
    return answer(Items[KindView](items=[_view(name) for name in KINDS]))


def _view(name: str) -> KindView:
    kind = KINDS[name]
    result: dict[str, Any] | None = None
    if kind.result is not None:
        result = kind.result.model_json_schema(mode="serialization")
    return KindView(
        name=kind.name,
        summary=kind.summary,
        queue=kind.first_step.queue,
        input=kind.input.model_json_schema(),
        result=result,
        example=dict(kind.example),
    )
