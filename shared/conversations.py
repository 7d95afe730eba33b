"""Conversations: turns with a model that are stored, one at a time.

A turn is a job with a `conversation_id`. While one is open, later ones are held: their first step
is due at `HELD`, and is let go when the turn before has ended. Helpers never commit.

Locks are taken in the order jobs (by id), conversations (by id), so that no two of these calls wait
for each other. A new turn locks its conversation first, but no job that others can see.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Select, delete, func, insert, select, text, update
from sqlalchemy.orm import Session

from shared.database.transaction import Transaction
from shared.errors import Cancelled, NotFound
from shared.ids import new_id
from shared.jobs.claims import Claim
from shared.redis.bell import list_of
from shared.redis.events import EventType
from shared.tables import Conversation, ConversationMessage, Job, Step, Transcript
from shared.vocabulary import State

HELD = datetime(9999, 1, 1, tzinfo=UTC)
"""When a step is due that waits for something else than time."""


def make(session: Session, fair_key: str, *, metadata: dict[str, Any], summarize: bool) -> UUID:
    id_ = new_id()
    session.execute(
        insert(Conversation).values(id=id_, fair_key=fair_key, meta=metadata, summarize=summarize)
    )
    return id_


def get(session: Session, conversation_id: UUID, fair_key: str | None = None) -> Conversation:
    """Raises NotFound, also where it belongs to another key than `fair_key`."""
    conversation = session.get(Conversation, conversation_id)
    if conversation is None or fair_key not in (None, conversation.fair_key):
        raise NotFound(
            f"There is no conversation {conversation_id}; start one with POST /v1/conversations."
        )
    return conversation


@dataclass(frozen=True, kw_only=True)
class Listed:
    conversation: Conversation
    messages: int
    """How many are stored."""


def listed(session: Session, conversation_id: UUID, fair_key: str) -> Listed:
    """Raises NotFound."""
    conversation = get(session, conversation_id, fair_key)
    count = session.scalar(
        select(func.count()).where(ConversationMessage.conversation_id == conversation_id)
    )
    return Listed(conversation=conversation, messages=count or 0)


def page(session: Session, fair_key: str, *, limit: int, before: UUID | None) -> list[Listed]:
    """The key's newest conversations, newest first, older than `before`."""
    count = (
        select(func.count())
        .where(ConversationMessage.conversation_id == Conversation.id)
        .scalar_subquery()
    )
    query = (
        select(Conversation, count)
        .where(Conversation.fair_key == fair_key)
        .order_by(Conversation.id.desc())
        .limit(limit)
    )
    if before is not None:
        query = query.where(Conversation.id < before)
    return [Listed(conversation=row[0], messages=row[1]) for row in session.execute(query)]


def messages(
    session: Session, conversation_id: UUID, *, after: int = -1, limit: int | None = None
) -> list[ConversationMessage]:
    """The stored messages behind the ordinal `after`, oldest first."""
    return list(
        session.scalars(
            select(ConversationMessage)
            .where(
                ConversationMessage.conversation_id == conversation_id,
                ConversationMessage.ordinal > after,
            )
            .order_by(ConversationMessage.ordinal)
            .limit(limit)
        )
    )


def append(
    session: Session, conversation_id: UUID, new: Sequence[dict[str, Any]], job_id: UUID
) -> None:
    """Store a turn's messages behind the others; nothing where the conversation is gone."""
    session.execute(select(Job.id).where(Job.id == job_id).with_for_update(key_share=True))
    if lock(session, conversation_id) is None:
        return
    last = session.scalar(
        select(func.max(ConversationMessage.ordinal)).where(
            ConversationMessage.conversation_id == conversation_id
        )
    )
    first = 0 if last is None else last + 1
    rows = [
        {"conversation_id": conversation_id, "ordinal": n, "message": message, "job_id": job_id}
        for n, message in enumerate(new, start=first)
    ]
    session.execute(insert(ConversationMessage), rows)
    session.execute(
        update(Conversation).where(Conversation.id == conversation_id).values(updated_at=func.now())
    )


def sum_up(session: Session, conversation_id: UUID, summary: str, upto: int) -> None:
    """Note a summary of the first `upto` messages."""
    session.execute(
        update(Conversation)
        .where(Conversation.id == conversation_id, Conversation.summary_upto < upto)
        .values(summary=summary, summary_upto=upto)
    )


def erase(session: Transaction, conversation_id: UUID, fair_key: str) -> None:
    """Remove a conversation with all its messages, and end its open turns, held ones too.

    Raises NotFound. Its jobs stay, without it.
    """
    from shared.jobs import jobs  # which ends turns by what is above

    get(session, conversation_id, fair_key)
    locked: set[UUID] = set()
    while True:
        locked.update(session.scalars(_jobs_of(conversation_id).with_for_update(key_share=True)))
        savepoint = session.begin_nested()
        if lock(session, conversation_id) is None:
            savepoint.commit()
            return  # another erased it meanwhile
        if set(session.scalars(_jobs_of(conversation_id))) <= locked:
            savepoint.commit()
            break
        # A turn came between the two locks. Its lock comes before the conversation's.
        savepoint.rollback()
    # Its turns end by themselves: none is to be let go by the end of the one before.
    session.execute(
        update(Job).where(Job.conversation_id == conversation_id).values(conversation_id=None)
    )
    error = {"type": Cancelled.code, "message": "The conversation was erased."}
    for job_id in sorted(locked):
        jobs.stop(session, job_id, State.CANCELLED, error)
    session.execute(delete(Conversation).where(Conversation.id == conversation_id))


def _jobs_of(conversation_id: UUID) -> Select[UUID]:
    return select(Job.id).where(Job.conversation_id == conversation_id).order_by(Job.id)


def is_free(session: Session, conversation_id: UUID) -> bool:
    """Whether no turn is open. Locks the conversation, so that the answer holds until the commit.

    Raises NotFound.
    """
    if lock(session, conversation_id) is None:
        get(session, conversation_id)
    return not session.execute(
        text("""
            SELECT EXISTS (SELECT FROM jobs WHERE conversation_id = :id
                AND state IN ('queued', 'running'))
        """),
        {"id": conversation_id},
    ).scalar_one()


def let_next_go(session: Transaction, conversation_id: UUID) -> bool:
    """Let the oldest held turn run, if no turn is at it; whether one was let go."""
    if lock(session, conversation_id) is None:
        return False
    released = session.execute(RELEASE, {"id": conversation_id, "held": HELD}).all()
    for row in released:
        session.ring(list_of(row.queue, row.route))
    return bool(released)


# A turn that is being cancelled has its step locked, and whoever cancels it waits for the
# conversation, and then lets the next one go.
RELEASE = text("""
    WITH next AS (
        SELECT id, run_after FROM jobs
        WHERE conversation_id = :id AND state IN ('queued', 'running') ORDER BY id LIMIT 1
    ), free AS (
        SELECT s.id, next.run_after FROM next JOIN steps s ON s.job_id = next.id
        WHERE s.state = 'queued' AND s.run_after = :held
        FOR UPDATE OF s SKIP LOCKED
    )
    UPDATE steps SET run_after = greatest(free.run_after, now())
    FROM free WHERE steps.id = free.id
    RETURNING steps.queue, steps.route
""")


def with_held_turns(session: Session, *, limit: int, part: str) -> list[UUID]:
    """Conversations of which turns wait while none is at work: the one before was lost.

    Those are left out that this part of the sweeper leaves alone (`shared/jobs/sweeps.py`).
    """
    return list(
        session.scalars(
            text("""
                SELECT DISTINCT j.conversation_id FROM jobs j JOIN steps s ON s.job_id = j.id
                WHERE j.conversation_id IS NOT NULL AND j.state = 'queued'
                  AND s.state = 'queued' AND s.run_after = :held
                  AND NOT EXISTS (SELECT FROM jobs o WHERE o.conversation_id = j.conversation_id
                      AND o.id < j.id AND o.state IN ('queued', 'running'))
                  AND NOT EXISTS (SELECT FROM sweep_faults f WHERE f.part = :part
                      AND f.item = 'conversation ' || j.conversation_id AND f.retry_at > now())
                ORDER BY j.conversation_id LIMIT :limit
            """),
            {"held": HELD, "limit": limit, "part": part},
        )
    )


def lock(session: Session, conversation_id: UUID) -> UUID | None:
    """Lock a conversation until the commit; None where there is none."""
    return session.scalar(
        select(Conversation.id).where(Conversation.id == conversation_id).with_for_update()
    )


# Transcripts: what running steps have generated, written before anybody is shown it.
#
# The next attempt of a step reads what its predecessor wrote and goes on behind it, so
# clients never see text that is taken back. Every write names the attempt, and is dropped if
# that runs no longer.


@dataclass(frozen=True, kw_only=True)
class Addition:
    """What a step has generated since the last write; `offset` counts the characters shown before
    `shown`."""

    claim: Claim
    text: str
    shown: str
    token_ids: tuple[int, ...]
    offset: int


@dataclass(frozen=True, kw_only=True)
class Shown:
    """What one step of a job has shown, from an offset on."""

    step_id: int
    offset: int
    text: str


# Rows are locked in the order of their ids, as by heartbeats.
APPEND = text("""
    WITH new AS (
        SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb))
            AS r(step_id bigint, attempt int, text text, shown text, token_ids int[])
    ), held AS (
        SELECT s.id FROM steps s
        JOIN new ON new.step_id = s.id AND new.attempt = s.attempt
          AND s.state IN ('running', 'succeeded')
        ORDER BY s.id FOR SHARE OF s
    )
    INSERT INTO transcripts AS old (step_id, text, shown, token_ids)
    SELECT new.step_id, new.text, new.shown, new.token_ids
    FROM new JOIN held ON held.id = new.step_id
    ON CONFLICT (step_id) DO UPDATE SET text = old.text || excluded.text,
        shown = old.shown || excluded.shown, token_ids = old.token_ids || excluded.token_ids
    RETURNING step_id
""")


def append_text(session: Transaction, additions: Sequence[Addition]) -> set[int]:
    """Write what was generated, and tell clients of it after the commit.

    Returns the ids of the steps whose attempt still runs, or succeeds in this transaction; the
    others' text was dropped.
    """
    rows = [
        {
            "step_id": each.claim.step_id, "attempt": each.claim.attempt, "text": each.text,
            "shown": each.shown, "token_ids": list(each.token_ids),
        }
        for each in additions
    ]  # fmt: skip
    written = set(session.scalars(APPEND, {"rows": json.dumps(rows)}))
    for each in additions:
        if each.claim.step_id in written and each.shown:
            session.publish(
                each.claim.job_id,
                EventType.TOKEN,
                {"step": each.claim.step_id, "offset": each.offset, "text": each.shown},
            )
    return written


def of_step(session: Session, step_id: int) -> Transcript | None:
    return session.get(Transcript, step_id)


def shown_of_job(session: Session, job_id: UUID, *, step_id: int, offset: int) -> list[Shown]:
    """What the job's steps have shown behind the character `offset` of the step `step_id`, in
    order. With 0 and 0, all of it."""
    start = {True: offset, False: 0}
    rows = session.execute(
        select(Transcript.step_id, Transcript.shown)
        .join(Step, Step.id == Transcript.step_id)
        .where(Step.job_id == job_id, Transcript.step_id >= step_id)
        .order_by(Transcript.step_id)
    ).all()
    return [
        Shown(step_id=row.step_id, offset=at, text=row.shown[at:])
        for row in rows
        if (at := start[row.step_id == step_id]) < len(row.shown)
    ]
