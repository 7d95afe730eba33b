"""Transcripts: what running steps have generated, written before anybody is shown it.

The next attempt of a step reads what its predecessor wrote and goes on behind it, so clients never
see text that is taken back. Every write names the attempt, and is dropped if that runs no longer.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy import select, text
from sqlalchemy.orm import Session

from shared.claims import Claim
from shared.dialogue_models import Transcript
from shared.events import EventType
from shared.ledger import tell_after_commit
from shared.models import Step


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


def append(session: Session, additions: Sequence[Addition]) -> set[int]:
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
            tell_after_commit(
                session,
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
