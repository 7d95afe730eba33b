"""Conversations: turns are stored, serialized, trimmed, summed up and erased."""

from collections.abc import Callable
from uuid import UUID

import pytest
from sqlalchemy import text

from shared import conversations
from shared.errors import NotFound
from shared.jobs import jobs
from shared.jobs.queues import estimate
from shared.kinds import registry as kinds
from shared.kinds.rag import RagInput
from shared.vocabulary import Queue
from tests.integration.chats import (
    MODEL,
    chat,
    chat_error,
    chat_result,
    conversation,
    stored_messages,
    submit_chat,
    submit_messages,
    user,
)
from tests.integration.ingestion import ingest, new_collection
from tests.integration.job_runner import (
    cancel,
    claim,
    drain,
    handlers,
    invariants_hold,
    job_of,
    submit,
)
from tests.wire.behaviour import Wire
from workers.attempts.process import Process
from workers.attempts.runner import run
from workers.sweep import Sweeper


@pytest.fixture
def process(talker: Callable[..., Process]) -> Process:
    return talker(remote_window_tokens=256)


def last_messages(wire: Wire) -> list[tuple[str, str]]:
    """What the model was given last."""
    return [
        (message["role"], message["content"])
        for message in wire.bodies("/api/chat")[-1]["messages"]
    ]


def test_a_turn_knows_the_turns_before_it(process: Process, wire: Wire) -> None:
    talk = conversation(process)
    chat(process, "My name is 민수.", conversation_id=talk)
    chat(process, "What is my name?", conversation_id=talk)

    assert last_messages(wire) == [
        ("user", "My name is 민수."),
        ("assistant", "My name is 민수."),
        ("user", "What is my name?"),
    ]
    assert stored_messages(process, talk)[-1] == ("assistant", "What is my name?")
    assert len(stored_messages(process, talk)) == 4


def test_the_newest_system_prompt_stands_in_front(process: Process, wire: Wire) -> None:
    talk = conversation(process)
    be = [{"role": "system", "content": "Be kind."}, user("one")]
    chat_result(process, submit_messages(process, be, conversation_id=talk))
    chat(process, "two", conversation_id=talk)
    assert last_messages(wire)[0] == ("system", "Be kind.")
    be[0]["content"] = "Be brief."
    chat_result(process, submit_messages(process, [be[0], user("three")], conversation_id=talk))
    assert [message for message in last_messages(wire) if message[0] == "system"] == [
        ("system", "Be brief.")
    ]
    chat(process, "four", conversation_id=talk)
    assert last_messages(wire)[0] == ("system", "Be brief.")


def test_turns_of_one_conversation_run_one_after_the_other(process: Process) -> None:
    talk = conversation(process)
    ids = [submit_chat(process, f"turn {n}", conversation_id=talk) for n in range(4)]
    other = submit_chat(process, "elsewhere", conversation_id=conversation(process))

    first, second = claim(process, Queue.GENERATE), claim(process, Queue.GENERATE)
    assert first is not None
    assert second is not None
    assert {first.job_id, second.job_id} == {ids[0], other}
    assert claim(process, Queue.GENERATE) is None
    with process.ledger.read() as session:
        forecast = estimate(session, [jobs.get(session, ids[1])], worker_heartbeat_s=5)[ids[1]]
    assert forecast.waiting_for == "an earlier turn of the conversation"
    for held in (first, second):
        run(process, handlers(), held)
    drain(process, hurry=False)

    said = [content for role, content in stored_messages(process, talk) if role == "user"]
    assert said == [f"turn {n}" for n in range(4)]
    invariants_hold(process, all_ended=True)


@pytest.mark.parametrize("ends", ["cancelled", "failed", "cancelled while held"])
def test_the_next_turn_goes_on_however_one_ends(process: Process, ends: str) -> None:
    talk = conversation(process)
    bad = {"model": "ollama/unknown"} if ends == "failed" else {}
    first = submit_chat(process, "one", conversation_id=talk, **bad)
    second = submit_chat(process, "two", conversation_id=talk)
    third = submit_chat(process, "three", conversation_id=talk)
    if ends == "cancelled":
        cancel(process, first)
    if ends == "cancelled while held":
        cancel(process, second)
    drain(process, hurry=False)

    assert job_of(process, third).state == "succeeded"
    said = [content for role, content in stored_messages(process, talk) if role == "user"]
    gone = "two" if ends == "cancelled while held" else "one"
    assert said == [word for word in ("one", "two", "three") if word != gone]


def test_a_redriven_turn_waits_for_its_turn(process: Process) -> None:
    talk = conversation(process)
    first = submit_chat(process, "one", conversation_id=talk)
    cancel(process, first)
    second = submit_chat(process, "two", conversation_id=talk)
    with process.ledger.begin() as session:
        jobs.redrive(session, first)

    next_claim = claim(process, Queue.GENERATE)
    assert next_claim is not None
    assert next_claim.job_id == second
    assert claim(process, Queue.GENERATE) is None
    run(process, handlers(), next_claim)
    drain(process, hurry=False)
    assert [message[1] for message in stored_messages(process, talk)] == [
        "two",
        "two",
        "one",
        "one",
    ]


def test_the_sweeper_lets_a_turn_go_whose_predecessor_vanished(process: Process) -> None:
    talk = conversation(process)
    first, second = (submit_chat(process, word, conversation_id=talk) for word in ("one", "two"))
    with process.ledger.begin() as session:
        session.execute(text("DELETE FROM jobs WHERE id = :id"), {"id": first})
    assert claim(process, Queue.GENERATE) is None

    assert Sweeper(process, handlers()).sweep()

    next_claim = claim(process, Queue.GENERATE)
    assert next_claim is not None
    assert next_claim.job_id == second


def test_what_finds_no_room_is_dropped_and_counted(process: Process, wire: Wire) -> None:
    talk = conversation(process)
    be = {"role": "system", "content": "Be kind."}
    chat_result(process, submit_messages(process, [be, user("first " * 20)], conversation_id=talk))
    for n in range(4):
        chat(process, f"turn {n} " * 12, conversation_id=talk, parameters={"max_tokens": 64})
    result = chat_result(
        process, submit_chat(process, "last", conversation_id=talk, parameters={"max_tokens": 64})
    )
    assert result["messages_dropped"] > 0
    assert last_messages(wire)[0] == ("system", "Be kind.")
    assert last_messages(wire)[-1] == ("user", "last")
    assert not any("first" in content for _, content in last_messages(wire))


def test_a_long_conversation_is_summed_up_where_that_is_set(process: Process, wire: Wire) -> None:
    talk = conversation(process, summarize=True)
    for n in range(6):
        chat(process, f"fact {n} " * 12, conversation_id=talk, parameters={"max_tokens": 64})
    with process.ledger.read() as session:
        stored_talk = conversations.get(session, talk)
    assert stored_talk.summary
    assert stored_talk.summary_upto > 0
    role, content = last_messages(wire)[0]
    assert role == "system"
    assert stored_talk.summary.strip() in content
    assert len(stored_messages(process, talk)) == 12


def test_an_erased_conversation_is_gone_and_its_open_turn_fails(process: Process) -> None:
    talk = conversation(process)
    chat(process, "a secret", conversation_id=talk)
    job_id = submit_chat(process, "more", conversation_id=talk)
    with process.ledger.begin() as session:
        conversations.erase(session, talk, "someone")

    drain(process)

    assert job_of(process, job_id).conversation_id is None
    with pytest.raises(NotFound), process.ledger.read() as session:
        conversations.get(session, talk)
    with process.ledger.read() as session:
        assert session.scalar(text("SELECT count(*) FROM conversation_messages")) == 0


def test_another_key_does_not_see_a_conversation(process: Process) -> None:
    talk = conversation(process)
    with process.ledger.begin() as session:
        assert conversations.page(session, "other", limit=9, before=None) == []
        with pytest.raises(NotFound):
            conversations.erase(session, talk, "other")
        assert [row.conversation.id for row in conversations.page(
            session, "someone", limit=9, before=None
        )] == [talk]  # fmt: skip


def test_rag_in_a_conversation_knows_what_was_said(
    talker: Callable[..., Process], wire: Wire
) -> None:
    process = talker()
    talk = conversation(process)
    collection = new_collection(process)
    ingest(process, collection, {"cats": "Cats sleep fifteen hours a day."})

    def ask(question: str) -> UUID:
        input_ = RagInput(
            collection=collection, question=question, model=MODEL, conversation_id=talk
        )
        return submit(process, kinds.RAG, input_.model_dump(mode="json"), conversation_id=talk)

    chat_result(process, ask("How long do cats sleep?"))
    chat_result(process, ask("And what else?"))

    roles = [role for role, _ in last_messages(wire)]
    assert roles == ["system", "user", "assistant", "user"]
    assert last_messages(wire)[1] == ("user", "How long do cats sleep?")
    assert [content for role, content in stored_messages(process, talk) if role == "user"] == [
        "How long do cats sleep?",
        "And what else?",
    ]


def test_a_message_that_can_never_fit_fails_and_is_not_stored(process: Process) -> None:
    talk = conversation(process)
    error = chat_error(process, submit_chat(process, "word " * 4000, conversation_id=talk))
    assert "tokens" in error["message"]
    assert stored_messages(process, talk) == []
