"""A program that speaks the wire format of the hub's inference API:
`python -m tests.wire.hub --port N`.

Its models are those of `Wire.models`, each with its task, and want the token `TOKEN`. What they
answer is made of what they are asked, as `hub_script.py` has it. Bytes that were posted are noted
in base64 under "bytes", with their type under "content_type".
"""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from shared.kinds.hf import TASKS, Task
from tests.wire.behaviour import Recorded, Wire, application, refusal, run, serving, stream
from tests.wire.hub_script import ANSWERS, Wrong

TOKEN = "hf_test"
JSON_TYPE = "application/json"


def model_of(task: Task) -> str:
    """The model that the server has for a task."""
    return f"tests/{task}"


@contextmanager
def served_hub() -> Iterator[Wire]:
    wire = _wire()
    with serving(wire, make_app(wire)):
        yield wire


def make_app(wire: Wire) -> Starlette:
    async def infer(request: Request) -> Response:
        model, _, task = request.path_params["model"].partition("/pipeline/")
        body = await _noted(wire, request)
        if request.headers.get("authorization") != f"Bearer {TOKEN}":
            return JSONResponse({"error": "Invalid username or password."}, 401)
        refused = await refusal(wire, request, model, _shape_of_errors(wire, model))
        if refused is not None:
            behaviour = wire.of(model)
            if behaviour.refuse_code:
                refused.headers["X-Error-Code"] = behaviour.refuse_code
            if behaviour.rate_limit:
                refused.headers["RateLimit"] = behaviour.rate_limit
            return refused
        if model not in wire.models:
            return JSONResponse({"error": "Not Found"}, 404)
        kind = Task(task or wire.models[model]["task"])
        try:
            answer = ANSWERS[kind](_inputs(kind, body), _parameters(kind, body))
        except Wrong as error:
            return JSONResponse({"error": str(error)}, 422)
        return stream(
            wire, model, [json.dumps(answer, ensure_ascii=False)], error="{", media_type=JSON_TYPE
        )

    return application(wire, [Route("/models/{model:path}", infer, methods=["POST"])])


def _wire() -> Wire:
    return Wire(models={model_of(task): {"task": str(task)} for task in Task})


def _shape_of_errors(wire: Wire, model: str) -> Any:
    def shape(message: str, _: str | None) -> dict[str, Any]:
        estimated = wire.of(model).estimated_time_s
        return {"error": message} | ({} if estimated is None else {"estimated_time": estimated})

    return shape


async def _noted(wire: Wire, request: Request) -> dict[str, Any]:
    data, content_type = await request.body(), request.headers.get("content-type")
    if content_type == JSON_TYPE:
        body: dict[str, Any] = json.loads(data)
    else:
        body = {"bytes": base64.b64encode(data).decode(), "content_type": content_type}
    authorization = request.headers.get("authorization")
    wire.requests.append(Recorded(path=request.url.path, body=body, authorization=authorization))
    return body


def _inputs(task: Task, body: dict[str, Any]) -> Any:
    if not TASKS[task].input.is_file:
        return body["inputs"]
    if body.get("content_type", JSON_TYPE) is None:
        raise Wrong('Content type "None" not supported.')
    return base64.b64decode(body["bytes"] if "bytes" in body else body["inputs"])


def _parameters(task: Task, body: dict[str, Any]) -> dict[str, Any]:
    if task is Task("feature-extraction"):  # has them beside its inputs
        return {name: value for name, value in body.items() if name != "inputs"}
    parameters: dict[str, Any] = body.get("parameters", {})
    return parameters


if __name__ == "__main__":
    run(make_app(_wire()))
