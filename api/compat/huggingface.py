"""The inference API of Hugging Face: programs that know it run with nothing changed but the URL.

Each call is a job like any other, in the lane `interactive`, that is waited for. A client that
goes away, or that SLUICE_COMPAT_WAIT_S is too short for, leaves its job running.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, Path, Request, Response

from api.compat import calls
from api.compat.calls import Caller
from api.compat.dialect import documented
from api.deps import FairKey, PartsDep
from api.routes.jobs import Key
from shared.hf import OBJECTS, Task

router = APIRouter(tags=["compatible"])

_TEXT = {"type": "string"}
_TEXTS = {"type": "array", "items": _TEXT}
JSON_BODY = {
    "schema": {
        "anyOf": [
            {
                "type": "object",
                "required": ["inputs"],
                "properties": {
                    "inputs": {"not": {"type": "null"}},
                    "parameters": {"type": "object"},
                    "options": {
                        "type": "object",
                        "properties": {"wait_for_model": {"type": "boolean", "default": True}},
                    },
                },
            },
            *(
                {
                    "type": "object",
                    "description": f"The inputs of {task} alone",
                    "required": sorted(names),
                    "properties": {
                        name: _TEXTS if name in ("sentences", "texts") else _TEXT for name in names
                    },
                }
                for task, names in OBJECTS.items()
            ),
            _TEXT | {"description": "The inputs alone"},
            _TEXTS | {"description": "The inputs alone", "minItems": 1},
        ]
    },
    "example": {"inputs": "We open at nine."},
}
# One type that generators of clients know, for all that is sent as it is.
BYTES = {
    "schema": {
        "type": "string",
        "format": "binary",
        "description": "The bytes of an audio file or an image, better with its own type "
        "(`audio/...`, `image/...`); or, as `text/plain`, a text",
    }
}
DOCUMENTED: dict[str, Any] = {
    "responses": documented(400, 401, 404, 409, 413, 429, 500, 503, 504)
    | {
        200: {
            "description": "The output of the task; `x-warning` tells of what was cut off",
            "content": {"application/json": {"schema": {}}},
        }
    },
    "openapi_extra": {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": JSON_BODY,
                "application/octet-stream": BYTES,
            },
        }
    },
}


async def _caller(
    fair_key: FairKey,
    idempotency_key: Key = None,
    wait_for_model: Annotated[
        str | None,
        Header(
            alias="x-wait-for-model",
            description="`false`: while the model is being loaded, answer 503 and "
            "`estimated_time`. Else the answer comes when it is loaded.",
        ),
    ] = None,
) -> Caller:
    return Caller(fair_key=fair_key, idempotency_key=idempotency_key, wait_for_model=wait_for_model)


CallerDep = Annotated[Caller, Depends(_caller)]


TaskName = Annotated[str, Path(json_schema_extra={"enum": [task.value for task in Task]})]


# The longer path comes first: a model's name may have slashes.
@router.post("/models/{model_id:path}/pipeline/{task}", name="run_model_task", **DOCUMENTED)
@router.post("/pipeline/{task}/{model_id:path}", name="run_task", **DOCUMENTED)
async def run_task(
    http: Request, parts: PartsDep, caller: CallerDep, model_id: str, task: TaskName
) -> Response:
    """Run a task of a model, as Hugging Face's inference API does."""
    return await calls.run(parts, calls.call_of(model_id, task, caller), http)


@router.post("/models/{model_id:path}", **DOCUMENTED)
async def run_model(http: Request, parts: PartsDep, caller: CallerDep, model_id: str) -> Response:
    """Run a model's own task, as Hugging Face's inference API does."""
    return await calls.run(parts, calls.call_of(model_id, None, caller), http)
