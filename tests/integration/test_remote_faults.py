"""Servers that fail, hang and lie, at both remote back ends: no hang, the right error, and the
generator serves the next request."""

import socket
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from shared.errors import Permanent, Retryable, Unavailable
from tests.generation.contract import ended, first_text, said, text_of
from tests.integration.remotes import MODEL, Remote, remote
from tests.waits import until
from tests.wire.behaviour import Behaviour
from workers.generation.backends.interface import FinishReason, Request, Resume, Sampling
from workers.generation.backends.remote import RemoteGenerator

COUNT = Request(messages=said("count to 30"))
WHOLE = " ".join(str(number) for number in range(1, 31))


@pytest.fixture(scope="module", params=["ollama", "openai"])
def server(request: pytest.FixtureRequest) -> Iterator[Remote]:
    with remote(request.param) as running:
        yield running


@pytest.fixture
def faulty(server: Remote) -> Behaviour:
    """How the server's model behaves; well, unless the test says otherwise."""
    server.wire.behaviours[MODEL] = Behaviour()
    return server.wire.of(MODEL)


@pytest.fixture
def generator(server: Remote) -> Iterator[RemoteGenerator]:
    with server.generator() as opened:
        yield opened
        # Whatever happened: it lives on.
        server.wire.behaviours[MODEL] = Behaviour()
        assert ended(opened.start(COUNT))[0].text == WHOLE


@pytest.mark.parametrize("status", [301, 302, 307, 308])
@pytest.mark.parametrize("prompt", [None, "count to 30:"])
def test_where_a_server_points_to_nobody_goes(
    generator: RemoteGenerator, server: Remote, faulty: Behaviour, status: int, prompt: str | None
) -> None:
    """It points to the address that was asked, which would answer the second time."""
    server.wire.requests.clear()
    faulty.refuse_times, faulty.refuse_status, faulty.location = 1, status, "?again"
    with pytest.raises(Permanent, match=f"answered {status}.*nobody follows"):
        ended(generator.start(COUNT if prompt is None else Request(prompt=prompt)))
    paths = [request.path for request in server.wire.requests if request.path != "/api/show"]
    assert len(paths) == 1


@pytest.mark.parametrize("fault", ["break_after", "error_after", "malformed_after"])
@pytest.mark.parametrize("prompt", [None, "count to 30:"])
def test_a_stream_that_fails_midway_can_be_gone_on_with(
    generator: RemoteGenerator, faulty: Behaviour, fault: str, prompt: str | None
) -> None:
    request = COUNT if prompt is None else Request(prompt=prompt)
    whole = WHOLE if prompt is None else " " + WHOLE
    setattr(faulty, fault, 12)
    generation = generator.start(request)
    shown = [first_text(generation)]
    with pytest.raises(Retryable) as raised:
        shown.extend(generation)
    assert not isinstance(raised.value, Unavailable)
    assert whole.startswith(text_of(shown))
    with pytest.raises(Retryable):
        generation.read()

    setattr(faulty, fault, None)
    again = Request(
        messages=request.messages, prompt=request.prompt, resume=Resume(text=text_of(shown))
    )
    assert ended(generator.start(again))[0].text == whole


@pytest.mark.parametrize("prompt", [None, "count to 30:"])
def test_a_stream_without_its_end_marker_is_broken(
    generator: RemoteGenerator, faulty: Behaviour, prompt: str | None
) -> None:
    faulty.ends_without_marker = True
    request = COUNT if prompt is None else Request(prompt=prompt)
    with pytest.raises(Retryable, match="end marker"):
        ended(generator.start(request))


def test_a_break_before_the_first_chunk(generator: RemoteGenerator, faulty: Behaviour) -> None:
    faulty.break_after = 0
    with pytest.raises(Retryable):
        ended(generator.start(COUNT))


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_a_server_that_cannot_now_is_unavailable(
    generator: RemoteGenerator, server: Remote, faulty: Behaviour, status: int
) -> None:
    faulty.refuse_times, faulty.refuse_status = 1, status
    before = len(server.wire.requests)
    with pytest.raises(Unavailable, match=str(status)) as raised:
        ended(generator.start(COUNT))
    assert raised.value.retry_after_s is None
    chats = [request for request in server.wire.requests[before:] if "show" not in request.path]
    assert len(chats) == 1, "the client tried again by itself"
    assert server.wire.url.rstrip("/") in raised.value.message


@pytest.mark.parametrize(
    ("header", "least_s", "most_s"),
    [
        ("7", 7, 7),
        ("1.5", 1.5, 1.5),
        ("100000", 300, 300),
        pytest.param(
            format_datetime(datetime.now(UTC) + timedelta(days=1), usegmt=True), 300, 300,
            id="tomorrow",
        ),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0, 0),
    ],
)  # fmt: skip
def test_retry_after_is_honoured_up_to_the_limit(
    generator: RemoteGenerator, faulty: Behaviour, header: str, least_s: float, most_s: float
) -> None:
    faulty.refuse_times, faulty.refuse_status, faulty.retry_after = 1, 429, header
    with pytest.raises(Unavailable) as raised:
        ended(generator.start(COUNT))
    assert raised.value.retry_after_s is not None
    assert least_s <= raised.value.retry_after_s <= most_s


def test_a_retry_after_that_says_nothing_is_ignored(
    generator: RemoteGenerator, faulty: Behaviour
) -> None:
    faulty.refuse_times, faulty.refuse_status, faulty.retry_after = 1, 503, "soon"
    with pytest.raises(Unavailable) as raised:
        ended(generator.start(COUNT))
    assert raised.value.retry_after_s is None


def test_a_busy_server_answers_in_the_end(generator: RemoteGenerator, faulty: Behaviour) -> None:
    faulty.refuse_times, faulty.refuse_status = 2, 429
    for _ in range(2):
        with pytest.raises(Unavailable):
            ended(generator.start(COUNT))
    assert ended(generator.start(COUNT))[0].text == WHOLE


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_request_that_is_wrong_is_not_tried_again(
    generator: RemoteGenerator, faulty: Behaviour, status: int
) -> None:
    faulty.refuse_times, faulty.refuse_status = 1, status
    faulty.refuse_message = "there is no such option"
    with pytest.raises(Permanent, match="there is no such option"):
        ended(generator.start(COUNT))


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_wrong_names_the_setting(
    generator: RemoteGenerator, server: Remote, faulty: Behaviour, status: int
) -> None:
    faulty.refuse_times, faulty.refuse_status = 1, status
    setting = "OLLAMA_API_KEY" if server.provider == "ollama" else "SLUICE_OPENAI_API_KEY"
    with pytest.raises(Permanent, match=setting):
        ended(generator.start(COUNT))


def test_a_server_that_never_answers(server: Remote, faulty: Behaviour) -> None:
    faulty.hang = True
    with server.generator(remote_read_timeout_s=0.2) as generator:
        with pytest.raises(Unavailable, match="SLUICE_REMOTE_READ_TIMEOUT_S"):
            ended(generator.start(COUNT))
        faulty.hang = False
        assert ended(generator.start(COUNT))[0].text == WHOLE


def test_a_stream_that_stands_still(server: Remote, faulty: Behaviour) -> None:
    faulty.hang_after = 5
    with server.generator(remote_read_timeout_s=0.3) as generator:
        generation = generator.start(COUNT)
        with pytest.raises(Retryable, match="SLUICE_REMOTE_READ_TIMEOUT_S"):
            ended(generation)


@pytest.mark.parametrize("fault", ["hang", "hang_after"])
def test_a_hanging_server_delays_no_cancellation(
    generator: RemoteGenerator, server: Remote, faulty: Behaviour, fault: str
) -> None:
    setattr(faulty, fault, 3)  # For `hang`, any number is a yes.
    left = server.wire.dropped
    generation = generator.start(COUNT)
    first = first_text(generation) if fault == "hang_after" else None
    generation.cancel()
    completion, rest = ended(generation)
    assert completion.finish_reason is FinishReason.CANCELLED
    assert completion.text == text_of([*([first] if first else []), *rest])
    if first is not None:
        _wait_until_dropped(server, left)


def test_a_hanging_server_delays_no_deadline(
    generator: RemoteGenerator, server: Remote, faulty: Behaviour
) -> None:

    faulty.hang_after = 4
    left = server.wire.dropped
    for within_s in (0.3, 3, 30):  # a busy machine needs longer for the text before the deadline
        request = Request(messages=COUNT.messages, deadline=time.monotonic() + within_s)
        completion, _ = ended(generator.start(request))
        assert completion.finish_reason is FinishReason.DEADLINE
        if completion.text:
            break
    assert completion.text
    assert WHOLE.startswith(completion.text)
    _wait_until_dropped(server, left)


def test_a_server_that_is_not_there(server: Remote) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # Bound, but nobody listens.
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with server.generator(ollama_url=url, openai_base_url=url) as generator:
            generation = generator.start(COUNT)
            with pytest.raises(Unavailable) as raised:
                ended(generation)
    assert url in raised.value.message
    setting, remedy = {
        "ollama": ("SLUICE_OLLAMA_URL", "ollama serve"),
        "openai": ("SLUICE_OPENAI_BASE_URL", "curl"),
    }[server.provider]
    assert setting in raised.value.message
    assert remedy in raised.value.message


def test_characters_in_pieces_come_whole(generator: RemoteGenerator, faulty: Behaviour) -> None:
    faulty.is_shattered = True
    text = "안녕하세요 세계, héllo 🙂 끝"
    completion, deltas = ended(generator.start(Request(messages=said(text))))
    assert completion.text == text_of(deltas) == text


def test_a_server_that_ignores_stop_strings(generator: RemoteGenerator, faulty: Behaviour) -> None:
    faulty.ignores_stop = True
    request = Request(messages=COUNT.messages, sampling=Sampling(stop=("4 5 6",)))
    completion, deltas = ended(generator.start(request))
    assert completion.text == text_of(deltas) == "1 2 3 "
    assert completion.finish_reason is FinishReason.STOP


def _wait_until_dropped(server: Remote, before: int) -> None:
    """The server has seen that nobody listens any more."""
    until(lambda: server.wire.dropped > before, "the connection is closed")
