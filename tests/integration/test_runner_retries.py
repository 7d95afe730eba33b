"""What is tried again: which errors use up attempts, and which fail at once."""

from typing import Any

import pytest
from sqlalchemy import text

from shared.config import Settings
from shared.errors import (
    ConfigurationError,
    Conflict,
    InvalidInput,
    NotFound,
    Permanent,
    Retryable,
    Unavailable,
)
from shared.kinds import registry as kinds
from tests.integration.job_runner import (
    doing,
    drain,
    handlers,
    invariants_hold,
    job_of,
    make_process,
    steps_of,
    submit,
)
from workers.attempts.context import Context
from workers.attempts.process import Process
from workers.attempts.runner import run_next


def raising(*errors: Exception | None) -> Any:
    """A handler that raises these in turn, and succeeds at None and from then on."""
    left = list(errors)

    def handler(_: Context) -> dict[str, str]:
        error = left.pop(0) if left else None
        if error is not None:
            raise error
        return {"done": "well"}

    return doing(handler)


@pytest.mark.parametrize("error", [Retryable("may pass"), RuntimeError("a bug"), KeyError("x")])
def test_what_may_pass_and_what_nobody_knows_is_tried_again(
    process: Process, error: Exception
) -> None:
    job_id = submit(process)

    drain(process, raising(error, error))

    job = job_of(process, job_id)
    assert (job.state, job.attempt, job.error) == ("succeeded", 3, None)
    (step,) = steps_of(process, job_id)
    assert step.error is None


def test_when_the_attempts_are_used_up_it_is_a_dead_letter(process: Process) -> None:
    job_id = submit(process, max_attempts=3)

    drain(process, raising(*[Retryable(f"number {n}") for n in (1, 2, 3)]))

    job = job_of(process, job_id)
    assert (job.state, job.dead, job.attempt) == ("failed", True, 3)
    assert job.error == {"type": "Retryable", "message": "number 3"}
    invariants_hold(process, all_ended=True)


@pytest.mark.parametrize("error", [Permanent, NotFound, InvalidInput, Conflict, ConfigurationError])
def test_what_another_attempt_would_only_repeat_fails_at_once(
    process: Process, error: type[Exception]
) -> None:
    job_id = submit(process)

    drain(process, raising(error("do this instead")))

    job = job_of(process, job_id)
    assert (job.state, job.dead, job.attempt) == ("failed", False, 1)
    assert job.error == {"type": error.__name__, "message": "do this instead"}


def test_an_input_that_does_not_fit_its_shape_fails_at_once(process: Process) -> None:
    """As a row of another version, or one that was written by hand."""
    job_id = submit(process, kinds.EMBED, {"texts": 7})

    drain(process, handlers())

    job = job_of(process, job_id)
    assert (job.state, job.attempt) == ("failed", 1)
    assert job.error is not None
    assert job.error["message"].startswith("The row of this job does not fit")


def test_an_outage_does_not_use_up_attempts(process: Process) -> None:
    job_id = submit(process, max_attempts=1)

    drain(process, raising(*[Unavailable("no answer")] * 6))

    job = job_of(process, job_id)
    assert (job.state, job.attempt, job.max_attempts) == ("succeeded", 1, 1)
    (step,) = steps_of(process, job_id)
    assert step.attempt == 7  # what fences goes on growing


def test_an_outage_that_lasts_too_long_uses_up_attempts_after_all(
    process: Process, settings: Settings
) -> None:
    job_id = submit(process, max_attempts=2)
    impatient = make_process(settings, unavailable_retry_for_s=0.000001)

    drain(impatient, raising(*[Unavailable("no answer")] * 9))

    impatient.close()
    job = job_of(process, job_id)
    assert job.error == {"type": "Unavailable", "message": "no answer"}
    assert (job.state, job.dead, job.attempt) == ("failed", True, 2)


def test_an_outage_counts_from_its_first_failure_not_from_the_submit(process: Process) -> None:
    """A step that waited for hours in a long queue can sit out an outage like any other."""
    job_id = submit(process, max_attempts=1)
    with process.ledger.begin() as session:
        session.execute(text("UPDATE steps SET created_at = now() - interval '9 h'"))

    drain(process, raising(*[Unavailable("no answer")] * 3))

    assert job_of(process, job_id).state == "succeeded"


def test_an_outage_that_began_long_ago_is_remembered_over_attempts(process: Process) -> None:
    job_id = submit(process, max_attempts=2)
    table = raising(*[Unavailable("no answer")] * 9)
    run_next(process, table, "embed")
    with process.ledger.begin() as session:
        session.execute(
            text(
                """UPDATE steps SET error = jsonb_set(error, '{unavailable_since}',
                to_jsonb(now() - interval '9 h'))"""
            )
        )

    drain(process, table)

    job = job_of(process, job_id)
    assert (job.state, job.dead) == ("failed", True)
    # The first attempt was free, the two after it are all it had.
    assert (job.attempt, steps_of(process, job_id)[0].attempt) == (2, 3)


def test_another_error_ends_an_outage(process: Process) -> None:
    job_id = submit(process, max_attempts=3)

    drain(process, raising(Unavailable("away"), Retryable("else"), Unavailable("away"), None))

    assert job_of(process, job_id).state == "succeeded"
    assert steps_of(process, job_id)[0].max_attempts == 3 + 2
