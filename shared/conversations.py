"""Conversations with a model: their stored messages; and transcripts, the text of running steps.

A turn is a job (`shared/jobs/turns.py`), whose messages are stored in the transaction that ends it.
Nothing here commits.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.orm import Session

from shared.bounds import as_object, from_json
from shared.database.transaction import Transaction
from shared.errors import Cancelled, Conflict, NotFound
from shared.files import Storage
from shared.jobs import jobs, turns
from shared.jobs.claims import Claim
from shared.kinds.chat import CHAT, TokenLogprob, messages_of
from shared.kinds.rag import RAG
from shared.redis.events import EventType
from shared.tables import Conversation, ConversationMessage, Job, Transcript, new_id
from shared.vocabulary import State


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
        raise turns.no_conversation(conversation_id)
    return conversation


@dataclass(frozen=True, kw_only=True)
class ListedConversation:
    conversation: Conversation
    messages: int
    """How many are stored."""


def listed(session: Session, conversation_id: UUID, fair_key: str) -> ListedConversation:
    """Raises NotFound."""
    conversation = get(session, conversation_id, fair_key)
    count = session.scalar(
        select(func.count()).where(ConversationMessage.conversation_id == conversation_id)
    )
    return ListedConversation(conversation=conversation, messages=count or 0)


def page(
    session: Session, fair_key: str, *, limit: int, before: UUID | None
) -> list[ListedConversation]:
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
    return [
        ListedConversation(conversation=row[0], messages=row[1]) for row in session.execute(query)
    ]


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
    if turns.lock(session, conversation_id) is not None:
        _add(session, conversation_id, new, job_id)


def add(
    session: Session, conversation_id: UUID, new: Sequence[dict[str, Any]]
) -> list[ConversationMessage]:
    """Store messages that are no turn's behind the others. Raises NotFound."""
    if turns.lock(session, conversation_id) is None:
        raise turns.no_conversation(conversation_id)
    first = _add(session, conversation_id, new, None)
    return messages(session, conversation_id, after=first - 1)


def _add(
    session: Session, conversation_id: UUID, new: Sequence[dict[str, Any]], job_id: UUID | None
) -> int:
    """Returns the ordinal of the first; the conversation is locked."""
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
    if rows:
        session.execute(insert(ConversationMessage), rows)
    session.execute(
        update(Conversation).where(Conversation.id == conversation_id).values(updated_at=func.now())
    )
    return first


def change(
    session: Session, conversation_id: UUID, ordinal: int, message: dict[str, Any] | None
) -> None:
    """Put another message in the place of a stored one, or none."""
    here = (
        ConversationMessage.conversation_id == conversation_id,
        ConversationMessage.ordinal == ordinal,
    )
    if message is None:
        session.execute(delete(ConversationMessage).where(*here))
    else:
        session.execute(update(ConversationMessage).where(*here).values(message=message))


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
    get(session, conversation_id, fair_key)
    locked: set[UUID] = set()
    while True:
        locked.update(
            session.scalars(turns.jobs_of(conversation_id).with_for_update(key_share=True))
        )
        savepoint = session.begin_nested()
        if turns.lock(session, conversation_id) is None:
            savepoint.commit()
            return  # another erased it meanwhile
        if set(session.scalars(turns.jobs_of(conversation_id))) <= locked:
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


# Chats that continue others: what was said before one is in the jobs that it goes back to, as long
# as retention keeps these. A turn of a conversation goes back to the beginning of that.

EARLIER_LIMIT_JOBS = 10_000
CONTINUABLE = (CHAT.name, RAG.name)


def require_continuable(session: Session, job_id: UUID, fair_key: str) -> None:
    """Raises NotFound where the key has no such chat, Conflict where it has not succeeded."""
    row = session.execute(
        select(Job.state).where(
            Job.id == job_id, Job.kind.in_(CONTINUABLE), Job.fair_key == fair_key
        )
    ).first()
    if row is None:
        raise NotFound(
            f"There is no chat job {job_id} of this key to continue; retention may have removed it."
        )
    if row.state != State.SUCCEEDED:
        raise Conflict(
            f"Job {job_id} is {row.state}; only a chat that has succeeded can be continued."
        )


def earlier(
    session: Session, job_id: UUID, fair_key: str, storage: Storage
) -> list[dict[str, Any]]:
    """The messages of a chat, and of all that it continues, oldest first; also of its answer.

    Raises NotFound where one of these jobs, or its conversation, is gone.
    """
    limits = {"id": job_id, "fair_key": fair_key, "limit": EARLIER_LIMIT_JOBS}
    chain = list(session.execute(CHAIN, limits))
    if not chain or chain[0].previous_id is not None:
        gone = chain[0].previous_id if chain else job_id
        raise NotFound(
            f"The chat job {gone}, which this one goes back to, is gone: it was erased, or removed "
            f"by retention, or there are more than {EARLIER_LIMIT_JOBS:,}. Send its messages anew."
        )
    messages: list[dict[str, Any]] = []
    if chain[0].is_turn:
        messages += _up_to_turn(session, chain[0].id)
        del chain[0]
    # One at a time: a row may be large.
    for row in chain:
        job = jobs.get(session, row.id)
        result = job.result
        if job.result_path is not None:
            result = from_json(storage.read(job.result_path))
        result = as_object(result)
        messages += said_by_client(job)
        if job.kind == RAG.name:
            messages.append({"role": "assistant", "content": result.get("answer", "")})
        else:
            messages += [*result.get("steps", ()), result.get("message", {})]
        session.expunge(job)
    # A model may have said nothing.
    return [message for message in messages if message.get("content") or _has_part(message)]


def said_by_client(job: Job) -> list[dict[str, Any]]:
    """The messages that a chat, or a `rag`, was submitted with."""
    input_ = as_object(job.input)
    if job.kind != RAG.name:
        return messages_of(input_)
    return [*input_.get("earlier", ()), {"role": "user", "content": input_.get("question", "")}]


def _has_part(message: dict[str, Any]) -> bool:
    return bool(message.get("tool_calls")) or message.get("role") == "tool"


def _up_to_turn(session: Session, job_id: UUID) -> list[dict[str, Any]]:
    last = session.execute(
        select(ConversationMessage.conversation_id, func.max(ConversationMessage.ordinal))
        .join(Job, Job.conversation_id == ConversationMessage.conversation_id)
        .where(Job.id == job_id, ConversationMessage.job_id == job_id)
        .group_by(ConversationMessage.conversation_id)
    ).first()
    if last is None:
        raise NotFound(f"The conversation of the chat job {job_id} was erased.")
    rows = messages(session, last[0], limit=None)
    return [row.message for row in rows if row.ordinal <= last[1]]


CHAIN = text("""
    WITH RECURSIVE chain AS (
        SELECT id, 1 AS depth, private AS is_turn,
            CAST(input ->> 'previous_job_id' AS uuid) AS previous_id
        FROM jobs
        WHERE id = :id AND fair_key = :fair_key AND kind IN ('chat', 'rag') AND state = 'succeeded'
        UNION ALL
        SELECT j.id, chain.depth + 1, j.private, CAST(j.input ->> 'previous_job_id' AS uuid)
        FROM chain JOIN jobs j ON j.id = chain.previous_id
        WHERE j.fair_key = :fair_key AND j.kind IN ('chat', 'rag') AND j.state = 'succeeded'
            AND chain.depth < :limit
    )
    SELECT id, is_turn, previous_id FROM chain ORDER BY depth DESC
""")


# Transcripts: what running steps have generated, written before anybody is shown it.
#
# The next attempt of a step reads what its predecessor wrote and goes on behind it, so
# clients never see text that is taken back. Every write names the attempt, and is dropped if
# that runs no longer.


@dataclass(frozen=True, kw_only=True)
class Addition:
    """What a step has generated since the last write; `offset` counts the characters shown before
    `shown`, and `logprobs_before` those of the tokens before."""

    claim: Claim
    text: str
    shown: str
    token_ids: tuple[int, ...]
    offset: int
    logprobs: tuple[TokenLogprob, ...] = ()
    logprobs_before: int = 0


@dataclass(frozen=True, kw_only=True)
class ShownText:
    """What one step of a job has shown, from an offset on; `choice` is the number of the answer
    that the step writes, where its job has several. `logprobs` are those behind the first
    `logprobs_before`, as `TokenLogprob` has them."""

    step_id: int
    choice: int
    offset: int
    text: str
    logprobs: Sequence[Mapping[str, Any]]
    logprobs_before: int


# Rows are locked in the order of their ids, as by heartbeats.
APPEND = text("""
    WITH new AS (
        SELECT * FROM jsonb_to_recordset(CAST(:rows AS jsonb))
            AS r(step_id bigint, attempt int, text text, shown text, token_ids int[],
                 logprobs jsonb)
    ), held AS (
        SELECT s.id FROM steps s
        JOIN new ON new.step_id = s.id AND new.attempt = s.attempt
          AND s.state IN ('running', 'succeeded')
        ORDER BY s.id FOR SHARE OF s
    )
    INSERT INTO transcripts AS old (step_id, text, shown, token_ids, logprobs)
    SELECT new.step_id, new.text, new.shown, new.token_ids, new.logprobs
    FROM new JOIN held ON held.id = new.step_id
    ON CONFLICT (step_id) DO UPDATE SET text = old.text || excluded.text,
        shown = old.shown || excluded.shown, token_ids = old.token_ids || excluded.token_ids,
        logprobs = CASE WHEN excluded.logprobs IS NULL THEN old.logprobs
            ELSE coalesce(old.logprobs, '[]') || excluded.logprobs END
    RETURNING step_id
""")


def append_text(session: Transaction, additions: Sequence[Addition]) -> set[int]:
    """Write what was generated, and publish it after the commit.

    Returns the ids of the steps whose attempt still runs, or succeeds in this transaction; the
    others' text was dropped.
    """
    logprobs = [[entry.model_dump() for entry in added.logprobs] or None for added in additions]
    rows = [
        {
            "step_id": added.claim.step_id, "attempt": added.claim.attempt, "text": added.text,
            "shown": added.shown, "token_ids": list(added.token_ids), "logprobs": entries,
        }
        for added, entries in zip(additions, logprobs, strict=True)
    ]  # fmt: skip
    written = set(session.scalars(APPEND, {"rows": json.dumps(rows)}))
    for added, entries in zip(additions, logprobs, strict=True):
        is_published = added.claim.step_id in written and not added.claim.is_line
        if is_published and (added.shown or entries):
            session.publish(added.claim.job_id, EventType.TOKEN, _token(added, entries))
    return written


def _token(added: Addition, logprobs: list[dict[str, Any]] | None) -> dict[str, Any]:
    """The data of a `token` event; what most texts have none of is left out."""
    claim = added.claim
    data: dict[str, Any] = {"step": claim.step_id, "offset": added.offset, "text": added.shown}
    if choice := claim.payload.get("choice"):
        data["choice"] = choice
    if logprobs is not None:
        data |= {"logprobs": logprobs, "logprobs_before": added.logprobs_before}
    return data


def of_step(session: Session, step_id: int) -> Transcript | None:
    return session.get(Transcript, step_id)


def shown_of_job(
    session: Session,
    job_id: UUID,
    offsets: Mapping[int, int],
    logprobs: Mapping[int, int] | None = None,
) -> list[ShownText]:
    """What the job's steps have shown behind so many characters, and so many log-probabilities, of
    each, in order; of steps before the first of `offsets`, nothing."""
    rows = session.execute(
        SHOWN,
        {
            "job_id": job_id,
            "first": min(offsets, default=0),
            "offsets": _by_step(offsets),
            "logprobs": _by_step(logprobs or {}),
        },
    )
    return [
        ShownText(
            step_id=row.step_id,
            choice=row.choice or 0,
            offset=row.start,
            text=row.text,
            logprobs=row.logprobs or (),
            logprobs_before=row.logprobs_before,
        )
        for row in rows
    ]


def _by_step(counts: Mapping[int, int]) -> str:
    return json.dumps({str(step_id): count for step_id, count in counts.items()})


# Characters of PostgreSQL are those of Python: code points.
SHOWN = text("""
    SELECT t.step_id, o.start, substr(t.shown, o.start + 1) AS text,
        CAST(s.payload ->> 'choice' AS int) AS choice, o.logprobs_before,
        (
            SELECT jsonb_agg(a.entry ORDER BY a.number)
            FROM jsonb_array_elements(t.logprobs) WITH ORDINALITY AS a(entry, number)
            WHERE a.number > o.logprobs_before
        ) AS logprobs
    FROM steps s
    JOIN transcripts t ON t.step_id = s.id
    CROSS JOIN LATERAL (
        SELECT coalesce(CAST(CAST(:offsets AS jsonb) ->> CAST(s.id AS text) AS int), 0) AS start,
            coalesce(CAST(CAST(:logprobs AS jsonb) ->> CAST(s.id AS text) AS int), 0)
                AS logprobs_before
    ) o
    WHERE s.job_id = :job_id AND s.id >= :first AND (
        length(t.shown) > o.start OR jsonb_array_length(t.logprobs) > o.logprobs_before
    )
    ORDER BY s.id
""")
