"""The stand-in of the API is as the real one: every route and every body, by its own document.

`serving` compares each exchange of every test with the document (`contract.py`). Here are those
that no other test need have, and that the comparison finds what is wrong.
"""

import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.routing import APIRoute

from shared.kinds.registry import KINDS
from tests.integration.contract import Checked, document, operation
from tests.integration.fake_api import State, listening, make_app, serving


@pytest.fixture
def api(state: State) -> Iterator[httpx.Client]:
    with serving(state) as url, httpx.Client(base_url=url, trust_env=False) as api:
        yield api


def test_every_route_is_one_of_the_api() -> None:
    routes = [
        (method, route.path.replace(":path", ""))
        for route in make_app(State()).routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    ]
    assert len(routes) > 25
    for method, path in routes:
        for word in ("pause", "resume"):
            assert operation(method, path.replace("{action}", word)), f"{method} {path}"


def examples() -> Iterator[tuple[str, dict[str, Any]]]:
    contents = document()["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]
    for name, example in contents["application/json"]["examples"].items():
        yield name, example["value"]


@pytest.mark.parametrize("outcome", ["succeeded", "failed"])
def test_jobs_of_every_kind_are_as_the_api_has_them(
    api: httpx.Client, state: State, outcome: str
) -> None:
    """From the API's own examples: as they are submitted, listed, followed and ended."""
    state.outcome, state.warnings = outcome, ["something was cut off"]
    kinds = set()
    for _, body in examples():
        kinds.add(body["kind"])
        for file_id in re.findall(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", str(body)):
            state.files.setdefault(file_id, {"size_bytes": 3})
        job = api.post("/v1/jobs", json=body, headers={"Idempotency-Key": str(len(state.jobs))})
        assert job.status_code == 202
        events = api.get(f"/v1/jobs/{job.json()['id']}/events").text
        assert "event: end" in events
        assert api.get(f"/v1/jobs/{job.json()['id']}").json()["state"] == outcome
    assert kinds == set(KINDS)
    assert len(api.get("/v1/jobs", params={"limit": 100}).json()["items"]) == len(state.jobs)
    state.files.clear()


def test_what_is_wrong_is_found() -> None:
    app = FastAPI()

    @app.post("/v1/jobs", status_code=202)
    async def submit(request: Request) -> dict[str, str]:
        await request.json()
        return {"id": "7"}

    @app.get("/v1/nowhere")
    def nowhere() -> dict[str, str]:
        return {}

    @app.get("/v1/queues", status_code=418)
    def queues() -> dict[str, str]:
        return {}

    checked = Checked(app)
    with listening(checked) as url, httpx.Client(base_url=url, trust_env=False) as api:
        api.post("/v1/jobs", json={"kind": "embed", "input": {"texts": 7}})
        api.get("/v1/nowhere")
        api.get("/v1/queues", params={"colour": "red"})
    text = "\n".join(checked.violations)
    assert "POST /v1/jobs -> 202: $.id: '7' is not a 'uuid'" in text
    assert "'max_attempts' is a required property" in text
    assert "{'kind': 'embed', 'input': {'texts': 7}} is not valid" in text
    assert "GET /v1/nowhere -> 200: the API has no such route" in text
    assert "GET /v1/queues -> 418: the API never answers 418" in text
