"""Chats in this process: a process whose models are those of a real HTTP server on loopback."""

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from shared import conversations
from shared.kinds import registry as kinds
from shared.kinds.chat import ChatInput
from shared.tables import Job
from shared.vocabulary import State
from tests.integration.job_runner import drain, job_of, submit
from workers.attempts.process import Process

MODEL = "ollama/tiny"


def user(content: str) -> dict[str, Any]:
    return {"role": "user", "content": content}


def submit_chat(process: Process, content: str, **fields: Any) -> UUID:
    """Submit a chat of one message of the user."""
    return submit_messages(process, [user(content)], **fields)


def submit_messages(process: Process, messages: Sequence[dict[str, Any]], **fields: Any) -> UUID:
    talk = fields.pop("conversation_id", None)
    own = {
        name: fields.pop(name) for name in ("lane", "timeout_s", "max_attempts") if name in fields
    }
    fields_of_input = {"model": MODEL, "messages": list(messages), "conversation_id": talk} | fields
    input_ = ChatInput.model_validate(fields_of_input).model_dump(mode="json")
    return submit(process, kinds.CHAT, input_, conversation_id=talk, **own)


def chat_result(process: Process, job_id: UUID) -> dict[str, Any]:
    """The result of a job that is run to its end."""
    drain(process)
    job = job_of(process, job_id)
    assert job.state == State.SUCCEEDED, job.error
    result: dict[str, Any] | None = job.result
    assert result is not None
    return result


def chat_error(process: Process, job_id: UUID) -> dict[str, Any]:
    """The error of a job that is run to its end."""
    drain(process)
    job: Job = job_of(process, job_id)
    assert job.state == State.FAILED, job.result
    assert job.error is not None
    return job.error


def chat(process: Process, content: str, **fields: Any) -> str:
    result = chat_result(process, submit_chat(process, content, **fields))
    return str(result["message"]["content"])


def conversation(process: Process, *, summarize: bool = False) -> UUID:
    with process.ledger.begin() as session:
        return conversations.make(session, "someone", metadata={}, summarize=summarize)


def stored_messages(process: Process, conversation_id: UUID) -> list[tuple[str, str]]:
    with process.ledger.read() as session:
        rows = conversations.messages(session, conversation_id)
    return [(row.message["role"], row.message["content"]) for row in rows]
