"""Limits of queues: what counts, whose limit it is, and what passes a full one."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from api.jobs.submission import Admission
from shared.config import Settings
from shared.database.transaction import Ledger
from shared.errors import QueueFull
from shared.jobs.claims import Claim
from shared.vocabulary import Queue
from tests.api_server import served
from tests.integration.answers import EMBED, problem
from tests.integration.job_runner import make_process, submit_many

LIMIT = 4
KEYS: dict[str, Any] = {
    "ann": SecretStr("s3cret-of-ann"),
    "bob": (SecretStr("old-of-bob"), SecretStr("new-of-bob")),
}


@pytest.fixture(scope="module")
def url(settings: Settings) -> Iterator[str]:
    changes = {"api_keys": KEYS, "queue_limit_steps": LIMIT, "queue_limit_steps_per_key": 3}
    with served(settings.model_copy(update=changes)) as url:
        yield url


@pytest.fixture
def of(url: str, ledger: Ledger) -> Iterator[Callable[[str], httpx.Client]]:
    """Clients by their secrets."""
    assert ledger is not None
    clients: list[httpx.Client] = []

    def make(secret: str) -> httpx.Client:
        headers = {"Authorization": f"Bearer {secret}"}
        clients.append(httpx.Client(base_url=url, headers=headers, trust_env=False, timeout=60))
        return clients[-1]

    yield make
    for client in clients:
        client.close()


Of = Callable[[str], httpx.Client]


def later() -> dict[str, str]:
    return {"run_after": (datetime.now(UTC) + timedelta(days=30)).isoformat()}


def test_one_key_does_not_fill_the_queue_for_the_others(of: Of) -> None:
    ann, bob = of("s3cret-of-ann"), of("old-of-bob")
    assert [ann.post("/v1/jobs", json=EMBED).status_code for _ in range(3)] == [202] * 3
    refusal = problem(ann.post("/v1/jobs", json=EMBED), 429)
    assert "SLUICE_QUEUE_LIMIT_STEPS_PER_KEY" in refusal["detail"]
    assert bob.post("/v1/jobs", json=EMBED).status_code == 202
    assert "SLUICE_QUEUE_LIMIT_STEPS)" in problem(bob.post("/v1/jobs", json=EMBED), 429)["detail"]


def test_what_is_not_due_takes_nobodys_place(of: Of) -> None:
    ann, bob = of("s3cret-of-ann"), of("new-of-bob")
    for _ in range(3):
        assert ann.post("/v1/jobs", json=EMBED | later()).status_code == 202
    batch = {"jobs": [EMBED | later()] * 3}
    assert ann.post("/v1/jobs/batch", json=batch).status_code == 202
    assert ann.post("/v1/jobs", json=EMBED).status_code == 202
    assert bob.post("/v1/jobs/batch", json={"jobs": [EMBED] * 3}).status_code == 202


def test_held_turns_take_nobodys_place(of: Of) -> None:
    ann, bob = of("s3cret-of-ann"), of("new-of-bob")
    talk = ann.post("/v1/conversations").json()["id"]
    turn = {
        "kind": "chat",
        "input": {
            "model": "ollama/x",
            "conversation_id": talk,
            "messages": [{"role": "user", "content": "Hi"}],
        },
    }
    for _ in range(3 * LIMIT):
        assert ann.post("/v1/jobs", json=turn).status_code == 202
    del turn["input"]["conversation_id"]  # type: ignore[attr-defined]
    assert bob.post("/v1/jobs", json=turn).status_code == 202


def test_a_job_that_is_there_already_passes_a_full_queue(of: Of) -> None:
    ann = of("s3cret-of-ann")
    headers = {"Idempotency-Key": "k"}
    first = ann.post("/v1/jobs", json=EMBED, headers=headers).json()
    for _ in range(2):
        ann.post("/v1/jobs", json=EMBED)
    problem(ann.post("/v1/jobs", json=EMBED), 429)

    again = ann.post("/v1/jobs", json=EMBED, headers=headers)
    assert again.status_code == 202, again.text
    assert again.json()["id"] == first["id"]
    assert again.headers["idempotent-replayed"] == "true"
    other = {"kind": "embed", "input": {"texts": ["other"]}}
    problem(ann.post("/v1/jobs", json=other, headers=headers), 409)
    problem(ann.post("/v1/jobs", json=EMBED, headers={"Idempotency-Key": "new"}), 429)


def test_a_place_that_has_become_free_is_seen_at_once(
    of: Of, claim: Callable[[str], Claim]
) -> None:
    """Whatever was counted a moment ago: again and again, without a pause."""
    ann = of("s3cret-of-ann")
    for _ in range(3):
        ann.post("/v1/jobs", json=EMBED)
    for _ in range(5):
        problem(ann.post("/v1/jobs", json=EMBED), 429)
        claim("embed")
        assert ann.post("/v1/jobs", json=EMBED).status_code == 202


def test_both_secrets_of_a_name_are_one_owner(of: Of) -> None:
    old, new = of("old-of-bob"), of("new-of-bob")
    talk = old.post("/v1/conversations").json()["id"]
    assert new.get(f"/v1/conversations/{talk}").status_code == 200
    headers = {"Idempotency-Key": "k"}
    ids = {c.post("/v1/jobs", json=EMBED, headers=headers).json()["id"] for c in (old, new)}
    assert len(ids) == 1
    problem(of("s3cret-of-ann").get(f"/v1/conversations/{talk}"), 404)
    problem(of("of-nobody").get("/v1/jobs"), 401)


def test_the_count_is_read_again_once_it_is_old(settings: Settings, ledger: Ledger) -> None:
    """What another process has let in is seen after a second, by a clock that the test sets."""
    now = [0.0]
    changes = {"queue_limit_steps": 2}
    gate = Admission(settings.model_copy(update=changes), clock=lambda: now[0])
    with ledger.read() as session:
        gate.admit(session, Queue.EMBED, "someone")
    process = make_process(settings)
    submit_many(process, 2, "other")
    process.close()
    now[0] = 0.9
    with ledger.read() as session:
        gate.admit(session, Queue.EMBED, "someone")
    now[0] = 2.0
    with ledger.read() as session, pytest.raises(QueueFull, match="holds 2 due steps"):
        gate.admit(session, Queue.EMBED, "someone")
