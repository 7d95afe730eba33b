"""Calls of the inference API that come again, and calls that do not wait for a model to load."""

from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from shared.config import Settings
from shared.database.transaction import Ledger
from shared.redis import events
from shared.redis.events import Event, EventType, Loading
from shared.vocabulary import State
from tests.integration.answers import EMBED, stored
from tests.integration.inference import BODY, MODEL, SUMMARY, URL, Worker, error, working

FILL = f"{URL}/pipeline/fill-mask"
LOADING = Loading(model=MODEL, estimated_s=20)
NO_WAIT = {"X-Wait-For-Model": "false"}


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"sse_poll_s": 0.2})


@pytest.fixture
def worker(ledger: Ledger) -> Iterator[Worker]:
    with working(ledger) as worker:
        yield worker


class TestLoading:
    def is_loading(self, answer: httpx.Response) -> None:
        assert answer.status_code == 503
        body = answer.json()
        assert body["error"] == f"Model {MODEL} is currently loading"
        assert 1 <= body["estimated_time"] <= 20
        assert 1 <= int(answer.headers["retry-after"]) <= 20
        assert set(body) == {"error", "estimated_time"}

    def begin(self, worker: Worker) -> None:
        events.announce(worker.ledger.events.redis, LOADING)

    def end(self, worker: Worker) -> None:
        events.done(worker.ledger.events.redis, MODEL)

    @pytest.mark.parametrize(
        ("headers", "options"),
        [
            (NO_WAIT, {}),
            ({"x-wait-for-model": "0"}, {}),
            ({}, {"wait_for_model": False}),
            (NO_WAIT, {"wait_for_model": True}),
        ],
    )
    def test_who_does_not_wait_is_answered_at_once(
        self, headers: dict[str, str], options: dict[str, Any], worker: Worker, api: httpx.Client
    ) -> None:
        self.begin(worker)
        self.is_loading(api.post(URL, json=BODY | {"options": options}, headers=headers))
        assert worker.count() == 0

    @pytest.mark.parametrize(
        ("headers", "options"),
        [
            ({}, {}),
            ({}, {"wait_for_model": True}),
            ({"x-wait-for-model": "1"}, {"wait_for_model": False}),
        ],
    )
    def test_others_wait(
        self, headers: dict[str, str], options: dict[str, Any], worker: Worker, api: httpx.Client
    ) -> None:
        self.begin(worker)
        answer, _ = worker.answer(
            lambda: api.post(URL, json=BODY | {"options": options}, headers=headers), SUMMARY
        )
        assert answer.json() == SUMMARY

    @pytest.mark.parametrize("event", [True, False], ids=["the event comes", "the event is lost"])
    def test_the_call_that_makes_the_model_load(
        self, event: bool, worker: Worker, api: httpx.Client
    ) -> None:
        """Its job goes on, so the model is there for the next call."""

        def ask() -> httpx.Response:
            return api.post(URL, json=BODY, headers=NO_WAIT)

        call = worker.call(ask)
        claim = worker.claim(call)
        self.begin(worker)
        if event:
            news = Event(job_id=claim.job_id, type=EventType.STATE, data=LOADING.event())
            worker.ledger.events.publish([news])
        answer = call.result()
        self.is_loading(answer)
        assert answer.headers["x-sluice-job-id"] == str(claim.job_id)
        self.is_loading(ask())
        assert worker.count() == 1
        self.end(worker)
        worker.succeed(claim, SUMMARY)
        assert worker.job(claim.job_id).state == State.SUCCEEDED
        again, _ = worker.answer(ask, SUMMARY)
        assert again.json() == SUMMARY

    def test_other_models_are_not_waited_for(self, worker: Worker, api: httpx.Client) -> None:
        events.announce(worker.ledger.events.redis, Loading(model="owner/other", estimated_s=20))
        answer, _ = worker.answer(lambda: api.post(URL, json=BODY, headers=NO_WAIT), SUMMARY)
        assert answer.json() == SUMMARY

    def test_a_slow_load_has_always_some_time_left(self, worker: Worker, api: httpx.Client) -> None:
        events.announce(worker.ledger.events.redis, Loading(model=MODEL, estimated_s=0))
        self.is_loading(api.post(URL, json=BODY, headers=NO_WAIT))

    def test_what_a_dead_worker_announced_ends(self, worker: Worker) -> None:
        self.begin(worker)
        assert 20 < worker.ledger.events.redis.ttl(events.key(MODEL)) <= 70

    def test_the_hubs_client_sees_it(self, worker: Worker, api_url: str) -> None:
        self.begin(worker)
        with (
            InferenceClient(model=api_url + URL, headers=NO_WAIT, timeout=30) as client,
            pytest.raises(HfHubHTTPError, match="currently loading") as raised,
        ):
            client.summarization("A text.")
        assert raised.value.response.status_code == 503


def test_a_client_that_goes_away_leaves_its_job(worker: Worker, api_url: str) -> None:
    with httpx.Client(base_url=api_url, timeout=0.3, trust_env=False) as client:
        call = worker.call(lambda: client.post(URL, json=BODY))
        claim = worker.claim(call)
        assert isinstance(call.exception(), httpx.ReadTimeout)
    assert worker.job(claim.job_id).state == State.RUNNING
    worker.succeed(claim, SUMMARY)
    assert worker.job(claim.job_id).result == SUMMARY


class TestIdempotency:
    HEADERS = {"Idempotency-Key": "one"}  # noqa: RUF012 (never written)

    def test_the_same_call_is_the_same_job(self, worker: Worker, api: httpx.Client) -> None:
        def call() -> httpx.Response:
            return api.post(URL, json=BODY, headers=self.HEADERS)

        first, _ = worker.answer(call, SUMMARY)
        again = call()
        assert again.json() == first.json() == SUMMARY
        assert again.headers["x-sluice-job-id"] == first.headers["x-sluice-job-id"]
        assert again.headers["idempotent-replayed"] == "true"
        assert "idempotent-replayed" not in first.headers

    @pytest.mark.parametrize(
        "other",
        [
            lambda api, headers: api.post(URL, json={"inputs": "Other."}, headers=headers),
            lambda api, headers: api.post(FILL, json=BODY, headers=headers),
            lambda api, headers: api.post("/models/other", json=BODY, headers=headers),
            lambda api, headers: api.post(URL, content=b"fLaC", headers=headers),
            lambda api, headers: api.post("/v1/jobs", json=EMBED, headers=headers),
        ],
    )
    def test_another_call_is_refused(
        self,
        other: Callable[..., httpx.Response],
        worker: Worker,
        api: httpx.Client,
        settings: Settings,
    ) -> None:
        worker.answer(lambda: api.post(URL, json=BODY, headers=self.HEADERS), SUMMARY)
        before = stored(settings)
        assert other(api, self.HEADERS).status_code == 409
        assert stored(settings) == before

    def test_bytes_that_come_again_are_not_kept(
        self, worker: Worker, api: httpx.Client, settings: Settings
    ) -> None:
        def call(data: bytes = b"fLaC") -> httpx.Response:
            return api.post(URL, content=data, headers=self.HEADERS)

        before = stored(settings)
        first, _ = worker.answer(call, {"text": "HELLO"})
        assert call().headers["x-sluice-job-id"] == first.headers["x-sluice-job-id"]
        assert "used for another request" in error(call(b"OggS"), 409)
        assert stored(settings) == before
