"""What errors of a real PostgreSQL mean, by their SQLSTATE: for steps and for the API's answers."""

from collections.abc import Callable, Iterator

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from api.http import errors
from shared.config import Settings
from shared.database.sqlstates import Meaning, trouble_of
from shared.database.transaction import Ledger, make_ledger
from tests.integration.job_runner import drain, job_of, steps_of, submit
from tests.servers import free_port
from workers.attempts.context import Context, Done, Handler
from workers.attempts.process import Process

AWAY, BUSY, VALUE, CONFLICT, SCHEMA, FAULT = (
    Meaning.AWAY, Meaning.BUSY, Meaning.VALUE, Meaning.CONFLICT, Meaning.SCHEMA, Meaning.FAULT,
)  # fmt: skip
RAISED = {
    "08006": AWAY, "57P01": AWAY, "57P02": AWAY, "57P03": AWAY, "53300": AWAY,
    "57014": BUSY, "40P01": BUSY, "40001": BUSY, "55P03": BUSY, "53100": BUSY, "53200": BUSY,
    "58030": BUSY, "25006": BUSY,
    "54000": VALUE, "54001": VALUE, "22001": VALUE, "22003": VALUE, "22021": VALUE,
    "22P05": VALUE, "22008": VALUE,
    "23505": CONFLICT, "23503": CONFLICT, "23514": CONFLICT,
    "42P01": SCHEMA, "42703": SCHEMA,
    "22012": FAULT, "42601": FAULT, "XX000": FAULT, "P0001": FAULT, "25P02": FAULT,
}  # fmt: skip
STATUS = {AWAY: 503, BUSY: 503, VALUE: 422, CONFLICT: 409, SCHEMA: 503, FAULT: 500}
LONG_NAME = "".join(chr(0x20000 + n * 7) for n in range(1020))
"""Does not compress, and takes four bytes a character."""


def raise_with(ledger: Ledger, sqlstate: str) -> None:
    """What the server says, with that code."""
    with ledger.begin() as session:
        session.execute(
            text(f"DO $$ BEGIN RAISE EXCEPTION 'as it says' USING ERRCODE = '{sqlstate}'; END $$")
        )


def too_slow(ledger: Ledger) -> None:
    with ledger.begin() as session:
        session.execute(text("SET LOCAL statement_timeout = 10"))
        session.execute(text("SELECT pg_sleep(60)"))


def too_long_for_an_index(ledger: Ledger) -> None:
    with ledger.begin() as session:
        session.execute(text("INSERT INTO queues (name) VALUES (:name)"), {"name": LONG_NAME})


def ended_by_the_server(ledger: Ledger) -> None:
    with ledger.begin() as session:
        session.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))


def nobody_there(ledger: Ledger) -> None:
    settings = Settings(
        _env_file=None,
        database_url=f"postgresql://127.0.0.1:{free_port()}/x",
        redis_url="redis://127.0.0.1:1",
    )
    away = make_ledger(settings)
    try:
        with away.begin() as session:
            session.execute(text("SELECT 1"))
    finally:
        away.close()
    assert ledger is not away


REAL: dict[Callable[[Ledger], None], Meaning] = {
    too_slow: BUSY,
    too_long_for_an_index: VALUE,
    ended_by_the_server: AWAY,
    nobody_there: AWAY,
}


@pytest.mark.parametrize(
    ("cause", "meaning"), REAL.items(), ids=lambda value: getattr(value, "__name__", str(value))
)
def test_errors_as_they_happen(
    ledger: Ledger, cause: Callable[[Ledger], None], meaning: Meaning
) -> None:
    with pytest.raises(DBAPIError) as caught:
        cause(ledger)
    trouble = trouble_of(caught.value)
    assert trouble is not None
    assert trouble.meaning is meaning, trouble
    assert LONG_NAME not in trouble.message


@pytest.fixture(scope="module")
def answers(settings: Settings) -> Iterator[TestClient]:
    """The API's handlers of errors, before a route that meets one."""
    own = make_ledger(settings)
    app = FastAPI()
    errors.install(app)

    @app.get("/{sqlstate}")
    def fail(sqlstate: str) -> None:
        raise_with(own, sqlstate)

    with TestClient(app, raise_server_exceptions=False) as client:
        yield client
    own.close()


@pytest.mark.parametrize(("sqlstate", "meaning"), RAISED.items())
def test_the_api_says_what_it_is(answers: TestClient, sqlstate: str, meaning: Meaning) -> None:
    answer = answers.get(f"/{sqlstate}")

    assert answer.status_code == STATUS[meaning]
    detail = answer.json()["detail"]
    # Only a server that is away is said not to answer.
    assert ("does not answer" in detail or "no more connections" in detail) == (meaning is AWAY)
    assert (answer.headers.get("retry-after") == "1") == (meaning in (AWAY, BUSY))


@pytest.mark.parametrize(("sqlstate", "meaning"), RAISED.items())
def test_a_step_is_tried_again_where_that_helps(
    process: Process, sqlstate: str, meaning: Meaning
) -> None:
    """An outage costs no attempt, what may pass costs one, what cannot be stored fails at once."""
    met: list[int] = []

    def run(context: Context) -> Done:
        met.append(context.claim.attempt)
        if len(met) < 5:
            raise_with(process.ledger, sqlstate)
        return Done(result={})

    job_id = submit(process, max_attempts=3)
    drain(process, {"embed": Handler(run=run)})

    job = job_of(process, job_id)
    assert job.attempt <= job.max_attempts
    if meaning is AWAY:
        assert (job.state, job.attempt, len(met)) == ("succeeded", 1, 5)
        return
    final = meaning in (VALUE, CONFLICT)
    assert (job.state, len(met), job.dead) == ("failed", 1 if final else 3, not final)
    assert job.attempt == len(met)
    assert job.error is not None
    assert job.error["type"] == ("Permanent" if final else "Retryable")
    assert "as it says" in job.error["message"]


def test_the_reason_of_an_outage_stays_with_the_step(process: Process) -> None:
    """Also while another attempt runs, and where a batch has given the step back unbegun."""
    seen: list[object] = []

    def run(_: Context) -> Done:
        seen.append(steps_of(process, job_id)[0].error)
        if len(seen) < 3:
            raise_with(process.ledger, "57P03")
        return Done(result={})

    job_id = submit(process)
    drain(process, {"embed": Handler(run=run)})

    assert seen[0] is None
    for error in seen[1:]:
        assert isinstance(error, dict)
        assert error["type"] == "Unavailable"
        assert "does not answer" in error["message"]
