"""Connections that would hold up or fill the API: heads, bodies and answers that never end.

Clients are raw sockets; each test waits for what the server does, however long that takes.
"""

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from api.http.middleware import BodyLimit
from shared.config import Settings
from tests.api_server import served, start_api
from tests.integration.answers import EMBED
from tests.servers import Server
from tests.waits import until

MIB = 2**20
WAIT_S = 60
HEAD = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    """Short times, and few connections."""
    return settings.model_copy(
        update={
            "api_header_timeout_s": 0.5,
            "api_keep_alive_s": 0.5,
            "api_body_timeout_s": 0.5,
            "api_body_min_bytes_per_s": 1000,
            "api_send_timeout_s": 0.5,
            "api_limit_header_bytes": 16 * 1024,
            "api_limit_connections": 20,
            "sse_heartbeat_s": 0.2,
            "api_unwanted_bytes_per_s": 4 * MIB,
        }
    )


Raw = Callable[[], socket.socket]


def connect(url: str) -> socket.socket:
    parts = urlsplit(url)
    return socket.create_connection((str(parts.hostname), int(parts.port or 0)), timeout=WAIT_S)


@pytest.fixture
def raw(api_url: str, api: httpx.Client) -> Iterator[Raw]:
    """Opens connections to the API."""
    api.close()
    opened: list[socket.socket] = []

    def start() -> socket.socket:
        opened.append(connect(api_url))
        return opened[-1]

    yield start
    for connection in opened:
        connection.close()


def rest_of(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection; it must do so."""
    received = b""
    try:
        while data := connection.recv(65536):
            received += data
    except ConnectionResetError:
        pass
    return received


def problem_in(received: bytes, status: int) -> dict[str, Any]:
    head, _, body = received.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    assert lines[0].startswith(b"http/1.1 %d " % status), received[:300]
    assert b"content-type: application/problem+json" in lines
    assert b"connection: close" in lines
    assert not any(line.startswith(b"server:") for line in lines)
    problem = json.loads(body)
    assert problem["status"] == status
    assert isinstance(problem, dict)
    return problem


def send_until_refused(connection: socket.socket, block: bytes, limit_bytes: int) -> int:
    """How many bytes the server let in."""
    sent = 0
    try:
        while sent < limit_bytes:
            sent += connection.send(block)
    except (BrokenPipeError, ConnectionResetError):
        pass
    return sent


class TestHeads:
    @pytest.mark.parametrize(
        ("start", "block", "status", "limit"),
        [
            (b"GET / HTTP/1.1\r\nHost: x\r\n", b"X-Y: %b\r\n" % (b"z" * 1000), 431, "BYTES"),
            (b"GET / HTTP/1.1\r\nHost: x\r\n", b"a:b\r\n" * 1000, 431, "FIELDS"),
            (b"GET / HTTP/1.1\r\nHost: x\r\nX-Y: ", b"z" * 4096, 431, "BYTES"),
            (b"GET / HTTP/1.1\r\nHost: x\r\n", b"z" * 4096, 431, "BYTES"),
            (b"GET /", b"z" * 4096, 414, "BYTES"),
            (b"GET /v1/jobs?cursor=", b"z" * 4096, 414, "BYTES"),
        ],
        ids=["headers", "small headers", "value", "name", "path", "query"],
    )
    def test_one_without_end_is_refused_and_names_the_setting(
        self, raw: Raw, start: bytes, block: bytes, status: int, limit: str
    ) -> None:
        connection = raw()
        connection.sendall(start)
        for _ in range(16 * 1024 // len(block) + 1):
            connection.sendall(block)

        problem = problem_in(rest_of(connection), status)

        assert f"SLUICE_API_LIMIT_HEADER_{limit}" in problem["detail"]

    def test_the_answer_is_in_the_dialect_of_the_path(self, raw: Raw) -> None:
        connection = raw()
        connection.sendall(b"POST /models/m HTTP/1.1\r\nX-Y: " + b"z" * 20_000)

        received = rest_of(connection)

        assert received.startswith(b"HTTP/1.1 431 ")
        assert (
            "SLUICE_API_LIMIT_HEADER_BYTES"
            in json.loads(received.partition(b"\r\n\r\n")[2])["error"]
        )

    def test_one_of_the_largest_size_is_served(self, raw: Raw) -> None:
        connection = raw()
        line = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nX-Y: "
        connection.sendall(line + b"z" * (16 * 1024 - len(line) - 20) + b"\r\n\r\n")

        assert rest_of(connection).startswith(b"HTTP/1.1 200 ")

    def test_trailers_behind_a_body_count_as_well(self, raw: Raw) -> None:
        for block in (b"a: b\r\n" * 1000, b"z" * 1000):
            connection = raw()
            connection.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx: y\r\n")
            sent = send_until_refused(connection, block, 64 * MIB)
            assert sent < 64 * MIB

    @pytest.mark.parametrize(
        "part", [b"", b"G", b"GET / HTTP/1.1\r\n", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-"]
    )
    def test_one_that_does_not_come_is_ended(self, raw: Raw, part: bytes) -> None:
        connection = raw()
        connection.sendall(part)

        received = rest_of(connection)

        if part:
            assert "SLUICE_API_HEADER_TIMEOUT_S" in problem_in(received, 408)["detail"]
        else:
            assert received == b""

    def test_one_that_creeps_is_ended(self, raw: Raw) -> None:
        connection = raw()
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
        connection.settimeout(0.05)
        received = b""
        for n in range(1_000_000):
            try:
                connection.send(b"X-%d: 1\r\n" % n)
                received += connection.recv(65536)
            except TimeoutError:
                continue
            except (BrokenPipeError, ConnectionResetError):
                break
            if received:
                break
        problem_in(received, 408)

    def test_an_idle_connection_is_closed_after_its_answer(self, raw: Raw) -> None:
        connection = raw()
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")

        assert rest_of(connection).endswith(b'{"status":"ok"}')

    def test_what_is_not_http_is_a_problem(self, raw: Raw) -> None:
        connection = raw()
        connection.sendall(b"\x16\x03\x01 hello\r\n\r\n")

        problem_in(rest_of(connection), 400)

    def test_requests_that_wait_for_no_answer_are_not_heaped_up(self, raw: Raw) -> None:
        connection = raw()
        one = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
        connection.sendall(one * 10)
        received = b""
        while received.count(b'{"status":"ok"}') < 10:
            received += connection.recv(65536)

        sent = send_until_refused(connection, one * 1000, 64 * MIB)

        assert sent < 64 * MIB


class TestBodies:
    @pytest.mark.parametrize(
        ("path", "length"),
        [
            (b"/v1/jobs", b"Content-Length: 50"),
            (b"/v1/jobs", b"Content-Length: 900000"),
            (b"/v1/jobs/batch", None),
            (b"/v1/files", b"Content-Length: 900000"),
            (b"/models/m", b"Content-Length: 50"),
            (b"/pipeline/feature-extraction/m", None),
        ],
    )
    def test_one_that_stands_still_is_408(
        self, raw: Raw, path: bytes, length: bytes | None
    ) -> None:
        connection = raw()
        head = b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Type: %b\r\n" % (
            path,
            b"multipart/form-data; boundary=b" if path == b"/v1/files" else b"application/json",
        )
        start = b"--b\r\n" if path == b"/v1/files" else b'{"a'
        if length is None:
            connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
            connection.sendall(b"%x\r\n%b\r\n" % (len(start), start))
        else:
            connection.sendall(head + length + b"\r\n\r\n" + start)

        received = rest_of(connection)

        assert received.startswith(b"HTTP/1.1 408 ")
        assert b"SLUICE_API_BODY_TIMEOUT_S" in received

    def test_one_that_creeps_is_408(self, raw: Raw) -> None:
        connection = raw()
        connection.sendall(HEAD + b"Content-Length: 1000000\r\n\r\n")
        connection.settimeout(0.05)
        received = b""
        while not received:
            try:
                connection.send(b" ")
                received = connection.recv(65536)
            except TimeoutError:
                continue
        assert b"SLUICE_API_BODY_MIN_BYTES_PER_S" in problem_in(received, 408)["detail"].encode()

    @pytest.mark.parametrize("chunked", [False, True])
    def test_one_that_is_too_large_is_answered_also_to_who_sends_it_whole(
        self, api_url: str, settings: Settings, chunked: bool
    ) -> None:
        """And reads its answer afterwards: the rest is dropped, more slowly than it comes."""
        size = settings.max_body_bytes + settings.api_unwanted_bytes_per_s + 2 * MIB

        def blocks() -> Iterator[bytes]:
            for _ in range(0, size, MIB):
                yield b"x" * MIB

        headers = {} if chunked else {"Content-Length": str(-(-size // MIB) * MIB)}
        with httpx.Client(timeout=WAIT_S, trust_env=False) as client:
            answer = client.post(f"{api_url}/v1/jobs", content=blocks(), headers=headers)
        assert answer.status_code == 413
        assert "SLUICE_MAX_BODY_BYTES" in answer.json()["detail"]
        assert answer.headers["connection"] == "close"

    def test_one_that_nobody_wants_does_not_keep_the_connection(self, raw: Raw) -> None:
        """The answer is there at once; the rest of the body is not waited for, for long."""
        connection = raw()
        connection.sendall(
            b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000000\r\n\r\nx"
        )

        assert rest_of(connection).endswith(b'{"status":"ok"}')

    def test_large_ones_wait_for_their_turn_and_are_all_served(
        self, settings: Settings, api: httpx.Client
    ) -> None:
        """Room for one at a time."""
        texts = ["x" * 100_000] * 10
        few = settings.model_copy(update={"api_body_memory_bytes": 1, "api_body_timeout_s": 60})
        with served(few) as url, httpx.Client(base_url=url, trust_env=False) as client:
            from concurrent.futures import ThreadPoolExecutor

            with ThreadPoolExecutor(4) as pool:
                answers = list(
                    pool.map(
                        lambda _: client.post(
                            "/v1/jobs",
                            json={"kind": "embed", "input": {"texts": texts}},
                            timeout=60,
                        ),
                        range(8),
                    )
                )
        assert [answer.status_code for answer in answers] == [202] * 8
        stored = api.get(f"/v1/jobs/{answers[0].json()['id']}").json()
        assert stored["input"]["texts"] == texts

    def test_waiting_for_a_job_holds_no_room(self, settings: Settings, ledger: object) -> None:
        assert ledger is not None
        body = {"kind": "embed", "input": {"texts": ["x" * 100_000]}}
        few = settings.model_copy(update={"api_body_memory_bytes": 1, "api_body_timeout_s": 60})
        data = json.dumps(body).encode()
        with (
            served(few) as url,
            httpx.Client(base_url=url, trust_env=False, timeout=60) as client,
            closing(connect(url)) as waiting,
        ):
            waiting.sendall(HEAD + b"Prefer: wait=60\r\nContent-Length: %d\r\n\r\n" % len(data))
            waiting.sendall(data)
            while not client.get("/v1/jobs").json()["items"]:
                pass
            assert client.post("/v1/jobs", json=body).status_code == 202
            job = client.get("/v1/jobs").json()["items"][-1]
            client.post(f"/v1/jobs/{job['id']}/cancel")
            assert waiting.recv(65536).startswith(b"HTTP/1.1 200 ")

    def test_without_room_the_next_is_503(self, settings: Settings, ledger: object) -> None:
        """As long as another is worked on; here, by an application that a test holds up."""
        assert ledger is not None
        few = settings.model_copy(update={"api_body_memory_bytes": 1})
        entered, done = asyncio.Event(), asyncio.Event()

        async def slow(_scope: object, _receive: object, _send: object) -> None:
            entered.set()
            await done.wait()

        scope = {
            "type": "http", "method": "POST", "path": "/v1/jobs",
            "headers": [(b"content-length", b"100000")],
        }  # fmt: skip

        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": b"x" * 100_000, "more_body": False}

        sent: list[Any] = []

        async def send(message: object) -> None:
            sent.append(message)

        async def both() -> None:
            limit = BodyLimit(slow, few)
            first = asyncio.create_task(limit(scope, receive, send))
            await entered.wait()
            await limit(scope, receive, send)
            done.set()
            await first

        asyncio.run(both())

        assert sent[0]["status"] == 503
        assert b"SLUICE_API_BODY_MEMORY_BYTES" in sent[1]["body"]


class TestAnswers:
    def test_a_client_that_reads_nothing_is_dropped(
        self, api_url: str, api: httpx.Client, raw: Raw
    ) -> None:
        connection = raw()
        with httpx.Client(base_url=api_url, trust_env=False) as client:
            body = {"kind": "embed", "input": {"texts": ["x" * 900_000] * 16}}
            job = client.post("/v1/jobs", json=body, timeout=60).json()["id"]
            assert api.is_closed
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        request = b"GET /v1/jobs/%b HTTP/1.1\r\nHost: localhost\r\n\r\n" % job.encode()
        connection.sendall(request)
        port = connection.getsockname()[1]

        def is_served() -> bool:
            return any(
                entry.raddr and entry.raddr.port == port and entry.status == "ESTABLISHED"
                for entry in psutil.Process().net_connections("tcp")
            )

        connection.recv(1)
        until(lambda: not is_served(), "the server gives the connection up")

    def test_a_silent_stream_of_events_outlives_all_times(self, api_url: str, raw: Raw) -> None:
        with httpx.Client(base_url=api_url, trust_env=False) as client:
            job = client.post("/v1/jobs", json=EMBED).json()["id"]
            connection = raw()
            connection.sendall(
                b"GET /v1/jobs/%b/events HTTP/1.1\r\nHost: localhost\r\n\r\n" % job.encode()
            )
            received = b""
            while received.count(b": still here") < 8:  # more than three times all limits
                data = connection.recv(65536)
                assert data, received
                received += data


class TestMany:
    def test_idle_connections_make_room_for_new_ones(self, raw: Raw) -> None:
        for _ in range(100):
            raw()
        connection = raw()
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")

        assert rest_of(connection).startswith(b"HTTP/1.1 200 ")

    def test_above_the_limit_the_answer_is_503(self, api_url: str, raw: Raw) -> None:
        """All others are busy with events."""
        with httpx.Client(base_url=api_url, trust_env=False) as client:
            job = client.post("/v1/jobs", json=EMBED).json()["id"]
        streams: list[socket.socket] = []
        while len(streams) < 20:
            stream = raw()
            stream.sendall(
                b"GET /v1/jobs/%b/events HTTP/1.1\r\nHost: localhost\r\n\r\n" % job.encode()
            )
            # Connections of earlier tests take up room until the API has seen them end.
            if stream.recv(65536).startswith(b"HTTP/1.1 200 "):
                streams.append(stream)
            else:
                stream.close()
        connection = raw()
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")

        received = rest_of(connection)

        assert "SLUICE_API_LIMIT_CONNECTIONS" in problem_in(received, 503)["detail"]
        assert b"retry-after: 1" in received.lower()
        streams.pop().close()
        while True:
            with closing(connect(api_url)) as connection:
                connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                if rest_of(connection).startswith(b"HTTP/1.1 200 "):
                    break


def test_headers_without_end_cost_no_memory(settings: Settings, tmp_path: Path) -> None:
    """The process itself is looked at."""
    server: Server = start_api(settings, tmp_path / "api")
    try:
        process = psutil.Process(server.pid)
        before = process.memory_info().rss
        for _ in range(5):
            with closing(connect(server.url)) as connection:
                connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n")
                assert send_until_refused(connection, b"X-Y: 1\r\n" * 8000, 64 * MIB) < 64 * MIB
        assert process.memory_info().rss - before < 32 * MIB
        assert httpx.get(f"{server.url}/healthz", trust_env=False).status_code == 200
    finally:
        server.stop()
