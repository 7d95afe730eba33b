"""Where results go: into the rows of their step and job, or into the storage where they are large.

The row of a job is read whole, so it holds no more than SLUICE_RESULT_INLINE_BYTES of result,
whatever the kind of the job. What an attempt stores that is then not recorded is deleted again; all
of a job's folder goes when the job is erased or retention forgets it.
"""

import io
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from shared.bounds import EncodedJson, to_json
from shared.config import Settings
from shared.files import make_storage
from shared.jobs import jobs
from shared.jobs.steps import Finish
from workers.attempts.context import Context, Done, Handler


def placed(context: Context, done: Done) -> Done:
    """The success of a step, its result stored where it is the job's and too large for its row.

    Raises Permanent for a result that is no JSON, Unavailable where the storage does not take it.
    """
    if done.result is None or done.children or isinstance(done.result, EncodedJson):
        return done
    encoded = EncodedJson(done.result, to_json(done.result))
    data = encoded.text.encode()
    path = stored(context, data)
    if path is None:
        return replace(done, result=encoded)
    return replace(done, result=None, record=_with_place(context, done.record, path, len(data)))


def _with_place(
    context: Context, record: Callable[[Session], None] | None, path: str, size_bytes: int
) -> Callable[[Session], None]:
    def both(session: Session) -> None:
        if record is not None:
            record(session)
        jobs.note_place(session, context.claim.job_id, path=path, size_bytes=size_bytes)

    return both


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

    def finish(session: Session, job_id: UUID) -> Any:
        result = compute(session, job_id)
        if result is None:
            return None
        encoded = EncodedJson(result, to_json(result))
        data = encoded.text.encode()
        if len(data) <= settings.result_inline_bytes:
            return encoded
        path = f"{jobs.result_folder(job_id)}/result.json"
        make_storage(settings).write(path, io.BytesIO(data))
        jobs.note_place(session, job_id, path=path, size_bytes=len(data))
        return None

    return finish
