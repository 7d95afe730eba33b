"""`AsyncClient`: the methods of `Client`, on asyncio, against the real API and its stand-in."""

import asyncio
import inspect
import re
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest

from sluice import (
    ApiError,
    AsyncClient,
    Client,
    ConnectionBroken,
    ConnectionFailed,
    InvalidInput,
    Job,
    JobCancelled,
    Retries,
    TextPiece,
    WaitTimeout,
)
from sluice.kinds import EmbedInput
from tests.integration.conftest import Finish
from tests.integration.fake_api import State

ROOT = Path(__file__).resolve().parents[2]
QUICK = Retries(connect_for_s=0.3, retry_for_s=5.0, busy_for_s=1.0, base_s=0.02, cap_s=0.1)
EMBED: EmbedInput = {"texts": ["a"]}
RESULT = {"model": "m", "dimension": 2, "embeddings": [[0.0, 1.0]]}
LIFE = {"close", "aclose"}
"""How each is ended, besides its block."""

T = TypeVar("T")


def run_on(url: str, work: Callable[[AsyncClient], Awaitable[T]], **options: Any) -> T:
    """The result of `work` with a client, after which no task may be left."""

    async def main() -> T:
        async with AsyncClient(url, retries=QUICK, **options) as client:
            result = await work(client)
            async with asyncio.timeout(10):
                while asyncio.all_tasks() != {asyncio.current_task()}:
                    await asyncio.sleep(0)  # httpx has the loop close its generators
            return result

    return asyncio.run(main())


# Both classes, side by side


def methods(cls: type) -> dict[str, Any]:
    names = (name for name in dir(cls) if not name.startswith("_"))
    return {name: getattr(cls, name) for name in names if callable(getattr(cls, name))}


def test_both_clients_have_the_same_methods() -> None:
    blocking, waiting = methods(Client), methods(AsyncClient)
    assert blocking.keys() - LIFE == waiting.keys() - LIFE
    assert len(blocking) >= 50
    for name in blocking.keys() - LIFE:
        here, there = inspect.signature(blocking[name]), inspect.signature(waiting[name])
        assert here.parameters == there.parameters, name
        assert blocking[name].__doc__ == waiting[name].__doc__
        assert not inspect.iscoroutinefunction(blocking[name]), name
        assert "async" not in str(here.return_annotation).lower(), name
    assert inspect.signature(Client).parameters == inspect.signature(AsyncClient).parameters


def test_the_page_names_every_method() -> None:
    page = (ROOT / "docs" / "client.md").read_text(encoding="utf-8")
    prose = re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)
    words = set(re.findall(r"\w+", " ".join(re.findall(r"`([^`]+)`", prose))))
    assert sorted(methods(Client).keys() - LIFE - words) == []


# Against the real API


def test_a_job_is_submitted_and_awaited(api: httpx.Client, api_url: str, finish: Finish) -> None:
    del api

    async def work(client: AsyncClient) -> None:
        job = await client.submit("embed", EMBED, metadata={"team": "a"})
        assert (job.state, job.metadata) == ("queued", {"team": "a"})
        with pytest.raises(WaitTimeout):
            await client.wait(job.id, timeout_s=0.1)
        ended, _ = await asyncio.gather(
            client.wait(job.id), asyncio.to_thread(finish, "embed", RESULT)
        )
        assert ended.require_success().result == RESULT
        assert (await client.job(job.id)).result == RESULT
        assert [listed.id async for listed in client.jobs(page_items=1)] == [job.id]
        assert await client.whole_id("job", job.id[:13]) == job.id

    run_on(api_url, work)


def test_events_come_as_they_happen(api: httpx.Client, api_url: str, finish: Finish) -> None:
    del api

    async def work(client: AsyncClient) -> list[tuple[str, Any]]:
        job = await client.submit("embed", EMBED)
        seen = []
        async with aclosing(client.events(job.id)) as events:
            async for event in events:
                seen.append((event.event, event.data.get("state")))
                if len(seen) == 1:
                    await asyncio.to_thread(finish, "embed", RESULT)
        return seen

    seen = run_on(api_url, work)
    assert seen[0] == ("state", "queued")
    assert seen[-1] == ("end", "succeeded")


def test_files_and_texts_are_ingested(api: httpx.Client, api_url: str, tmp_path: Path) -> None:
    del api
    for name in ("a.md", "b.md", "c.md"):
        (tmp_path / name).write_text(f"# {name}")

    async def work(client: AsyncClient) -> None:
        report = await client.ingest(
            "handbook", [tmp_path], texts={"d": "text"}, root=tmp_path, wait=False
        )
        assert (report.collection_created, report.uploaded_files) == (True, 3)
        again = await client.ingest("handbook", [tmp_path], root=tmp_path, wait=False)
        assert (again.collection_created, again.uploaded_files, again.reused_files) == (False, 0, 3)
        job = await client.job(report.job_ids[0])
        assert job.input is not None
        assert [source["type"] for source in job.input["sources"]] == ["file"] * 3 + ["text"]
        stored = await client.upload(b"# bytes", name="e.md")
        assert (await client.file(stored.id)).sha256 == stored.sha256
        await client.delete_file(stored.id)
        with pytest.raises(ApiError) as caught:
            await client.file(stored.id)
        assert caught.value.status == 404
        with pytest.raises(InvalidInput):
            await client.upload(b"x")

    run_on(api_url, work)


def test_errors_are_those_of_the_blocking_client(api: httpx.Client, api_url: str) -> None:
    del api

    async def work(client: AsyncClient) -> None:
        with pytest.raises(ApiError, match="texts") as caught:
            await client.submit("embed", {"texts": []})
        assert caught.value.status == 422
        job = await client.submit("embed", EMBED)
        await client.cancel(job.id)
        with pytest.raises(JobCancelled):
            (await client.wait(job.id)).require_success()
        assert await client.health()
        assert "embed" in [queue.name for queue in await client.queues()]

    run_on(api_url, work)


def test_a_cancelled_wait_leaves_nothing_behind_and_no_job_cancelled(
    api: httpx.Client, api_url: str
) -> None:
    del api

    async def work(client: AsyncClient) -> None:
        job = await client.submit("embed", EMBED)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.wait(job.id, on_waiting=lambda _: None)
        assert (await client.job(job.id)).state == "queued"

    run_on(api_url, work)


# Against the stand-in, which can be made to fail


def test_what_fails_is_repeated_as_in_the_blocking_client(url: str, state: State) -> None:
    notes: list[str] = []

    async def work(client: AsyncClient) -> None:
        state.lost_answers, state.busy_times = 2, 1
        job = await client.submit("embed", EMBED)
        assert list(state.jobs) == [job.id]
        state.lost_answers = 1
        with pytest.raises(ConnectionBroken):
            await client.submit_batch([{"kind": "embed", "input": EMBED}])
        state.dropped_streams = 1
        assert (await client.wait(job.id)).state == "succeeded"
        assert state.last_event_ids == [None, "1-0"]

    run_on(url, work, notify=notes.append)
    assert notes == ["The queue is full. Trying again in 0 s."]


def test_whole_tasks_and_streams(url: str, state: State, tmp_path: Path) -> None:
    (tmp_path / "call.flac").write_bytes(b"fLaC")
    state.script = [
        {"event": "token", "step": 1, "offset": 0, "text": "Let me "},
        {"event": "token", "step": 1, "offset": 7, "text": "see."},
    ]
    state.cuts = [1]

    async def work(client: AsyncClient) -> None:
        job = await client.submit("chat", {"messages": [{"role": "user", "content": "?"}]})
        *pieces, ended = [item async for item in client.stream(job.id)]
        texts = [piece.text for piece in pieces if isinstance(piece, TextPiece)]
        assert (len(texts), "".join(texts)) == (len(pieces), "Let me see.")
        assert isinstance(ended, Job)
        assert ended.state == "succeeded"
        state.script = []
        answer, hits = await asyncio.gather(
            client.ask("handbook", "?"), client.search("handbook", "?")
        )
        assert answer.citations[0].source == hits[0].source
        task = "automatic-speech-recognition"
        assert await client.hf(task, [tmp_path / "call.flac", b"123"]) == [
            {"text": "4 bytes"},
            {"text": "3 bytes"},
        ]
        assert not state.files, "deleted when the job has succeeded"

    run_on(url, work)


def test_reasons_are_reported_and_what_the_callback_raises_is_raised(
    url: str, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sluice.events.FIRST_PAUSE_S", 0.02)
    state.outcome, state.reasons = "running", ["paused", "paused", None, None]
    reasons: list[str | None] = []

    def refuse(_: str | None) -> None:
        state.outcome = "succeeded"
        raise LookupError("of the callback")

    async def work(client: AsyncClient) -> None:
        job = await client.submit("embed", EMBED)
        await client.wait(job.id, on_waiting=reasons.append)
        state.outcome, state.reasons = "running", ["paused", "paused", "paused"]
        job = await client.submit("embed", EMBED)
        with pytest.raises(LookupError, match="of the callback"):
            await client.wait(job.id, on_waiting=refuse)

    run_on(url, work)
    assert reasons == ["paused", None]


def test_cancelled_uploads_end(url: str, state: State, tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number}.md").write_text(f"# {number}")
    state.held_uploads = True

    async def work(client: AsyncClient) -> None:
        task = asyncio.create_task(client.ingest("handbook", [tmp_path], parallel_uploads=4))
        while state.count("POST", "/v1/files") < 5:
            await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        state.held_uploads = False

    run_on(url, work)
    assert state.count("POST", "/v1/files") == 5, "no more than were under way"
    assert not state.jobs


def test_closing_ends_what_is_repeated() -> None:
    patient = Retries(connect_for_s=600, base_s=60, cap_s=60)

    async def main() -> None:
        client = AsyncClient("http://127.0.0.1:9", retries=patient)
        task = asyncio.create_task(client.queues())
        await asyncio.sleep(0.05)
        await client.aclose()
        with pytest.raises(ConnectionFailed, match="closed"):
            await task

    asyncio.run(main())


def test_the_blocking_client_works_within_a_running_loop(url: str) -> None:
    """As in a notebook."""

    async def main() -> list[str]:
        with Client(url, retries=QUICK) as client:
            job = client.submit("embed", EMBED)
            return [event.event for event in client.events(job.id)]

    assert asyncio.run(main()) == ["state", "progress", "end"]
