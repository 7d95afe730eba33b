"""Erasing a conversation ends its turns, whatever happens at the same moment; and its siblings."""

from collections.abc import Callable
from threading import Barrier, Event
from uuid import UUID

import pytest
from sqlalchemy import text

from shared import conversations
from shared.config import Settings
from shared.errors import Conflict, NotFound
from shared.jobs import jobs, steps, submission
from shared.jobs.claims import Claim
from shared.jobs.submission import NewJob
from shared.kinds import registry as kinds
from shared.kinds.ingest import IngestInput
from shared.tables import Job
from shared.vocabulary import Queue, State
from tests.integration.chats import conversation, submit_chat
from tests.integration.ingestion import new_collection
from tests.integration.job_runner import (
    cancel,
    claimed,
    drain,
    in_threads,
    invariants_hold,
    job_of,
    steps_of,
    submit,
)
from workers.attempts.process import Process

PATIENCE_S = 60


def erase(process: Process, talk: UUID) -> None:
    with process.ledger.begin() as session:
        conversations.erase(session, talk, "someone")


def answer(process: Process, job_id: UUID, talk: UUID, between: Callable[[], None]) -> None:
    """End a turn as workers do; `between` is called when its messages are stored."""
    claim = claimed(process, Queue.GENERATE)
    assert claim.job_id == job_id
    end_turn(process, claim, talk, between)


def end_turn(process: Process, claim: Claim, talk: UUID, between: Callable[[], None]) -> None:
    with process.ledger.begin() as session:

        def record(_session: object) -> None:
            message = {"role": "assistant", "content": "Hello."}
            conversations.append(session, talk, [message], claim.job_id)
            between()

        assert steps.succeed(session, claim, result={}, record=record)


def test_open_and_held_turns_end(process: Process) -> None:
    talk = conversation(process)
    ids = [submit_chat(process, f"turn {n}", conversation_id=talk) for n in range(3)]
    running = claimed(process, Queue.GENERATE)
    other = submit_chat(process, "elsewhere", conversation_id=conversation(process))

    erase(process, talk)

    assert [job_of(process, id_).state for id_ in ids] == ["running", "cancelled", "cancelled"]
    assert job_of(process, ids[0]).ending == "cancelled"
    assert "erased" in str((job_of(process, ids[1]).error or {})["message"])
    with process.ledger.begin() as session:
        steps.succeed(session, running, result={"text": "too late"})
    job = job_of(process, ids[0])
    assert (job.state, job.result, job.conversation_id) == ("cancelled", None, None)
    assert all(step.state != "queued" for id_ in ids for step in steps_of(process, id_))
    assert job_of(process, other).state == "queued"
    invariants_hold(process)


def test_a_turn_that_ends_at_the_same_moment(process: Process, settings: Settings) -> None:
    """The turn holds what it has stored while the erasure begins: nobody is aborted."""
    talk = conversation(process)
    first, second = (submit_chat(process, word, conversation_id=talk) for word in ("one", "two"))
    stored, erasing = Event(), Event()

    def wait() -> None:
        stored.set()
        assert erasing.wait(PATIENCE_S)
        # Until the erasure stands at a lock of this transaction, by Postgres' own account.
        with process.ledger.engine.connect() as connection:
            waiting = text("""
                SELECT count(*) FROM pg_stat_activity
                WHERE datname = current_database() AND wait_event_type = 'Lock'
            """)
            while not connection.execute(waiting).scalar_one():
                connection.rollback()

    def work(own: Process, n: int) -> None:
        if n == 0:
            answer(own, first, talk, wait)
        else:
            assert stored.wait(PATIENCE_S)
            erasing.set()
            erase(own, talk)

    in_threads(2, settings, work)

    assert job_of(process, first).state == State.SUCCEEDED
    assert job_of(process, second).state == State.CANCELLED
    with process.ledger.read() as session:
        assert session.scalar(text("SELECT count(*) FROM conversation_messages")) == 0
        with pytest.raises(NotFound):
            conversations.get(session, talk)
    invariants_hold(process, all_ended=True)


def test_whatever_comes_together(process: Process, settings: Settings) -> None:
    """New turns, ends, cancels, redrives and the erasure, in threads: no deadlock, no orphan."""
    for _ in range(4):
        talk = conversation(process)
        ids = [submit_chat(process, str(n), conversation_id=talk) for n in range(3)]
        cancel(process, ids[2])
        claim = claimed(process, Queue.GENERATE)
        together = Barrier(5)

        def work(own: Process, n: int) -> None:
            together.wait(PATIENCE_S)  # noqa: B023 (ends before the next round)
            try:
                if n == 0:
                    end_turn(own, claim, talk, lambda: None)  # noqa: B023
                elif n == 1:
                    erase(own, talk)  # noqa: B023
                elif n == 2:
                    submit_chat(own, "another", conversation_id=talk)  # noqa: B023
                elif n == 3:
                    cancel(own, ids[1])  # noqa: B023
                else:
                    with own.ledger.begin() as session:
                        jobs.redrive(session, ids[2])  # noqa: B023
            except (NotFound, Conflict):
                pass  # they came after the erasure

        in_threads(5, settings, work)

        with process.ledger.read() as session:
            left = session.scalars(
                text("SELECT state FROM jobs WHERE state IN ('queued', 'running')")
            ).all()
        assert left == []
        invariants_hold(process, all_ended=True)


def test_batches_that_name_the_same_conversations_do_not_wait_for_each_other(
    process: Process, settings: Settings
) -> None:
    talks = [conversation(process) for _ in range(2)]
    together = Barrier(2)

    def work(own: Process, n: int) -> None:
        new = [
            NewJob(
                kind=kinds.CHAT, input={"model": "ollama/x", "messages": []}, fair_key="someone",
                conversation_id=talk,
            )
            for talk in talks[:: 1 - 2 * n] * 20
        ]  # fmt: skip
        together.wait(PATIENCE_S)
        with own.ledger.begin() as session:
            submission.submit_batch(session, new)

    in_threads(2, settings, work)
    with process.ledger.read() as session:
        assert session.scalar(text("SELECT count(*) FROM jobs")) == 80


def test_a_turn_of_an_erased_conversation_is_not_retried(process: Process) -> None:
    talk = conversation(process)
    job_id = submit_chat(process, "one", conversation_id=talk)
    erase(process, talk)
    with (
        pytest.raises(Conflict, match="erased"),
        process.ledger.begin() as session,
    ):
        jobs.redrive(session, job_id)
    assert job_of(process, job_id).state == "cancelled"


def test_jobs_on_a_collection_that_is_gone_fail_and_say_so(process: Process) -> None:
    ids = [
        submit(process, kinds.SEARCH, {"collection": "gone", "query": "q", "k": 3, "search": {}}),
        submit(process, kinds.INGEST, {
            "collection": "gone", "sources": [{"type": "text", "text": "x", "name": "n"}],
        }),
    ]  # fmt: skip
    drain(process)
    for job_id in ids:
        job: Job = job_of(process, job_id)
        assert job.state == "failed", job.result
        assert "'gone'" in str((job.error or {})["message"]), job.error
    invariants_hold(process, all_ended=True)


def test_a_file_that_is_deleted_before_its_job_runs(process: Process) -> None:
    name = new_collection(process)
    gone = "0198c0de-0000-7000-8000-000000000000"
    input_ = IngestInput.model_validate(
        {
            "collection": name,
            "sources": [
                {"type": "file", "file_id": gone},
                {"type": "text", "text": "Here.", "name": "n"},
            ],
        }
    )
    ingest = submit(process, kinds.INGEST, input_.model_dump(mode="json"))
    drain(process)
    job = job_of(process, ingest)
    assert job.state == "succeeded", job.error
    assert job.result["documents"]["failed"] == 1
    assert gone in job.result["errors"][0]["message"]
    invariants_hold(process, all_ended=True)
