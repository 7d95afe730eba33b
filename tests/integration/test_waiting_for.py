"""What a job waits for besides its turn is said, wherever it is shown."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import httpx
from redis import Redis
from sqlalchemy import text

from shared.errors import Unavailable
from shared.jobs import queues, steps
from shared.jobs.queues import estimate
from shared.kinds import registry as kinds
from shared.kinds.hf import HfInput, Task
from shared.tables import Worker
from shared.vocabulary import Queue
from tests.integration.answers import EMBED
from tests.integration.chats import submit_chat
from tests.integration.job_runner import claimed, doing, job_of, submit, succeed
from workers.attempts.context import Context
from workers.attempts.process import Process
from workers.attempts.runner import run


def lives(process: Process, *queues_: str, routes: tuple[str, ...] = ()) -> None:
    with process.ledger.begin() as session:
        session.add(
            Worker(
                name="w" + "-".join((*queues_, *routes)), hostname="h", pid=1,
                queues=list(queues_), routes=list(routes), concurrency=1,
            )
        )  # fmt: skip


def reason(process: Process, job_id: UUID) -> str | None:
    with process.ledger.read() as session:
        estimates = estimate(session, [job_of(process, job_id)], worker_heartbeat_s=5)
    return estimates[job_id].waiting_for


def test_nothing_but_its_turn(process: Process) -> None:
    lives(process, "embed")
    assert reason(process, submit(process)) is None


def test_a_paused_queue(process: Process) -> None:
    lives(process, "embed")
    with process.ledger.begin() as session:
        queues.pause(session, Queue.EMBED)
    why = reason(process, submit(process))
    assert why is not None
    assert "'embed' is paused since 2" in why
    assert "POST /v1/queues/embed/resume" in why


def test_a_job_under_way_whose_next_step_stands_in_a_paused_queue(process: Process) -> None:
    lives(process, "embed", "query")
    job_id = submit(process)
    succeed(process, claimed(process), children=[steps.NewStep(name="x", queue=Queue.QUERY)])
    assert job_of(process, job_id).state == "running"
    assert reason(process, job_id) is None
    with process.ledger.begin() as session:
        queues.pause(session, Queue.QUERY)
    assert "'query' is paused" in str(reason(process, job_id))


def test_a_queue_that_nobody_serves(process: Process) -> None:
    lives(process, "query")
    assert "sluice worker cpu" in str(reason(process, submit(process)))
    input_ = HfInput(task=Task("fill-mask"), model="a/b", inputs="[MASK]")
    hf = submit(process, kinds.HF, input_.model_dump(mode="json"))
    assert "sluice worker hf" in str(reason(process, hf))


def test_a_model_that_nobody_serves(process: Process) -> None:
    lives(process, "generate", routes=("hf/b",))
    job_id = submit_chat(process, "x", model="hf/a")
    assert "sluice worker generate --model hf/a" in str(reason(process, job_id))
    assert reason(process, submit_chat(process, "x", model="hf/b")) is None


def test_a_time_that_has_not_come(process: Process) -> None:
    lives(process, "embed")
    at = datetime.now(UTC) + timedelta(hours=2)
    why = str(reason(process, submit(process, run_after=at)))
    assert at.strftime("%Y-%m-%dT%H:%M:%SZ") in why
    assert "run_after" in why


def test_the_reason_why_the_last_attempt_failed_and_when_the_next_one_comes(
    process: Process,
) -> None:
    lives(process, "embed")
    job_id = submit(process)
    words = "Ollama (SLUICE_OLLAMA_URL) does not answer."

    def fail(_context: Context) -> None:
        raise Unavailable(words, retry_after_s=100)

    run(process, doing(fail), claimed(process))

    assert job_of(process, job_id).state == "running"
    why = str(reason(process, job_id))
    assert why.startswith(words)
    assert "The next attempt begins in " in why
    with process.ledger.begin() as session:
        session.execute(text("UPDATE steps SET run_after = now()"))
    assert "as soon as a worker is free" in str(reason(process, job_id))
    claimed(process)
    assert reason(process, job_id) is None


def test_a_row_whose_time_python_has_not(process: Process) -> None:
    lives(process, "embed")
    early, late = submit(process), submit(process)
    with process.ledger.begin() as session:
        session.execute(
            text("UPDATE steps SET run_after = '0044-03-15 BC' WHERE job_id = :id"), {"id": early}
        )
        session.execute(
            text("UPDATE steps SET run_after = '20000-01-01' WHERE job_id = :id"), {"id": late}
        )
    assert reason(process, early) is None
    assert "20000-01-01" in str(reason(process, late))
    with process.ledger.read() as session:
        (summary,) = [
            summary
            for summary in queues.overview(session, process.ledger.bell)
            if summary.name == "embed"
        ]
    assert summary.queued == 2


def test_infinite_times_are_no_fault(process: Process, api: httpx.Client) -> None:
    early, late = submit(process), submit(process)
    with process.ledger.begin() as session:
        for job_id, moment in ((early, "-infinity"), (late, "infinity")):
            session.execute(
                text("UPDATE steps SET run_after = CAST(:at AS timestamptz) WHERE job_id = :id"),
                {"id": job_id, "at": moment},
            )
        session.execute(text("INSERT INTO queues (name, paused_at) VALUES ('embed', 'infinity')"))

    reasons = {job["id"]: job["waiting_for"] for job in api.get("/v1/jobs").json()["items"]}

    assert "paused since infinity" in reasons[str(early)]
    assert "infinity, never." in reasons[str(late)]
    for path in ("/v1/queues", "/readyz", "/metrics"):
        assert api.get(path).status_code in (200, 503), path


def test_it_is_in_the_job_the_list_and_readyz(api: httpx.Client) -> None:
    api.post("/v1/queues/embed/pause")
    job = api.post("/v1/jobs", json=EMBED).json()

    shown = [api.get(f"/v1/jobs/{job['id']}").json(), *api.get("/v1/jobs").json()["items"]]
    assert all("paused since" in job["waiting_for"] for job in shown)
    ready = api.get("/readyz").json()["checks"]["queues"]
    assert ready["ok"] is True
    assert ready["detail"].startswith("paused: embed (since 2")
    api.post("/v1/queues/embed/resume")
    assert api.get("/readyz").json()["checks"]["queues"]["detail"] == "none is paused"


def test_a_model_that_nobody_serves_leaves_no_list_in_redis(
    process: Process, redis_url: str
) -> None:
    """As many as are misspelt: none has a list, before and after the jobs have ended."""
    for n in range(30):
        submit_chat(process, "x", model=f"hf/typo-{n}")
    with Redis.from_url(redis_url) as redis:
        assert redis.keys("generate*") == []
        lives(process, "generate", routes=("hf/typo-7",))
        submit_chat(process, "x", model="hf/typo-7")
        assert redis.keys("generate*") == [b"generate.hf/typo-7"]
        # Its worker may go for good.
        assert 0 < int(redis.ttl("generate.hf/typo-7")) <= process.settings.rings_keep_s


def test_a_list_keeps_no_more_messages_than_are_of_use(process: Process, redis_url: str) -> None:
    bell = process.ledger.bell
    limit = process.settings.rings_limit_messages
    bell.ring("embed", limit + 5)
    assert bell.waiting("embed") == limit
    bell.ring("embed")
    assert bell.waiting("embed") == limit
    with Redis.from_url(redis_url) as redis:
        assert redis.ttl("embed") == -1
