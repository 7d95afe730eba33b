"""Turns of a conversation: their text is for their own key alone, wherever jobs are shown."""

import json
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import httpx
import pytest
from pydantic import SecretStr
from sqlalchemy import text

from shared.config import Settings
from shared.database.transaction import Ledger
from shared.jobs.claims import Claim
from shared.redis.events import EventType
from tests.api_server import served
from tests.integration.answers import problem

SECRET = "the-word-of-ann"
FINISHED = {"message": {"role": "assistant", "content": SECRET}, "model": "m"}


@pytest.fixture(scope="module")
def url(settings: Settings) -> Iterator[str]:
    keys = {"ann": SecretStr("s3cret-of-ann"), "bob": SecretStr("s3cret-of-bob")}
    with served(settings.model_copy(update={"api_keys": keys})) as url:
        yield url


@pytest.fixture
def ann(url: str, ledger: Ledger) -> Iterator[httpx.Client]:
    assert ledger is not None
    headers = {"Authorization": "Bearer s3cret-of-ann"}
    with httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=60) as client:
        yield client


@pytest.fixture
def bob(url: str) -> Iterator[httpx.Client]:
    headers = {"Authorization": "Bearer s3cret-of-bob"}
    with httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=60) as client:
        yield client


def turn(client: httpx.Client, kind: str, talk: str | None) -> str:
    """The path of a job of that kind, in a conversation or alone."""
    client.put("/v1/collections/handbook")
    input_: dict[str, Any] = {"model": "ollama/x"}
    if kind == "chat":
        input_["messages"] = [{"role": "user", "content": SECRET}]
    else:
        input_ |= {"collection": "handbook", "question": SECRET}
    if talk is not None:
        input_["conversation_id"] = talk
    body = {"kind": kind, "input": input_, "metadata": {"note": SECRET}}
    answer = client.post("/v1/jobs", json=body)
    assert answer.status_code == 202, answer.text
    return str(answer.headers["location"])


def shown(client: httpx.Client, path: str) -> str:
    """All that the client can read of a job, as one text."""
    texts = [client.get(path).text, client.get("/v1/jobs").text, client.get(f"{path}/result").text]
    with client.stream("GET", f"{path}/events") as events:
        texts.append(events.read().decode())
    texts += [client.post(f"{path}/{what}").text for what in ("cancel", "retry")]
    return "\n".join(texts)


@pytest.mark.parametrize("kind", ["chat", "rag"])
@pytest.mark.parametrize("erased", [False, True])
def test_another_key_sees_that_there_is_a_turn_and_not_what_it_says(
    ann: httpx.Client, bob: httpx.Client, ledger: Ledger, kind: str, erased: bool
) -> None:
    talk = ann.post("/v1/conversations").json()["id"]
    path = turn(ann, kind, talk)
    job_id = path.rpartition("/")[2]
    before = bob.get(path).json()
    assert (before["state"], before["kind"], before["position"]) == ("queued", kind, 0)
    with ledger.begin() as session:
        session.execute(
            text("""
                UPDATE jobs SET state = 'failed', finished_at = now(), warnings = ARRAY[:secret],
                    result = to_jsonb(CAST(:secret AS text)),
                    error = jsonb_build_object('type', 'Permanent', 'message', :secret)
            """),
            {"secret": SECRET},
        )
        for type_ in (EventType.TOKEN, EventType.TOOL):
            data = {"step": 1, "offset": 0, "text": SECRET, "name": SECRET}
            session.publish(UUID(job_id), type_, data)
        session.publish(UUID(job_id), EventType.END, {"state": "failed"})
    if erased:
        assert ann.delete(f"/v1/conversations/{talk}").status_code == 204

    assert SECRET not in shown(bob, path)
    view = bob.get(path).json()
    assert (view["input"], view["metadata"], view["result"]) == ({}, {}, None)
    assert SECRET in ann.get(path).text
    assert SECRET in ann.get("/v1/jobs").text


def test_the_result_of_a_turn_is_not_there_for_another_key(
    ann: httpx.Client, bob: httpx.Client, finish: Callable[[str, dict[str, Any]], Claim]
) -> None:
    talk = ann.post("/v1/conversations").json()["id"]
    path = turn(ann, "rag", talk)
    finish("query", FINISHED)

    assert SECRET in ann.get(f"{path}/result").text
    problem(bob.get(f"{path}/result"), 404)
    assert SECRET not in shown(bob, path)


def test_jobs_that_are_no_turns_are_for_all_keys(ann: httpx.Client, bob: httpx.Client) -> None:
    path = turn(ann, "chat", None)
    assert SECRET in bob.get(path).text
    assert SECRET in bob.get("/v1/jobs").text


def test_messages_and_conversations_come_in_pages(ann: httpx.Client, ledger: Ledger) -> None:
    talk = ann.post("/v1/conversations").json()["id"]
    with ledger.begin() as session:
        session.execute(
            text("""
                INSERT INTO conversation_messages (conversation_id, ordinal, message)
                SELECT :id, n, jsonb_build_object('role', 'user', 'content', n::text)
                FROM generate_series(0, 449) n
            """),
            {"id": talk},
        )
    assert ann.get(f"/v1/conversations/{talk}").json()["messages"] == 450
    path = f"/v1/conversations/{talk}/messages"
    numbers: list[int] = []
    cursor: str | None = None
    sizes: list[int] = []
    while True:
        page = ann.get(path, params={"cursor": cursor} if cursor else {}).json()
        sizes.append(len(page["items"]))
        numbers += [int(item["message"]["content"]) for item in page["items"]]
        if (cursor := page["next_cursor"]) is None:
            break
    assert numbers == list(range(450))
    assert sizes == [200, 200, 50]
    problem(ann.get(path, params={"cursor": "nonsense"}), 400)
    problem(ann.get(path, params={"limit": 0}), 422)


def test_the_events_are_still_text_for_their_own_key(
    ann: httpx.Client, ledger: Ledger, finish: Callable[[str, dict[str, Any]], Claim]
) -> None:
    talk = ann.post("/v1/conversations").json()["id"]
    path = turn(ann, "rag", talk)
    finish("query", FINISHED)
    with ann.stream("GET", f"{path}/events") as events:
        last = events.read().decode().strip().splitlines()[-1]
    assert json.loads(last.removeprefix("data: "))["result"] == FINISHED
    assert ledger is not None
