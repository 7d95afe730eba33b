"""Body sizes and API keys: what is refused before anything is read."""

import socket
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest
from pydantic import SecretStr

from shared.config import Settings
from shared.database.transaction import Ledger
from tests.api_server import served
from tests.integration.answers import EMBED, problem, stored

MIB = 2**20
MULTIPART_HEAD = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n'


def test_a_file_of_50_mb_is_413_and_names_the_limit(api: httpx.Client, settings: Settings) -> None:
    before = stored(settings)

    answer = api.post("/v1/files", files={"file": ("big.txt", b"x" * 50_000_000)})

    body = problem(answer, 413)
    assert "32 MiB" in body["detail"]
    assert "SLUICE_MAX_FILE_BYTES" in body["detail"]
    assert stored(settings) == before
    assert api.get("/healthz").status_code == 200


def test_a_file_just_above_the_limit_is_413_with_its_name(
    api: httpx.Client, settings: Settings
) -> None:
    """Within what the envelope of multipart is allowed; the count of the file itself decides."""
    data = b"x" * (settings.max_file_bytes + 1)

    body = problem(api.post("/v1/files", files={"file": ("big.txt", data)}), 413)

    assert "big.txt" in body["detail"]


def test_a_body_above_the_limit_is_413(api: httpx.Client, settings: Settings) -> None:
    body = b'{"kind":"embed","input":{"texts":["' + b"a" * settings.max_body_bytes + b'"]}}'

    answer = api.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})

    assert "SLUICE_MAX_BODY_BYTES" in problem(answer, 413)["detail"]


def chunks(total: int) -> Iterator[bytes]:
    for _ in range(total // MIB):
        yield b"x" * MIB


def test_a_body_of_unknown_length_is_counted(api: httpx.Client) -> None:
    """No Content-Length: the transfer is chunked, and refused in the middle."""
    headers = {"Content-Type": "multipart/form-data; boundary=b"}

    def body() -> Iterator[bytes]:
        yield MULTIPART_HEAD
        yield from chunks(50 * MIB)

    problem(api.post("/v1/files", content=body(), headers=headers), 413)
    answer = api.post(
        "/v1/jobs", content=chunks(20 * MIB), headers={"Content-Type": "application/json"}
    )
    problem(answer, 413)


@pytest.mark.parametrize("declared", [True, False])
def test_a_client_that_reads_only_when_it_has_sent_all_gets_the_answer(
    api_url: str, declared: bool
) -> None:
    """As simple clients do: the answer must outlive the sending."""
    parts = urlsplit(api_url)
    length = 50 * MIB + len(MULTIPART_HEAD)
    sizes = f"Content-Length: {length}" if declared else "Transfer-Encoding: chunked"
    with socket.create_connection((str(parts.hostname), int(parts.port or 0)), timeout=30) as raw:
        raw.sendall(
            "POST /v1/files HTTP/1.1\r\nHost: localhost\r\n"
            f"Content-Type: multipart/form-data; boundary=b\r\n{sizes}\r\n\r\n".encode()
        )
        for block in (MULTIPART_HEAD, *chunks(length)):
            raw.sendall(block if declared else b"%x\r\n%b\r\n" % (len(block), block))
        if not declared:
            raw.sendall(b"0\r\n\r\n")
        answer = b""
        while data := raw.recv(65536):
            answer += data
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"connection: close" in answer.lower()
    assert b"SLUICE_MAX_FILE_BYTES" in answer


@pytest.fixture(scope="module")
def url(settings: Settings) -> Iterator[str]:
    """An API that asks for keys."""
    keys = {"ann": SecretStr("s3cret"), "bob": SecretStr("비밀")}
    with served(settings.model_copy(update={"api_keys": keys})) as url:
        yield url


class TestKeys:
    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": "Bearer"},
            {"Authorization": "Basic s3cret"},
            {"Authorization": "s3cret"},
        ],
    )
    def test_without_a_valid_key_nothing_is_served(self, url: str, headers: dict[str, str]) -> None:
        for method, path in (("GET", "/v1/jobs"), ("POST", "/v1/jobs"), ("GET", "/v1/nothing")):
            answer = httpx.request(method, url + path, headers=headers, trust_env=False)
            problem(answer, 401)
            assert answer.headers["www-authenticate"] == "Bearer"

    @pytest.mark.parametrize("path", ["/healthz", "/metrics", "/docs", "/openapi.json"])
    def test_what_monitors_read_needs_no_key(self, url: str, path: str, ledger: Ledger) -> None:
        assert ledger is not None
        assert httpx.get(url + path, trust_env=False).status_code == 200

    def test_the_docs_let_one_give_a_key(self, url: str) -> None:
        document = httpx.get(f"{url}/openapi.json", trust_env=False).json()

        assert document["security"] == [{"key": []}]
        assert document["components"]["securitySchemes"]["key"]["scheme"] == "bearer"

    def test_keys_have_idempotency_keys_of_their_own(self, url: str, ledger: Ledger) -> None:
        assert ledger is not None
        ids = []
        for secret in (b"s3cret", "비밀".encode()):
            headers = [(b"Authorization", b"Bearer " + secret), (b"Idempotency-Key", b"k")]
            answer = httpx.post(f"{url}/v1/jobs", json=EMBED, headers=headers, trust_env=False)
            assert answer.status_code == 202
            ids.append(answer.json()["id"])
        assert ids[0] != ids[1]


def test_a_full_queue_is_429_until_it_empties(settings: Settings, ledger: Ledger) -> None:
    assert ledger is not None
    limits = {"queue_limit_steps": 3, "queue_full_retry_after_s": 7}
    with (
        served(settings.model_copy(update=limits)) as url,
        httpx.Client(base_url=url, trust_env=False) as client,
    ):
        jobs = [client.post("/v1/jobs", json=EMBED) for _ in range(3)]
        assert {answer.status_code for answer in jobs} == {202}

        for answer in (
            client.post("/v1/jobs", json=EMBED),
            client.post("/v1/jobs/batch", json={"jobs": [EMBED]}),
        ):
            assert "SLUICE_QUEUE_LIMIT_STEPS" in problem(answer, 429)["detail"]
            assert answer.headers["retry-after"] == "7"
        # Other queues are open, and so is this one once there is room.
        client.put("/v1/collections/abc")
        search = {"kind": "search", "input": {"collection": "abc", "query": "q"}}
        assert client.post("/v1/jobs", json=search).status_code == 202
        client.post(f"{jobs[0].headers['location']}/cancel")
        while (answer := client.post("/v1/jobs", json=EMBED)).status_code == 429:
            pass
        assert answer.status_code == 202
