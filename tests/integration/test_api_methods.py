"""HEAD, OPTIONS, and the header `Allow` of 405."""

import re

import httpx
import pytest

from tests.integration.answers import EMBED, problem

NOBODY = "00000000-0000-4000-8000-000000000000"
ALLOWED = {
    "/healthz": "GET, HEAD, OPTIONS",
    "/readyz": "GET, HEAD, OPTIONS",
    "/metrics": "GET, HEAD, OPTIONS",
    "/docs": "GET, HEAD, OPTIONS",
    "/openapi.json": "GET, HEAD, OPTIONS",
    "/docs/assets/swagger-ui.css": "GET, HEAD, OPTIONS",
    "/v1/jobs": "GET, HEAD, POST, OPTIONS",
    "/v1/jobs/batch": "POST, OPTIONS",
    f"/v1/jobs/{NOBODY}": "GET, HEAD, DELETE, OPTIONS",
    f"/v1/jobs/{NOBODY}/events": "GET, HEAD, OPTIONS",
    f"/v1/jobs/{NOBODY}/result": "GET, HEAD, OPTIONS",
    f"/v1/jobs/{NOBODY}/cancel": "POST, OPTIONS",
    f"/v1/jobs/{NOBODY}/retry": "POST, OPTIONS",
    "/v1/collections": "GET, HEAD, OPTIONS",
    "/v1/collections/abc": "GET, HEAD, PUT, DELETE, OPTIONS",
    "/v1/collections/abc/documents": "GET, HEAD, OPTIONS",
    "/v1/collections/abc/rebuild": "POST, OPTIONS",
    "/v1/collections/abc/rollback": "POST, OPTIONS",
    f"/v1/collections/abc/indexes/{NOBODY}": "DELETE, OPTIONS",
    f"/v1/documents/{NOBODY}": "GET, HEAD, DELETE, OPTIONS",
    f"/v1/documents/{NOBODY}/chunks": "GET, HEAD, OPTIONS",
    "/v1/files": "GET, HEAD, POST, OPTIONS",
    f"/v1/files/{NOBODY}": "GET, HEAD, DELETE, OPTIONS",
    f"/v1/files/{NOBODY}/content": "GET, HEAD, OPTIONS",
    "/v1/conversations": "GET, HEAD, POST, OPTIONS",
    f"/v1/conversations/{NOBODY}": "GET, HEAD, DELETE, OPTIONS",
    f"/v1/conversations/{NOBODY}/messages": "GET, HEAD, OPTIONS",
    "/v1/kinds": "GET, HEAD, OPTIONS",
    "/v1/models": "GET, HEAD, OPTIONS",
    "/v1/models/extractive": "GET, HEAD, PUT, DELETE, OPTIONS",
    "/v1/batches": "GET, HEAD, POST, OPTIONS",
    f"/v1/batches/{NOBODY}": "GET, HEAD, OPTIONS",
    f"/v1/batches/{NOBODY}/cancel": "POST, OPTIONS",
    f"/v1/batches/{NOBODY}/retry": "POST, OPTIONS",
    f"/v1/batches/{NOBODY}/results": "GET, HEAD, OPTIONS",
    f"/v1/batches/{NOBODY}/errors": "GET, HEAD, OPTIONS",
    "/v1/collections/abc/chunks": "GET, HEAD, OPTIONS",
    "/v1/prompts": "GET, HEAD, OPTIONS",
    "/v1/prompts/abc": "GET, HEAD, PUT, DELETE, OPTIONS",
    "/v1/prompts/abc/versions": "GET, HEAD, OPTIONS",
    "/v1/prompts/abc/versions/1": "GET, HEAD, OPTIONS",
    "/v1/prompts/abc/diff": "GET, HEAD, OPTIONS",
    "/v1/prompts/abc/rollback": "POST, OPTIONS",
    "/v1/prompts/abc/render": "POST, OPTIONS",
    "/v1/schedules": "GET, HEAD, OPTIONS",
    "/v1/schedules/abc": "GET, HEAD, PUT, DELETE, OPTIONS",
    "/v1/schedules/abc/pause": "POST, OPTIONS",
    "/v1/schedules/abc/resume": "POST, OPTIONS",
    "/v1/schedules/abc/run": "POST, OPTIONS",
    "/v1/queues": "GET, HEAD, OPTIONS",
    "/v1/queues/embed/pause": "POST, OPTIONS",
    "/v1/queues/embed/resume": "POST, OPTIONS",
    "/v1/ids": "GET, HEAD, OPTIONS",
    "/v1/workers": "GET, HEAD, OPTIONS",
    "/models/owner/name": "POST, OPTIONS",
    "/models/owner/name/v1/chat/completions": "POST, OPTIONS",
    "/models/owner/name/pipeline/fill-mask": "POST, OPTIONS",
    "/pipeline/fill-mask/owner/name": "POST, OPTIONS",
}


@pytest.mark.parametrize("path", ALLOWED)
def test_allow_names_the_methods_that_the_path_takes(api: httpx.Client, path: str) -> None:
    allowed = ALLOWED[path].split(", ")

    options = api.options(path)
    assert (options.status_code, options.headers["allow"]) == (204, ALLOWED[path])
    others = {"GET", "POST", "PUT", "PATCH", "DELETE", "TRACE", "QUERY"} - set(allowed)
    if path == "/v1/jobs/batch":
        # To these it is the id of a job, which is not there.
        others -= {"GET", "DELETE"}
    for method in others:
        answer = api.request(method, path)
        assert (answer.status_code, answer.headers["allow"]) == (405, ALLOWED[path]), method
    if "HEAD" not in allowed and path != "/v1/jobs/batch":
        assert api.head(path).status_code == 405


def test_every_path_of_the_document_is_in_the_table(api: httpx.Client) -> None:
    """But for those of dialects whose own clients call all of them."""
    others = ("/openai/", "/ollama", "/tei", "/mcp")
    templates = [
        re.sub(r"\{[^}]+\}", ".+", path)
        for path in api.get("/openapi.json").json()["paths"]
        if not path.startswith(others)
    ]
    for template in templates:
        assert any(re.fullmatch(template, path) for path in ALLOWED), template


@pytest.mark.parametrize(
    "path",
    ["/healthz", "/metrics", "/docs", "/openapi.json", "/v1/jobs", "/v1/queues", "/v1/nothing",
     f"/v1/jobs/{NOBODY}", "/docs/assets/swagger-ui.css"],
)  # fmt: skip
def test_head_is_get_without_its_body(api: httpx.Client, path: str) -> None:
    get, head = api.get(path), api.head(path)

    assert head.status_code == get.status_code
    assert head.content == b""
    changing = {"date", "last-modified"}
    for name in set(get.headers) - changing:
        assert head.headers[name] == get.headers[name] or name == "content-length", name
    assert "content-length" in head.headers


def test_head_of_a_stream_that_does_not_end_is_answered(api: httpx.Client) -> None:
    job = api.post("/v1/jobs", json=EMBED).json()["id"]

    answer = api.head(f"/v1/jobs/{job}/events")

    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert api.get("/healthz").status_code == 200  # on the same connection


def test_head_of_a_file_has_its_size_and_leaves_it(api: httpx.Client) -> None:
    file = api.post("/v1/files", files={"file": ("a.txt", b"x" * 300_000)}).json()

    answer = api.head(f"/v1/files/{file['id']}/content")

    assert answer.headers["content-length"] == "300000"
    assert answer.content == b""
    assert len(api.get(f"/v1/files/{file['id']}/content").content) == 300_000


def test_options_of_nothing_is_404(api: httpx.Client) -> None:
    problem(api.options("/v1/nothing"), 404)
    problem(api.options("/"), 404)


def test_no_answer_names_the_program(api: httpx.Client) -> None:
    for answer in (api.get("/healthz"), api.get("/v1/nothing"), api.options("/v1/jobs")):
        assert "server" not in answer.headers
