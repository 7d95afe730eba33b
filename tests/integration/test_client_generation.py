"""The Python client's calls about chat, streams, models and conversations, over real HTTP."""

from collections.abc import Iterator
from typing import Any

import pytest

from sluice import ApiError, Client, InvalidInput, Job, JobFailed, Retries, TextPiece, ToolRun
from sluice.kinds import ChatInput
from tests.integration.fake_api import State, serving

QUICK = Retries(connect_for_s=0.3, retry_for_s=5.0, busy_for_s=1.0, base_s=0.02, cap_s=0.1)
INPUT: ChatInput = {"messages": [{"role": "user", "content": "how much?"}]}
SCRIPT: list[dict[str, Any]] = [
    {"event": "token", "step": 1, "offset": 0, "text": "Let me "},
    {"event": "token", "step": 1, "offset": 7, "text": "see."},
    {"event": "tool", "id": "c1", "name": "calculator", "arguments": {"expression": "6*7"}},
    {"event": "tool", "id": "c1", "name": "calculator", "result": "42"},
    {"event": "token", "step": 3, "offset": 0, "text": "It is "},
    {"event": "token", "step": 3, "offset": 6, "text": "42."},
]


@pytest.fixture
def client(state: State) -> Iterator[Client]:
    with serving(state) as url, Client(url, retries=QUICK) as client:
        yield client


def input_of(state: State) -> Any:
    [job] = state.jobs.values()
    return job["input"]


CONVERSATION = "01a21957-3c86-7c1b-9aaa-3f4f68c3a001"


def test_chat_of_a_text(client: Client, state: State) -> None:
    answer = client.chat("hello", model="ollama/tiny", parameters={"temperature": 0.5})
    assert answer.text == "HELLO"
    assert answer.finish_reason == "stop"
    assert answer.tool_calls == []
    assert input_of(state) == {
        "messages": [{"role": "user", "content": "hello"}],
        "model": "ollama/tiny",
        "parameters": {"temperature": 0.5},
    }


def test_chat_of_messages_with_everything(client: Client, state: State) -> None:
    declared = {"type": "function", "function": {"name": "weather"}}
    client.chat(
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}],
        conversation_id=CONVERSATION,
        tools=["calculator", "search_collection:handbook", declared],
        response_format={"type": "json"},
    )
    input_ = input_of(state)
    assert input_["tools"] == [
        {"type": "calculator"},
        {"type": "search_collection", "collection": "handbook"},
        declared,
    ]
    assert input_["conversation_id"] == CONVERSATION
    assert input_["response_format"] == {"type": "json"}
    assert [message["role"] for message in input_["messages"]] == ["system", "user"]


@pytest.mark.parametrize("tool", ["search_collection", "calculator:x", "search_collection:"])
def test_a_tool_that_is_not_named_rightly(client: Client, state: State, tool: str) -> None:
    with pytest.raises(InvalidInput, match="does not name a tool"):
        client.chat("hello", tools=[tool])
    assert not state.jobs


def test_ask_takes_a_prompt_and_parameters(client: Client, state: State) -> None:
    client.ask("handbook", "?", prompt="{context} {question}", parameters={"max_tokens": 5})
    assert input_of(state) == {
        "collection": "handbook",
        "question": "?",
        "prompt": "{context} {question}",
        "parameters": {"max_tokens": 5},
    }


def streamed(client: Client) -> tuple[list[TextPiece | ToolRun], Job]:
    *before, job = client.stream(client.submit("chat", INPUT).id)
    assert isinstance(job, Job)
    return [piece for piece in before if not isinstance(piece, Job)], job


def texts(pieces: list[TextPiece | ToolRun]) -> list[str]:
    """What each step has said."""
    by_step: dict[int, str] = {}
    for piece in pieces:
        if isinstance(piece, TextPiece):
            by_step[piece.step] = by_step.get(piece.step, "") + piece.text
    return list(by_step.values())


@pytest.mark.parametrize("cuts", [[], [1], [5], [2, 2], [0, 3], [1, 1, 1], [3, 0, 0]])
def test_a_stream_that_breaks_repeats_and_loses_nothing(
    client: Client, state: State, cuts: list[int]
) -> None:
    """Although the job has ended when it does."""
    state.script, state.cuts = SCRIPT, list(cuts)
    pieces, job = streamed(client)
    assert job.state == "succeeded"
    assert texts(pieces) == ["Let me see.", "It is 42."]
    runs = [piece for piece in pieces if isinstance(piece, ToolRun)]
    assert [run.result for run in runs] == [None, "42"]
    assert runs[0].arguments == {"expression": "6*7"}


def test_a_stream_that_never_comes_again_ends_with_the_jobs_answer(
    client: Client, state: State
) -> None:
    state.script, state.cuts = SCRIPT, [1, *[0] * 100]
    pieces, job = streamed(client)
    assert job.state == "succeeded"
    assert texts(pieces) == ["Let me ", "It is 42."]


def test_a_stream_resumes_by_its_last_event(client: Client, state: State) -> None:
    state.script, state.cuts = SCRIPT, [2]
    streamed(client)
    assert state.last_event_ids == [None, "11-0"]


def test_what_a_model_job_does(client: Client, state: State) -> None:
    seen = []
    job = client.pull_model("llama3.2", on_event=lambda event: seen.append(event.event))
    assert job.result == {"action": "pull", "name": "ollama/llama3.2"}
    assert seen[-1] == "end"
    client.create_model("ollama/helpdesk", "llama3.2", system="Be brief.", parameters={"top_k": 5})
    client.delete_model("helpdesk")
    assert [job["input"] for job in state.jobs.values()] == [
        {"action": "pull", "name": "ollama/llama3.2"},
        {
            "action": "create",
            "name": "ollama/helpdesk",
            "from": "ollama/llama3.2",
            "system": "Be brief.",
            "parameters": {"top_k": 5},
        },
        {"action": "delete", "name": "ollama/helpdesk"},
    ]
    state.outcome = "failed"
    with pytest.raises(JobFailed):
        client.pull_model("llama3.2")


@pytest.mark.parametrize("name", ["hf/some/model", "openai/gpt", "ollama/", ""])
def test_only_models_of_ollama_are_pulled(client: Client, name: str) -> None:
    with pytest.raises(InvalidInput, match="Ollama"):
        client.pull_model(name)


def test_models(client: Client, state: State) -> None:
    state.models["hf/a/b c"] = {"system": "Be brief."}
    extractive, other = client.models()
    assert (extractive.reference, extractive.default, extractive.workers) == ("extractive", True, 1)
    assert client.model(other.reference).details == {"system": "Be brief."}
    with pytest.raises(ApiError) as caught:
        client.model("ollama/none")
    assert caught.value.status == 404


def test_conversations(client: Client, state: State) -> None:
    made = [client.start_conversation({"n": n}, summarize=True) for n in range(3)]
    assert made[0].summarize
    listed = list(client.conversations(page_items=2))
    assert [conversation.metadata for conversation in listed] == [{"n": 2}, {"n": 1}, {"n": 0}]
    assert client.conversation(made[0].id) == made[0]
    [question, _] = client.conversation_messages(made[0].id)
    assert question.message == {"role": "user", "content": "얼마예요?"}
    client.erase_conversation(made[0].id)
    assert len(state.conversations) == 2
    with pytest.raises(ApiError) as caught:
        client.conversation_messages(made[0].id)
    assert caught.value.status == 404
