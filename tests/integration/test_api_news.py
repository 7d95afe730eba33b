"""Many clients that follow jobs cost no more than a few: statements and connections are counted."""

import asyncio
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from urllib.parse import urlsplit
from uuid import uuid4

import httpx
import pytest
from redis import Redis
from sqlalchemy import delete, event, select
from sqlalchemy.engine import Engine

from api.deps import REDIS_CONNECTIONS, Parts, open_parts
from shared.config import DEFAULT_EMBEDDING_MODEL, Settings
from shared.database.transaction import Ledger
from shared.redis.events import stream_key
from shared.tables import Job
from tests.api_server import served
from tests.integration.answers import EMBED, problem
from tests.waits import until

STREAMS = 80
TICKS = 100
"""More turns of the event loop than a command to Redis takes."""
WAIT_S = 120


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    return settings.model_copy(
        update={"sse_poll_s": 0.2, "sse_heartbeat_s": 30, "api_limit_streams": STREAMS + 20}
    )


class Statements:
    """Those that all engines of this process send, by their first words."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def note(self, _conn: object, _cursor: object, statement: str, *_rest: object) -> None:
        with self._lock:
            self.counts["look" if "j.id = ANY(" in statement else " ".join(statement.split())] += 1

    def of_looks(self, count: int) -> Counter[str]:
        """All statements of the time in which so many looks happen."""
        with self._lock:
            self.counts.clear()
        until(lambda: self.counts["look"] >= count, "so many looks", within_s=WAIT_S)
        with self._lock:
            return Counter(self.counts)


@pytest.fixture
def statements() -> Iterator[Statements]:
    noted = Statements()
    event.listen(Engine, "before_cursor_execute", noted.note)
    yield noted
    event.remove(Engine, "before_cursor_execute", noted.note)


@asynccontextmanager
async def stream(url: str, job_id: str) -> AsyncIterator[asyncio.StreamReader]:
    """An open stream whose first event has come."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        writer.write(f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        await asyncio.wait_for(reader.readuntil(b'"queued"}'), WAIT_S)
        yield reader
    finally:
        writer.close()


def submitted(api: httpx.Client, count: int) -> list[str]:
    ids: list[str] = api.post("/v1/jobs/batch", json={"jobs": [EMBED] * count}).json()["ids"]
    return ids


def test_idle_streams_cost_one_look_for_all_and_hear_at_once(
    api: httpx.Client, api_url: str, statements: Statements, redis_url: str
) -> None:
    ids = submitted(api, STREAMS)
    with Redis.from_url(redis_url) as redis:
        before = redis.client_list()
    blocked_before = sum("b" in connection["flags"] for connection in before)

    async def follow_all() -> None:
        async with asyncio.TaskGroup() as tasks:
            opened = asyncio.Event()
            count = 0

            async def follow(job_id: str) -> None:
                nonlocal count
                async with stream(api_url, job_id) as reader:
                    count += 1
                    if count == STREAMS:
                        opened.set()
                    await asyncio.wait_for(reader.readuntil(b"event: end"), WAIT_S)

            for job_id in ids:
                tasks.create_task(follow(job_id))
            await opened.wait()
            # The first of these looks are those of streams that have just been opened.
            await asyncio.to_thread(statements.of_looks, 3)
            looks = await asyncio.to_thread(statements.of_looks, 5)
            assert set(looks) == {"look"}, looks
            with Redis.from_url(redis_url) as redis:
                blocked = [
                    connection for connection in redis.client_list() if "b" in connection["flags"]
                ]
                assert len(blocked) - blocked_before <= 1
                assert len(redis.client_list()) - len(before) <= REDIS_CONNECTIONS
            for job_id in ids:
                await asyncio.to_thread(api.post, f"/v1/jobs/{job_id}/cancel")

    asyncio.run(follow_all())


def test_waiting_is_no_polling_either(api_url: str, ledger: Ledger, statements: Statements) -> None:
    assert ledger is not None
    headers = {"Prefer": "wait=60"}

    async def wait_all() -> None:
        async with httpx.AsyncClient(
            base_url=api_url, timeout=WAIT_S, trust_env=False, limits=httpx.Limits()
        ) as client:
            waits = [
                asyncio.create_task(client.post("/v1/jobs", json=EMBED, headers=headers))
                for _ in range(50)
            ]
            while len(listed := (await client.get("/v1/jobs?limit=200")).json()["items"]) < 50:
                await asyncio.sleep(0.05)
            await asyncio.to_thread(statements.of_looks, 3)
            counted = await asyncio.to_thread(statements.of_looks, 5)
            assert set(counted) == {"look"}, counted
            for job in listed:
                await client.post(f"/v1/jobs/{job['id']}/cancel")
            answers = await asyncio.gather(*waits)
        assert {answer.status_code for answer in answers} == {200}
        assert {answer.json()["state"] for answer in answers} == {"cancelled"}

    asyncio.run(wait_all())


def test_who_waits_for_a_job_that_the_database_has_lost_is_to_send_it_again(
    api_url: str, ledger: Ledger
) -> None:
    """The commit of such a job does not wait for the disk: a crash may take it back."""
    job = select(Job.id)

    def lose() -> None:
        def is_there() -> object:
            with ledger.read() as session:
                return session.scalar(job)

        until(is_there, "the job")
        with ledger.begin() as session:
            session.execute(delete(Job))

    calls = [
        ("/v1/jobs", EMBED, {"Prefer": "wait=60"}),
        ("/openai/v1/embeddings", {"model": DEFAULT_EMBEDDING_MODEL, "input": "one"}, {}),
    ]
    for path, body, headers in calls:
        with (
            httpx.Client(base_url=api_url, timeout=WAIT_S, trust_env=False) as client,
            ThreadPoolExecutor(1) as aside,
        ):
            waiting = aside.submit(client.post, path, json=body, headers=headers)
            lose()
            answer = waiting.result()
        assert answer.status_code == 503, answer.text
        assert answer.headers["retry-after"] == "1"
        assert "Send the request again" in answer.text


def test_above_the_limit_it_is_503_until_a_client_has_gone(
    settings: Settings, ledger: Ledger
) -> None:
    assert ledger is not None
    few = settings.model_copy(update={"api_limit_streams": 2})
    with (
        served(few) as url,
        httpx.Client(base_url=url, timeout=WAIT_S, trust_env=False) as client,
    ):
        job_id = submitted(client, 1)[0]

        async def fill() -> None:
            async with stream(url, job_id), stream(url, job_id):
                for method, path, headers, json in (
                    ("GET", f"/v1/jobs/{job_id}/events", {}, None),
                    ("POST", "/v1/jobs", {"Prefer": "wait=1"}, EMBED),
                ):
                    answer = await asyncio.to_thread(
                        client.request, method, path, headers=headers, json=json
                    )
                    body = problem(answer, 503)
                    assert "SLUICE_API_LIMIT_STREAMS" in body["detail"]
                    assert int(answer.headers["retry-after"]) > 0
                answer = await asyncio.to_thread(
                    client.post, "/models/sentence-transformers/x", json={"inputs": "a"}
                )
                assert answer.status_code == 503
                assert "SLUICE_API_LIMIT_STREAMS" in answer.json()["error"]
                # What does not wait is served as ever, and what was refused has left nothing.
                assert (await asyncio.to_thread(client.post, "/v1/jobs", json=EMBED)).is_success
                assert len(client.get("/v1/jobs").json()["items"]) == 2

        asyncio.run(fill())
        # Both have gone; the server notices.
        while True:
            with client.stream("GET", f"/v1/jobs/{job_id}/events") as answer:
                if answer.status_code == 200:
                    break


def test_followers_that_go_at_any_moment_leave_the_others_their_news(settings: Settings) -> None:
    slow = settings.model_copy(update={"sse_poll_s": WAIT_S})  # the reader has to be woken

    async def come_and_go() -> None:
        async with open_parts(slow) as parts:
            for ticks in range(TICKS):
                await follow_for(parts, ticks)
                job_id = uuid4()
                await parts.redis.xadd(stream_key(job_id), {"type": "tool", "data": "{}"})
                with parts.followers.follow(job_id, "0-0") as follower:
                    word = await follower.next(WAIT_S / 2)
                    assert word is not None, ticks
                    assert len(word.entries) == 1, ticks

    asyncio.run(come_and_go())


def test_the_server_stops_at_any_moment(settings: Settings) -> None:
    """Python 3.11 loses a cancellation that comes as a command has just been sent to Redis."""

    async def start_and_stop(ticks: int) -> None:
        async with open_parts(settings) as parts:
            await follow_for(parts, ticks)

    for ticks in range(TICKS):
        asyncio.run(asyncio.wait_for(start_and_stop(ticks), WAIT_S))


async def follow_for(parts: Parts, ticks: int) -> None:
    """Follows for so many turns of the event loop, once the reader is busy with another."""
    with parts.followers.follow(uuid4(), "0-0"):
        while not parts.followers.is_reading:
            await asyncio.sleep(0)
        with parts.followers.follow(uuid4(), "0-0"):
            for _ in range(ticks):
                await asyncio.sleep(0)
