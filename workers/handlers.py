"""Which worker runs which steps: those of its queues, by the handlers that the kinds name."""

from collections.abc import Collection
from importlib import import_module

from shared.kinds.kind import StepType
from shared.kinds.registry import step_types
from shared.vocabulary import Queue
from workers.attempts.context import Handler
from workers.attempts.runner import Handlers

CPU_QUEUES = [Queue.CONTROL, Queue.QUERY, Queue.EMBED, Queue.HF, Queue.INGEST]
HF_QUEUES = [Queue.HF]
GENERATE_QUEUES = [Queue.GENERATE]
WEBHOOK_QUEUES = [Queue.WEBHOOK]


def handlers_of(queues: Collection[Queue]) -> Handlers:
    """Imports what runs these steps, torch included, and so does it before any fork."""
    return {step.name: _imported(step) for step in step_types() if step.queue in queues}


def failure_handlers() -> Handlers:
    """How the failure of a step is booked in its job, for the sweeper, which runs none.

    Steps that are not here fail their jobs. Nothing is imported that loads models.
    """
    handlers = {step.name: _imported(step) for step in step_types() if step.is_absorbed}
    return {
        name: Handler(absorb=handler.absorb, finish=handler.finish)
        for name, handler in handlers.items()
    }


def _imported(step: StepType) -> Handler:
    module, _, name = step.handler.partition(":")
    handler = getattr(import_module(module), name)
    assert isinstance(handler, Handler), step.handler
    return handler
