"""Erasures in this process: what is erased, and what stays."""

from typing import Any
from uuid import UUID

from shared.kinds import registry as kinds
from shared.vocabulary import Lane
from tests.integration.job_runner import drain, job_of, submit
from workers.attempts.process import Process

SECRET = "The secret recipe needs nine lemons."
PUBLIC = "The museum opens at ten."


def order_erasure(process: Process, **target: Any) -> UUID:
    if "document_ids" in target:
        target["document_ids"] = [str(id_) for id_ in target["document_ids"]]
    return submit(process, kinds.ERASE, target, lane=Lane.INTERACTIVE)


def erase(process: Process, **target: Any) -> dict[str, Any]:
    """Erase to the end; returns the job's result."""
    job_id = order_erasure(process, **target)
    drain(process)
    job = job_of(process, job_id)
    assert job.state == "succeeded", job.error
    result: dict[str, Any] | None = job.result
    assert result is not None
    return result
