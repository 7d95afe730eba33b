"""Generators as LangChain chat models: chains, streams, tools and an agent."""

import asyncio
from collections.abc import Iterator

import pytest
from langchain.agents import create_agent
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    ChatMessage,
    HumanMessage,
    ToolMessage,
)
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from pydantic import BaseModel

from examples.langchain_model import GeneratorChatModel
from shared.errors import InvalidInput, Unavailable
from tests.integration.remotes import MODEL, Remote, remote
from tests.waits import until
from tests.wire.behaviour import Behaviour
from workers.generation.backends.interface import Sampling


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


class City(BaseModel):
    """A city."""

    name: str
    people: int


@pytest.fixture(scope="module", params=["ollama", "openai"])
def server(request: pytest.FixtureRequest) -> Iterator[Remote]:
    with remote(request.param) as running:
        yield running


@pytest.fixture
def model(server: Remote) -> Iterator[GeneratorChatModel]:
    server.wire.behaviours[MODEL] = Behaviour()
    server.wire.requests.clear()
    with server.generator() as generator:
        yield GeneratorChatModel(generator=generator)


def test_a_chain_of_prompt_model_and_parser(model: GeneratorChatModel) -> None:
    prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), ("human", "{words}")])
    chain = prompt | model | StrOutputParser()
    assert chain.invoke({"words": "count to 5"}) == "1 2 3 4 5"
    assert chain.batch([{"words": "a b"}, {"words": "count to 3"}]) == ["a b", "1 2 3"]
    assert list(chain.stream({"words": "count to 3"}))[:3] == ["1", " 2", " 3"]
    assert asyncio.run(chain.ainvoke({"words": "count to 4"})) == "1 2 3 4"


def test_an_answer_tells_its_usage_and_its_end(model: GeneratorChatModel) -> None:
    answer = model.invoke("count to 9", max_tokens=4)
    assert answer.content == "1 2 3 4"
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] == 4
    assert answer.usage_metadata["total_tokens"] == answer.usage_metadata["input_tokens"] + 4
    assert answer.response_metadata["finish_reason"] == "length"
    assert answer.response_metadata["model_name"] == model.generator.reference


def test_a_stream_adds_up_to_the_answer(model: GeneratorChatModel) -> None:
    chunks = list(model.stream("count to 6"))
    whole = chunks[0]
    for chunk in chunks[1:]:
        whole += chunk
    assert isinstance(whole, AIMessageChunk)
    assert whole.content == "1 2 3 4 5 6"
    assert whole.usage_metadata is not None
    assert whole.usage_metadata["output_tokens"] == 6


def test_stop_strings(model: GeneratorChatModel) -> None:
    assert model.invoke("count to 9", stop=[" 4"]).content == "1 2 3"
    assert model.bind(stop=[" 3"]).invoke("count to 9").content == "1 2"


def test_sampling_of_the_model_and_of_a_call(server: Remote, model: GeneratorChatModel) -> None:
    warm = GeneratorChatModel(generator=model.generator, sampling=Sampling(temperature=0.7))
    warm.invoke("hello")
    warm.invoke("hello", temperature=0.2)
    bodies = [request.body for request in server.wire.requests if "chat" in request.path]
    temperatures = [body.get("options", body)["temperature"] for body in bodies]
    assert temperatures == [0.7, 0.2]


def test_a_stream_that_is_left_is_cancelled(server: Remote, model: GeneratorChatModel) -> None:
    server.wire.of(MODEL).delay_s = 0.01
    before = server.wire.dropped
    stream = model.stream("count to 1000")
    assert next(stream).content == "1"
    stream.close()  # type: ignore[attr-defined]  # it is a generator
    until(lambda: server.wire.dropped > before, "the server stops")
    server.wire.of(MODEL).delay_s = 0
    assert model.invoke("count to 2").content == "1 2"


def test_tool_calls_come_back_as_langchains(model: GeneratorChatModel) -> None:
    bound = model.bind_tools([add])
    answer = bound.invoke('call add {"a": 1, "b": 2}')
    assert [(call["name"], call["args"]) for call in answer.tool_calls] == [
        ("add", {"a": 1, "b": 2})
    ]
    assert answer.tool_calls[0]["id"]
    assert bound.invoke("just talk").content == "just talk"
    assert (
        not model.bind_tools([add], tool_choice="none")
        .invoke('call add {"a": 1, "b": 2}')
        .tool_calls
    )


def test_an_agent_uses_its_tool(server: Remote, model: GeneratorChatModel) -> None:
    agent = create_agent(model, tools=[add])
    state = agent.invoke({"messages": [HumanMessage('call add {"a": 20, "b": 22}')]})
    question, called, result, answer = state["messages"]
    assert question.content.startswith("call add")
    assert isinstance(called, AIMessage)
    assert isinstance(result, ToolMessage)
    assert result.content == "42"
    assert answer.content == "The tool says 42"
    chats = [request.body for request in server.wire.requests if "chat" in request.path]
    assert [message["role"] for message in chats[1]["messages"]] == ["user", "assistant", "tool"]


def test_a_model_without_tools_of_its_own_reads_them_in_the_prompt(
    server: Remote, model: GeneratorChatModel
) -> None:
    model.generator.has_native_tools = False
    said = '<tool_call>{"name": "add", "arguments": {"a": 1, "b": 2}}</tool_call>'
    bound = model.bind_tools([add])
    answer = bound.invoke(f"Right: {said}")
    assert [(call["name"], call["args"]) for call in answer.tool_calls] == [
        ("add", {"a": 1, "b": 2})
    ]
    assert answer.content == "Right:"
    body = next(request.body for request in server.wire.requests if "chat" in request.path)
    assert not body.get("tools")
    assert "Add two numbers." in body["messages"][0]["content"]


def test_structured_output_comes_by_a_tool(model: GeneratorChatModel) -> None:
    chain = model.with_structured_output(City)
    assert chain.invoke('call City {"name": "서울", "people": 9}') == City(name="서울", people=9)


def test_errors_come_through(server: Remote, model: GeneratorChatModel) -> None:
    server.wire.of(MODEL).refuse_times = 1
    with pytest.raises(Unavailable):
        model.invoke("hello")
    assert model.invoke("hello").content == "hello"


def test_a_role_that_models_do_not_know(model: GeneratorChatModel) -> None:
    with pytest.raises(InvalidInput, match="chat"):
        model.invoke([ChatMessage(role="narrator", content="once upon a time")])
    assert model.invoke([ChatMessage(role="user", content="hello")]).content == "hello"
