"""What clients may send, over HTTP: bad values are small clear refusals, and poison nothing."""

import json
import socket
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest

from tests.integration.answers import EMBED, problem

JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    "fields",
    [
        {"run_after": "0001-01-01T00:00:00+23:59"},
        {"run_after": "9999-12-31T23:59:59-23:59"},
        {"metadata": json.loads('{"a":' * 300 + "1" + "}" * 300)},
        {"metadata": {"a": 2**63}},
        {"timeout_s": 1e300},
        {"webhook": {"url": "https://example.org/" + "a" * 3000}},
    ],
)
def test_a_value_that_would_poison_is_refused_and_lists_go_on(
    api: httpx.Client, fields: dict[str, Any]
) -> None:
    answer = problem(api.post("/v1/jobs", json=EMBED | fields), 422)

    assert answer["errors"][0]["field"].startswith(next(iter(fields)))
    assert api.get("/v1/jobs").json()["items"] == []
    problem(api.post("/v1/jobs/batch", json={"jobs": [EMBED, EMBED | fields]}), 422)
    assert api.get("/v1/jobs").json()["items"] == []


@pytest.mark.parametrize(
    "content",
    [
        b'{"jobs":[' + b"0," * 200_000 + b"0]}",
        b'{"jobs":[' + b"0," * 900_000 + b"0]}",
        b'{"jobs":[' + b"{}," * 900 + b"{}]}",
        b'{"jobs":[{' + b",".join(b'"%d":0' % n for n in range(50_000)) + b"}]}",
        b'{"jobs":[{"kind":"' + b"x" * 1_000_000 + b'","input":{}}]}',
        b'{"' + b"x" * 1_000_000 + b'":1}',
        b'{"jobs":[{"kind":"embed","input":{"texts":[' + b"0," * 9000 + b"0]}}]}",
    ],
)
def test_a_wrong_batch_has_a_small_answer(api: httpx.Client, content: bytes) -> None:
    answer = api.post("/v1/jobs/batch", content=content, headers=JSON)

    problem(answer, 422)
    assert len(answer.content) < 20_000


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/models/a%00b", 400),
        ("/models/" + "%F4%8F%BF%BD" * 300, 400),
        ("/pipeline/fill-mask/a%00b", 400),
        ("/pipeline/" + "x" * 3000 + "/a/b", 400),
    ],
)
def test_a_model_in_a_path_is_bounded(api: httpx.Client, path: str, status: int) -> None:
    answer = api.post(path, json={"inputs": "a"})

    assert answer.status_code == status
    assert len(answer.content) < 3000
    assert "error" in answer.json()


def test_a_text_with_nul_is_400(api: httpx.Client) -> None:
    answer = api.post("/models/a/b", content=b"a\0b", headers={"Content-Type": "text/plain"})

    assert (answer.status_code, "NUL" in answer.json()["error"]) == (400, True)


@pytest.mark.parametrize("item", [b"[],", b'"",', b"0,", b'{"a":[0]},'])
def test_a_large_body_of_many_values_is_413_before_it_is_parsed(
    api: httpx.Client, item: bytes
) -> None:
    content = b'{"inputs":[' + item * (17 * 2**20 // len(item)) + b"0]}"

    answer = api.post("/models/x/y", content=content, headers=JSON)

    assert answer.status_code == 413
    assert "SLUICE_MAX_BODY_BYTES" in answer.json()["error"]


@pytest.mark.parametrize(
    "cursor", ["99999999999", "00000000000000000000000000000000-9999999999", "x" * 2000]
)
def test_a_cursor_of_a_place_that_cannot_be_is_400(api: httpx.Client, cursor: str) -> None:
    from api.http import answers

    path = "/v1/documents/00000000-0000-0000-0000-000000000000/chunks"
    problem(api.get(path, params={"cursor": answers.encode("chunks", cursor)[:2048]}), 400)


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/v1/jobs?state=" + "x" * 5000, {}),
        ("/v1/jobs?collection=" + "x" * 5000, {}),
        ("/v1/jobs?limit=" + "9" * 5000, {}),
        ("/v1/files?sha256=" + "&sha256=".join(["x"] * 1000), {}),
        ("/v1/files?sha256=" + "a" * 5000, {}),
    ],
)
def test_query_parameters_are_bounded(
    api: httpx.Client, path: str, headers: dict[str, str]
) -> None:
    answer = api.get(path, headers=headers)

    assert answer.status_code in (414, 422, 431)
    assert len(answer.content) < 5000


def test_a_file_name_is_bounded_in_bytes(api: httpx.Client) -> None:
    rare = "\U0010fffd" * 900

    problem(api.post("/v1/files", files={"file": (rare, b"a")}), 422)
    assert api.post("/v1/files", files={"file": ("가" * 600, b"a")}).status_code == 201


def test_too_many_values_are_refused_before_the_body_is_complete(
    api: httpx.Client, api_url: str
) -> None:
    """Of 16 MB are sent some two, and then nothing: the answer is there all the same."""
    assert api.get("/healthz").status_code == 200
    address = urlsplit(api_url)
    assert address.hostname is not None
    assert address.port is not None
    head = (
        "POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        "Content-Length: 16000000\r\n\r\n"
    )
    with socket.create_connection((address.hostname, address.port), timeout=120) as connection:
        connection.sendall(head.encode() + b'{"kind":"hf","input":{"inputs":[' + b"0," * 1_000_000)
        answer = b""
        while b"SLUICE_MAX_BODY_VALUES" not in answer and (block := connection.recv(65_536)):
            answer += block
    assert answer.startswith(b"HTTP/1.1 422 ")
    assert b"SLUICE_MAX_BODY_VALUES" in answer
