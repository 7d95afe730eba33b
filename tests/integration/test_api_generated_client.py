"""A client that openapi-python-client makes of the document: it submits, polls and cancels."""

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest

from shared.jobs.claims import Claim

BIN = Path(sys.executable).parent
Load = Callable[[str], ModuleType]


def _own(document: dict[str, Any]) -> dict[str, Any]:
    """The document without the APIs of others, for which there are clients, and their shapes."""
    others = ("/openai/", "/ollama/", "/tei/", "/mcp", "/models/{model_id}/v1/")
    paths = {p: methods for p, methods in document["paths"].items() if not p.startswith(others)}
    shapes = document["components"]["schemas"]
    left, used = [paths], set[str]()
    while left:
        names = set(re.findall(r"#/components/schemas/(\w+)", json.dumps(left.pop()))) - used
        used |= names
        left += [shapes[name] for name in names]
    schemas = {name: shapes[name] for name in shapes if name in used}
    return document | {"paths": paths, "components": document["components"] | {"schemas": schemas}}


@pytest.fixture(scope="module")
def load(api_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Load]:
    """Imports a module of the generated client."""
    folder = tmp_path_factory.mktemp("generated")
    document = folder / "openapi.json"
    whole = httpx.get(f"{api_url}/openapi.json", trust_env=False, timeout=120).json()
    document.write_text(json.dumps(_own(whole)), encoding="utf-8")
    config = folder / "config.yaml"
    config.write_text("content_type_overrides: {application/jsonl: text/plain}\n")
    made = subprocess.run(
        [BIN / "openapi-python-client", "generate", "--path", document, "--meta", "none",
         "--config", config, "--output-path", folder / "sluice_generated", "--fail-on-warning"],
        env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"},
        cwd=folder, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert made.returncode == 0, made.stdout + made.stderr
    assert "WARNING" not in (made.stdout + made.stderr).upper(), made.stdout
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield lambda name: importlib.import_module(f"sluice_generated.{name}")


def test_every_operation_is_in_it(load: Load, api: httpx.Client) -> None:
    for operations in _own(api.get("/openapi.json").json())["paths"].values():
        for operation in operations.values():
            module = load(f"api.{operation['tags'][0]}.{operation['operationId']}")
            assert callable(module.sync_detailed)


def test_it_submits_polls_and_reads_the_typed_result(
    load: Load, api: httpx.Client, finish: Callable[[str, dict[str, Any]], Claim]
) -> None:
    models = load("models")
    submit, get = load("api.jobs.submit_job"), load("api.jobs.get_job")
    body = models.NewEmbed(kind="embed", input_=models.EmbedInput(texts=["We open at nine."]))
    with load("client").Client(base_url=str(api.base_url)) as client:
        answer = submit.sync_detailed(
            client=client, body=body, prefer="wait=0", idempotency_key="once"
        )
        assert answer.status_code == 202
        assert answer.headers["preference-applied"] == "wait=0"
        job = answer.parsed
        assert (type(job), job.state, job.lane) == (models.JobView, "queued", "interactive")
        again = submit.sync(client=client, body=body, prefer="wait=0", idempotency_key="once")
        assert again.id == job.id

        finish("embed", {"model": "m", "dimension": 2, "embeddings": [[0.6, 0.8]]})

        ended = get.sync(job_id=str(job.id), client=client)
        assert ended.state == "succeeded"
        assert isinstance(ended.result, models.EmbedResult)
        assert ended.result.embeddings == [[0.6, 0.8]]
        result = load("api.jobs.get_job_result").sync(job_id=str(job.id), client=client)
        assert result == ended.result


def test_it_cancels_and_tells_problems(load: Load, api: httpx.Client) -> None:
    models = load("models")
    body = models.NewEmbed(kind="embed", input_=models.EmbedInput(texts=["a"]))
    with load("client").Client(base_url=str(api.base_url)) as client:
        job = load("api.jobs.submit_job").sync(client=client, body=body)

        cancelled = load("api.jobs.cancel_job").sync(job_id=str(job.id), client=client)

        assert cancelled.state == "cancelled"
        listed = load("api.jobs.list_jobs").sync(client=client, state=models.State.CANCELLED)
        assert [view.id for view in listed.items] == [job.id]
        nobody = "00000000-0000-4000-8000-000000000000"
        problem = load("api.jobs.get_job").sync(job_id=nobody, client=client)
        assert isinstance(problem, models.ProblemView)
        assert problem.status == 404


def test_deletions_take_preferences_as_well(load: Load, api: httpx.Client) -> None:
    api.put("/v1/collections/abc")
    with load("client").Client(base_url=str(api.base_url)) as client:
        answer = load("api.collections.delete_collection").sync_detailed(
            name="abc", client=client, prefer="wait=0"
        )
    assert answer.status_code == 202
    assert answer.headers["preference-applied"] == "wait=0"
