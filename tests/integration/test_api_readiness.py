"""`/readyz` costs the same, whoever asks how often; a check that hangs takes one thread."""

import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from api.deps import Parts
from api.routes import health
from shared.config import Settings
from shared.database.transaction import Ledger
from tests.api_server import served


def test_many_calls_are_one_check(
    settings: Settings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ledger is not None
    calls: list[str] = []

    def counted(parts: Parts) -> str:
        calls.append("storage")
        parts.storage.check()
        return "can be written"

    monkeypatch.setitem(health.CHECKS, "storage", counted)
    kept = settings.model_copy(update={"readiness_keep_s": 3600})
    with served(kept) as url, ThreadPoolExecutor(8) as pool:
        answers = list(
            pool.map(lambda _: httpx.get(f"{url}/readyz", trust_env=False).json(), range(40))
        )
    assert len(calls) == 1
    assert all(answer == answers[0] for answer in answers)


def test_a_check_that_hangs_is_said_to_and_started_once(
    settings: Settings, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ledger is not None
    calls: list[str] = []
    released = threading.Event()

    def hangs(_parts: Parts) -> str:
        calls.append("storage")
        released.wait(120)
        return "can be written"

    monkeypatch.setitem(health.CHECKS, "storage", hangs)
    monkeypatch.setattr(health, "CHECK_S", 0.2)
    with served(settings) as url, httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        for _ in range(5):
            check = client.get("/readyz").json()["checks"]["storage"]
            assert check == {"ok": False, "detail": "no answer within 0.2 s"}
        assert len(calls) == 1
        released.set()
        while not client.get("/readyz").json()["checks"]["storage"]["ok"]:
            pass
