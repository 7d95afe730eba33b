"""Workers that die in the middle of a step: tried again, and in the end given up with a reason."""

import pytest

from sluice import Client, Job, State
from tests.e2e.processes import until
from tests.e2e.stack import LiveStack

# Long enough to be caught at it on most machines, small enough to be done soon.
TEXTS = [f"Text {n}: " + "lanterns, harbours and the river in spring. " * 6 for n in range(500)]
DOUBLINGS = 4


def test_a_step_whose_worker_was_killed_runs_again(stack: LiveStack, client: Client) -> None:
    job = _job_that_lost_workers(stack, client, losses=1, max_attempts=3)
    ended = client.wait(job.id)
    assert ended.state is State.SUCCEEDED, ended.error
    assert ended.attempt == 2
    assert ended.result is not None


def test_a_step_that_kills_its_worker_ends_as_a_dead_letter(
    stack: LiveStack, client: Client
) -> None:
    job = _job_that_lost_workers(stack, client, losses=2, max_attempts=2)
    ended = client.wait(job.id)
    assert ended.state is State.FAILED
    assert ended.attempt == 2
    assert ended.error is not None
    assert ended.error.type == "WorkerLost"
    assert "worker" in ended.error.message
    dead = stack.sluice_json("jobs", "--dead")["items"]
    assert job.id in [entry["id"] for entry in dead]

    done = stack.sluice("jobs", "retry", job.id)
    assert done.code == 0, done.err
    assert client.wait(job.id).state is State.SUCCEEDED
    assert job.id not in [entry.id for entry in client.jobs(dead=True)]


def test_a_busy_worker_notices_that_redis_was_away(stack: LiveStack, client: Client) -> None:
    """Its slots are taken when Redis goes, and what it has fetched begins while that is away."""
    jobs = [client.submit("embed", {"texts": TEXTS[:120]}) for _ in range(7)]
    running = "SELECT count(*) FROM steps WHERE queue = 'embed' AND state = 'running'"
    until(lambda: stack.value(running) == 2, "both slots are taken")
    ended = "SELECT count(*) FROM jobs WHERE id = ANY(%s::uuid[]) AND finished_at IS NOT NULL"
    with stack.supervisor_held():
        stack.kill("redis")
        until(lambda: stack.value(ended, [job.id for job in jobs]) >= 2, "two are done")
        until(lambda: stack.value(running) == 0, "what had been fetched is done")
    for job in jobs:
        assert client.wait(job.id).state is State.SUCCEEDED


def test_answers_wait_for_a_killed_generation_worker(stack: LiveStack, client: Client) -> None:
    client.ingest("generation", texts={"note.md": "The archive opens at nine every morning."})
    client.pause("generate")  # so that the answers are still to be made when the worker dies
    try:
        input_ = {"collection": "generation", "question": "When does the archive open?"}
        jobs = [client.submit_untyped("rag", input_) for _ in range(5)]
        waiting = "SELECT count(*) FROM steps WHERE name = 'rag.answer' AND state = 'queued'"
        until(lambda: stack.value(waiting) == len(jobs), "the passages have been found")
        before = stack.kill("generate-1", group=True)
    finally:
        client.resume("generate")
    for job in jobs:
        ended = client.wait(job.id)
        assert ended.state is State.SUCCEEDED, ended.error
        assert "nine" in (ended.result or {})["answer"]
    assert stack.part("generate-1").restarts > before


def test_a_killed_beat_comes_back_and_sweeps(stack: LiveStack, client: Client) -> None:
    stack.kill_and_await("beat")
    swept = "SELECT swept_at FROM queues WHERE name = 'control'"
    back = stack.value(swept)
    until(lambda: stack.value(swept) > back, "the sweeper runs again")
    # Only the sweeper rings for a job that is to run later.
    with stack.redis() as redis:
        redis.flushall()
    job = client.submit("embed", {"texts": ["after beat came back"]})
    assert client.wait(job.id).state is State.SUCCEEDED


@pytest.mark.parametrize("name", ["chroma", "redis", "postgres"])
def test_a_search_waits_for_a_killed_server(stack: LiveStack, client: Client, name: str) -> None:
    collection = f"outage-{name}"
    client.ingest(collection, texts={"note.md": "The orchard is behind the mill."})
    client.pause("query")
    try:
        input_ = {"collection": collection, "query": "Where is the orchard?"}
        job = client.submit_untyped("search", input_)
        stack.kill(name)
    finally:
        client.resume("query")
    ended = client.wait(job.id)
    assert ended.state is State.SUCCEEDED, ended.error
    assert [hit["source"] for hit in (ended.result or {})["hits"]] == ["note.md"]
    stack.until_whole()
    stack.check_agreement(collection, chunks=1)


def _job_that_lost_workers(
    stack: LiveStack, client: Client, *, losses: int, max_attempts: int
) -> Job:
    """A job whose worker was killed in each of its first attempts.

    Where the machine is done before it is caught at it, it is given twice as much.
    """
    for doubling in range(DOUBLINGS + 1):
        job = client.submit("embed", {"texts": TEXTS * 2**doubling}, max_attempts=max_attempts)
        attempts = range(1, losses + 1)
        if all(stack.kill_pool_at_work(job.id, attempt=attempt) for attempt in attempts):
            return job
        client.wait(job.id)
    raise AssertionError(f"{len(TEXTS) * 2**DOUBLINGS} texts were embedded at once")
