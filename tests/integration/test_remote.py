"""What the remote back ends share: queueing before a server, closing, and the small parts."""

import asyncio
import threading
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import Unavailable
from tests.generation.contract import ended, first_text, said
from tests.integration.remotes import MODEL, Remote, remote
from tests.wire.behaviour import Behaviour
from workers.generation.backends.interface import FinishReason, Message, Request, Role, Sampling
from workers.generation.backends.ollama import OllamaGenerator
from workers.generation.backends.openai import RepeatFilter
from workers.generation.backends.remote import tokens_of, tokens_of_prompt
from workers.models.detokenize import StopFilter
from workers.outbound import retry_after_s
from workers.servers.ollama import OllamaServer
from workers.servers.server import RequestSlots

LONG = Request(messages=said("count to 2000"), sampling=Sampling(max_tokens=2000))


@pytest.fixture(scope="module", params=["ollama", "openai"])
def server(request: pytest.FixtureRequest) -> Iterator[Remote]:
    with remote(request.param) as running:
        yield running


@pytest.fixture
def slow(server: Remote) -> Remote:
    """A server that takes its time."""
    server.wire.behaviours[MODEL] = Behaviour(delay_s=0.005)
    server.wire.requests.clear()
    server.wire.most_running = 0
    return server


def narrow(server: Remote) -> dict[str, int]:
    """Settings that let one request through at a time."""
    return {f"{server.provider}_parallel_requests": 1}


def prompts(server: Remote) -> list[str]:
    """The last message of each request, in the order in which they came."""
    return [
        request.body["messages"][-1]["content"]
        for request in server.wire.requests
        if "chat" in request.path
    ]


def test_no_more_are_with_the_server_than_the_setting_says(slow: Remote) -> None:
    limit = {f"{slow.provider}_parallel_requests": 3}
    request = Request(messages=said("count to 20"))
    with slow.generator(**limit) as generator:
        under_way = [generator.start(request) for _ in range(9)]
        assert all(ended(generation)[0].text for generation in under_way)
    assert slow.wire.most_running == 3


def test_those_that_wait_go_by_lane_then_by_age(slow: Remote) -> None:
    with slow.generator(**narrow(slow)) as generator:
        first = generator.start(LONG)
        first_text(first)
        waiting = [
            generator.start(Request(messages=said(name), lane=lane))
            for name, lane in [("bulk", 2), ("normal a", 1), ("now", 0), ("normal b", 1)]
        ]
        first.cancel()
        for generation in waiting:
            ended(generation)
    assert prompts(slow)[1:] == ["now", "normal a", "normal b", "bulk"]


def test_a_cancelled_one_that_waits_takes_no_turn(slow: Remote) -> None:
    with slow.generator(**narrow(slow)) as generator:
        first = generator.start(LONG)
        first_text(first)
        waiting = generator.start(Request(messages=said("never")))
        waiting.cancel()
        assert ended(waiting)[0].finish_reason is FinishReason.CANCELLED
        after = generator.start(Request(messages=said("after")))
        first.cancel()
        assert ended(after)[0].text == "after"
    assert prompts(slow)[1:] == ["after"]


def test_a_deadline_passes_while_waiting(slow: Remote) -> None:
    with slow.generator(**narrow(slow)) as generator:
        first = generator.start(LONG)
        first_text(first)
        late = Request(messages=said("late"), deadline=time.monotonic() + 0.1)
        completion, _ = ended(generator.start(late))
        first.cancel()
    assert completion.finish_reason is FinishReason.DEADLINE
    assert completion.text == ""


def test_closing_ends_what_runs_and_what_waits(slow: Remote) -> None:
    before = set(threading.enumerate())
    with slow.generator(**narrow(slow)) as generator:
        running, waiting = generator.start(LONG), generator.start(LONG)
        first_text(running)
    for generation in (running, waiting):
        with pytest.raises(Unavailable, match="ending"):
            ended(generation)
    generation.cancel()
    with pytest.raises(Unavailable, match="ending"):
        generator.start(LONG)
    generator.close()
    own = set(threading.enumerate()) - before
    assert not [t for t in own if t.name.startswith(("Ollama", "The OpenAI"))]


def test_closing_a_generator_leaves_the_server_to_others(slow: Remote) -> None:
    with slow.generator() as generator:
        generation = generator.start(LONG)
        first_text(generation)
        generator.close()
        with pytest.raises(Unavailable):
            ended(generation)
        assert ended(generator.start(Request(messages=said("still here"))))[0].text


def test_a_server_without_requests_closes_too(slow: Remote) -> None:
    with slow.generator() as generator:
        pass
    with pytest.raises(Unavailable, match="ending"):
        generator.start(LONG)
    assert prompts(slow) == []


def test_a_slot_that_comes_with_a_cancellation_goes_to_the_next() -> None:
    async def run() -> None:
        slots = RequestSlots(1)

        async def wait() -> None:
            async with slots.slot(1):
                raise AssertionError("it was cancelled")

        async with slots.slot(1):
            waiting = asyncio.create_task(wait())
            await asyncio.sleep(0)
        waiting.cancel()  # The slot has come in this moment, and the task has not run since.
        async with asyncio.timeout(5), slots.slot(1):
            pass
        assert waiting.cancelled()

    asyncio.run(run())


def test_models_of_a_server_share_its_limit() -> None:
    with remote("ollama") as server:
        server.wire.models["other"] = {}
        for model in (MODEL, "other"):
            server.wire.of(model).delay_s = 0.002
        settings = server.settings.model_copy(update={"ollama_parallel_requests": 1})
        shared = OllamaServer(settings)
        request = Request(messages=said("count to 20"))
        generators = [OllamaGenerator(shared, model) for model in (MODEL, "other")]
        under_way = [generator.start(request) for generator in generators for _ in range(2)]
        assert all(ended(generation)[0].text for generation in under_way)
        shared.close()
        assert server.wire.most_running == 1


@given(st.text(alphabet="abc", max_size=40), st.lists(st.text(alphabet="abc", max_size=4)))
def test_stop_strings_in_any_pieces(text: str, stop: list[str]) -> None:
    """Whatever the pieces: the text up to the first stop string that is complete."""
    one_by_one = StopFilter(stop)
    shown = "".join(one_by_one.feed(char) for char in text) + one_by_one.flush()
    ends = [text.index(string) + len(string) for string in stop if string and string in text]
    assert one_by_one.has_stopped == bool(ends)
    assert text.startswith(shown)
    assert all(string not in shown for string in stop if string)
    if not ends:
        assert shown == text


def test_nothing_is_held_back_without_need() -> None:
    stops = StopFilter(("END",))
    assert stops.feed("the E") == "the "
    assert stops.feed("N") == ""
    assert stops.feed("ough") == "ENough"
    assert not stops.has_stopped


@pytest.mark.parametrize(
    ("before", "after", "new"),
    [
        ("the cat sat on the mat", " and slept.", " and slept."),
        ("the cat sat on the mat", "sat on the mat and slept.", " and slept."),
        ("the cat sat on the mat", "the cat sat on the mat and slept.", " and slept."),
        ("the cat sat on the mat", "the cat sat on a dog", "the cat sat on a dog"),
        ("the cat sat on the mat", "the cat sat on the mat", ""),
        ("the cat sat on the mat", "the cat", "the cat"),
        ("ha ha", " ha ha", " ha ha"),
        ("", "all of it", "all of it"),
    ],
)
def test_a_repeated_beginning_is_dropped(before: str, after: str, new: str) -> None:
    at_once, one_by_one = RepeatFilter(before), RepeatFilter(before)
    assert at_once.feed(after) + at_once.flush() == new
    assert "".join(one_by_one.feed(char) for char in after) + one_by_one.flush() == new


def test_hangul_counts_more() -> None:
    assert tokens_of("") == 0
    assert tokens_of("a") == 1
    assert tokens_of("안녕하세요") == 5
    assert tokens_of("a word of four") == 4


def test_every_message_of_a_prompt_counts() -> None:
    message = Message(role=Role.USER, content="four word s here")
    once, twice = tokens_of_prompt([message]), tokens_of_prompt([message, message])
    assert twice > once > tokens_of(message.content)
    assert tokens_of_prompt([replace(message, content="")]) > 0


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("3", 3.0), ("0.5", 0.5), ("-1", 0.0), (None, None), ("", None), ("nan", None), ("x", None)],
)
def test_retry_after(header: str | None, seconds: float | None) -> None:
    assert retry_after_s(header) == seconds
