"""A worker's part in calls of the inference API: the test ends the jobs that programs wait for."""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import httpx

from shared.database.transaction import Ledger
from shared.jobs import claims, jobs, steps
from shared.jobs.claims import Claim
from shared.tables import Job

MODEL = "owner/model"
URL = f"/models/{MODEL}"
BODY = {"inputs": "A text."}
SUMMARY = [{"summary_text": "We open at nine."}]


class Worker:
    """Calls run in threads of their own; their jobs are claimed and ended here."""

    def __init__(self, ledger: Ledger, pool: ThreadPoolExecutor) -> None:
        self.ledger = ledger
        self._pool = pool

    def call(self, work: Callable[[], Any]) -> "Future[Any]":
        return self._pool.submit(work)

    def claim(self, call: "Future[Any]") -> Claim:
        """The step of the job that a call has submitted."""
        while True:
            with self.ledger.begin() as session:
                claim = claims.claim(session, "hf", worker="a test", lease_s=60)
            if claim is not None:
                return claim
            assert not call.done(), f"no job was submitted: {call.result()}"

    def succeed(self, claim: Claim, result: Any, **notes: Any) -> None:
        """`notes` are `warnings`, or what `jobs.note_result_file` takes."""
        with self.ledger.begin() as session:
            if warnings := notes.pop("warnings", None):
                jobs.warn(session, claim.job_id, warnings)
            if notes:
                jobs.note_result_file(session, claim.job_id, **notes)
            assert steps.succeed(session, claim, result=result)

    def fail(self, claim: Claim, type_: str, message: str) -> None:
        with self.ledger.begin() as session:
            assert steps.fail(session, claim, {"type": type_, "message": message})

    def job(self, job_id: UUID) -> Job:
        with self.ledger.read() as session:
            return jobs.get(session, job_id)

    def count(self) -> int:
        """How many jobs there are."""
        with self.ledger.read() as session:
            where = jobs.Filter()
            return len(jobs.page(session, where, limit=1000, before=None))

    def answer(self, work: Callable[[], Any], result: Any, **notes: Any) -> tuple[Any, Job]:
        """What a call comes back with when its job gives this result, and the job."""
        call = self.call(work)
        claim = self.claim(call)
        self.succeed(claim, result, **notes)
        return call.result(), self.job(claim.job_id)

    def refuse(self, work: Callable[[], Any], type_: str, message: str) -> Any:
        """What a call comes back with when its job fails so."""
        call = self.call(work)
        self.fail(self.claim(call), type_, message)
        return call.result()


@contextmanager
def working(ledger: Ledger) -> Iterator[Worker]:
    with ThreadPoolExecutor(8) as pool:
        yield Worker(ledger, pool)


def error(answer: httpx.Response, status: int) -> str:
    """What an error says, which must have this status and that API's shape."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert set(answer.json()) == {"error"}
    return str(answer.json()["error"])
