"""Bad input: each gets an error that names the item and the remedy; the rest goes through."""

import json
import uuid
from pathlib import Path
from typing import Any

import httpx
import pytest

from sluice import Client
from tests.e2e.stack import LiveStack

COLLECTION = "bad-input"
UNKNOWN = str(uuid.uuid4())

# File name: what is in it.
GOOD = {
    "good.txt": b"A plain text about lanterns.\n",
    "good.md": "# 등대\n\n항구의 등대는 밤에 켜진다.\n".encode(),
    "good.csv": b"name,price\nlantern,12\nbell,7\n",
    "cp949.txt": "한국어 문서입니다. 오래된 인코딩으로 저장되었습니다.".encode("cp949"),
}
# File name: what is in it, and words of its error.
BAD: dict[str, tuple[bytes, tuple[str, ...]]] = {
    "empty.txt": (b"", ("empty",)),
    "binary.txt": (bytes(range(256)) * 40, ("binary",)),
    "ragged.csv": (
        b"name,price,colour\nlantern,12\nbell,7,red,extra\nrope,3,grey\n",
        ("header has 3 fields", "line 2 has 2 fields", "equally long"),
    ),
    "no-text.html": (b"<html><body><img src='a.png'><script>x()</script></body></html>", ("text",)),
    "broken.json": (b'{"a": [1, 2', ("JSON",)),
    "broken-utf8.txt": ("항구의 등대는 ".encode() * 20 + b"\xed\x95 \xff", ("UTF-8", "offset")),
}


def _fill(folder: Path) -> None:
    folder.mkdir()
    for name, content in GOOD.items():
        (folder / name).write_bytes(content)
    for name, (content, _) in BAD.items():
        (folder / name).write_bytes(content)


def test_bad_files_fail_alone_in_a_bulk_ingest(stack: LiveStack) -> None:
    folder = stack.home.parent / "mixed"
    _fill(folder)
    with (folder / "huge.txt").open("wb") as huge:
        huge.truncate(50 * 2**20)

    done = stack.sluice("ingest", "mixed", "-c", COLLECTION, "--json")
    assert done.code == 1, done.err  # some failed
    report = done.document
    errors = {error["source"]: error["message"] for error in report["errors"]}
    assert set(errors) == {f"mixed/{name}" for name in [*BAD, "huge.txt"]}
    assert report["documents"] == {
        "added": len(GOOD),
        "replaced": 0,
        "skipped": 0,
        "failed": len(BAD) + 1,
        "erased": 0,
    }
    for name, (_, words) in BAD.items():
        message = errors[f"mixed/{name}"]
        assert name in message, message
        assert all(word in message for word in words), message
    assert "SLUICE_MAX_FILE_BYTES" in errors["mixed/huge.txt"]
    assert "Split it" in errors["mixed/huge.txt"]
    sources = [
        document["source"] for document in stack.sluice_json("documents", "-c", COLLECTION)["items"]
    ]
    assert sorted(sources) == sorted(f"mixed/{name}" for name in GOOD)
    stack.check_agreement(COLLECTION)


def test_an_unknown_file_fails_alone_in_its_job(stack: LiveStack, client: Client) -> None:
    client.put_collection("unknown-file")
    sources = [
        {"type": "text", "name": "here.txt", "text": "This one is here."},
        {"type": "file", "file_id": UNKNOWN},
    ]
    input_ = {"collection": "unknown-file", "sources": sources}
    job = client.submit_untyped("ingest", input_, wait_s=60).require_success()
    result = job.result or {}
    counts = {name: count for name, count in result["documents"].items() if count}
    assert counts == {"added": 1, "failed": 1}
    [error] = result["errors"]
    assert UNKNOWN in error["source"]
    assert "POST /v1/files" in error["message"]
    stack.check_agreement("unknown-file", chunks=1)


TEXTS = {"texts": ["a"]}
REFUSED: dict[str, tuple[str, str, Any, int, tuple[str, ...]]] = {
    "unknown kind": (
        "POST", "/v1/jobs", {"kind": "dance", "input": {}}, 422, ("kind", "dance", "ingest"),
    ),
    "no kind": ("POST", "/v1/jobs", {"input": TEXTS}, 422, ("kind", "required")),
    "wrong type": (
        "POST", "/v1/jobs", {"kind": "embed", "input": {"texts": "a"}}, 422,
        ("input.texts", "list"),
    ),
    "unknown field": (
        "POST", "/v1/jobs", {"kind": "embed", "input": {**TEXTS, "textz": 1}}, 422,
        ("input.textz", "check its name"),
    ),
    "unknown collection": (
        "POST", "/v1/jobs", {"kind": "search", "input": {"collection": "nowhere", "query": "a"}},
        404, ("nowhere", "/v1/collections"),
    ),
    "ingest into an unknown collection": (
        "POST", "/v1/jobs",
        {"kind": "ingest", "input": {
            "collection": "nowhere", "sources": [{"type": "text", "text": "a"}]}},
        404, ("nowhere",),
    ),
    "unknown source type": (
        "POST", "/v1/jobs",
        {"kind": "ingest", "input": {"collection": "nowhere", "sources": [{"type": "fax"}]}},
        422, ("input.sources.0.type", "fax", "file", "text"),
    ),
    "impossible splitter": (
        "POST", "/v1/jobs",
        {"kind": "ingest", "input": {
            "collection": "nowhere", "sources": [{"type": "text", "text": "a"}],
            "splitter": {"chunk_size": 100, "chunk_overlap": 100}}},
        422, ("chunk_overlap", "smaller"),
    ),
    "unknown model": (
        "POST", "/v1/jobs",
        {"kind": "rag", "input": {"collection": "nowhere", "question": "a", "model": "hf/"}},
        422, ("input.model", "hf/<repository or path>"),
    ),
    "unknown job": ("GET", f"/v1/jobs/{UNKNOWN}", None, 404, (UNKNOWN,)),
    "cancel of an unknown job": ("POST", f"/v1/jobs/{UNKNOWN}/cancel", None, 404, (UNKNOWN,)),
    "retry of an unknown job": ("POST", f"/v1/jobs/{UNKNOWN}/retry", None, 404, (UNKNOWN,)),
    "events of an unknown job": ("GET", f"/v1/jobs/{UNKNOWN}/events", None, 404, (UNKNOWN,)),
    "id that is none": ("GET", "/v1/jobs/seven", None, 404, ("seven",)),
    "unknown document": ("GET", f"/v1/documents/{UNKNOWN}", None, 404, (UNKNOWN,)),
    "deletion of an unknown document": (
        "DELETE", f"/v1/documents/{UNKNOWN}", None, 404, (UNKNOWN,),
    ),
    "unknown file": ("GET", f"/v1/files/{UNKNOWN}", None, 404, (UNKNOWN,)),
    "unknown collection's documents": (
        "GET", "/v1/collections/nowhere/documents", None, 404, ("nowhere",),
    ),
    "deletion of an unknown collection": (
        "DELETE", "/v1/collections/nowhere", None, 404, ("nowhere",),
    ),
    "unusable collection name": ("PUT", "/v1/collections/a!", {}, 422, ("128 letters",)),
    "unknown queue": ("POST", "/v1/queues/disco/pause", None, 404, ("disco",)),
    "unknown path": ("GET", "/v1/nothing", None, 404, ("/v1/nothing", "/docs")),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_the_api_refuses_with_a_problem(live_stack: LiveStack, case: str) -> None:
    method, path, body, status, words = REFUSED[case]
    with live_stack.http() as http:
        _check_problem(http.request(method, path, json=body), status, words)


def test_bodies_that_are_too_large_or_no_json(stack: LiveStack) -> None:
    with stack.http() as http:
        large = json.dumps({"kind": "embed", "input": {"texts": ["x" * (17 * 2**20)]}})
        as_json = {"content-type": "application/json"}
        answer = http.post("/v1/jobs", content=large.encode(), headers=as_json)
        _check_problem(answer, 413, ("MiB", "SLUICE_MAX_BODY_BYTES"))
        broken = http.post("/v1/jobs", content=b'{"kind": ', headers=as_json)
        _check_problem(broken, 400, ("not valid JSON", "line 1"))
        form = http.post("/v1/jobs", data={"kind": "embed"})
        _check_problem(form, 415, ("application/json",))
        file = http.post("/v1/files", files={"file": ("huge.bin", b"\0" * (50 * 2**20))})
        _check_problem(file, 413, ("MiB", "SLUICE_MAX_FILE_BYTES"))
        no_file = http.post("/v1/files", files={"document": ("a.txt", b"a")})
        _check_problem(no_file, 422, ("file",))


def test_the_cli_names_its_wrong_input(stack: LiveStack) -> None:
    expected = {
        ("ask", "why?", "-c", "nowhere"): (4, "nowhere"),
        ("jobs", "show", UNKNOWN): (4, UNKNOWN),
        ("documents", "delete", UNKNOWN, "--yes"): (4, UNKNOWN),
        ("ingest", "no-such-folder", "-c", "unused"): (2, "no-such-folder"),
        ("ingest", str(stack.home), "-c", "!"): (2, "128 letters"),
    }
    for arguments, (code, word) in expected.items():
        done = stack.sluice(*arguments)
        assert word in done.err, (arguments, done.err)
        assert done.code == code or arguments[-1] == "!", (arguments, done.code, done.err)
        assert "Traceback" not in done.err


def _check_problem(answer: httpx.Response, status: int, words: tuple[str, ...]) -> None:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert body["status"] == status
    assert body["title"]
    said = json.dumps([body["detail"], body.get("errors")], ensure_ascii=False)
    for word in words:
        assert word in said, said
