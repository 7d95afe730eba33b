"""Models that are pulled when a job asks for them (SLUICE_OLLAMA_PULL), as a job of their own.

The step that found its model missing waits, as for a server that does not answer; the pull is a
job of kind `model` with its progress, which all steps that want the model wait for together.
"""

from collections.abc import Callable
from functools import wraps

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from shared.errors import Permanent, Unavailable
from shared.jobs import jobs, submission
from shared.jobs.submission import NewJob
from shared.kinds import registry as kinds
from shared.kinds.model import ModelInput
from shared.tables import Job
from shared.vocabulary import OPEN, Lane, State
from workers.attempts.context import Context, Done
from workers.generation.backends.remote.ollama import ModelMissing

LOOK_AGAIN_S = 2.0
LOCK = "pull a model"

Run = Callable[[Context], Done]


def on_demand(run: Run) -> Run:
    """Where the model is missing and may be pulled, the step waits for a pull."""

    @wraps(run)
    def running(context: Context) -> Done:
        try:
            return run(context)
        except ModelMissing as error:
            if not context.process.settings.ollama_pull:
                raise
            raise _awaited(context, f"ollama/{error.model}") from error

    return running


def _awaited(context: Context, model: str) -> Exception:
    with context.process.ledger.begin() as session:
        session.execute(select(func.pg_advisory_xact_lock(func.hashtext(LOCK + model))))
        since = jobs.get(session, context.claim.job_id).created_at
        pull = _newest_pull(session, model)
        if pull is not None and pull.state == State.FAILED and pull.created_at > since:
            message = (pull.error or {}).get("message", "")
            return Permanent(f"{model} could not be pulled (job {pull.id}): {message}")
        pull_id = pull.id if pull is not None and pull.state in OPEN else None
        if pull_id is None:
            input_ = ModelInput(action="pull", name=model)
            new = NewJob(
                kind=kinds.MODEL,
                input=input_.model_dump(mode="json"),
                fair_key=context.claim.fair_key,
                lane=Lane.INTERACTIVE,
                max_attempts=context.claim.max_attempts,
            )
            pull_id = submission.submit(session, new).id
    return Unavailable(f"{model} is being pulled by the job {pull_id}.", retry_after_s=LOOK_AGAIN_S)


def _newest_pull(session: Session, model: str) -> Job | None:
    return session.scalars(
        select(Job)
        .where(
            Job.kind == kinds.MODEL.name,
            Job.input["name"].astext == model,
            Job.input["action"].astext == "pull",
        )
        .order_by(Job.id.desc())
        .limit(1)
    ).first()
