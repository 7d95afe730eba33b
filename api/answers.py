"""Answers from prepared views: serialized once, by pydantic, without another validation."""

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel
from starlette.responses import Response

from api.problems import MEDIA_TYPE
from api.schemas import JobView, ProblemView
from shared.bounds import is_deep


def answer(
    view: BaseModel, status: int = 200, headers: Mapping[str, str] | None = None
) -> Response:
    return Response(
        as_json(view),
        status_code=status,
        headers=dict(headers) if headers else None,
        media_type="application/json",
    )


ViewT = TypeVar("ViewT", bound=BaseModel)


def as_json(view: BaseModel) -> str:
    """The view as JSON, less what lies so deep in it that it cannot be written."""
    try:
        return view.model_dump_json()
    except (ValueError, RecursionError):
        return _shallow(view).model_dump_json()


def _shallow(view: ViewT) -> ViewT:
    values: dict[str, Any] = {}
    for name, value in view:
        if isinstance(value, BaseModel):
            values[name] = _shallow(value)
        elif isinstance(value, list) and value and isinstance(value[0], BaseModel):
            values[name] = [_shallow(each) for each in value]
        elif is_deep(value):
            values[name] = {} if isinstance(value, dict) else None
    if isinstance(view, JobView):
        return view.model_copy(update=view.reduced(list(values)) | values)
    return view.model_copy(update=values)


def documented(
    views: Mapping[int, type[BaseModel]], *problems: int
) -> dict[int | str, dict[str, Any]]:
    """What a route answers, for its entry in /docs."""
    found: dict[int | str, dict[str, Any]] = {code: {"model": v} for code, v in views.items()}
    schema = {"$ref": f"#/components/schemas/{ProblemView.__name__}"}
    for code in problems:
        found[code] = {"description": PROBLEMS[code], "content": {MEDIA_TYPE: {"schema": schema}}}
    return found


PROBLEMS = {
    400: "Not HTTP/1.1 or not JSON, or a cursor of another list",
    401: "No valid API key",
    403: "Sent by a web page of another origin",
    404: "No such thing",
    408: "The body did not come in time",
    409: "Contradicts the present state",
    413: "Too large",
    415: "Another content type is wanted",
    421: "Not a name of this server",
    422: "Not valid; `errors` names the fields",
    429: "The queue is full; see Retry-After",
    431: "The head of the request is too large",
    503: "A server behind the API does not answer, or there is too much to do; see Retry-After",
}
