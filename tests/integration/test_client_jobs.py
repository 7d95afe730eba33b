"""Jobs as objects, errors by status, timeouts of calls, and what is logged; both clients alike."""

import asyncio
import logging
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

import sluice
from sluice import (
    ApiError,
    AsyncClient,
    AsyncClientJob,
    Client,
    ClientJob,
    ConnectionBroken,
    Event,
    Job,
    NotFound,
    Retries,
    TextPiece,
    WaitTimeout,
)
from sluice.errors import OF_STATUS, of_status
from sluice.kinds import ChatInput, EmbedInput
from tests.integration.conftest import Finish
from tests.integration.fake_api import State

QUICK = Retries(connect_for_s=0.3, retry_for_s=5.0, busy_for_s=1.0, base_s=0.02, cap_s=0.1)
EMBED: EmbedInput = {"texts": ["a"]}
CHAT: ChatInput = {"messages": [{"role": "user", "content": "hello"}]}
RESULT = {"model": "m", "dimension": 2, "embeddings": [[0.0, 1.0]]}
SECRET = "not-for-any-log"


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url, SECRET, retries=QUICK) as client:
        yield client


# Jobs


def test_a_job_goes_through_its_life(api: httpx.Client, api_url: str, finish: Finish) -> None:
    del api
    with Client(api_url, retries=QUICK) as client, ThreadPoolExecutor(1) as pool:
        job = client.submit("embed", EMBED)
        assert isinstance(job, ClientJob)
        assert isinstance(job, Job)
        assert job.state == "queued"
        assert job.model_dump()["result"] is None
        with pytest.raises(WaitTimeout):
            job.wait(timeout_s=0.05)
        assert job.cancel() is job
        assert job.state == "cancelled"
        assert job.wait() is job, "it has ended"
        with pytest.raises(sluice.JobCancelled):
            job.require_success()
        assert job.retry().state == "queued"
        running = pool.submit(finish, "embed", RESULT)
        events: list[Event] = list(job.events())
        running.result()
        assert events[-1].event == "end"
        assert (job.state, job.result["dimension"]) == ("succeeded", 2)
        assert job.model_dump(mode="json") == client.job(job.id).model_dump(mode="json")
        assert client.job(job.id).wait().result == RESULT
        job.erase()
        with pytest.raises(NotFound):
            job.refresh()
        assert job.result["dimension"] == 2, "what is known stays"


def test_a_job_of_the_async_client_goes_through_its_life(
    api: httpx.Client, api_url: str, finish: Finish
) -> None:
    del api

    async def main() -> None:
        async with AsyncClient(api_url, retries=QUICK) as client:
            job = await client.submit("embed", EMBED)
            assert isinstance(job, AsyncClientJob)
            assert await job.cancel() is job
            assert (await job.wait()).state == "cancelled"
            assert (await job.retry()).state == "queued"
            _, ended = await asyncio.gather(asyncio.to_thread(finish, "embed", RESULT), job.wait())
            assert ended is job
            assert ended.require_success().result["dimension"] == 2
            assert [event.event async for event in job.events()][-1] == "end"
            listed = [one async for one in client.jobs()]
            assert [type(one) for one in listed] == [AsyncClientJob]
            assert (await listed[0].refresh()).result == RESULT
            await job.erase()
            with pytest.raises(NotFound):
                await job.refresh()

    asyncio.run(main())


def test_a_job_streams_its_text(client: Client) -> None:
    job = client.submit("chat", CHAT)
    items = list(job.stream())
    assert "".join(item.text for item in items if isinstance(item, TextPiece))
    assert items[-1] is job
    assert job.ended


def test_a_large_result_is_fetched_by_wait(client: Client, state: State) -> None:
    state.results_are_large = True
    ended = client.wait(client.submit("embed", EMBED).id)
    known = client.job(ended.id)
    assert (known.result, known.lacks_result) == (None, True)
    assert known.wait().result == ended.result
    assert not known.lacks_result


# Errors by status


def test_errors_have_a_class_by_status(client: Client, state: State) -> None:
    with pytest.raises(sluice.Missing) as caught:
        client.job("01a21957-3c86-7c1b-9aaa-00000000ffff")
    assert isinstance(caught.value, NotFound)
    assert isinstance(caught.value, ApiError)
    with pytest.raises(sluice.Conflict):
        client.retry("x")
    with pytest.raises(sluice.Unprocessable) as wrong:
        client.submit_untyped("nonsense", {})
    assert wrong.value.errors
    state.busy_times = 10**9
    with pytest.raises(sluice.TooManyRequests):
        client.submit("embed", EMBED)


def test_every_class_is_exported_and_others_are_known_by_their_number() -> None:
    for status, type_ in OF_STATUS.items():
        assert getattr(sluice, type_.__name__) is type_
        assert str(status) in str(type_.__doc__)
        assert issubclass(type_, sluice.ServerError) == (status >= 500)
    assert (of_status(418), of_status(500)) == (ApiError, sluice.ServerError)


# Timeouts of calls


def test_a_call_ends_with_its_time_however_patient_the_client_is(url: str, state: State) -> None:
    state.busy_times = 10**9
    patient = Retries(connect_for_s=1e9, retry_for_s=1e9, busy_for_s=1e9)
    # Busy to the end, or cut off while it asks once more.
    ends = (sluice.TooManyRequests, ConnectionBroken)
    with Client(url, retries=patient) as client, pytest.raises(ends):
        client.submit("embed", EMBED, call_timeout_s=0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent_url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with (
            Client(silent_url, timeout_s=1e9, retries=patient) as client,
            pytest.raises(ConnectionBroken),
        ):
            client.job("01a21957-3c86-7c1b-9aaa-00000000ffff", timeout_s=0.05)


def test_a_call_may_take_longer_than_the_client_says(url: str) -> None:
    with Client(url, timeout_s=1e-9, retries=Retries(connect_for_s=0)) as client:
        assert client.health(timeout_s=30)


# What is logged


def test_requests_are_logged_without_secrets(
    url: str, state: State, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="sluice")
    with Client(url.replace("//", f"//user:{SECRET}@"), SECRET, retries=QUICK) as client:
        state.lost_answers = 1
        client.submit(
            "embed",
            {"texts": [SECRET]},
            webhook={"url": f"http://127.0.0.1/{SECRET}", "secret": SECRET},
        )
        list(client.jobs(collection=SECRET))
    lines = [record.getMessage() for record in caplog.records if record.name == "sluice"]
    assert any("POST /v1/jobs: 20" in line for line in lines)
    assert any("tried again" in line for line in lines)
    assert any("GET /v1/jobs: 200" in line for line in lines)
    assert SECRET not in "\n".join(lines)


def test_a_password_in_the_url_is_in_no_message() -> None:
    with (
        Client(f"http://user:{SECRET}@127.0.0.1:9", retries=Retries(connect_for_s=0)) as client,
        pytest.raises(sluice.ConnectionFailed) as caught,
    ):
        client.health()
    assert "127.0.0.1:9" in caught.value.message
    assert SECRET not in caught.value.message
