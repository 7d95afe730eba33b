"""Generated text in event streams: each character once, in order, whatever is lost or resumed."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import httpx
import pytest
from redis import Redis

from shared import conversations
from shared.config import Settings
from shared.conversations import Addition
from shared.database.transaction import Ledger
from shared.jobs import claims, jobs, steps
from shared.jobs.claims import Claim
from shared.kinds.chat import TokenLogprob
from shared.redis.events import stream_key
from shared.vocabulary import Queue
from tests.integration.event_stream import EventStream
from workers.generation.choices import choice_steps

TEXT = "안녕하세요. This answer is told in pieces, and each of them once."
CHAT = {
    "kind": "chat",
    "input": {"model": "hf/m", "messages": [{"role": "user", "content": "Hello"}]},
}


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"sse_poll_s": 0.2, "sse_heartbeat_s": 0.3})


@pytest.fixture
def job_id(api: httpx.Client) -> str:
    answer = api.post("/v1/jobs", json=CHAT)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def claimed(ledger: Ledger) -> Claim:
    with ledger.begin() as session:
        claim = claims.claim(session, "generate", worker="w", lease_s=60, routes=["hf/m"])
    assert claim is not None
    return claim


def write(ledger: Ledger, claim: Claim, text: str, offset: int, *, scored: bool = False) -> bool:
    """Where it is scored, each character is a token with its log-probability."""
    logprobs = [TokenLogprob(token=character, logprob=-1.0) for character in text if scored]
    addition = Addition(
        claim=claim, text=text, shown=text, token_ids=(1, 2), offset=offset,
        logprobs=tuple(logprobs), logprobs_before=offset if scored else 0,
    )  # fmt: skip
    with ledger.begin() as session:
        return claim.step_id in conversations.append_text(session, [addition])


def write_all(ledger: Ledger, claim: Claim, text: str, *, size: int = 5) -> None:
    for offset in range(0, len(text), size):
        assert write(ledger, claim, text[offset : offset + size], offset)


def succeed(ledger: Ledger, claim: Claim) -> None:
    with ledger.begin() as session:
        steps.succeed(session, claim, result={"message": {"role": "assistant", "content": "x"}})


def tokens(reader: EventStream) -> list[tuple[str, dict[str, Any]]]:
    """Ids and data of all tokens up to the end."""
    return [(id_, data) for id_, event, data in reader if event == "token"]


def text_of(pieces: list[tuple[str, dict[str, Any]]]) -> str:
    return "".join(data["text"] for _, data in pieces)


def test_tokens_come_as_they_are_written(
    job_id: str, ledger: Ledger, follow: Callable[..., EventStream]
) -> None:
    reader = follow(job_id)
    claim = claimed(ledger)
    assert write(ledger, claim, TEXT[:5], 0)
    # Read before there is more: what is written between two looks may come in one piece.
    first = next((id_, data) for id_, event, data in reader if event == "token")
    for offset in range(5, len(TEXT), 5):
        assert write(ledger, claim, TEXT[offset : offset + 5], offset)
    succeed(ledger, claim)
    pieces = [first, *tokens(reader)]
    assert text_of(pieces) == TEXT
    assert len(pieces) > 1
    assert [data["offset"] for _, data in pieces] == [
        sum(len(piece["text"]) for _, piece in pieces[:n]) for n in range(len(pieces))
    ]


def test_a_stream_resumed_at_any_token_goes_on_exactly_there(
    job_id: str, ledger: Ledger, follow: Callable[..., EventStream]
) -> None:
    claim = claimed(ledger)
    write_all(ledger, claim, TEXT)
    succeed(ledger, claim)
    pieces = tokens(follow(job_id))
    for n, (id_, _) in enumerate(pieces):
        assert text_of(pieces[: n + 1]) + text_of(tokens(follow(job_id, id_))) == TEXT


def test_what_redis_lost_or_sends_twice_comes_once(
    job_id: str, ledger: Ledger, follow: Callable[..., EventStream], redis_url: str
) -> None:
    claim = claimed(ledger)
    reader = follow(job_id)
    write_all(ledger, claim, TEXT[:20])
    with Redis.from_url(redis_url, decode_responses=True) as redis:
        key = stream_key(UUID(job_id))
        entries = redis.xrange(key)
        redis.delete(key)
        write_all_from(ledger, claim, TEXT, 20, 40)
        lost = [id_ for id_, fields in redis.xrange(key) if fields["type"] == "token"][:2]
        redis.xdel(key, *lost)
        for _, fields in entries:
            redis.xadd(key, fields)
    write_all_from(ledger, claim, TEXT, 40, len(TEXT))
    succeed(ledger, claim)
    assert text_of(tokens(reader)) == TEXT


def test_several_texts_at_once_are_resumed_at_any_token(
    job_id: str, ledger: Ledger, follow: Callable[..., EventStream], redis_url: str
) -> None:
    """With the log-probabilities of their tokens, each of them once, whatever Redis has lost."""
    first = claimed(ledger)
    with ledger.begin() as session:
        steps.succeed(session, first, children=choice_steps("chat.choice", "hf/m", [{}] * 3))
    claims_ = [claimed(ledger) for _ in range(3)]
    for offset in range(0, len(TEXT), 20):
        for claim in claims_:
            assert write(ledger, claim, TEXT[offset : offset + 20], offset, scored=True)
    for claim in claims_:
        succeed(ledger, claim)

    def read(pieces: list[tuple[str, dict[str, Any]]]) -> dict[int, tuple[str, str]]:
        texts: dict[int, tuple[str, list[str]]] = {}
        for _, data in pieces:
            text, tokens_ = texts.get(data.get("choice", 0), ("", []))
            before = data.get("logprobs_before", len(tokens_))
            tokens_ = tokens_[:before] + [entry["token"] for entry in data.get("logprobs", ())]
            assert len(text) == data["offset"]
            texts[data.get("choice", 0)] = (text + data["text"], tokens_)
        return {choice: (text, "".join(tokens_)) for choice, (text, tokens_) in texts.items()}

    whole = dict.fromkeys(range(3), (TEXT, TEXT))
    pieces = tokens(follow(job_id))
    assert read(pieces) == whole
    for n, (id_, _) in enumerate(pieces):
        assert read([*pieces[: n + 1], *tokens(follow(job_id, id_))]) == whole
    with Redis.from_url(redis_url) as redis:
        redis.flushall()
    assert read(tokens(follow(job_id))) == whole
    assert read([*pieces[:1], *tokens(follow(job_id, pieces[0][0]))]) == whole


def write_all_from(ledger: Ledger, claim: Claim, text: str, start: int, end: int) -> None:
    for offset in range(start, end, 5):
        assert write(ledger, claim, text[offset : min(offset + 5, end)], offset)


def test_text_comes_without_redis_memory(
    job_id: str, ledger: Ledger, follow: Callable[..., EventStream], redis_url: str
) -> None:
    claim = claimed(ledger)
    write_all(ledger, claim, TEXT)
    succeed(ledger, claim)
    with Redis.from_url(redis_url) as redis:
        redis.flushall()
    assert text_of(tokens(follow(job_id))) == TEXT


def test_an_overtaken_attempt_adds_nothing_and_the_next_goes_on_behind(
    job_id: str, ledger: Ledger, follow: Callable[..., EventStream]
) -> None:
    first = claimed(ledger)
    write_all(ledger, first, TEXT[:10])
    with ledger.begin() as session:
        steps.retry(session, first, {"type": "x", "message": "x"}, in_s=0, free=False)
    second = claimed(ledger)
    assert not write(ledger, first, "LATE", 10)
    with ledger.read() as session:
        before = conversations.of_step(session, second.step_id)
    assert before is not None
    assert (before.text, before.shown, before.token_ids) == (TEXT[:10], TEXT[:10], [1, 2, 1, 2])
    write_all_from(ledger, second, TEXT, 10, len(TEXT))
    succeed(ledger, second)
    assert text_of(tokens(follow(job_id))) == TEXT


def test_a_redriven_job_tells_only_its_new_text(
    job_id: str, ledger: Ledger, follow: Callable[..., EventStream]
) -> None:
    first = claimed(ledger)
    write_all(ledger, first, "old text")
    with ledger.begin() as session:
        steps.fail(session, first, {"type": "x", "message": "x"})
    with ledger.begin() as session:
        jobs.redrive(session, UUID(job_id))
    second = claimed(ledger)
    write_all(ledger, second, "the new text")
    succeed(ledger, second)
    assert text_of(tokens(follow(job_id))) == "the new text"


def test_the_steps_of_an_agent_follow_each_other(
    job_id: str, ledger: Ledger, follow: Callable[..., EventStream]
) -> None:
    claim = claimed(ledger)
    write_all(ledger, claim, "Let me see. ")
    with ledger.begin() as session:
        child = steps.NewStep(name="chat.answer", queue=Queue.GENERATE, route="hf/m")
        steps.succeed(session, claim, children=[child])
    second = claimed(ledger)
    write_all(ledger, second, "It is 144.")
    succeed(ledger, second)
    pieces = tokens(follow(job_id))
    assert text_of(pieces) == "Let me see. It is 144."
    assert {data["step"] for _, data in pieces} == {claim.step_id, second.step_id}
    for n, (id_, _) in enumerate(pieces):
        rest = text_of(tokens(follow(job_id, id_)))
        assert text_of(pieces[: n + 1]) + rest == "Let me see. It is 144."
