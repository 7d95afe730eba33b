"""Waiting for a job while what carries the news is killed: its end comes all the same."""

import json
from concurrent.futures import ThreadPoolExecutor

from sluice import Client, State
from tests.e2e.processes import until
from tests.e2e.stack import LiveStack


def test_waiting_survives_restarts_of_the_api_and_of_redis(
    stack: LiveStack, client: Client
) -> None:
    client.pause("embed")  # so that the job cannot end before the servers have been killed
    job = client.submit("embed", {"texts": ["news"]})
    with (
        stack.start("jobs", "watch", job.id) as watched,
        stack.start("jobs", "watch", job.id, "--json") as scripted,
        ThreadPoolExecutor(1) as pool,
    ):
        port = stack.part("api").port
        assert port is not None

        def follow() -> bool:
            return watched.is_connected(port) and scripted.is_connected(port)

        try:
            waited = pool.submit(client.wait, job.id)
            until(follow, "both commands follow the job")
            stack.kill_and_await("api")
            until(follow, "they follow it again")
            stack.lose_redis()
            assert not waited.done()
            assert watched.is_running()
            assert scripted.is_running()
        finally:
            client.resume("embed")
        ended = waited.result()
        shown, lines = watched.finish(), scripted.finish()
    assert ended.state is State.SUCCEEDED
    assert ended.result is not None
    assert shown.code == 0, shown.err
    assert "succeeded" in shown.out
    assert lines.code == 0, lines.err
    last = json.loads(lines.out.splitlines()[-1])
    assert last["event"] == "end"
    assert last["data"]["state"] == "succeeded"


def test_prefer_wait_answers_with_the_end_or_with_the_job_as_it_is(
    stack: LiveStack, client: Client
) -> None:
    body = {"kind": "embed", "input": {"texts": ["at once"]}}
    with stack.http() as http:
        done = http.post("/v1/jobs", json=body, headers={"Prefer": "wait=60"})
        assert done.status_code == 200, done.text
        assert done.json()["state"] == "succeeded"
        assert done.json()["lane"] == "interactive"
        assert done.headers["preference-applied"] == "wait=60"
        client.pause("embed")
        try:
            late = http.post("/v1/jobs", json=body, headers={"Prefer": "wait=1"})
            assert late.status_code == 202, late.text
            assert late.json()["state"] == "queued"
            assert late.headers["location"] == f"/v1/jobs/{late.json()['id']}"
        finally:
            client.resume("embed")
    assert client.wait(late.json()["id"]).state is State.SUCCEEDED


def test_waiting_ends_without_redis_news(stack: LiveStack, client: Client) -> None:
    """The stream of a job that has ended is gone; its end still comes, from Postgres."""
    job = client.submit("embed", {"texts": ["old news"]}, wait_s=60).require_success()
    with stack.redis() as redis:
        redis.flushall()
    events = list(client.events(job.id))
    assert events[-1].event == "end"
    assert events[-1].data["state"] == "succeeded"
    assert client.wait(job.id).result == job.result
