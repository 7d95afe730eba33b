"""Request -> committed job: defaults, admission, checks that need the database, one transaction."""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Any
from uuid import UUID

from pydantic import AnyHttpUrl
from sqlalchemy.orm import Session

from api.http.key_scopes import require_for_kind
from api.schemas import JobRequest, JobView, ProgressView
from shared import conversations
from shared.addresses import literal
from shared.config import HttpSettings, Settings, WebhookSettings
from shared.database.transaction import Ledger, Transaction
from shared.documents import indexes
from shared.errors import InvalidInput, NotFound, QueueFull
from shared.jobs import queues, submission
from shared.jobs.queues import KEEP_FACTOR
from shared.jobs.submission import NewJob, Submitted
from shared.kinds.kind import Kind
from shared.kinds.registry import KINDS
from shared.models import embedding_models
from shared.tables import Collection
from shared.vocabulary import Lane, Queue, State

# Admission to a queue: 429 while too many steps are due, of all keys or of one key.
#
# Steps that are not due yet, and held turns, do not count. The counts are read from Postgres from
# time to time, and jobs that this process admits are added in between: with one API process the
# counts are never too low. Steps that were done meanwhile are not subtracted; so the count is read
# again before a request is refused, and a refusal was true while the request was waiting.

FRESH_S = 1.0


@dataclass(frozen=True, kw_only=True)
class _Limit:
    """How many due steps there may be, and the parts of the error."""

    steps: int
    subject: str
    setting: str
    remedy: str


class _Counter:
    """Counts the due steps of a queue, or of one key in it; one thread at a time."""

    def __init__(self, limit: _Limit, clock: Callable[[], float]) -> None:
        self._limit = limit
        self._clock = clock
        self._lock = Lock()
        self._steps = 0
        self._counts = 0
        """How many counts were started."""
        self._fresh_until = float("-inf")

    def admit(self, read: Callable[[int], int], jobs: int) -> str | None:
        """Add `jobs` to the count, or return why there is no room. `read` counts up to a limit."""
        before = self._counts
        with self._lock:
            if self._clock() >= self._fresh_until:
                self._count(read)
            # Who waited while another began to count need not count again.
            if self._steps + jobs > self._limit.steps and self._counts == before:
                self._count(read)
            if self._steps + jobs > self._limit.steps:
                return (
                    f"{self._limit.subject} {self._steps} due steps; {self._limit.steps} are "
                    f"allowed ({self._limit.setting}). {self._limit.remedy}"
                )
            self._steps += jobs
        return None

    def withdraw(self, jobs: int) -> None:
        """Undo an `admit`: the jobs found no room elsewhere."""
        with self._lock:
            self._steps -= jobs

    def _count(self, read: Callable[[int], int]) -> None:
        self._counts += 1
        begin = self._clock()
        self._steps = read(self._limit.steps)
        end = self._clock()
        self._fresh_until = end + max(FRESH_S, KEEP_FACTOR * (end - begin))


class Admission:
    def __init__(
        self, settings: HttpSettings, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._limit = settings.queue_limit_steps
        self._limit_per_key = settings.steps_per_key
        self._retry_after_s = settings.queue_full_retry_after_s
        self._clock = clock
        self._counters: dict[tuple[Queue, str | None], _Counter] = {}

    def admit(self, session: Session, queue: Queue, fair_key: str, jobs: int = 1) -> None:
        """Raises QueueFull. Call it before anything else of the transaction.

        A caller that had a connection already could wait here for one that waits for its own.
        """
        of_all, of_key = self._counter(queue, None), self._counter(queue, fair_key)
        refusal = of_all.admit(lambda limit: queues.count_due(session, queue, up_to=limit), jobs)
        if refusal is None and self._limit_per_key is not None:
            refusal = of_key.admit(
                lambda limit: queues.count_due(session, queue, up_to=limit, fair_key=fair_key),
                jobs,
            )
            if refusal is not None:
                of_all.withdraw(jobs)
        if refusal is not None:
            raise QueueFull(refusal, retry_after_s=self._retry_after_s)

    def _counter(self, queue: Queue, fair_key: str | None) -> _Counter:
        counter = self._counters.get((queue, fair_key))
        if counter is None:
            limit = self._limit_of(queue, fair_key)
            counter = self._counters.setdefault((queue, fair_key), _Counter(limit, self._clock))
        return counter

    def _limit_of(self, queue: Queue, fair_key: str | None) -> _Limit:
        if fair_key is None or self._limit_per_key is None:
            return _Limit(
                steps=self._limit,
                subject=f"Queue {queue.value} holds",
                setting="SLUICE_QUEUE_LIMIT_STEPS",
                remedy="Try again later, or add workers.",
            )
        return _Limit(
            steps=self._limit_per_key,
            subject=f"Your key has in queue {queue.value}",
            setting="SLUICE_QUEUE_LIMIT_STEPS_PER_KEY",
            remedy="Try again when some of them are done.",
        )


def new_job(
    request: JobRequest,
    settings: Settings,
    *,
    fair_key: str,
    lane: Lane = Lane.NORMAL,
    idempotency_key: str | None = None,
    body: Any = None,
) -> NewJob:
    """The job of a request. `lane` is used if neither the request nor the kind has one. Raises
    InvalidInput for input that this server cannot run, Forbidden if the key may not submit it."""
    kind = KINDS[request.kind]
    require_for_kind(settings, fair_key, kind.name)
    kind.check(request.input, settings)
    webhook = request.webhook
    if webhook is not None:
        _check_address(webhook.url, settings)
    return NewJob(
        kind=kind,
        input=request.input.model_dump(mode="json") | kind.defaults(request.input, settings),
        fair_key=fair_key,
        lane=request.lane or kind.lane or lane,
        metadata=request.metadata,
        webhook=webhook.model_dump(mode="json", exclude_none=True) if webhook else None,
        timeout_s=request.timeout_s,
        max_attempts=request.max_attempts or settings.max_attempts,
        run_after=request.run_after,
        conversation_id=getattr(request.input, "conversation_id", None),
        idempotency_key=idempotency_key,
        body_hash=_hash(body) if idempotency_key is not None else None,
        check_model=partial(_check_model, settings) if kind.uses_embedder else None,
    )


def _check_model(settings: Settings, model: str, collection: str) -> None:
    where = f"The embedding model of the collection {collection!r}"
    embedding_models.check(model, settings, where=where)


def submit(
    ledger: Ledger, admission: Admission, new: NewJob, *, is_waited: bool = False
) -> Submitted:
    """Commit one job. Raises QueueFull, NotFound if an object that it names does not exist,
    Conflict if its idempotency key was used for another job.

    For `is_waited` see `shared/jobs/submission.py`.
    """
    # A turn of a conversation needs a lock and several statements.
    single = new.conversation_id is None
    with ledger.begin_single() if single else ledger.begin() as session:
        try:
            admission.admit(session, new.kind.first_step.queue, new.fair_key)
        except QueueFull:
            # A repeated request adds no step, so it is answered even if the queue is full.
            replayed = submission.find_replayed(session, new)
            if replayed is None:
                raise
            return replayed
        return add(session, new, is_waited=is_waited)


def add(session: Transaction, new: NewJob, *, is_waited: bool = False) -> Submitted:
    """Submit a job in the caller's transaction, after admission. Raises what `submit` raises,
    except QueueFull."""
    _require_collection(session, new)
    _require(session, [new])
    return submission.submit(session, new, is_waited=is_waited)


def submit_batch(ledger: Ledger, admission: Admission, new: list[NewJob]) -> list[UUID]:
    """Commit all jobs or none. Raises what `submit` raises, with the number of the job."""
    with ledger.begin() as session:
        for queue, count in Counter(job.kind.first_step.queue for job in new).items():
            admission.admit(session, queue, new[0].fair_key, count)
        # Each kind and collection is checked once, for the first job that has it.
        indexes = {(job.kind.name, job.input.get("collection")): n for n, job in _backwards(new)}
        for n in indexes.values():
            try:
                _require_collection(session, new[n])
            except NotFound as error:
                raise NotFound(f"jobs.{n}: {error.message}") from error
        _require(session, new)
        return submission.submit_batch(session, new)


def view_of_new(new: NewJob, made: Submitted) -> JobView:
    """The view of a new job without reading it, and without position and ETA, which need
    queries."""
    return JobView.model_construct(
        id=made.id,
        kind=new.kind.name,
        state=State.QUEUED,
        lane=new.lane,
        queue=new.kind.first_step.queue.value,
        input=new.input,
        progress=ProgressView.model_construct(done=0, total=None, unit=None),
        attempt=0,
        max_attempts=new.max_attempts,
        metadata=new.metadata,
        created_at=made.created_at,
    )


def _backwards(new: list[NewJob]) -> Iterator[tuple[int, NewJob]]:
    return zip(reversed(range(len(new))), reversed(new), strict=True)


def _require_collection(session: Session, new: NewJob) -> None:
    name = new.input.get("collection")
    if name is not None:
        collection = new.kind.find_collection(session, name)
        if new.check_model is not None and isinstance(collection, Collection):
            model = indexes.active(session, collection.id).embedding_model
            new.check_model(model, collection.name)


def _require(session: Session, new: Sequence[NewJob]) -> None:
    """Raises NotFound or Conflict unless conversations and continued chats belong to the caller and
    everything that the inputs name exists."""
    owned = {(job.conversation_id, job.fair_key) for job in new}
    for conversation_id, fair_key in owned:
        if conversation_id is not None:
            conversations.get(session, conversation_id, fair_key)
    continued = {(job.input.get("previous_job_id"), job.fair_key) for job in new}
    for job_id, fair_key in continued:
        if job_id is not None:
            conversations.require_continuable(session, UUID(job_id), fair_key)
    inputs: dict[Kind, list[dict[str, Any]]] = {}
    for job in new:
        inputs.setdefault(job.kind, []).append(job.input)
    for kind, of_kind in inputs.items():
        kind.require(session, of_kind)


def _check_address(url: AnyHttpUrl, settings: WebhookSettings) -> None:
    """Check the address in a webhook's URL. Names are resolved and checked when it is sent."""
    if url.username or url.password:
        raise InvalidInput(
            "webhook.url has a user name or a password in it; give a `secret`, which signs."
        )
    guard = settings.guard(allow_private=settings.webhook_allow_private)
    host, port = url.host or "", url.port or 0  # pydantic knows the ports of the schemes
    address = literal(host)
    if address is not None and not guard.allows(host, address, port):
        raise InvalidInput(
            f"webhook.url is at {address} and port {port}, which is not an address of the public "
            "internet, or no port of web sites. "
            "SLUICE_WEBHOOK_ALLOW_PRIVATE lets webhooks reach this machine and its network, and "
            "SLUICE_OUTBOUND_ALLOWED_HOSTS single places of it."
        )


def _hash(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
