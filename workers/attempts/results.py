"""Where results go: into the rows of their step and job, or into the storage where they are large.

The row of a job is read whole, so it holds no more than SLUICE_RESULT_INLINE_BYTES of result,
whatever the kind of the job. What an attempt stores that is then not recorded is deleted again; all
of a job's folder goes when the job is erased or retention forgets it.
"""

import io
from dataclasses import replace
from typing import Any
from uuid import UUID

from shared.bounds import EncodedJson, to_json
from shared.config import Settings
from shared.database.transaction import Transaction
from shared.files import make_storage
from shared.jobs import jobs
from shared.jobs.steps import Finish
from workers.attempts.context import Context, Done, Handler


def prepared(context: Context, done: Done) -> Done:
    """The success of a step, its result encoded; in the storage where it is the job's and large.

    Raises Permanent for a result that is no JSON, Unavailable where the storage does not take it.
    """
    if done.result is None or done.children:
        return done
    result = _encoded(done.result)
    data = result.text.encode()
    path = stored(context, data)
    if path is None:
        return replace(done, result=result)
    job_id, record = context.claim.job_id, done.record

    def record_all(transaction: Transaction) -> None:
        if record is not None:
            record(transaction)
        jobs.note_result_file(transaction, job_id, path=path, size_bytes=len(data))

    return replace(done, result=None, record=record_all)


def _encoded(result: Any) -> EncodedJson:
    return result if isinstance(result, EncodedJson) else EncodedJson(result, to_json(result))


def stored(context: Context, data: bytes) -> str | None:
    """The path of what is too large for a row. An attempt that loses its step deletes it again."""
    process, claim = context.process, context.claim
    if len(data) <= process.settings.result_inline_bytes:
        return None
    path = f"{jobs.result_folder(claim.job_id)}/{claim.step_id}-{claim.attempt}.json"
    process.storage.write(path, io.BytesIO(data))
    context.on_lost.append(lambda: process.storage.delete(path))
    return path


def finish_of(handler: Handler | None, settings: Settings) -> Finish | None:
    """What computes the job's result when its last step has ended, and stores it where it is too
    large for the row: under a fixed name, since whoever ends a job does so alone."""
    if handler is None or handler.finish is None:
        return None
    compute = handler.finish

    def finish(transaction: Transaction, job_id: UUID) -> Any:
        value = compute(transaction, job_id)
        if value is None:
            return None
        result = _encoded(value)
        data = result.text.encode()
        if len(data) <= settings.result_inline_bytes:
            return result
        path = f"{jobs.result_folder(job_id)}/result.json"
        make_storage(settings).write(path, io.BytesIO(data))
        jobs.note_result_file(transaction, job_id, path=path, size_bytes=len(data))
        return None

    return finish
