"""From a request to a committed job: defaults, checks that need the database, one transaction."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

from pydantic import AnyHttpUrl
from sqlalchemy.orm import Session

from api.deps import Parts
from api.schemas import JobRequest, JobView, ProgressView
from shared import conversations
from shared.addresses import is_allowed, literal
from shared.config import Settings
from shared.errors import InvalidInput, NotFound, QueueFull
from shared.jobs import submission
from shared.jobs.submission import NewJob, Submitted
from shared.kinds.kind import Kind
from shared.kinds.registry import KINDS
from shared.vocabulary import Lane, State


def new_job(
    request: JobRequest,
    settings: Settings,
    *,
    fair_key: str,
    lane: Lane = Lane.NORMAL,
    idempotency_key: str | None = None,
    body: Any = None,
) -> NewJob:
    """The job that is asked for; `lane` is where it goes unless the request says. Raises
    InvalidInput for what this server cannot run."""
    kind = KINDS[request.kind]
    kind.check(request.input, settings)
    webhook = request.webhook
    if webhook is not None:
        _check_address(webhook.url, settings)
    return NewJob(
        kind=kind,
        input=request.input.model_dump(mode="json") | kind.defaults(request.input, settings),
        fair_key=fair_key,
        lane=request.lane or lane,
        metadata=request.metadata,
        webhook=webhook.model_dump(mode="json", exclude_none=True) if webhook else None,
        timeout_s=request.timeout_s,
        max_attempts=request.max_attempts or settings.max_attempts,
        run_after=request.run_after,
        conversation_id=getattr(request.input, "conversation_id", None),
        idempotency_key=idempotency_key,
        body_hash=_hash(body) if idempotency_key is not None else None,
    )


def submit(parts: Parts, new: NewJob) -> Submitted:
    """Commit one job. Raises QueueFull, NotFound for its collection, Conflict for its key."""
    # A turn of a conversation takes a lock and several statements.
    single = new.conversation_id is None
    with parts.ledger.begin_single() if single else parts.ledger.begin() as session:
        try:
            parts.gate.admit(session, new.kind.first_step.queue, new.fair_key)
        except QueueFull:
            # A job that is there already takes no new place.
            replayed = submission.find_replayed(session, new)
            if replayed is None:
                raise
            return replayed
        _require_collection(session, new)
        _require(session, [new])
        return submission.submit(session, new)


def submit_batch(parts: Parts, new: list[NewJob]) -> list[UUID]:
    """Commit all of the jobs, or none. Raises what `submit` does, naming the job."""
    with parts.ledger.begin() as session:
        for queue, count in Counter(each.kind.first_step.queue for each in new).items():
            parts.gate.admit(session, queue, new[0].fair_key, count)
        # One look for each kind and collection, at the first job that names it.
        indexes = {(each.kind.name, each.input.get("collection")): n for n, each in _backwards(new)}
        for n in indexes.values():
            try:
                _require_collection(session, new[n])
            except NotFound as error:
                raise NotFound(f"jobs.{n}: {error.message}") from error
        _require(session, new)
        return submission.submit_batch(session, new)


def view_of_new(new: NewJob, made: Submitted) -> JobView:
    """What reading the job back would give, less position and ETA, which take queries."""
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
        new.kind.find_collection(session, name)


def _require(session: Session, new: Sequence[NewJob]) -> None:
    """The conversations are the caller's own, and what else the inputs name is there."""
    talks = {(each.conversation_id, each.fair_key) for each in new}
    for conversation_id, fair_key in talks:
        if conversation_id is not None:
            conversations.get(session, conversation_id, fair_key)
    inputs: dict[Kind, list[dict[str, Any]]] = {}
    for each in new:
        inputs.setdefault(each.kind, []).append(each.input)
    for kind, of_kind in inputs.items():
        kind.require(session, of_kind)


def _check_address(url: AnyHttpUrl, settings: Settings) -> None:
    """What a webhook's URL spells out; names are looked up when it is sent."""
    if url.username or url.password:
        raise InvalidInput(
            "webhook.url has a user name or a password in it; give a `secret`, which signs."
        )
    address = literal(url.host or "")
    if address is not None and not is_allowed(
        address, allow_private=settings.webhook_allow_private
    ):
        raise InvalidInput(
            f"webhook.url is at {address}, which is not an address of the public internet. "
            "SLUICE_WEBHOOK_ALLOW_PRIVATE lets webhooks reach this machine and its network."
        )


def _hash(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
