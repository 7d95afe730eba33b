"""The part of `fake_api` that is about Hugging Face tasks: their results, large ones, uploads."""

from typing import Any, Protocol

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from shared.kinds.hf import TASKS, Task
from tests.integration.fake_shapes import problem
from tests.wire.hub_script import ANSWERS

NESTED = {
    Task("summarization"),
    Task("translation"),
    Task("text-classification"),
    Task("text-generation"),
}
"""The API answers with a list to one input of these."""


class Held(Protocol):
    """The part of the fake's state that these routes use."""

    files: dict[str, dict[str, Any]]
    warnings: list[str]
    results_are_large: bool
    large_results: dict[str, Any]


def hf_routes(state: Held) -> APIRouter:
    router = APIRouter(prefix="/v1")

    @router.get("/jobs/{job_id}/result")
    def result(job_id: str) -> Response:
        if job_id not in state.large_results:
            return problem(404, "Not found", f"Job {job_id} has no result.")
        return JSONResponse(state.large_results[job_id])

    @router.delete("/files/{file_id}")
    def delete(file_id: str) -> Response:
        if state.files.pop(file_id, None) is None:
            return problem(404, "Not found", f"There is no file {file_id}.")
        return Response(status_code=204)

    return router


def keep_result(state: Held, job: dict[str, Any], result: Any) -> None:
    """With the job, or beside it, and what it warns of."""
    job["warnings"] = state.warnings
    if state.results_are_large:
        state.large_results[job["id"]] = result
        job["result_url"] = f"/v1/jobs/{job['id']}/result"
    else:
        job["result"] = result


def hf_result(asked: dict[str, Any], files: dict[str, dict[str, Any]]) -> Any:
    """What the model behind `tests/wire/hub.py` would say, in the shape of Sluice's results."""
    task = Task(asked["task"])

    def output(value: Any) -> Any:
        if TASKS[task].input.is_file:
            value = bytes(files[value["file_id"]]["size_bytes"])
        return ANSWERS[task](value, asked.get("parameters", {}))

    inputs = asked["inputs"]
    if not isinstance(inputs, list):
        return output(inputs)
    outputs = [output(value) for value in inputs]
    return [one for [one] in outputs] if task in NESTED else outputs
