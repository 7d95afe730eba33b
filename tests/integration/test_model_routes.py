"""Models as routes of the queue `generate`: a worker takes steps of the models that it serves."""

from threading import Event
from uuid import UUID

import pytest
from redis import Redis
from sqlalchemy import text

from shared.jobs import jobs, queues, steps
from shared.jobs.queues import Estimate, estimate
from shared.kinds import registry as kinds
from shared.models.providers import route_of
from shared.redis.bell import list_of
from shared.tables import Worker
from shared.vocabulary import Queue
from tests.integration.chats import submit_chat
from tests.integration.job_runner import claim, handlers, job_of, make_process, submit
from workers.attempts.process import Process
from workers.rounds import Round
from workers.sweep import fail_unserved


@pytest.mark.parametrize(
    ("model", "route"),
    [
        ("extractive", "extractive"),
        ("ollama/llama3.2:3b", "ollama"),
        ("openai/gpt-5", "openai"),
        ("hf/Qwen/Qwen3-4B", "hf/Qwen/Qwen3-4B"),
        ("hf//models/한글 모델", "hf//models/한글 모델"),
    ],
)
def test_models_of_a_server_share_a_route_and_held_ones_have_their_own(
    model: str, route: str
) -> None:
    assert route_of(model) == route


def serving(process: Process, *routes: str) -> Process:
    """Another worker, with connections of the first."""
    other = Process(process.settings, "-".join(routes), routes=routes)
    other.__dict__["ledger"] = process.ledger
    return other


def lives(process: Process, *, ago_s: float = 0, concurrency: int = 4) -> None:
    """Note a generation worker as seen then."""
    with process.ledger.begin() as session:
        session.add(
            Worker(
                name=process.worker_name, hostname="h", pid=1, queues=["generate"],
                routes=list(process.routes), concurrency=concurrency,
            )
        )  # fmt: skip
        session.flush()
        session.execute(
            text("UPDATE workers SET last_seen_at = now() - make_interval(secs => :s)"),
            {"s": ago_s},
        )


def test_a_worker_claims_only_what_it_serves(process: Process) -> None:
    a, b = serving(process, "hf/a"), serving(process, "hf/b", "ollama")
    of_a = submit_chat(process, "x", model="hf/a")
    of_b = submit_chat(process, "x", model="hf/b")
    remote = submit_chat(process, "x", model="ollama/any")

    assert claim(serving(process), Queue.GENERATE) is None
    step = claim(a, Queue.GENERATE)
    assert step is not None
    assert step.job_id == of_a
    assert claim(a, Queue.GENERATE) is None
    taken = [claim(b, Queue.GENERATE), claim(b, Queue.GENERATE)]
    assert [step.job_id for step in taken if step] == [of_b, remote]


def test_the_oldest_of_several_models_comes_first(process: Process) -> None:
    both = serving(process, "hf/a", "hf/z")
    ids = [submit_chat(process, "x", model=f"hf/{name}") for name in "zaaz"]
    steps = [claim(both, Queue.GENERATE) for _ in ids]
    assert [step.job_id for step in steps if step] == ids


def test_rings_go_to_the_list_of_the_model(process: Process) -> None:
    bell = process.ledger.bell
    lives(serving(process, "hf/a", "ollama"))
    submit_chat(process, "x", model="hf/a")
    submit_chat(process, "x", model="hf/a")
    submit_chat(process, "x", model="ollama/one")

    assert bell.waiting(list_of("generate", "hf/a")) == 2
    assert bell.waiting(list_of("generate", "ollama")) == 1
    assert bell.waiting("generate") == 0
    with process.ledger.read() as session:
        assert steps.runnable(session, worker_heartbeat_s=5) == {
            "generate.hf/a": 2,
            "generate.ollama": 1,
        }
        summaries = queues.overview(session, bell, worker_heartbeat_s=5)
        (summary,) = [summary for summary in summaries if summary.name == "generate"]
    assert (summary.queued, summary.messages) == (3, 3)


def test_a_resumed_queue_rings_at_every_route(process: Process) -> None:
    lives(serving(process, "hf/a"))
    with process.ledger.begin() as session:
        queues.pause(session, Queue.GENERATE)
    submit_chat(process, "x", model="hf/a")
    with Redis.from_url(process.settings.require_redis_url()) as redis:
        redis.flushall()
    with process.ledger.begin() as session:
        queues.resume(session, process.ledger.bell, Queue.GENERATE, worker_heartbeat_s=5)
    assert process.ledger.bell.waiting("generate.hf/a") == 1


def estimated(process: Process, job_id: UUID) -> Estimate:
    with process.ledger.read() as session:
        return estimate(session, [jobs.get(session, job_id)], worker_heartbeat_s=5)[job_id]


def test_position_counts_the_model_s_own_queue(process: Process) -> None:
    lives(serving(process, "hf/a", "hf/b"))
    for _ in range(3):
        submit_chat(process, "x", model="hf/b")
    first, second = (submit_chat(process, "x", model="hf/a") for _ in range(2))
    assert (estimated(process, first).position, estimated(process, second).position) == (0, 1)


def test_a_job_whose_model_nobody_serves_says_so(process: Process) -> None:
    lives(serving(process, "hf/b"))
    estimate = estimated(process, submit_chat(process, "x", model="hf/a"))
    assert estimate.position == 0
    assert estimate.eta_s is None
    assert estimate.waiting_for is not None
    assert "sluice worker generate --model hf/a" in estimate.waiting_for
    assert estimated(process, submit_chat(process, "x", model="hf/b")).waiting_for is None


@pytest.mark.parametrize("seen_ago_s", [None, 100, 5])
def test_it_fails_after_a_while_unless_a_worker_was_seen(
    process: Process, seen_ago_s: float | None
) -> None:
    if seen_ago_s is not None:
        lives(serving(process, "hf/a"), ago_s=seen_ago_s)
    old = submit_chat(process, "x", model="hf/a")
    with process.ledger.begin() as session:
        session.execute(text("UPDATE steps SET run_after = now() - interval '61 s'"))
    young = submit_chat(process, "x", model="hf/a")
    of_rag = submit(process, kinds.RAG, {"collection": "c", "question": "q"})
    patient = make_process(process.settings, model_missing_fail_s=60)
    fail_unserved(Round(patient, handlers(), "unserved", Event()))
    patient.close()

    assert job_of(process, young).state == "queued"
    assert job_of(process, of_rag).state == "queued"
    job = job_of(process, old)
    if seen_ago_s == 5:
        assert job.state == "queued"
        return
    assert job.state == "failed"
    assert job.error is not None
    assert job.error["type"] == "ModelNotServed"
    assert "SLUICE_MODEL_MISSING_FAIL_S" in job.error["message"]
