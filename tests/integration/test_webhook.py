"""The webhook step against a real HTTP server on the loopback."""

import base64
import hashlib
import hmac
import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from uuid import UUID

import httpx
import pytest

from shared.config import Settings
from shared.database.transaction import Ledger
from shared.jobs import jobs
from tests.integration.job_runner import (
    cancel,
    doing,
    drain,
    handlers,
    invariants_hold,
    job_of,
    make_process,
    steps_of,
    submit,
)
from tests.servers import free_port
from workers.attempts.process import Process
from workers.attempts.runner import Handlers

KEY = b"a key of twenty-four byt"
SECRET = "whsec_" + base64.b64encode(KEY).decode()


@pytest.fixture
def make(settings: Settings, ledger: Ledger) -> Iterator[Callable[..., Process]]:  # noqa: ARG001 (empty tables)
    """Processes with settings of their own."""
    made: list[Process] = []

    def process(**changes: Any) -> Process:
        made.append(make_process(settings, **changes))
        return made[-1]

    yield process
    for opened in made:
        opened.close()


@dataclass
class Receiver:
    url: str
    answers: list[int] = field(default_factory=list)
    """What to answer, in turn; 200 when used up."""
    got: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=lambda: {"content-length": "0"})
    body: Iterable[bytes] = ()
    sent: int = 0


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            hook.got.append(({k.lower(): v for k, v in self.headers.items()}, body))
            self.send_response(hook.answers.pop(0) if hook.answers else 200)
            for name, value in hook.headers.items():
                self.send_header(name, value)
            self.end_headers()
            with suppress(OSError):  # the client has what it wants, and is gone
                for piece in hook.body:
                    self.wfile.write(piece)
                    hook.sent += len(piece)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hook = Receiver(f"http://127.0.0.1:{server.server_port}/hook?a=b")
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield hook
    server.shutdown()
    thread.join()
    server.server_close()


def table() -> Handlers:
    """Embedding that does nothing, and the real webhook."""
    return {**handlers(), **doing(lambda _: {"big": "result"})}


def is_signed(headers: dict[str, str], body: bytes, key: bytes) -> bool:
    """As the specification says a receiver checks: any of the signatures may match."""
    content = b".".join(
        [headers["webhook-id"].encode(), headers["webhook-timestamp"].encode(), body]
    )
    expected = base64.b64encode(hmac.new(key, content, hashlib.sha256).digest()).decode()
    signatures = [signature.split(",", 1) for signature in headers["webhook-signature"].split(" ")]
    return any(
        version == "v1" and hmac.compare_digest(expected, sig) for version, sig in signatures
    )


def test_the_end_of_a_job_is_sent_once_and_signed(process: Process, receiver: Receiver) -> None:
    job_id = submit(
        process, webhook={"url": receiver.url, "secret": SECRET}, metadata={"ticket": "대한 7"}
    )
    drain(process, table())

    ((headers, body),) = receiver.got
    assert headers["content-type"] == "application/json"
    assert is_signed(headers, body, KEY)
    assert not is_signed(headers, body + b" ", KEY)
    assert not is_signed(headers, body, b"another key")
    event = json.loads(body)
    assert event["type"] == "job.ended"
    assert event["data"]["id"] == str(job_id)
    assert event["data"]["state"] == "succeeded"
    assert event["data"]["metadata"] == {"ticket": "대한 7"}
    assert "result" not in event["data"]
    assert datetime.fromisoformat(event["timestamp"]) == job_of(process, job_id).finished_at
    invariants_hold(process, all_ended=True)


def test_a_secret_that_is_not_base64_is_the_key_itself(
    process: Process, receiver: Receiver
) -> None:
    submit(process, webhook={"url": receiver.url, "secret": "plain words"})
    drain(process, table())

    ((headers, body),) = receiver.got
    assert is_signed(headers, body, b"plain words")


def test_without_a_secret_there_is_no_signature(process: Process, receiver: Receiver) -> None:
    submit(process, webhook={"url": receiver.url})
    drain(process, table())

    ((headers, _),) = receiver.got
    assert "webhook-signature" not in headers
    assert headers["webhook-id"]


@pytest.mark.parametrize("first", [500, 404, 302, 429])
def test_what_is_not_taken_is_sent_again_under_the_same_id(
    process: Process, receiver: Receiver, first: int
) -> None:
    receiver.answers = [first, 200]
    job_id = submit(process, webhook={"url": receiver.url, "secret": SECRET})
    drain(process, table())

    assert len(receiver.got) == 2
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 1
    assert all(is_signed(headers, body, KEY) for headers, body in receiver.got)
    assert [step.state for step in steps_of(process, job_id)] == ["succeeded", "succeeded"]


def test_a_receiver_that_says_gone_is_left_alone(process: Process, receiver: Receiver) -> None:
    receiver.answers = [410]
    job_id = submit(process, webhook={"url": receiver.url})
    drain(process, table())

    assert len(receiver.got) == 1
    hook = steps_of(process, job_id)[1]
    assert hook.error is not None
    assert (hook.state, hook.error["type"]) == ("failed", "Permanent")
    assert job_of(process, job_id).state == "succeeded"


def test_a_receiver_that_never_takes_it_does_not_change_the_job(
    process: Process, receiver: Receiver
) -> None:
    receiver.answers = [500] * 99
    job_id = submit(process, webhook={"url": receiver.url}, max_attempts=3)
    drain(process, table())

    assert len(receiver.got) == 3
    job = job_of(process, job_id)
    assert (job.state, job.dead, job.error, job.open_steps) == ("succeeded", False, None, 0)
    invariants_hold(process, all_ended=True)


def test_nobody_at_the_address_is_tried_again(process: Process) -> None:
    job_id = submit(process, webhook={"url": f"http://127.0.0.1:{free_port()}/"}, max_attempts=2)
    drain(process, table())

    hook = steps_of(process, job_id)[1]
    assert (hook.state, hook.attempt) == ("failed", 2)
    assert job_of(process, job_id).state == "succeeded"


@pytest.mark.parametrize(
    "webhook",
    [{"url": "http://127.0.0.1:port/"}, {"url": "http://127.0.0.1:9/", "secret": "whsec_abc"}],
    ids=["url", "secret"],
)
def test_what_cannot_work_is_not_tried_again(process: Process, webhook: dict[str, str]) -> None:
    job_id = submit(process, webhook=webhook)
    drain(process, table())

    hook = steps_of(process, job_id)[1]
    assert hook.error is not None
    assert (hook.state, hook.attempt, hook.error["type"]) == ("failed", 1, "Permanent")


def test_cancels_and_failures_are_sent_too(process: Process, receiver: Receiver) -> None:
    cancelled = submit(process, webhook={"url": receiver.url})
    cancel(process, cancelled)
    drain(process, table())
    submit(process, webhook={"url": receiver.url}, max_attempts=1)

    def fail(_: object) -> None:
        raise RuntimeError("a bug")

    drain(process, {**handlers(), **doing(fail)})

    payloads = [json.loads(body)["data"] for _, body in receiver.got]
    assert [payload["state"] for payload in payloads] == ["cancelled", "failed"]
    assert payloads[1]["error"] == {"type": "RuntimeError", "message": "RuntimeError: a bug"}


def test_the_end_of_a_redriven_job_is_another_message(process: Process, receiver: Receiver) -> None:
    """Receivers drop what has an id that they know; a second failure is no double."""
    job_id = submit(process, webhook={"url": receiver.url})
    for _ in range(2):
        cancel(process, job_id)
        drain(process, table())
        with process.ledger.begin() as session:
            jobs.redrive(session, job_id)
    drain(process, table())

    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == 3


def hook_of(process: Process, job_id: UUID) -> tuple[str, int, str, str]:
    """State and attempt of the webhook's step, and its error."""
    step = steps_of(process, job_id)[1]
    assert step.error is not None
    return step.state, step.attempt, step.error["type"], step.error["message"]


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.1", "2130706433", "0x7f000001", "[::ffff:127.0.0.1]", "[::1]", "localhost",
     "10.0.0.7", "169.254.169.254", "[fec0::1]", "0.0.0.0"],
)  # fmt: skip
def test_a_receiver_in_the_private_network_is_not_reached(
    make: Callable[..., Process], receiver: Receiver, host: str
) -> None:
    process = make(webhook_allow_private=False)
    job_id = submit(process, webhook={"url": receiver.url.replace("127.0.0.1", host)})
    drain(process, table())

    state, attempt, type_, message = hook_of(process, job_id)
    assert (state, attempt, type_) == ("failed", 1, "Permanent")
    assert "SLUICE_WEBHOOK_ALLOW_PRIVATE" in message
    assert receiver.got == []
    assert job_of(process, job_id).state == "succeeded"


def test_the_metadata_of_clouds_is_not_reached_even_where_private_addresses_are(
    process: Process,
) -> None:
    job_id = submit(process, webhook={"url": "http://169.254.169.254/latest/meta-data/"})
    drain(process, table())
    assert hook_of(process, job_id)[2] == "Permanent"


def test_a_redirect_is_not_followed(process: Process, receiver: Receiver) -> None:
    receiver.answers = [307]
    receiver.headers = {"location": receiver.url.replace("/hook", "/other"), "content-length": "0"}
    submit(process, webhook={"url": receiver.url}, max_attempts=1)
    drain(process, table())
    assert len(receiver.got) == 1


@pytest.mark.parametrize(
    "headers",
    [{"transfer-encoding": "chunked"}, {"content-encoding": "gzip", "content-length": "999999999"}],
    ids=["endless", "packed"],
)
def test_the_body_of_the_answer_is_not_read(
    process: Process, receiver: Receiver, headers: dict[str, str]
) -> None:
    """The receiver stops where the buffers of the connection are full, or at the closed end."""
    receiver.headers = headers
    piece = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    receiver.body = itertools.repeat(piece, 1000)
    job_id = submit(process, webhook={"url": receiver.url})
    drain(process, table())
    assert steps_of(process, job_id)[1].state == "succeeded"
    assert receiver.sent < 500 * len(piece)


def test_a_receiver_that_drips_its_headers_has_a_time_in_all(
    make: Callable[..., Process],
) -> None:
    """Each byte comes well within any timeout of a read."""
    gone = threading.Event()

    def drip(connection: socket.socket) -> None:
        with suppress(OSError), connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nx-slow: ")
            while not gone.wait(0.02):
                connection.sendall(b"a")

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=lambda: drip(server.accept()[0]))
        thread.start()
        process = make(webhook_timeout_s=0.3)
        job_id = submit(
            process,
            webhook={"url": f"http://127.0.0.1:{server.getsockname()[1]}/"},
            max_attempts=1,
        )
        drain(process, table())
        process.close()
        gone.set()
        thread.join()
    state, attempt, type_, message = hook_of(process, job_id)
    assert (state, attempt, type_) == ("failed", 1, "Retryable")
    assert "took longer than 0.3 s" in message


@pytest.mark.parametrize(
    "url",
    ["http://127.0.0.1/", "http://2130706433/", "http://[::ffff:127.0.0.1]/", "http://localhost/",
     "http://x.localhost:8000/", "https://169.254.169.254/", "http://192.168.1.1/",
     "http://user:pw@example.org/", "http://user@example.org/"],
)  # fmt: skip
def test_the_api_refuses_what_a_url_spells_out(api: httpx.Client, url: str) -> None:
    job = {"kind": "embed", "input": {"texts": ["a"]}, "webhook": {"url": url}}
    answer = api.post("/v1/jobs", json=job)
    assert answer.status_code == 422
    assert "webhook.url" in answer.json()["detail"]
    batch = api.post("/v1/jobs/batch", json={"jobs": [job]})
    assert batch.status_code == 422


def test_the_api_takes_names_and_public_addresses(api: httpx.Client) -> None:
    for url in ("https://example.org/hook", "http://8.8.8.8/", "http://[2606:4700::1111]/"):
        job = {"kind": "embed", "input": {"texts": ["a"]}, "webhook": {"url": url}}
        assert api.post("/v1/jobs", json=job).status_code == 202
