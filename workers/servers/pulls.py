"""Models that the Ollama server lacks, pulled when a job needs them (SLUICE_OLLAMA_PULL).

The pull is a job of the kind `model` with its own progress. All steps that need the model wait for
the same job, as they wait for a server that does not answer.
"""

from collections.abc import Callable
from functools import wraps
from typing import Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from shared.errors import InvalidInput, Permanent, Unavailable
from shared.jobs import jobs, submission
from shared.jobs.submission import NewJob
from shared.kinds import registry as kinds
from shared.kinds.model import ModelInput, check_registry
from shared.models.providers import OLLAMA
from shared.tables import Job
from shared.vocabulary import OPEN, Lane, State
from workers.attempts.context import Context, Done
from workers.servers.server import ModelMissing

LOOK_AGAIN_S: Final = 2.0
_LOCK: Final = "pull a model"

RunStep = Callable[[Context], Done]


def on_demand(run: RunStep) -> RunStep:
    """Let a step wait for a pull if its model is missing and may be pulled."""

    @wraps(run)
    def run_or_pull(context: Context) -> Done:
        try:
            return run(context)
        except ModelMissing as error:
            raise or_pull(context, error) from error

    return run_or_pull


def or_pull(context: Context, error: ModelMissing) -> Exception:
    """What a step fails with whose model is missing: `error` itself unless models may be pulled.
    Then a job pulls it, which is submitted unless there is one; the step waits for that job, or
    fails if that has failed."""
    if not context.process.settings.ollama_pull:
        return error
    model = error.reference
    try:
        check_registry(model.removeprefix(OLLAMA.prefix), context.process.settings.guard())
    except InvalidInput as refusal:
        return refusal
    with context.process.ledger.begin() as session:
        session.execute(select(func.pg_advisory_xact_lock(func.hashtext(_LOCK + model))))
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
