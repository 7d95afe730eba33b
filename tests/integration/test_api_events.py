"""`GET /v1/jobs/{id}/events`: order, resuming, ends, and life without Redis' memory."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import httpx
import pytest
from redis import Redis

from shared.config import Settings
from shared.database.transaction import Ledger
from shared.jobs import jobs, steps
from shared.jobs.claims import Claim
from shared.redis.events import Event, EventType, stream_key
from tests.integration.event_stream import EventStream

EMBED = {"kind": "embed", "input": {"texts": ["a"]}}


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    """Postgres is asked often, so that the tests need not wait long for what Redis lost."""
    return settings.model_copy(update={"sse_poll_s": 0.2, "sse_heartbeat_s": 0.3})


@pytest.fixture
def job_id(api: httpx.Client) -> str:
    return str(api.post("/v1/jobs", json=EMBED).json()["id"])


def progress(ledger: Ledger, job_id: str, done: int) -> None:
    with ledger.begin() as session:
        if done == 0:
            jobs.set_total(session, UUID(job_id), 3, "texts")
        else:
            jobs.advance(session, UUID(job_id), 1)


def test_a_job_is_followed_from_queued_to_its_end(
    job_id: str,
    follow: Callable[..., EventStream],
    claim: Callable[[str], Claim],
    ledger: Ledger,
    api: httpx.Client,
) -> None:
    reader = follow(job_id)
    assert reader.response.headers["content-type"].startswith("text/event-stream")
    assert reader.response.headers["cache-control"] == "no-store"
    assert reader.response.headers["x-accel-buffering"] == "no"

    assert next(reader)[1:] == ("state", {"state": "queued"})
    step = claim("embed")
    assert next(reader)[1:] == ("state", {"state": "running"})
    for done in range(2):
        progress(ledger, job_id, done)
        assert next(reader)[1:] == ("progress", {"done": done, "total": 3, "unit": "texts"})
    called = {"id": "call_0", "name": "calculator", "result": "글\n"}
    ledger.events.publish([Event(job_id=UUID(job_id), type=EventType.TOOL, data=called)])
    assert next(reader)[1:] == ("tool", called)
    with ledger.begin() as session:
        steps.succeed(session, step, result={"model": "m"})
    _, event, data = next(reader)
    assert event == "end"
    assert data == api.get(f"/v1/jobs/{job_id}").json()
    assert list(reader) == []


def test_a_stream_is_resumed_after_the_last_event_seen(
    job_id: str, follow: Callable[..., EventStream], claim: Callable[[str], Claim], ledger: Ledger
) -> None:
    claim("embed")
    progress(ledger, job_id, 0)
    first = follow(job_id)
    assert next(first)[1] == "state"
    seen, event, _ = next(first)
    assert event == "progress"
    first.response.close()
    for done in (1, 2):
        progress(ledger, job_id, done)

    again = follow(job_id, seen)

    assert [next(again)[2]["done"] for _ in range(2)] == [1, 2]


def test_an_ended_job_gets_its_end_at_once_and_then_204(
    job_id: str, follow: Callable[..., EventStream], finish: Callable[..., Claim], redis_url: str
) -> None:
    finish("embed", {"model": "m"})

    for lose in (False, True):
        if lose:
            with Redis.from_url(redis_url) as redis:
                redis.flushall()
        received = list(follow(job_id))
        assert [event for _, event, _ in received][-1] == "end"
        assert received[-1][2]["result"] == {"model": "m"}
        assert follow(job_id, received[-1][0]).response.status_code == 204


def test_what_redis_lost_comes_from_postgres(
    job_id: str,
    follow: Callable[..., EventStream],
    claim: Callable[[str], Claim],
    ledger: Ledger,
    redis_url: str,
) -> None:
    reader = follow(job_id)
    assert next(reader)[1:] == ("state", {"state": "queued"})
    step = claim("embed")
    assert next(reader)[1:] == ("state", {"state": "running"})
    with Redis.from_url(redis_url) as redis:
        progress(ledger, job_id, 0)
        progress(ledger, job_id, 1)
        redis.delete(stream_key(UUID(job_id)))
        # Whether or not the reader was quick enough for the stream, it learns how far it is.
        while next(reader)[2] != {"done": 1, "total": 3, "unit": "texts"}:
            pass
        with ledger.begin() as session:
            steps.succeed(session, step, result={})
        redis.delete(stream_key(UUID(job_id)))

    assert next(reader)[1] == "end"


def test_a_redriven_job_is_followed_to_its_new_end(
    job_id: str,
    follow: Callable[..., EventStream],
    finish: Callable[..., Claim],
    api: httpx.Client,
) -> None:
    api.post(f"/v1/jobs/{job_id}/cancel")
    old_end, event, data = list(follow(job_id))[-1]
    assert (event, data["state"]) == ("end", "cancelled")
    api.post(f"/v1/jobs/{job_id}/retry")

    reader = follow(job_id, old_end)
    assert next(reader)[1:] == ("state", {"state": "queued"})
    finish("embed", {"model": "m"})

    events = list(reader)
    # The row and the stream tell the same; which comes first is chance.
    assert {event for _, event, _ in events[:-1]} == {"state"}
    assert events[-2][2] == {"state": "running"}
    assert events[-1][1] == "end"
    assert events[-1][2]["state"] == "succeeded"


@pytest.mark.parametrize(
    "fields",
    [
        {b"type": b"tool"},
        {b"else": b"1"},
        {b"type": b"tool", b"data": b"\xff{"},
        {b"type": b"state", b"data": b"[" * 100_000},
        {b"type": b"progress", b"data": b"1"},
        {b"type": b"token", b"data": b'{"step": 1}'},
    ],
)
def test_an_entry_that_cannot_be_read_is_passed_over(
    fields: dict[Any, Any],
    job_id: str,
    follow: Callable[..., EventStream],
    ledger: Ledger,
    redis_url: str,
) -> None:
    """By this stream and by those of others, which the same task reads for."""
    reader = follow(job_id)
    next(reader)
    with Redis.from_url(redis_url) as redis:
        redis.xadd(stream_key(UUID(job_id)), fields)
    called = {"id": "call_0", "name": "calculator", "result": "1"}
    ledger.events.publish([Event(job_id=UUID(job_id), type=EventType.TOOL, data=called)])
    assert next(reader)[1:] == ("tool", called)


def test_silence_is_broken_by_comments(
    job_id: str, follow: Callable[..., EventStream], api: httpx.Client
) -> None:
    reader = follow(job_id)
    next(reader)
    reader.read_comments(2)
    api.post(f"/v1/jobs/{job_id}/cancel")
    assert next(reader)[1] == "end"


@pytest.mark.parametrize("last", ["nonsense", "0", "99999999999999999999999-1"])
def test_a_last_event_id_of_nobody_starts_from_the_beginning(
    job_id: str, follow: Callable[..., EventStream], last: str
) -> None:
    assert next(follow(job_id, last))[1:] == ("state", {"state": "queued"})
