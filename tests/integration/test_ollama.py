"""The back end `ollama/...` against a server that speaks Ollama's protocol."""

from collections.abc import Iterator

import pytest

from shared.config import Settings
from shared.errors import ConfigurationError
from tests.generation.contract import GeneratorContract, ended, said
from tests.integration.remotes import MODEL, Remote, remote
from tests.wire.ollama_server import CONTEXT_LENGTH
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
from workers.servers.ollama import OllamaServer
from workers.servers.server import ModelMissing

ADD = Tool(
    name="add",
    description="Adds.",
    parameters={"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
)


@pytest.fixture(scope="module")
def server() -> Iterator[Remote]:
    with remote("ollama") as running:
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


class TestContract(GeneratorContract):
    @pytest.fixture
    def generator(self, fresh: Remote) -> Iterator[TextGenerator]:
        fresh.wire.of(MODEL).delay_s = 0.001
        with fresh.generator() as opened:
            yield opened

    def request(self) -> Request:
        return Request(messages=said("Please count to 30."))

    def long_request(self) -> Request:
        return Request(messages=said("count to 3000"), sampling=Sampling(max_tokens=3000))

    def prompt(self) -> Request:
        return Request(prompt="count to 30:")


def test_sampling_has_ollamas_names(fresh: Remote, generator: RemoteGenerator) -> None:
    sampling = Sampling(
        max_tokens=9, temperature=0.5, top_p=0.9, top_k=7, stop=("END",), seed=3,
        repetition_penalty=1.2, frequency_penalty=-0.5, presence_penalty=1.5, logprobs=2,
    )  # fmt: skip
    ended(generator.start(Request(messages=said("hello"), sampling=sampling)))
    (body,) = fresh.wire.bodies("/api/chat")
    assert body["options"] == {
        "num_ctx": CONTEXT_LENGTH, "num_predict": 9, "temperature": 0.5, "top_p": 0.9, "top_k": 7,
        "stop": ["END"], "seed": 3, "repeat_penalty": 1.2,
        "frequency_penalty": -0.5, "presence_penalty": 1.5,
    }  # fmt: skip
    assert body["messages"] == [{"role": "user", "content": "hello"}]
    assert (body["logprobs"], body["top_logprobs"]) == (True, 2)


def test_ollamas_own_defaults_do_not_apply(fresh: Remote, generator: RemoteGenerator) -> None:
    ended(generator.start(Request(messages=said("hello"))))
    options = fresh.wire.bodies("/api/chat")[0]["options"]
    assert options["top_k"] == 0
    assert options["repeat_penalty"] == 1.0
    assert "seed" not in options


def test_the_window_is_the_models_up_to_the_setting(fresh: Remote) -> None:
    with fresh.generator() as generator:
        assert generator.window_tokens == CONTEXT_LENGTH
    with fresh.generator(remote_window_tokens=100) as generator:
        assert generator.window_tokens == 100
        ended(generator.start(Request(messages=said("hello"))))
        ended(generator.start(Request(messages=said("hello"))))
    assert fresh.wire.bodies("/api/chat")[-1]["options"]["num_ctx"] == 100
    assert len(fresh.wire.bodies("/api/show")) == 2, "each generator asks once"


def test_a_bare_prompt_goes_around_the_template(fresh: Remote, generator: RemoteGenerator) -> None:
    completion, _ = ended(generator.start(Request(prompt="count to 3:")))
    assert completion.text == " 1 2 3"
    (body,) = fresh.wire.bodies("/api/generate")
    assert body["raw"] is True
    assert body["prompt"] == "count to 3:"


def test_usage_is_the_servers(generator: RemoteGenerator) -> None:
    completion, _ = ended(generator.start(Request(messages=said("one two three"))))
    assert (completion.prompt_tokens, completion.completion_tokens) == (3, 3)


def test_a_text_goes_back_as_the_assistants_last_message(
    fresh: Remote, generator: RemoteGenerator
) -> None:
    request = Request(
        messages=said("count to 9"), resume=Resume(text="1 2 3 4"), sampling=Sampling(max_tokens=50)
    )
    completion, deltas = ended(generator.start(request))
    assert completion.text == "1 2 3 4 5 6 7 8 9"
    assert deltas[0].text == " 5"
    # What was resumed is of the answer, with its tokens by estimate: 2 for 7 characters.
    assert completion.completion_tokens == 2 + 5
    assert completion.prompt_tokens == 3 + 4 - 2
    body = fresh.wire.bodies("/api/chat")[0]
    assert body["messages"][-1] == {"role": "assistant", "content": "1 2 3 4"}
    assert body["options"]["num_predict"] < 50


def test_a_bare_prompt_goes_on_behind_what_was_shown(generator: RemoteGenerator) -> None:
    request = Request(prompt="count to 6:", resume=Resume(text=" 1 2"))
    completion, deltas = ended(generator.start(request))
    assert completion.text == " 1 2 3 4 5 6"
    assert "".join(delta.text for delta in deltas) == " 3 4 5 6"


def test_tools_are_offered_and_their_calls_returned(
    fresh: Remote, generator: RemoteGenerator
) -> None:
    request = Request(messages=said('call add {"a": 1}'), tools=(ADD,))
    completion, _ = ended(generator.start(request))
    assert completion.finish_reason is FinishReason.STOP
    (call,) = completion.tool_calls
    assert (call.name, call.arguments) == ("add", {"a": 1})
    (offered,) = fresh.wire.bodies("/api/chat")[0]["tools"]
    assert offered["function"]["description"] == "Adds."
    assert offered["function"]["parameters"] == ADD.parameters


def test_a_tools_result_goes_by_its_name(fresh: Remote, generator: RemoteGenerator) -> None:
    messages = (
        *said("what is one and one?"),
        Message(
            role=Role.ASSISTANT,
            content="",
            tool_calls=(ToolCall(id="x1", name="add", arguments={"a": 1}),),
        ),
        Message(role=Role.TOOL, content="2", tool_call_id="x1"),
    )
    completion, _ = ended(generator.start(Request(messages=messages, tools=(ADD,))))
    assert completion.text == "The tool says 2"
    sent = fresh.wire.bodies("/api/chat")[0]["messages"]
    assert sent[1]["tool_calls"] == [{"function": {"name": "add", "arguments": {"a": 1}}}]
    assert sent[2]["tool_name"] == "add"


def test_what_the_client_drops_of_a_schema_is_in_the_description(
    fresh: Remote, generator: RemoteGenerator
) -> None:
    inner = {"type": "object", "properties": {"city": {"type": "string"}}}
    tool = Tool(
        name="send",
        description="Sends.",
        parameters={"type": "object", "properties": {"address": inner}},
    )
    ended(generator.start(Request(messages=said("hello"), tools=(tool,))))
    (offered,) = fresh.wire.bodies("/api/chat")[0]["tools"]
    assert '"city"' in offered["function"]["description"]


def test_a_missing_model_names_the_commands(fresh: Remote) -> None:
    with fresh.generator("gone") as generator, pytest.raises(ModelMissing) as raised:
        ended(generator.start(Request(messages=said("hello"))))
    for words in ("ollama pull gone", "sluice models pull ollama/gone", "SLUICE_OLLAMA_PULL=true"):
        assert words in raised.value.message
    assert raised.value.reference == "ollama/gone"


def test_the_window_of_a_missing_model(fresh: Remote) -> None:
    with fresh.generator("gone") as generator, pytest.raises(ModelMissing):
        _ = generator.window_tokens


@pytest.mark.parametrize("url", ["localhost:11434", "ftp://host", "http://", "http://host:port"])
def test_a_wrong_url_names_its_setting(url: str) -> None:
    settings = Settings(_env_file=None, ollama_url=url)
    with pytest.raises(ConfigurationError, match="SLUICE_OLLAMA_URL"):
        OllamaServer(settings)
