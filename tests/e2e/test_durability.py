"""A job that was accepted exists; a job that was sent twice exists once."""

import uuid
from concurrent.futures import ThreadPoolExecutor, as_completed

from sluice import Client, Job
from tests.e2e.processes import until
from tests.e2e.stack import LiveStack

JOBS = 200
THREADS = 8
WAIT_S = 10.0


def test_submitting_through_crashes_of_postgres_and_of_the_api(
    stack: LiveStack, client: Client
) -> None:
    prefix = f"durable-{uuid.uuid4()}"

    def submit(number: int) -> Job:
        # Every other one waits for its end: its commit does not wait for the disk.
        return client.submit(
            "embed",
            {"texts": [f"text {number}"]},
            idempotency_key=f"{prefix}-{number}",
            wait_s=WAIT_S if number % 2 else None,
        )

    ids: dict[int, str] = {}
    with ThreadPoolExecutor(THREADS) as pool:
        futures = {pool.submit(submit, number): number for number in range(JOBS)}
        for count, future in enumerate(as_completed(futures), start=1):
            ids[futures[future]] = future.result().id
            if count == JOBS // 4:
                stack.kill_and_await("postgres")
            if count == JOBS // 2:
                stack.kill_and_await("api")

    kept = stack.sql(
        "SELECT idempotency_key, id::text FROM jobs WHERE idempotency_key LIKE %s", f"{prefix}%"
    )
    assert dict(kept) == {f"{prefix}-{number}": job_id for number, job_id in ids.items()}
    assert len(kept) == JOBS

    unfinished = "SELECT count(*) FROM jobs WHERE idempotency_key LIKE %s AND finished_at IS NULL"
    until(lambda: stack.value(unfinished, f"{prefix}%") == 0, "all jobs have ended")
    states = stack.sql(
        "SELECT DISTINCT state, jsonb_array_length(result -> 'embeddings') FROM jobs "
        "WHERE idempotency_key LIKE %s",
        f"{prefix}%",
    )
    assert states == [("succeeded", 1)]
    # Sent again after everything: still the same job.
    assert submit(0).id == ids[0]
