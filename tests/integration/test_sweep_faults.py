"""Rows that cannot be handled, and parts that fail or hang: the rest of the sweep goes on."""

import json
import socket
from collections.abc import Iterator
from threading import Event
from uuid import UUID

import httpx
import numpy as np
import pytest
from sqlalchemy import select, text

from shared.config import Settings
from shared.documents.documents import chunk_id
from shared.jobs import jobs, sweeps
from shared.kinds import registry as kinds
from shared.tables import SweepFault, VectorIndex, new_id
from shared.vocabulary import Queue
from tests.integration.ingestion import (
    ingest,
    load_all,
    new_collection,
    order,
    stores_agree,
    vector_ids,
)
from tests.integration.job_runner import (
    PATIENCE_S,
    cancel,
    claimed,
    invariants_hold,
    job_of,
    make_process,
    submit,
    submit_many,
)
from tests.integration.sweeps import change, sweep
from tests.waits import until
from workers.app import CPU_QUEUES, GENERATE_QUEUES, failure_handlers, handlers_of
from workers.attempts.process import Process
from workers.ingest.erasure import Garbage, StrayVectors, drop_indexes
from workers.retrieval.servers import store_of
from workers.retrieval.store import VectorEntry
from workers.rounds import Round
from workers.sweep import TABLES, Sweeper, end_overdue, take_back

ENDED = "UPDATE steps SET lease_until = now() - interval '1 s' WHERE state = 'running'"
DEEP = "repeat('[', 1000) || repeat(']', 1000)"
BEYOND = ["'0044-03-15 00:00+00 BC'", "'10000-01-01 00:00+00'", "'infinity'", "'-infinity'"]


def round_of(process: Process, part: str) -> Round:
    return Round(process, failure_handlers(), part, Event())


def faults(process: Process) -> dict[str, str]:
    with process.ledger.read() as session:
        return {fault.item: fault.message for fault in sweeps.faults(session, limit=100)}


def lost_load_step(process: Process) -> UUID:
    """An ingest job whose load step lost its worker in its last attempt."""
    job_id = order(process, new_collection(process), {"a": "one"}, fields={"max_attempts": 1})
    with process.ledger.begin() as session:
        session.execute(text("UPDATE steps SET state = 'succeeded' WHERE name = 'ingest.plan'"))
        session.execute(
            text("""
                INSERT INTO steps (job_id, name, queue, lane, fair_key, state, attempt,
                    max_attempts, payload, lease_until)
                SELECT id, 'ingest.load', 'ingest', lane, fair_key, 'running', 1, 1,
                    '{"ordinals": [0]}', now() - interval '1 s' FROM jobs WHERE id = :id
            """),
            {"id": job_id},
        )
        session.execute(text("UPDATE jobs SET state = 'running' WHERE id = :id"), {"id": job_id})
    return job_id


@pytest.mark.parametrize("moment", BEYOND)
@pytest.mark.parametrize("column", ["run_after", "created_at", "started_at"])
def test_a_date_beyond_the_calendar_stops_neither_the_job_nor_the_sweep(
    process: Process, column: str, moment: str
) -> None:
    bad, good = submit(process, max_attempts=1), submit(process, max_attempts=1)
    claimed(process), claimed(process)
    change(process, f"UPDATE jobs SET {column} = {moment} WHERE id = '{bad}'")
    change(process, ENDED)

    sweep(process)

    with process.ledger.read() as session:
        states = session.scalars(text("SELECT state FROM jobs")).all()
    assert states == ["failed", "failed"]
    assert job_of(process, good).dead
    assert faults(process)[f"job {bad}"] == f"{column} is beyond the calendar"
    assert list(faults(process)) == [f"job {bad}"]


@pytest.mark.parametrize("payload", [DEEP, "'5'", "'[]'", """'{"ordinals": "x"}'"""])
def test_a_payload_of_any_shape_stops_only_its_own_step(process: Process, payload: str) -> None:
    bad = lost_load_step(process)
    change(process, f"UPDATE steps SET payload = ({payload})::jsonb WHERE name = 'ingest.load'")
    good = submit(process, max_attempts=1)
    claimed(process)
    change(process, ENDED)

    sweep(process)

    assert job_of(process, good).state == "failed"
    (label,) = faults(process)
    with process.ledger.read() as session:
        step_id = session.scalar(text("SELECT id FROM steps WHERE name = 'ingest.load'"))
        assert jobs.state_of(session, bad) == "running"
    assert label == f"step {step_id}"

    # It can be cancelled, and is then at an end.
    cancel(process, bad)
    sweep(process)

    with process.ledger.read() as session:
        assert jobs.state_of(session, bad) == "cancelled"
    assert faults(process) == {}
    invariants_hold(process, all_ended=True)


@pytest.mark.parametrize("column", ["metadata", "input", "result", "error", "webhook"])
def test_a_job_with_json_beyond_all_depth_is_named_and_can_be_cancelled(
    process: Process, column: str
) -> None:
    bad = submit(process)
    change(process, f"UPDATE jobs SET {column} = ({DEEP})::jsonb WHERE id = '{bad}'")

    sweep(process)

    assert f"{column} nests more than 128 levels deep" in faults(process)[f"job {bad}"]
    cancel(process, bad)
    with process.ledger.read() as session:
        assert jobs.state_of(session, bad) == "cancelled"
    # It goes with its job, and so does its name.
    change(process, f"DELETE FROM jobs WHERE id = '{bad}'")
    sweep(process)
    assert faults(process) == {}


def test_bad_rows_do_not_stand_before_good_ones(process: Process, settings: Settings) -> None:
    """Ten bad steps, older than the good one, and rounds of five rows: it comes in the third."""
    bad = [lost_load_step(process) for _ in range(10)]
    change(process, "UPDATE steps SET payload = '5' WHERE name = 'ingest.load'")
    good = submit(process, max_attempts=1)
    claimed(process)
    change(process, ENDED + " AND queue = 'embed'")
    small = make_process(settings, sweep_limit_rows=5, retry_base_s=3600, retry_cap_s=3600)
    change(process, "UPDATE steps SET lease_until = now() - interval '1 h' WHERE queue = 'ingest'")

    for _ in range(2):
        take_back(round_of(small, "take back"))
    assert job_of(process, good).state == "running"
    assert len(faults(process)) == len(bad)
    take_back(round_of(small, "take back"))
    small.close()

    assert job_of(process, good).state == "failed"
    with process.ledger.read() as session:  # each was tried once, and is then left alone
        assert set(session.scalars(select(SweepFault.tries))) == {1}


def test_a_row_that_is_handled_after_all_is_forgiven(process: Process, settings: Settings) -> None:
    bad = lost_load_step(process)
    change(process, "UPDATE steps SET payload = '5' WHERE name = 'ingest.load'")
    hasty = make_process(settings, retry_base_s=0.000001)
    take_back(round_of(hasty, "take back"))
    assert len(faults(process)) == 1
    change(process, """UPDATE steps SET payload = '{"ordinals": [0]}' WHERE state = 'running'""")

    take_back(round_of(hasty, "take back"))
    hasty.close()

    assert faults(process) == {}
    assert job_of(process, bad).state == "succeeded"  # with its one source failed


def test_a_row_that_somebody_has_locked_is_left_for_the_next_round(
    process: Process, settings: Settings
) -> None:
    held, free = submit(process, timeout_s=0.5), submit(process, timeout_s=0.5)
    claimed(process), claimed(process)
    change(process, "UPDATE jobs SET deadline_at = now() - interval '1 s'")
    hasty = make_process(settings, database_lock_timeout_s=0.05)

    with process.ledger.begin() as session:
        jobs.lock(session, held)
        end_overdue(round_of(hasty, "overdue"))
    ending = "SELECT ending FROM jobs WHERE id = :id"
    with process.ledger.read() as session:
        assert session.scalar(text(ending), {"id": free}) == "failed"
        assert session.scalar(text(ending), {"id": held}) is None
    assert faults(process) == {}
    end_overdue(round_of(hasty, "overdue"))
    hasty.close()
    with process.ledger.read() as session:
        assert session.scalar(text(ending), {"id": held}) == "failed"


@pytest.fixture
def silent() -> Iterator[socket.socket]:
    """A server that takes connections and never answers; closed, it breaks them."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as server:
        yield server


def test_leases_and_deadlines_go_on_beside_a_chroma_that_never_answers(
    process: Process, settings: Settings, silent: socket.socket
) -> None:
    """The loops run as in beat; what waits for Chroma is in a thread of its own."""
    collection = new_collection(process)
    ended = order(process, collection, {"a": "one"})
    load_all(process)
    cancel(process, ended)  # its version is for the collector
    slow = make_process(
        settings.model_copy(update={"chroma_url": f"http://127.0.0.1:{silent.getsockname()[1]}"}),
        request_timeout_s=PATIENCE_S * 10,
        sweep_interval_s=0.05,
        tidy_interval_s=0.05,
    )
    sweeper = Sweeper(slow, failure_handlers())
    sweeper.start()
    try:
        lost = submit(process, max_attempts=1)
        claimed(process)
        change(process, ENDED)
        late = submit(process, kinds.SEARCH, {"collection": "c", "query": "q"}, timeout_s=0.5)
        claimed(process, Queue.QUERY)
        change(process, "UPDATE jobs SET deadline_at = now() - interval '1 s' WHERE timeout_s < 1")

        def done() -> bool:
            with process.ledger.read() as session:
                ending = session.scalar(
                    text("SELECT ending FROM jobs WHERE id = :id"), {"id": late}
                )
            return job_of(process, lost).state == "failed" and ending == "failed"

        until(done, "both jobs have failed")
    finally:
        silent.close()
        sweeper.stop()
        slow.close()


def test_one_part_that_fails_stops_no_other(process: Process, caplog: object) -> None:  # noqa: ARG001
    lost = submit(process, max_attempts=1)
    claimed(process)
    change(process, ENDED)
    sweeper = Sweeper(process, failure_handlers())

    def broken(_: Round) -> None:
        raise RuntimeError("a bug in this part")

    for loop in sweeper._loops:
        first = next(iter(loop.parts))
        if first != "take back":
            loop.parts[first] = broken  # type: ignore[index]

    assert sweeper.sweep()

    assert job_of(process, lost).state == "failed"
    with process.ledger.read() as session:
        parts = [fault.part for fault in sweeps.faults(session, limit=100) if not fault.item]
        assert sweeps.age_s(session) is not None
    assert sorted(parts) == [
        "files of vector stores", "garbage", "inspection", "lexical index", "ring", "storage",
        "vector store",
    ]  # fmt: skip


def test_readiness_names_bad_rows_and_stays_ready(process: Process, api: httpx.Client) -> None:
    bad = submit(process)
    change(process, f"UPDATE jobs SET run_after = '0044-03-15 00:00+00 BC' WHERE id = '{bad}'")
    sweep(process)

    check = api.get("/readyz").json()["checks"]["sweeper"]

    assert check["ok"]
    assert str(bad) in check["detail"]
    assert "run_after is beyond the calendar" in check["detail"]
    assert check["detail"].startswith("ran ")


def test_an_age_that_is_too_great_is_not_ready(process: Process, api: httpx.Client) -> None:
    sweep(process)
    change(process, "UPDATE queues SET swept_at = now() - interval '90 s' WHERE name = 'control'")

    check = api.get("/readyz").json()["checks"]["sweeper"]

    assert not check["ok"]
    assert "last ran 9" in check["detail"]


def test_an_index_whose_server_is_gone_stops_no_other(process: Process, settings: Settings) -> None:
    """Neither the drop of others, nor the look for stray vectors behind it."""
    names = sorted(new_collection(process) for _ in range(3))
    ingest(process, names[2], {"cats": "Cats sleep."})
    gone = f"(SELECT id FROM collections WHERE name = '{names[0]}')"
    change(
        process,
        f"""UPDATE vector_indexes SET server = 'chroma://gone:1', state = 'retired',
            kept_until = now() WHERE collection_id = {gone}""",
    )
    change(
        process,
        f"""UPDATE vector_indexes SET state = 'retired', kept_until = now()
            WHERE stored_name = '{names[1]}'""",
    )
    stray = chunk_id(new_id(), 0)
    vector = np.eye(1, 384, dtype=np.float32)
    store_of(process).upsert(names[2], [VectorEntry(id=stray, text="", metadata={"a": 1})], vector)
    slow = make_process(settings, sweep_limit_rows=1, retry_base_s=3600, retry_cap_s=3600)
    strays = StrayVectors()
    for _ in range(4):
        drop_indexes(round_of(slow, "vector indexes"))
        strays(round_of(slow, "stray vectors"))

    with process.ledger.read() as session:
        left = session.scalars(select(VectorIndex.stored_name)).all()
        (fault,) = {fault.message for fault in sweeps.faults(session, limit=100) if fault.item}
    assert sorted(left) == [names[0], names[2]]
    assert "SLUICE_VECTORS_URL does not name" in fault
    assert stray not in vector_ids(slow, names[2])

    # It is forgotten, and what was noted of it after some time.
    change(process, f"DELETE FROM vector_indexes WHERE stored_name = '{names[0]}'")
    change(process, "UPDATE sweep_faults SET last_at = now() - interval '1 day'")
    sweep(process)
    assert faults(process) == {}
    slow.close()


def test_a_large_version_is_collected_over_several_rounds(process: Process) -> None:
    """As many slices a round as it has time for; what is done is not done again."""
    collection = new_collection(process)
    job_id = order(process, collection, {"a": "word " * 40_000}, splitter={
        "type": "recursive", "chunk_size": 100, "chunk_overlap": 0})  # fmt: skip
    load_all(process)
    cancel(process, job_id)
    with process.ledger.read() as session:
        chunks = session.execute(text("SELECT chunk_count FROM versions")).scalar_one()
    assert chunks > 1500
    calls: list[int] = []

    class Once(Round):
        """Goes on for one slice."""

        @property
        def goes_on(self) -> bool:
            self.times = getattr(self, "times", 0) + 1
            return self.times <= 2

    real = store_of(process).delete

    def counting(name: str, ids: list[str]) -> int:
        calls.append(len(ids))
        return real(name, ids)

    store_of(process).delete = counting  # type: ignore[method-assign,assignment]
    garbage = Garbage()
    for _ in range(chunks):
        garbage(Once(process, failure_handlers(), "garbage", Event()))
        with process.ledger.read() as session:
            if not session.scalar(text("SELECT count(*) FROM versions")):
                break
    assert sum(calls) == chunks
    assert max(calls) <= 500
    stores_agree(process, collection)


def test_the_sweeper_knows_how_every_failure_is_booked() -> None:
    known = failure_handlers()
    all_handlers = {**handlers_of(CPU_QUEUES), **handlers_of(GENERATE_QUEUES)}
    booked = {
        name: (handler.absorb, handler.finish)
        for name, handler in all_handlers.items()
        if handler.absorb is not None  # others fail their jobs, which need no result then
    }
    assert {name: (handler.absorb, handler.finish) for name, handler in known.items()} == booked


def test_bad_rows_are_looked_for_in_all_tables(process: Process) -> None:
    change(
        process,
        f"""INSERT INTO conversations (id, fair_key, metadata, summarize)
        VALUES (gen_random_uuid(), 'k', ('{{"a": ' || {DEEP} || '}}')::jsonb, false)""",
    )
    submit_many(process, 200, "a")

    sweep(process)

    (label,) = faults(process)
    assert label.startswith("conversation ")
    assert {table.name for table in TABLES} >= {"jobs", "conversations", "versions"}
    assert json.dumps(faults(process))


@pytest.mark.parametrize("lease", ["NULL", "'infinity'", "'12000-01-01'"])
def test_a_running_step_whose_lease_never_ends_is_taken_back(process: Process, lease: str) -> None:
    """No worker can have taken such a lease, and its job could neither end nor be erased."""
    job_id = submit(process)
    claimed(process)
    change(process, f"UPDATE steps SET lease_until = {lease}")
    cancel(process, job_id)
    assert job_of(process, job_id).state == "running"

    sweep(process)

    assert job_of(process, job_id).state == "cancelled"


@pytest.mark.parametrize("attempt", [2**31 - 1, -(2**31)])
def test_a_step_at_the_end_of_its_counts_does_not_stop_its_queue(
    process: Process, attempt: int
) -> None:
    bad, good = submit(process), submit(process)
    change(process, f"UPDATE steps SET attempt = {attempt}, max_attempts = {attempt} "
                    f"WHERE job_id = '{bad}'")  # fmt: skip

    assert [claimed(process).job_id for _ in range(2)] == [bad, good]
    job = job_of(process, bad)
    assert job.attempt <= job.max_attempts
