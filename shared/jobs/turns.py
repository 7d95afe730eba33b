"""Turns of conversations: jobs with a `conversation_id`, of which one at a time runs.

While a turn is open, later ones are held: their first step is due at `HELD`, and is let go when the
turn before has ended. Nothing here commits.

Locks are taken in the order jobs (by id), conversations (by id), so that no two of these calls wait
for each other. A new turn locks its conversation first, but no job that others can see.
"""

from datetime import UTC, datetime
from uuid import UUID

from sqlalchemy import Select, select, text
from sqlalchemy.orm import Session

from shared.database.transaction import Transaction
from shared.errors import NotFound
from shared.redis.bell import list_of
from shared.tables import Conversation, Job

HELD = datetime(9999, 1, 1, tzinfo=UTC)
"""When a step is due that waits for something else than time."""


def jobs_of(conversation_id: UUID) -> Select[UUID]:
    """The ids of all turns of a conversation, the oldest first."""
    return select(Job.id).where(Job.conversation_id == conversation_id).order_by(Job.id)


def is_free(session: Session, conversation_id: UUID) -> bool:
    """Whether no turn is open. Locks the conversation, so that the answer holds until the commit.

    Raises NotFound.
    """
    if lock(session, conversation_id) is None:
        raise no_conversation(conversation_id)
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


def no_conversation(conversation_id: UUID) -> NotFound:
    return NotFound(
        f"There is no conversation {conversation_id}; start one with POST /v1/conversations."
    )
