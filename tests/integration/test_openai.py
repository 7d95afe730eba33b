"""The back end `openai/...` against a server that speaks OpenAI's protocol."""

from collections.abc import Iterator

import pytest
from pydantic import SecretStr

from shared.config import Settings
from shared.errors import ConfigurationError, Permanent, Retryable
from tests.generation.contract import GeneratorContract, ended, said
from tests.integration.remotes import MODEL, Remote, remote
from workers.generation.backends.interface import (
    FinishReason,
    Message,
    Request,
    Resume,
    Role,
    Sampling,
    TextGenerator,
    Tool,
    ToolCall,
)
from workers.generation.backends.remote import RemoteGenerator
from workers.servers.openai import OpenAIServer

CHAT = "/v1/chat/completions"
NESTED = {
    "type": "object",
    "properties": {"to": {"type": "object", "properties": {"city": {"type": "string"}}}},
}
SEND = Tool(name="send", description="Sends.", parameters=NESTED)


@pytest.fixture(scope="module")
def server() -> Iterator[Remote]:
    with remote("openai") as running:
        yield running


@pytest.fixture
def fresh(server: Remote) -> Remote:
    """The server as if nothing had happened."""
    server.wire.behaviours.clear()
    server.wire.requests.clear()
    return server


@pytest.fixture
def generator(fresh: Remote) -> Iterator[RemoteGenerator]:
    with fresh.generator() as opened:
        yield opened


class OpenAIContract(GeneratorContract):
    resume: str

    @pytest.fixture
    def generator(self, fresh: Remote) -> Iterator[TextGenerator]:
        fresh.wire.of(MODEL).delay_s = 0.001
        with fresh.generator(openai_resume=self.resume) as opened:
            yield opened

    def request(self) -> Request:
        return Request(messages=said("Please count to 30."))

    def long_request(self) -> Request:
        return Request(messages=said("count to 3000"), sampling=Sampling(max_tokens=3000))

    def prompt(self) -> Request:
        return Request(prompt="count to 30:")


class TestContractInstruct(OpenAIContract):
    resume = "instruct"


class TestContractPrefill(OpenAIContract):
    resume = "prefill"


def test_sampling_has_openais_names(fresh: Remote, generator: RemoteGenerator) -> None:
    sampling = Sampling(
        max_tokens=9, temperature=0.5, top_p=0.9, top_k=7, stop=("END",), seed=3,
        repetition_penalty=1.2, frequency_penalty=-0.5, presence_penalty=1.5, logprobs=2,
    )  # fmt: skip
    ended(generator.start(Request(messages=said("hello"), sampling=sampling)))
    (body,) = fresh.wire.bodies(CHAT)
    assert body == {
        "model": MODEL, "messages": [{"role": "user", "content": "hello"}], "stream": True,
        "stream_options": {"include_usage": True}, "max_tokens": 9, "temperature": 0.5,
        "top_p": 0.9, "stop": ["END"], "seed": 3, "top_k": 7, "repetition_penalty": 1.2,
        "frequency_penalty": -0.5, "presence_penalty": 1.5, "logprobs": True, "top_logprobs": 2,
    }  # fmt: skip


def test_what_openai_does_not_know_is_left_out_by_default(
    fresh: Remote, generator: RemoteGenerator
) -> None:
    ended(generator.start(Request(messages=said("hello"))))
    (body,) = fresh.wire.bodies(CHAT)
    own = {"top_k", "repetition_penalty", "continue_final_message", "tools"}
    assert not (own | {"frequency_penalty", "presence_penalty", "logprobs"}) & set(body)


def test_more_stop_strings_than_openai_takes_are_applied_here(
    fresh: Remote, generator: RemoteGenerator
) -> None:
    sampling = Sampling(stop=("a", "b", "c", "d", " 4"))
    completion, _ = ended(generator.start(Request(messages=said("count to 9"), sampling=sampling)))
    assert completion.text == "1 2 3"
    assert completion.finish_reason is FinishReason.STOP
    assert completion.completion_tokens > 0
    assert fresh.wire.bodies(CHAT)[0]["stop"] == ["a", "b", "c", "d"]


@pytest.mark.parametrize("mode", ["instruct", "prefill"])
def test_a_text_goes_on_in_either_way(fresh: Remote, mode: str) -> None:
    request = Request(messages=said("count to 9"), resume=Resume(text="1 2 3 4"))
    with fresh.generator(openai_resume=mode) as generator:
        completion, deltas = ended(generator.start(request))
    assert completion.text == "1 2 3 4 5 6 7 8 9"
    assert deltas[0].text == " 5"
    (body,) = fresh.wire.bodies(CHAT)
    roles = [message["role"] for message in body["messages"]]
    if mode == "prefill":
        assert roles == ["user", "assistant"]
        assert body["continue_final_message"] is True
        assert body["add_generation_prompt"] is False
    else:
        assert roles == ["user", "assistant", "user"]
        assert "continue_final_message" not in body


@pytest.mark.parametrize("again", [12, 20, 26])
def test_what_a_model_repeats_when_it_goes_on_is_dropped(
    fresh: Remote, generator: RemoteGenerator, again: int
) -> None:
    fresh.wire.of(MODEL).repeats_chars = again
    begun = " ".join(str(number) for number in range(1, 13))
    assert len(begun) == 26
    request = Request(messages=said("count to 20"), resume=Resume(text=begun))
    completion, deltas = ended(generator.start(request))
    assert completion.text == " ".join(str(number) for number in range(1, 21))
    assert completion.text == begun + "".join(delta.text for delta in deltas)


def test_usage_is_the_servers(generator: RemoteGenerator) -> None:
    completion, _ = ended(generator.start(Request(messages=said("one two three"))))
    assert (completion.prompt_tokens, completion.completion_tokens) == (3, 3)


def test_usage_is_estimated_where_the_server_tells_none(
    fresh: Remote, generator: RemoteGenerator
) -> None:
    fresh.wire.of(MODEL).reports_usage = False
    completion, _ = ended(generator.start(Request(messages=said("one two three"))))
    assert completion.prompt_tokens > 0
    assert completion.completion_tokens == 4  # 13 characters


def test_tools_are_offered_whole_and_their_calls_put_together(
    fresh: Remote, generator: RemoteGenerator
) -> None:
    request = Request(messages=said('call send {"to": {"city": "서울"}}'), tools=(SEND,))
    completion, _ = ended(generator.start(request))
    assert completion.finish_reason is FinishReason.STOP
    assert completion.tool_calls == (
        ToolCall(id="call_0", name="send", arguments={"to": {"city": "서울"}}),
    )
    (offered,) = fresh.wire.bodies(CHAT)[0]["tools"]
    assert offered["function"]["parameters"] == NESTED


def test_a_tools_result_goes_by_the_calls_id(fresh: Remote, generator: RemoteGenerator) -> None:
    call = ToolCall(id="x1", name="send", arguments={"to": {}})
    messages = (
        *said("send it"),
        Message(role=Role.ASSISTANT, content="", tool_calls=(call,)),
        Message(role=Role.TOOL, content="sent", tool_call_id="x1"),
    )
    completion, _ = ended(generator.start(Request(messages=messages, tools=(SEND,))))
    assert completion.text == "The tool says sent"
    sent = fresh.wire.bodies(CHAT)[0]["messages"]
    assert sent[1]["tool_calls"][0]["function"] == {"name": "send", "arguments": '{"to": {}}'}
    assert sent[2]["tool_call_id"] == "x1"


def test_arguments_that_are_no_json_are_an_error(generator: RemoteGenerator) -> None:
    request = Request(messages=said("call send {broken}"), tools=(SEND,))
    with pytest.raises(Retryable, match="'send'"):
        ended(generator.start(request))


def test_a_missing_model_says_where_to_look(fresh: Remote) -> None:
    with fresh.generator("gone") as generator, pytest.raises(Permanent) as raised:
        ended(generator.start(Request(messages=said("hello"))))
    assert "`gone` does not exist" in raised.value.message
    assert f"{fresh.wire.url}/models" in raised.value.message


def test_a_server_that_requires_a_key(fresh: Remote) -> None:
    with fresh.generator("secret") as generator:
        generation = generator.start(Request(messages=said("hello")))
        with pytest.raises(Permanent, match="SLUICE_OPENAI_API_KEY"):
            ended(generation)
    with fresh.generator("secret", openai_api_key=SecretStr("secret")) as generator:
        assert ended(generator.start(Request(messages=said("hello"))))[0].text == "hello"


def test_quota_that_is_used_up_is_not_waited_for(fresh: Remote, generator: RemoteGenerator) -> None:
    behaviour = fresh.wire.of(MODEL)
    behaviour.refuse_times, behaviour.refuse_status = 1, 429
    behaviour.refuse_code = "insufficient_quota"
    with pytest.raises(Permanent):
        ended(generator.start(Request(messages=said("hello"))))


def test_without_a_base_url_the_setting_is_named() -> None:
    with pytest.raises(ConfigurationError, match="SLUICE_OPENAI_BASE_URL"):
        OpenAIServer(Settings(_env_file=None))


def test_a_password_in_the_url_is_not_shown() -> None:
    settings = Settings(_env_file=None, openai_base_url="https://me:hidden@example.com:8443/v1")
    server = str(OpenAIServer(settings).info)
    assert "https://example.com:8443/v1" in server
    assert "hidden" not in server
