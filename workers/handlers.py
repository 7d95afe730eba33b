"""Which worker runs which steps: those of its queues, by the handlers that the kinds name."""

from collections.abc import Callable, Collection
from importlib import import_module
from typing import Any

from shared.jobs import jobs
from shared.kinds.kind import Kind, StepType
from shared.kinds.registry import KINDS, WEBHOOK
from shared.vocabulary import Queue, Shape
from workers.attempts.context import Context, Done, Handler
from workers.attempts.runner import Handlers

CPU_QUEUES = [Queue.CONTROL, Queue.QUERY, Queue.EMBED, Queue.HF, Queue.INGEST]
HF_QUEUES = [Queue.HF]
GENERATE_QUEUES = [Queue.GENERATE]
WEBHOOK_QUEUES = [Queue.WEBHOOK]


def handlers_of(queues: Collection[Queue]) -> Handlers:
    """Imports what runs these steps, torch included, and so does it before any fork."""
    handlers = {
        step.name: _handler(kind, step)
        for kind in KINDS.values()
        for step in kind.steps
        if step.queue in queues
    }
    if WEBHOOK.queue in queues:
        handlers[WEBHOOK.name] = _imported(WEBHOOK)
    return handlers


def failure_handlers() -> Handlers:
    """How the failure of a step is booked in its job, for the sweeper, which runs none.

    Steps that are not here fail their jobs. Nothing is imported that loads models.
    """
    absorbed = [step for kind in KINDS.values() for step in kind.steps if step.is_absorbed]
    handlers = {step.name: _imported(step) for step in absorbed}
    return {
        name: Handler(absorb=handler.absorb, finish=handler.finish)
        for name, handler in handlers.items()
    }


def _handler(kind: Kind, step: StepType) -> Handler:
    run = _imported(step)
    return run if isinstance(run, Handler) else Handler(run=_computed(kind, run))


def _imported(step: StepType) -> Any:
    module, _, name = step.handler.partition(":")
    return getattr(import_module(module), name)


def _computed(kind: Kind, compute: Callable[[Any], Shape]) -> Callable[[Context], Done]:
    """A step that needs nothing but the job's input, and writes nothing but its result."""

    def run(context: Context) -> Done:
        with context.process.ledger.read() as session:
            values = jobs.get(session, context.claim.job_id).input
        return Done(result=compute(kind.input.model_validate(values)).model_dump(mode="json"))

    return run
