"""Where outputs go: into the row of their step or job, or into the storage where they are large.

What an attempt stores that is then not recorded is deleted again; all of a job's folder goes when
retention forgets the job.
"""

import json
from collections.abc import Sequence
from typing import Any

from sqlalchemy import select

from shared import jobs
from shared.bounds import EncodedJson
from shared.errors import Permanent
from shared.models import Step
from shared.queue import Queue
from shared.states import State
from shared.steps import NewStep
from workers.hf.work import Work, as_json
from workers.results import stored
from workers.step import Context, Done

STEP = "hf.run"


def recorded_before(context: Context) -> tuple[dict[int, Any], list[str]]:
    """Outputs by input, and warnings, of the steps of the job that went before this one."""
    process, claim = context.process, context.claim
    with process.ledger.read() as session:
        results = session.scalars(
            select(Step.result)
            .where(
                Step.job_id == claim.job_id, Step.name == STEP, Step.state == State.SUCCEEDED,
                Step.id < claim.step_id,
            )
            .order_by(Step.id)
        ).all()  # fmt: skip
    outputs: dict[int, Any] = {}
    warnings: list[str] = []
    for result in results:
        stored = result.get("path")
        found = json.loads(process.storage.read(stored)) if stored else result["outputs"]
        outputs |= {int(n): output for n, output in found.items()}
        warnings += [warning for warning in result["warnings"] if warning not in warnings]
    return outputs, warnings


def complete(work: Work, answer: Any) -> Done:
    """The job's end. Raises Permanent for outputs that are no JSON."""
    return of_answer(work.context, answer, warnings=[*work.warnings_before, *work.warnings])


def of_answer(context: Context, answer: Any, *, warnings: Sequence[str] = ()) -> Done:
    """The end of a job with this answer. Raises Permanent for what is no JSON."""
    unique = list(dict.fromkeys(warnings))
    data = _encoded(answer)
    path = stored(context, data)
    job_id = context.claim.job_id

    def record(session: Any) -> None:
        jobs.note_result(
            session, job_id, path=path, size_bytes=len(data) if path else None, warnings=unique
        )

    return Done(result=None if path else EncodedJson(answer, data.decode()), record=record)


def go_on(work: Work) -> Done:
    """What there is so far, and a step for the rest."""
    outputs = {str(n): output for n, output in work.outputs.items()}
    path = stored(work.context, _encoded(outputs)) if outputs else None
    kept = {"path": path} if path else {"outputs": outputs}
    following = NewStep(
        name=STEP, queue=Queue.HF, batch_key=work.context.claim.batch_key, payload=work.rest()
    )
    return Done(result=kept | {"warnings": work.warnings}, children=[following])


def _encoded(value: Any) -> bytes:
    try:
        return as_json(value)
    except ValueError:
        raise Permanent(
            "The model gave numbers that are none (NaN or infinity). Set SLUICE_HF_DTYPE=float32, "
            "or use another model."
        ) from None
