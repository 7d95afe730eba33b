"""The tables of generated text: what running steps have shown, and stored conversations.

`shared/transcripts.py` and `shared/conversations.py` are their only writers.
"""

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import BigInteger, ForeignKey, Index, Integer, func
from sqlalchemy import text as sql
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from shared.base import Base
from shared.ids import new_id


class Transcript(Base):
    """What a step has generated so far; the next attempt goes on behind it.

    Text that clients were shown is here first, so that no attempt can contradict it.
    """

    __tablename__ = "transcripts"

    step_id: Mapped[int] = mapped_column(
        BigInteger, ForeignKey("steps.id", ondelete="CASCADE"), primary_key=True
    )
    text: Mapped[str]
    """As the model wrote it."""
    shown: Mapped[str]
    """As clients see it: without markers that cite nothing, without calls of tools."""
    token_ids: Mapped[list[int]] = mapped_column(ARRAY(Integer))


class Conversation(Base):
    """Turns that one key exchanged with a model."""

    __tablename__ = "conversations"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    fair_key: Mapped[str]
    meta: Mapped[dict[str, Any]] = mapped_column("metadata", server_default=sql("'{}'"))
    summarize: Mapped[bool] = mapped_column(server_default=sql("false"))
    """Whether turns that find no room in the window are summed up rather than forgotten."""
    summary: Mapped[str | None]
    summary_upto: Mapped[int] = mapped_column(server_default=sql("0"))
    """How many messages, from the first one, the summary covers."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(server_default=func.now())

    __table_args__ = (Index("ix_conversations_fair_key_id", "fair_key", "id"),)


class ConversationMessage(Base):
    """One message of a conversation, in the shape of `shared.generation.ChatMessage`."""

    __tablename__ = "conversation_messages"

    conversation_id: Mapped[UUID] = mapped_column(
        ForeignKey("conversations.id", ondelete="CASCADE"), primary_key=True
    )
    ordinal: Mapped[int] = mapped_column(primary_key=True)
    message: Mapped[dict[str, Any]]
    job_id: Mapped[UUID | None]
    """The job whose turn it was; jobs may be gone by retention."""
    created_at: Mapped[datetime] = mapped_column(server_default=func.now())
