"""The kind `chat`, step by step: answers, tools, JSON, what goes wrong, and what is told of it."""

import json
from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest

from shared import conversations
from shared.jobs.claims import Claim
from shared.vocabulary import Queue
from tests.integration.chats import (
    chat,
    chat_error,
    chat_result,
    submit_chat,
    submit_messages,
    user,
)
from tests.integration.job_runner import (
    cancel,
    claimed,
    drain,
    handlers,
    job_of,
    lose_workers,
    steps_of,
)
from tests.waits import until
from tests.wire.behaviour import Wire
from tests.wire.script import UNSTORABLE
from workers.app import failure_handlers
from workers.attempts.context import Context
from workers.attempts.process import Process
from workers.attempts.runner import run
from workers.generation.transcripts import GrowingTranscript, TranscriptWriter, write_rest

CALCULATOR: dict[str, Any] = {"type": "calculator"}


@pytest.fixture
def process(talker: Callable[..., Process]) -> Process:
    return talker(generation_flush_s=0.01)


def test_a_chat_is_one_step_with_an_answer_and_its_usage(process: Process) -> None:
    job_id = submit_chat(process, "count to 5")

    result = chat_result(process, job_id)

    assert result["message"] == {"role": "assistant", "content": "1 2 3 4 5"}
    assert result["model"] == "ollama/tiny"
    assert result["finish_reason"] == "stop"
    assert result["usage"] == {"prompt_tokens": 3, "completion_tokens": 5}
    assert [step.name for step in steps_of(process, job_id)] == ["chat.answer"]


def test_parameters_reach_the_model(process: Process, wire: Wire) -> None:
    parameters = {
        "max_tokens": 3, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "stop": ["x"], "seed": 11,
        "repetition_penalty": 1.2,
    }  # fmt: skip

    result = chat_result(process, submit_chat(process, "count to 9", parameters=parameters))

    assert result["message"]["content"] == "1 2 3"
    assert result["finish_reason"] == "length"
    options = wire.bodies("/api/chat")[0]["options"]
    assert options["num_predict"] == 3
    assert (options["temperature"], options["top_p"], options["top_k"]) == (0.5, 0.9, 7)
    assert (options["stop"], options["seed"], options["repeat_penalty"]) == (["x"], 11, 1.2)


def test_what_a_text_begins_with_is_there_at_once(talker: Callable[..., Process]) -> None:
    process = talker(generation_flush_s=3600)
    job_id = submit_chat(process, "hello")
    transcript = GrowingTranscript(Context(process, claimed(process, Queue.GENERATE)))
    writer = TranscriptWriter(process.settings, process.ledger)

    def shown() -> list[str]:
        with process.ledger.read() as session:
            return [part.text for part in conversations.shown_of_job(session, job_id, {})]

    writer.open(transcript)
    transcript.add("Hel", "Hel")
    assert until(shown, "the first text") == ["Hel"]
    transcript.add("lo", "lo")
    writer.finish(transcript)
    with process.ledger.begin() as session:
        write_rest(session, transcript)
    assert shown() == ["Hello"]


def test_log_probabilities_that_a_server_does_not_report_fail_with_a_remedy(
    process: Process,
) -> None:
    error = chat_error(process, submit_chat(process, "hello", parameters={"logprobs": 1}))
    assert "reports no log-probabilities. Leave out logprobs" in error["message"]


def test_a_retried_step_draws_with_the_same_seed(process: Process, wire: Wire) -> None:
    wire.of("tiny").refuse_times = 1
    chat_result(process, submit_chat(process, "hello", parameters={"temperature": 1}))

    seeds = [body["options"]["seed"] for body in wire.bodies("/api/chat")]
    assert len(seeds) == 2
    assert len(set(seeds)) == 1


def test_an_agent_computes_with_a_step_for_each_turn(process: Process) -> None:
    job_id = submit_chat(process, 'call calculator {"expression": "12*12"}', tools=[CALCULATOR])

    result = chat_result(process, job_id)

    assert result["message"]["content"] == "The tool says 144"
    assert result["turns"] == 2
    assert [step["role"] for step in result["steps"]] == ["assistant", "tool"]
    assert result["steps"][0]["tool_calls"][0]["function"] == {
        "name": "calculator",
        "arguments": {"expression": "12*12"},
    }
    steps = steps_of(process, job_id)
    assert [(step.name, step.queue) for step in steps] == [
        ("chat.answer", "generate"),
        ("chat.tools", "query"),
        ("chat.answer", "generate"),
    ]


def test_calls_of_declared_tools_go_to_the_client_and_come_back(process: Process) -> None:
    weather = {
        "type": "function",
        "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}},
    }
    question = user('call weather {"city": "부산"}')

    first = chat_result(process, submit_messages(process, [question], tools=[weather]))

    (call,) = first["message"]["tool_calls"]
    assert call["function"] == {"name": "weather", "arguments": {"city": "부산"}}
    tool_answer = {"role": "tool", "tool_call_id": call["id"], "content": "맑음"}
    result = chat_result(
        process,
        submit_messages(process, [question, first["message"], tool_answer], tools=[weather]),
    )
    assert result["message"]["content"] == "The tool says 맑음"


def test_an_agent_that_never_ends_gets_no_tools_in_its_last_turn(
    talker: Callable[..., Process],
) -> None:
    process = talker(agent_limit_turns=1)
    result = chat_result(
        process, submit_chat(process, 'call calculator {"expression": "1"}', tools=[CALCULATOR])
    )
    assert result["turns"] == 1
    assert result["message"]["content"].startswith("call calculator")

    call = '<tool_call>{"name": "calculator", "arguments": {"expression": "1"}}</tool_call>'
    error = chat_error(process, submit_chat(process, call, tools=[CALCULATOR]))
    assert "SLUICE_AGENT_LIMIT_TURNS" in error["message"]


def test_json_is_checked_and_requested_again(process: Process, wire: Wire) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    good = submit_chat(process, '{"n": 3}', response_format={"type": "json", "schema": schema})
    assert chat_result(process, good)["parsed"] == {"n": 3}

    wire.requests.clear()
    bad = submit_chat(process, '{"n": "three"}', response_format={"type": "json", "schema": schema})
    error = chat_error(process, bad)
    assert error["type"] == "NotJson"
    assert len(wire.bodies("/api/chat")) == 2


def test_json_that_was_cut_off_says_so_and_is_not_requested_again(
    process: Process, wire: Wire
) -> None:
    for schema in ({}, {"schema": {"type": "object"}}):
        wire.requests.clear()
        words = '{"numbers": "one two three four five six seven eight nine ten"}'
        job_id = submit_chat(process, words, response_format={"type": "json", **schema},
                     parameters={"max_tokens": 3})  # fmt: skip
        error = chat_error(process, job_id)
        assert error["type"] == "NotJson"
        assert "cut off after 3 tokens" in error["message"]
        assert "max_tokens" in error["message"]
        assert len(wire.bodies("/api/chat")) == 1


def test_a_schema_without_end_fails_its_job_and_no_other(talker: Callable[..., Process]) -> None:
    process = talker(schema_check_s=0.2)
    schema = {"properties": {"a": {"pattern": "^(a+)+$"}}}
    poison = submit_chat(
        process, json.dumps({"a": "a" * 64 + "!"}),
        response_format={"type": "json", "schema": schema},
    )  # fmt: skip
    error = chat_error(process, poison)
    assert error["type"] == "InvalidInput"
    assert "SLUICE_SCHEMA_CHECK_S" in error["message"]
    assert chat_result(
        process, submit_chat(process, '{"a": "aa"}', response_format={"type": "json"})
    )


def test_an_interrupted_answer_goes_on_where_it_stopped(process: Process, wire: Wire) -> None:
    wire.of("tiny").break_after = 4
    job_id = submit_chat(process, "count to 9")
    run(process, handlers(), claimed(process, Queue.GENERATE))
    assert job_of(process, job_id).state == "running"
    wire.behaviours.clear()

    result = chat_result(process, job_id)

    assert result["message"]["content"] == "1 2 3 4 5 6 7 8 9"
    first, second = wire.bodies("/api/chat")
    assert second["messages"][:-1] == first["messages"]
    begun = second["messages"][-1]
    assert begun["role"] == "assistant"
    assert begun["content"]
    assert "1 2 3 4 5 6 7 8 9".startswith(begun["content"])


def test_what_an_overtaken_attempt_generates_is_not_shown(process: Process, wire: Wire) -> None:
    job_id = submit_chat(process, "count to 5")
    late = claimed(process, Queue.GENERATE)
    lose_workers(process)

    result = chat_result(process, job_id)
    run(process, handlers(), late)

    assert result["message"]["content"] == "1 2 3 4 5"
    assert shown(process, job_id) == "1 2 3 4 5"
    assert wire.running == 0


def shown(process: Process, job_id: Any) -> str:
    from shared import conversations

    with process.ledger.read() as session:
        pieces = conversations.shown_of_job(session, job_id, {})
    return "".join(piece.text for piece in pieces)


def test_a_running_chat_is_cancelled_in_the_middle(process: Process, wire: Wire) -> None:
    wire.of("tiny").hang_after = 3
    job_id = submit_chat(process, "count to 9")
    claim = claimed(process, Queue.GENERATE)
    cancel(process, job_id)

    run(process, handlers(), claim)

    job = job_of(process, job_id)
    assert job.state == "cancelled"
    assert "1 2 3 4 5 6 7 8 9".startswith(shown(process, job_id))


def test_a_chat_past_its_time_fails_and_says_so(process: Process, wire: Wire) -> None:
    wire.of("tiny").hang_after = 2
    job_id = submit_chat(process, "count to 9", timeout_s=0.3)
    error = chat_error(process, job_id)
    assert error["type"] == "Timeout"
    assert "timeout_s" in error["message"]


def test_a_busy_server_gets_the_request_again_after_the_time_it_names(
    process: Process, wire: Wire
) -> None:
    wire.of("tiny").refuse_times = 2
    wire.of("tiny").refuse_status = 429
    wire.of("tiny").retry_after = "7"
    job_id = submit_chat(process, "hello", max_attempts=1)
    run(process, handlers(), claimed(process, Queue.GENERATE))

    (step,) = steps_of(process, job_id)
    assert step.error is not None
    assert step.error["type"] == "Unavailable"
    assert (step.run_after - step.started_at).total_seconds() >= 7  # type: ignore[operator]
    assert chat(process, "hello") == "hello"
    assert job_of(process, job_id).state == "succeeded"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"messages": [user("x" * 200_000)]}, "tokens"),
        ({"messages": [user("a")], "model": "ollama/unknown"}, "ollama pull unknown"),
        (
            {"messages": [user("a"), {"role": "tool", "tool_call_id": "no", "content": "b"}]},
            "tool_call_id",
        ),
        ({"messages": [user("a")], "tools": [CALCULATOR, CALCULATOR, CALCULATOR]}, ""),
        (
            {"messages": [user("a")], "response_format": {"type": "json", "schema": {"type": 3}}},
            "schema",
        ),
    ],
    ids=["too long", "unknown model", "result without call", "tool named twice", "bad schema"],
)
def test_what_cannot_be_answered_says_why_and_the_worker_lives_on(
    process: Process, fields: dict[str, Any], reason: str
) -> None:
    job_id = submit_messages(process, fields.pop("messages"), **fields)
    drain(process)
    job = job_of(process, job_id)
    if reason:
        assert job.state == "failed", job.result
        assert reason.lower() in (job.error or {})["message"].lower()
    assert chat(process, "still there") == "still there"


def test_characters_that_postgres_keeps_in_no_text_are_replaced(process: Process) -> None:
    job_id = submit_chat(process, UNSTORABLE)
    assert chat_result(process, job_id)["message"]["content"] == "a\ufffdb c"
    assert shown(process, job_id) == "a\ufffdb c"
    assert job_of(process, job_id).attempt == 1


def test_of_a_tool_that_there_is_not_the_model_reads_that(process: Process) -> None:
    job_id = submit_chat(process, 'call abacus {"beads": 3}', tools=[CALCULATOR])
    result = chat_result(process, job_id)
    assert "there is no tool 'abacus'" in result["message"]["content"]


class TestSeveralAnswers:
    def claimed_choices(self, process: Process, **fields: Any) -> tuple[UUID, list[Claim]]:
        """A job of two answers whose steps are both claimed."""
        job_id = submit_chat(process, "count to 3", n=2, **fields)
        run(process, handlers(), claimed(process, Queue.GENERATE))
        return job_id, [claimed(process, Queue.GENERATE) for _ in range(2)]

    def test_an_answer_whose_worker_is_lost_is_written_again(self, process: Process) -> None:
        job_id, (first, _) = self.claimed_choices(process)
        run(process, handlers(), first)
        lose_workers(process)

        result = chat_result(process, job_id)

        texts = [choice["message"]["content"] for choice in result["choices"]]
        assert texts == ["1 2 3", "1 2 3"]
        assert result["usage"]["completion_tokens"] == 6

    def test_the_job_fails_with_an_answer_that_is_out_of_attempts(self, process: Process) -> None:
        job_id, (first, _) = self.claimed_choices(process, max_attempts=1)
        run(process, handlers(), first)
        lose_workers(process, failure_handlers())

        error = chat_error(process, job_id)

        assert error["type"] == "WorkerLost"
        assert {step.state for step in steps_of(process, job_id)} == {"succeeded", "failed"}
