"""Queues and workers: how busy they are; pausing and resuming."""

from typing import Annotated

from fastapi import APIRouter, Depends, Response

from api.deps import Parts, PartsDep
from api.http.answers import answer
from api.openapi import documented
from api.schemas import Items, QueueView, WorkerView
from shared.bounds import shown
from shared.errors import NotFound
from shared.jobs import queues
from shared.vocabulary import Queue

router = APIRouter(prefix="/v1", tags=["queues"])


async def _queue(name: str) -> Queue:
    try:
        return Queue(name)
    except ValueError:
        names = ", ".join(Queue)
        raise NotFound(f"There is no queue {shown(name)}; there are {names}.") from None


QueueName = Annotated[Queue, Depends(_queue)]


@router.get("/queues", responses=documented({200: Items[QueueView]}))
def list_queues(parts: PartsDep) -> Response:
    """All queues: how many steps wait and run, and how many messages wait in Redis."""
    return answer(Items[QueueView](items=_overview(parts)))


@router.post("/queues/{name}/pause", responses=documented({200: QueueView}, 404))
def pause_queue(parts: PartsDep, queue: QueueName) -> Response:
    """Stop starting steps of a queue. Running steps go on, and jobs are still accepted."""
    with parts.ledger.begin() as session:
        queues.pause(session, queue)
    return _one(parts, queue)


@router.post("/queues/{name}/resume", responses=documented({200: QueueView}, 404))
def resume_queue(parts: PartsDep, queue: QueueName) -> Response:
    """Resume a paused queue."""
    with parts.ledger.begin() as session:
        queues.resume(
            session,
            parts.ledger.bell,
            queue,
            worker_heartbeat_s=parts.settings.worker_heartbeat_s,
        )
    return _one(parts, queue)


@router.get("/workers", responses=documented({200: Items[WorkerView]}))
def list_workers(parts: PartsDep) -> Response:
    """The workers that were alive recently."""
    with parts.ledger.read() as session:
        workers = queues.workers(session, worker_heartbeat_s=parts.settings.worker_heartbeat_s)
    return answer(
        Items[WorkerView](items=[WorkerView.model_validate(worker) for worker in workers])
    )


def _overview(parts: Parts) -> list[QueueView]:
    with parts.ledger.read() as session:
        summaries = queues.overview(
            session,
            parts.ledger.bell,
            worker_heartbeat_s=parts.settings.worker_heartbeat_s,
            depths=parts.depths,
        )
    return [QueueView.model_validate(summary) for summary in summaries]


def _one(parts: Parts, queue: Queue) -> Response:
    return answer(next(view for view in _overview(parts) if view.name == queue.value))
