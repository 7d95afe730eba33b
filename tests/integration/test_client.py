"""The Python client against a real HTTP server: calls, retries, events, errors."""

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from sluice import (
    ApiError,
    Client,
    ConfigurationError,
    ConnectionBroken,
    ConnectionFailed,
    InvalidInput,
    Job,
    JobCancelled,
    JobFailed,
    NotFound,
    Retries,
    SluiceError,
    WaitTimeout,
)
from sluice.kinds import EmbedInput, NewJob
from tests.integration.fake_api import State, serving
from tests.waits import until

QUICK = Retries(connect_for_s=0.3, retry_for_s=5.0, busy_for_s=1.0, base_s=0.02, cap_s=0.1)
INPUT: EmbedInput = {"texts": ["a"]}


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url, retries=QUICK) as client:
        yield client


def test_submit_sends_what_is_set_and_leaves_the_rest_to_the_server(
    client: Client, state: State
) -> None:
    job = client.submit("embed", INPUT, metadata={"team": "a"}, run_after=datetime.now(UTC))
    assert state.jobs[job.id]["metadata"] == {"team": "a"}
    assert job.state == "queued"
    assert not job.ended
    assert job.model_dump()["a_field_of_a_newer_server"] is True


def test_a_submit_whose_answer_was_lost_is_repeated_without_a_second_job(
    client: Client, state: State
) -> None:
    state.lost_answers = 2
    job = client.submit("embed", INPUT)
    assert list(state.jobs) == [job.id]
    assert state.count("POST", "/v1/jobs") == 3


def test_an_api_that_ends_during_the_first_call_is_waited_for() -> None:
    """It has been there: nobody has to be told at once that there is none."""
    patient = Retries(connect_for_s=0, retry_for_s=60, base_s=0.01, cap_s=0.05)
    with socket.create_server(("127.0.0.1", 0)) as first, ThreadPoolExecutor(1) as aside:
        port = first.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        with Client(url, retries=patient) as client:
            shown = aside.submit(client.queues)
            connection, _ = first.accept()
            first.close()
            connection.close()
            with socket.create_server(("127.0.0.1", port)) as second:
                connection, _ = second.accept()
                with connection:
                    connection.recv(65536)
                    body = b'{"items": [], "next_cursor": null}'
                    head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n"
                    connection.sendall(head.encode() + body)
                    assert shown.result() == []


def test_a_batch_whose_answer_was_lost_is_not_repeated(client: Client, state: State) -> None:
    batch: list[NewJob] = [{"kind": "embed", "input": INPUT}] * 2
    assert len(client.submit_batch(batch)) == 2
    state.lost_answers = 1
    with pytest.raises(ConnectionBroken, match="may or may not"):
        client.submit_batch(batch)
    assert state.count("POST", "/v1/jobs/batch") == 2


def test_retry_is_not_repeated_blindly_but_a_refusal_is_shown(client: Client) -> None:
    with pytest.raises(ApiError) as caught:
        client.retry("x")
    assert caught.value.status == 409


def test_a_full_queue_is_waited_for(url: str, state: State) -> None:
    state.busy_times = 1
    notes: list[str] = []
    with Client(url, retries=QUICK, notify=notes.append) as client:
        client.submit("embed", INPUT)
    assert len(state.jobs) == 1
    assert notes == ["The queue is full. Trying again in 0 s."]


def test_a_queue_that_stays_full_is_an_error_in_the_end(client: Client, state: State) -> None:
    state.busy_times = 10**9
    with pytest.raises(ApiError) as caught:
        client.submit("embed", INPUT)
    assert caught.value.status == 429


def test_wait_resumes_a_dropped_stream_where_it_was(client: Client, state: State) -> None:
    state.dropped_streams = 1
    job = client.submit("embed", INPUT)
    seen: list[str | None] = []
    ended = client.wait(job.id, on_event=lambda event: seen.append(event.id))
    assert ended.state == "succeeded"
    assert state.last_event_ids == [None, "1-0"]
    assert seen == ["1-0", "2-0", "3-0"]


def test_wait_survives_a_restart_of_the_api(state: State) -> None:
    state.outcome = "running"
    first = serving(state)
    url = first.__enter__()
    with Client(url, retries=QUICK) as client:
        job = client.submit("embed", INPUT)
        ended = []
        waiter = threading.Thread(target=lambda: ended.append(client.wait(job.id)))
        waiter.start()
        until(lambda: state.last_event_ids, "the wait follows the events")
        first.__exit__(None, None, None)
        state.outcome = "succeeded"
        with serving(state, port=int(url.rpartition(":")[2])):
            waiter.join()
    assert [job.state for job in ended] == ["succeeded"]


def test_wait_gives_up_in_time_and_leaves_the_job_alone(client: Client, state: State) -> None:
    state.outcome = "running"
    job = client.submit("embed", INPUT)
    with pytest.raises(WaitTimeout, match=f"sluice jobs watch {job.id}"):
        client.wait(job.id, timeout_s=0.2)
    assert state.jobs[job.id]["state"] == "queued"
    client.cancel(job.id)


def test_wait_for_an_unknown_job_is_404_at_once(client: Client) -> None:
    with pytest.raises(ApiError) as caught:
        client.wait("nope")
    assert caught.value.status == 404


def test_jobs_reads_all_pages(client: Client) -> None:
    ids = [client.submit("embed", INPUT).id for _ in range(5)]
    assert [job.id for job in client.jobs(page_items=2)] == ids[::-1]


def test_whole_tasks_give_typed_results(client: Client) -> None:
    answer = client.ask("handbook", "언제?", k=3)
    assert answer.citations[0].source == "안내/여권.md"
    assert answer.model == "extractive"
    assert client.search("handbook", "여권")[0].score == 0.8125
    assert client.embed(["a", "b"]).embeddings == [[0.0, 1.0], [0.0, 1.0]]


def test_whole_tasks_are_interactive_and_carry_their_options(client: Client, state: State) -> None:
    client.ask("handbook", "?", k=3, model="extractive", filter={"year": 2024})
    [job] = state.jobs.values()
    assert job["lane"] == "interactive"
    search = {"filter": {"year": 2024}}
    assert job["input"] == {
        "collection": "handbook", "question": "?", "k": 3, "search": search, "model": "extractive",
    }  # fmt: skip


@pytest.mark.parametrize(("outcome", "error"), [("failed", JobFailed), ("cancelled", JobCancelled)])
def test_a_job_that_did_not_succeed_is_an_exception(
    client: Client, state: State, outcome: str, error: type[SluiceError]
) -> None:
    state.outcome = outcome
    with pytest.raises(error):
        client.ask("handbook", "?")


def test_a_slow_task_reports_the_time_of_the_call(client: Client, state: State) -> None:
    state.outcome = "running"
    with pytest.raises(WaitTimeout, match=r"within 0\.3 s"):
        client.ask("handbook", "?", timeout_s=0.3)


def test_a_deletion_waits_for_its_job(client: Client) -> None:
    client.put_collection("handbook")
    job = client.delete_collection("handbook")
    assert job.result == {"documents": 3, "chunks": 6, "vectors": 6}


def test_a_deletion_whose_answer_was_lost_is_done(client: Client, state: State) -> None:
    """What is sent again finds nothing more, or the job that was made."""
    client.put_collection("handbook")
    state.lost_answers = 1
    assert client.drop_index("handbook", "handbook.2").name == "handbook.2"
    with pytest.raises(NotFound):
        client.drop_index("handbook", "handbook.2")
    state.lost_answers = 1
    assert client.delete_collection("handbook").result is not None
    assert [job["kind"] for job in state.jobs.values()] == ["erase"]
    conversation = client.start_conversation()
    state.lost_answers = 1
    client.erase_conversation(conversation.id)
    assert not state.conversations
    with pytest.raises(NotFound):
        client.erase_conversation(conversation.id)


def test_uploads_keep_the_name_and_the_bytes(client: Client, state: State, tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_bytes(b"# one")
    one = client.upload(path, name="docs/한글 [a];b.md")
    two = client.upload(b"<p>two", name="two.html")
    assert state.files[one.id]["name"] == "docs/한글 [a];b.md"
    assert state.files[one.id]["content_type"] == "text/markdown"
    assert {file.id for file in client.files_by_hash([one.sha256, two.sha256])} == {one.id, two.id}
    with pytest.raises(InvalidInput):
        client.upload(b"x")


def test_hashes_are_requested_in_parts(client: Client, state: State) -> None:
    assert client.files_by_hash([f"{number:064x}" for number in range(120)]) == []
    assert state.count("GET", "/v1/files") == 3


def test_errors_name_the_field(client: Client) -> None:
    with pytest.raises(ApiError, match=r"not valid: kind: unknown kind") as caught:
        client.submit_untyped("nonsense", {})
    assert caught.value.errors[0]["message"] == "unknown kind"


def test_the_key_is_sent_and_missing_ones_are_explained(url: str, state: State) -> None:
    state.api_key = "s3cret"
    with Client(url, "s3cret", retries=QUICK) as client:
        client.queues()
    with Client(url, retries=QUICK) as client, pytest.raises(ApiError, match="SLUICE_API_KEY"):
        client.queues()


def test_readiness_is_an_answer_also_when_it_is_bad(client: Client, state: State) -> None:
    assert client.ready().ready
    state.ready = False
    assert not client.ready().checks["database"].ok


def test_nothing_there_says_how_to_start_it() -> None:
    with (
        Client("http://127.0.0.1:9", retries=QUICK) as client,
        pytest.raises(ConnectionFailed, match="sluice up"),
    ):
        client.queues()


def test_no_url_and_no_stack_says_how_to_start_one(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SLUICE_URL", raising=False)
    monkeypatch.setenv("SLUICE_HOME", str(tmp_path))
    with pytest.raises(ConnectionFailed, match="sluice up"):
        Client()


def test_url_and_key_come_from_the_environment(
    url: str, state: State, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.api_key = "s3cret"
    monkeypatch.setenv("SLUICE_URL", url + "/")
    monkeypatch.setenv("SLUICE_API_KEY", "s3cret")
    with Client(retries=QUICK) as client:
        assert client.queues()[0].paused


@pytest.mark.parametrize("url", ["127.0.0.1:8000", "ftp://host", "http://"])
def test_a_url_that_is_none_is_a_setting_to_correct(url: str) -> None:
    with pytest.raises(ConfigurationError, match="http://127"):
        Client(url)


def test_a_large_result_comes_with_the_job_however_it_is_got(client: Client, state: State) -> None:
    state.results_are_large = True
    want = {"model": "m", "dimension": 2}

    waited = client.wait(client.submit("embed", INPUT).id)
    at_once = client.submit("embed", INPUT, wait_s=5)
    read = client.job(waited.id, with_result=True)
    streamed = list(client.stream(waited.id))[-1]
    assert isinstance(streamed, Job)
    ended = list(client.events(waited.id))[-1]

    for result in (
        waited.result,
        at_once.result,
        read.result,
        streamed.result,
        ended.data["result"],
    ):
        assert isinstance(result, dict)
        assert {name: dict(result)[name] for name in want} == want
    assert client.result(client.job(waited.id)) == waited.result
    assert client.job(waited.id).result is None
    assert client.embed(["a"]).dimension == 2


def test_a_state_that_this_version_does_not_know_is_shown(client: Client, state: State) -> None:
    job = client.submit("embed", INPUT)
    state.jobs[job.id]["state"] = "confused"

    assert client.job(job.id).state == "confused"
    assert not client.job(job.id).ended
