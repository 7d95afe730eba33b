"""Liveness, readiness and metrics; these need no API key.

Readiness has one check for each part that jobs need: with a name, a time limit, and a message that
says what to do.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC
from threading import Lock
from typing import Annotated

import httpx
from fastapi import APIRouter, Depends, Request, Response
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector
from redis.exceptions import RedisError
from sqlalchemy import text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session
from starlette.responses import PlainTextResponse

from api.deps import Parts, PartsDep
from api.http.answers import answer
from api.openapi import documented
from api.schemas import CheckView, HealthView, ReadinessView
from shared.database.engine import is_current
from shared.documents import checks, indexes
from shared.documents.checks import CheckState
from shared.jobs import queues, sweeps
from shared.jobs.queues import KEEP_FACTOR, Depths, paused_since
from shared.kinds.registry import KINDS
from shared.vector_stores import VECTORS_URL, configured_store
from shared.vocabulary import Queue

# Metrics for Prometheus, read from Postgres at each request.
#
# The count of all jobs is kept for a while, longer if counting takes long. The numbers on which
# operators act (backlog, age, workers) are fresh, or some seconds old if a queue is long
# (`shared/jobs/queues.py`).

KEEP_S = 15.0

JOBS = text("SELECT kind, state, count(*) FROM jobs GROUP BY kind, state ORDER BY kind, state")


@dataclass(frozen=True)
class _Families(Collector):
    """The metrics of one answer, for `prometheus_client` to write."""

    families: Sequence[Metric]

    def collect(self) -> Iterable[Metric]:
        return self.families


class Metrics:
    def __init__(self, *, worker_heartbeat_s: float, depths: Depths) -> None:
        self._worker_heartbeat_s = worker_heartbeat_s
        self._depths = depths
        self._jobs: list[tuple[str, str, int]] = []
        self._jobs_until = 0.0
        self._lock = Lock()

    def text(self, session: Session) -> bytes:
        return generate_latest(_Families(self._read(session)))

    def _read(self, session: Session) -> list[Metric]:
        jobs = GaugeMetricFamily("sluice_jobs", "Jobs by kind and state.", labels=["kind", "state"])
        for kind, state, count in self._jobs_now(session):
            jobs.add_metric([kind, state], count)
        by_queue = ["queue"]
        steps = GaugeMetricFamily(
            "sluice_steps", "Open steps by queue and state.", labels=["queue", "state"]
        )
        ages = GaugeMetricFamily(
            "sluice_queue_oldest_seconds", "Age of the oldest due step.", labels=by_queue
        )
        serving = GaugeMetricFamily(
            "sluice_workers_alive", "Living workers by queue.", labels=by_queue
        )
        waiting = self._depths.totals(session)
        running = queues.running_steps(session)
        workers = queues.workers(session, worker_heartbeat_s=self._worker_heartbeat_s)
        for queue in Queue:
            total = waiting[queue.value]
            steps.add_metric([queue.value, "queued"], total.steps)
            steps.add_metric([queue.value, "running"], running[queue.value])
            ages.add_metric([queue.value], total.oldest_due_s)
            alive = sum(worker.alive and queue.value in worker.queues for worker in workers)
            serving.add_metric([queue.value], alive)
        return [jobs, steps, ages, serving, *_checks(session)]

    def _jobs_now(self, session: Session) -> list[tuple[str, str, int]]:
        with self._lock:
            begin = time.monotonic()
            if begin >= self._jobs_until:
                rows = session.execute(JOBS)
                self._jobs = [(kind, state, count) for kind, state, count in rows]
                end = time.monotonic()
                self._jobs_until = end + max(KEEP_S, KEEP_FACTOR * (end - begin))
            return self._jobs


def _checks(session: Session) -> list[Metric]:
    """Of the last checks of all collections, without their names: this needs no key."""
    totals = checks.totals(session)
    collections = GaugeMetricFamily(
        "sluice_collections_by_check",
        "Collections by the result of their last check.",
        labels=["state"],
    )
    for state, count in totals.collections.items():
        collections.add_metric([state.value], count)
    collections.add_metric(["unchecked"], totals.unchecked)
    faults = GaugeMetricFamily(
        "sluice_check_vectors", "Vectors by what the last checks found.", labels=["result"]
    )
    for name, count in asdict(totals.counts).items():
        faults.add_metric([name], count)
    due = GaugeMetricFamily(
        "sluice_checks_due", "Collections to be checked, for their store was away."
    )
    due.add_metric([], totals.due)
    times = GaugeMetricFamily(
        "sluice_check_timestamp_seconds",
        "When the newest and the oldest of the last checks ended.",
        labels=["check"],
    )
    for name, at in (("newest", totals.last_at), ("oldest", totals.first_at)):
        if at is not None:
            times.add_metric([name], at.timestamp())
    return [collections, faults, due, times]


CHECK_S = 5.0
STALE_SWEEPS = 10
STALE_AT_LEAST_S = 10.0
FAULTS_SHOWN = 20
ReadinessCheck = Callable[[Parts], str]
"""Returns a short description of a part that is ready; raises if it is not."""


class NotReady(Exception):
    """A part is not ready; the message says why."""


class ReadinessChecks:
    """The results of the checks, which are kept for `readiness_keep_s`.

    Each check has one thread at most: a check that hangs is reported, and is not started again
    before it has returned.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._lock = asyncio.Lock()
        self._view: ReadinessView | None = None
        self._until = 0.0
        self._running: dict[ReadinessCheck, asyncio.Future[str]] = {}
        store = configured_store(parts.settings)
        name = "vectors" if store is None else store.type_.name
        self._checks = {name if check is _vectors else key: check for key, check in CHECKS.items()}

    async def view(self) -> ReadinessView:
        async with self._lock:
            if self._view is None or time.monotonic() >= self._until:
                views = await asyncio.gather(*map(self._run, self._checks.values()))
                checks = dict(zip(self._checks, views, strict=True))
                ready = all(check.ok for check in checks.values())
                self._view = ReadinessView(status="ready" if ready else "not ready", checks=checks)
                self._until = time.monotonic() + self._parts.settings.readiness_keep_s
            return self._view

    async def _run(self, check: ReadinessCheck) -> CheckView:
        running = self._running.get(check)
        if running is None or running.done():
            running = self._running[check] = _in_thread(check, self._parts)
        try:
            async with asyncio.timeout(CHECK_S):
                detail = await asyncio.shield(running)
        except TimeoutError:
            return CheckView(ok=False, detail=f"no answer within {CHECK_S:g} s")
        except (NotReady, SQLAlchemyError, RedisError, httpx.HTTPError, OSError) as error:
            return CheckView(ok=False, detail=_words(error))
        return CheckView(ok=True, detail=detail)


def _in_thread(check: ReadinessCheck, parts: Parts) -> "asyncio.Future[str]":
    """Run a check in its own thread: the end of the process does not wait for it, and it uses no
    thread of requests."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[str] = loop.create_future()

    def finish(set_: Callable[[], None]) -> None:
        # RuntimeError: the event loop has ended meanwhile.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(lambda: None if future.done() else set_())

    def run() -> None:
        try:
            detail = check(parts)
        except Exception as caught:
            error = caught
            finish(lambda: future.set_exception(error))
        else:
            finish(lambda: future.set_result(detail))

    future.add_done_callback(lambda done: done.cancelled() or done.exception())
    threading.Thread(target=run, name="readiness", daemon=True).start()
    return future


def _database(parts: Parts) -> str:
    with parts.ledger.read() as session:
        session.execute(text("SELECT 1"))
    if not is_current(parts.ledger.engine):
        raise NotReady("not at this version's revision; run `sluice migrate`")
    return "at the newest revision"


def _redis(parts: Parts) -> str:
    parts.ledger.bell.waiting(Queue.CONTROL.value)
    return "answers"


def _vectors(parts: Parts) -> str:
    store = configured_store(parts.settings)
    if store is None:
        raise NotReady(f"{VECTORS_URL} is not set")
    problem = store.problem(CHECK_S / 2)
    if problem is not None:
        raise NotReady(problem)
    with parts.ledger.read() as session:
        noted = indexes.count_servers(session).keys()
    if away := sorted(noted - set(map(str, store.urls))):
        raise NotReady(
            f"collections lie on {', '.join(away)}, which {VECTORS_URL} does not name; put it "
            "back, or rebuild them and forget those indexes (`sluice collections drop-index`)"
        )
    return "answers"


def _storage(parts: Parts) -> str:
    parts.storage.check()
    return "can be written"


def _workers(parts: Parts) -> str:
    with parts.ledger.read() as session:
        workers = queues.workers(session, worker_heartbeat_s=parts.settings.worker_heartbeat_s)
    living = [worker for worker in workers if worker.alive]
    needed = {step.queue.value for kind in KINDS.values() for step in kind.steps}
    missing = sorted(needed - {queue for worker in living for queue in worker.queues})
    if missing:
        raise NotReady(
            f"no living worker serves {', '.join(missing)}; start `python -m workers cpu` and "
            "`python -m workers generate`"
        )
    if not any(Queue.WEBHOOK.value in worker.queues for worker in living):
        return f"{len(living)} alive; none sends webhooks, as `python -m workers beat` does"
    return f"{len(living)} alive"


def _queues(parts: Parts) -> str:
    """Paused queues are reported, but are no fault: an operator has paused them."""
    with parts.ledger.read() as session:
        paused = paused_since(session)
    if not paused:
        return "none is paused"
    names = ", ".join(f"{name} (since {at})" for name, at in sorted(paused.items()))
    return f"paused: {names}; resume with `POST /v1/queues/{{name}}/resume`"


def _sweeper(parts: Parts) -> str:
    """When the sweeper last ran, which parts of it fail, and which rows it cannot handle. Failing
    parts and rows do not make the system unready."""
    settings = parts.settings
    limit_s = max(STALE_AT_LEAST_S, STALE_SWEEPS * settings.sweep_interval_s)
    with parts.ledger.read() as session:
        age_s = sweeps.age_s(session)
        faults = sweeps.faults(session, limit=FAULTS_SHOWN)
        count = sweeps.count_faulty_rows(session) if faults else 0
    if age_s is None:
        raise NotReady("has never run; start `python -m workers beat`")
    words = [f"{fault.part} fails: {fault.message}" for fault in faults if not fault.item]
    bad = [fault for fault in faults if fault.item]
    if bad:
        rows = [f"{fault.item}{_job(fault)}: {fault.message}" for fault in bad]
        left = count - len({fault.item for fault in bad})
        more = f", and {left} more" if left > 0 else ""
        words.append(
            f"{count} rows cannot be handled (cancel the job, or correct the row): "
            f"{'; '.join(rows)}{more}"
        )
    if age_s > limit_s:
        raise NotReady("; ".join([f"last ran {age_s:.0f} s ago; is beat up?", *words]))
    return "; ".join([f"ran {age_s:.1f} s ago", *words])


def _integrity(parts: Parts) -> str:
    """What the last checks of collections have found. A damaged collection does not make the
    system unready. No names: this needs no key."""
    with parts.ledger.read() as session:
        totals = checks.totals(session)
    if totals.last_at is None:
        words = ["no collection has been checked"]
    else:
        at = totals.last_at.astimezone(UTC).isoformat(timespec="seconds")
        states = [f"{count} {state}" for state, count in totals.collections.items() if count]
        words = [f"last check at {at}", f"collections: {', '.join(states)}"]
        counts = totals.counts
        if counts.faults:
            words.append(
                f"found: {counts.missing} missing, {counts.surplus} surplus, {counts.stale} stale, "
                f"{counts.wrong} wrong of {counts.sampled} sampled, {counts.leftover} left over"
            )
    if totals.due:
        words.append(f"{totals.due} are due for a check")
    if totals.collections[CheckState.DAMAGED]:
        words.append("`sluice collections` shows which are damaged")
    return "; ".join(words)


def _job(fault: sweeps.Fault) -> str:
    is_named = fault.job_id is None or str(fault.job_id) in fault.item
    return "" if is_named else f" of job {fault.job_id}"


def _words(error: Exception) -> str:
    """The first line of an error's message; the rest may be SQL or a web page."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


CHECKS: dict[str, ReadinessCheck] = {
    "database": _database,
    "redis": _redis,
    "vectors": _vectors,  # under the name of the store's type
    "storage": _storage,
    "workers": _workers,
    "queues": _queues,
    "sweeper": _sweeper,
    "integrity": _integrity,
}


async def _readiness(request: Request, parts: PartsDep) -> ReadinessChecks:
    """The checks of the application, which are made at first use."""
    state = request.app.state
    if not hasattr(state, "readiness"):
        state.readiness = ReadinessChecks(parts)
    readiness = state.readiness
    assert isinstance(readiness, ReadinessChecks)
    return readiness


async def _metrics(request: Request, parts: PartsDep) -> Metrics:
    state = request.app.state
    if not hasattr(state, "metrics"):
        heartbeat_s = parts.settings.worker_heartbeat_s
        state.metrics = Metrics(worker_heartbeat_s=heartbeat_s, depths=parts.depths)
    metrics = state.metrics
    assert isinstance(metrics, Metrics)
    return metrics


router = APIRouter(tags=["health"])


@router.get("/healthz")
async def check_health() -> HealthView:
    """Whether this process answers; its servers are not checked."""
    return HealthView(status="ok")


@router.get("/readyz", responses=documented({200: ReadinessView, 503: ReadinessView}))
async def check_readiness(readiness: Annotated[ReadinessChecks, Depends(_readiness)]) -> Response:
    """Whether all parts that jobs need are ready."""
    view = await readiness.view()
    return answer(view, 200 if view.status == "ready" else 503)


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses=documented({}),
)
def get_metrics(parts: PartsDep, metrics: Annotated[Metrics, Depends(_metrics)]) -> Response:
    """Metrics for Prometheus."""
    with parts.ledger.read() as session:
        return Response(metrics.text(session), media_type=CONTENT_TYPE_PLAIN_0_0_4)
