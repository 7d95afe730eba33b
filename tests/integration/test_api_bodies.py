"""`POST /v1/jobs`: what is refused, with which words."""

from typing import Any

import httpx
import pytest

from tests.integration.answers import EMBED, problem

OPTIONS: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    ({"encoding": "klingon"}, {}, "input.encoding is 'klingon'"),
    ({"encoding": ""}, {}, "input.encoding is ''"),
    ({}, {"encoding": "hex"}, "input.sources.0.encoding is 'hex'"),
    ({"csv": {"encoding": "utf8x"}}, {}, "input.csv.encoding is 'utf8x'"),
    ({}, {"csv": {"encoding": "utf8x"}}, "input.sources.0.csv.encoding is 'utf8x'"),
    ({"csv": {"content_columns": []}}, {}, "input.csv.content_columns is empty"),
    ({}, {"json": {"content_fields": []}}, "input.sources.0.json.content_fields is empty"),
    ({"splitter": {"chunk_size": 100, "chunk_overlap": 50}}, {},
     "input.splitter: chunk_overlap must be smaller"),
    ({}, {"splitter": {"chunk_size": 100, "chunk_overlap": 50}},
     "input.sources.0.splitter: chunk_overlap must be smaller"),
]  # fmt: skip
"""Of a job and of its source, which make no sense; and what is said of it."""


@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        ({"kind": "nope", "input": {}}, "kind", "'nope' is none of ingest, embed, search, rag"),
        ({"input": {}}, "kind", "is required"),
        ({"kind": "embed"}, "input", "is required"),
        (EMBED | {"colour": 1}, "colour", "there is no such field"),
        (EMBED | {"lane": "fast"}, "lane", "interactive"),
        (EMBED | {"timeout_s": 0}, "timeout_s", "greater than 0"),
        (EMBED | {"max_attempts": 21}, "max_attempts", "less than or equal to 20"),
        (EMBED | {"run_after": "2026-01-01T00:00:00"}, "run_after", "give a time zone"),
        (EMBED | {"webhook": {"url": "ftp://x"}}, "webhook.url", "http"),
        ({"kind": "embed", "input": {"texts": []}}, "input.texts", "at least 1"),
        ({"kind": "embed", "input": {"texts": [3]}}, "input.texts.0", "valid string"),
        ({"kind": "search", "input": {"collection": "a/b", "query": "q"}}, "input.collection",
         "letters"),
        ({"kind": "ingest", "input": {"collection": "abc", "sources": [{"type": "text"}]}},
         "input.sources.0.text", "is required"),
        ({"kind": "ingest", "input": {"collection": "abc", "sources": [{"type": "ftp"}]}},
         "input.sources.0.type", "'ftp' is none of file, text"),
        ({"kind": "ingest", "input": {"collection": "abc", "sources": [{"type": "text",
         "text": "a"}], "splitter": {"chunk_size": 100, "chunk_overlap": 100}}},
         "input.splitter", "chunk_overlap must be smaller"),
        ({"kind": "erase", "input": {}}, "input", "either document_ids or collection"),
    ],
)  # fmt: skip
def test_a_wrong_body_is_422_with_the_field_and_the_remedy(
    api: httpx.Client, body: dict[str, Any], field: str, says: str
) -> None:
    answer = problem(api.post("/v1/jobs", json=body), 422)

    assert any(e["field"] == field and says in e["message"] for e in answer["errors"]), answer
    assert api.get("/v1/jobs").json()["items"] == []


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"kind": "rag", "input": {"collection": "abc", "question": "q", "model": "openai/x"}},
         "SLUICE_OPENAI_BASE_URL"),
        ({"kind": "erase", "input": {"document_ids": ["x"]}}, "ids are UUIDs"),
        ({"kind": "ingest", "input": {"collection": "abc", "sources":
         [{"type": "text", "text": "a"}] * 20_001}}, "SLUICE_MAX_SOURCES_PER_JOB"),
        *(({"kind": "ingest", "input": {"collection": "abc", "sources":
            [{"type": "text", "text": "a"} | source]} | options}, says)
          for options, source, says in OPTIONS),
    ],
)  # fmt: skip
def test_what_this_server_cannot_run_is_422(
    api: httpx.Client, body: dict[str, Any], says: str
) -> None:
    assert says in problem(api.post("/v1/jobs", json=body), 422)["detail"]


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        (b'{"kind": ', 400, "position 9"),
        (b"\xff\xfe", 400, "not UTF-8"),
        (b"[" * 100_000, 400, "nested too deeply"),
        (b'{"kind":"embed","input":{"texts":["a\\u0000b"]}}', 422, "input.texts.0 holds a NUL"),
        (b'{"kind":"embed","input":{"texts":["\\ud800"]}}', 422, "surrogate"),
        (b'{"kind":"embed","metadata":{"x":NaN},"input":{"texts":["a"]}}', 422, "NaN"),
        (b'{"kind":"embed","metadata":{"x":1e999},"input":{"texts":["a"]}}', 422, "too large"),
        (b'{"kind":"embed","metadata":{"x":' + b"9" * 5000 + b"}}", 422, "too long"),
        (b'"text"', 422, "object"),
        (b"", 422, "is required"),
    ],
)
def test_what_is_not_storable_json_is_refused(
    api: httpx.Client, content: bytes, status: int, says: str
) -> None:
    headers = {"Content-Type": "application/json"}

    answer = problem(api.post("/v1/jobs", content=content, headers=headers), status)

    assert says in answer["detail"]


def test_an_escaped_backslash_before_u0000_is_no_nul(api: httpx.Client) -> None:
    body = b'{"kind":"embed","input":{"texts":["a\\\\u0000","\\ud83d\\ude00"]}}'

    answer = api.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})

    assert answer.status_code == 202
    assert answer.json()["input"]["texts"] == ["a\\u0000", "😀"]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", None])
def test_another_content_type_is_415(api: httpx.Client, content_type: str | None) -> None:
    headers = {"Content-Type": content_type} if content_type else {}

    answer = problem(api.post("/v1/jobs", content=b"{}", headers=headers), 415)

    assert "application/json" in answer["detail"]
