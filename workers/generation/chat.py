"""The steps of `chat`: a step for each answer of the model, and one for the tool calls between two.

A chat without tools is one step. If the model calls tools, the step `chat.tools` runs them on a CPU
worker, and the next answer is a new step: each is claimed, fenced and recovered like any other.
Calls of tools that the client has declared end the job; the client runs them and sends their
results. In the last turn that is allowed, the model gets no tools.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from uuid import UUID

from shared import conversations
from shared.bounds import (
    LINE_LIMIT_CHARS,
    SCHEMA_LIMIT_BYTES,
    check_json,
    shown,
    storable_json,
    storable_text,
)
from shared.database.transaction import Transaction
from shared.errors import InvalidInput, Permanent, Retryable, WindowExceeded
from shared.jobs import jobs
from shared.jobs.steps import NewStep, Record
from shared.kinds.chat import (
    BuiltInTool,
    ChatChoice,
    ChatInput,
    ChatMessage,
    ChatResult,
    DeclaredTool,
    McpTool,
    RemoteTool,
    ToolSearch,
    Usage,
)
from shared.models.providers import route_of
from shared.named_models import Preset
from shared.tables import Job
from shared.vocabulary import Queue
from workers.attempts.context import Context, Done, Handler
from workers.generation import presets, prompts
from workers.generation.answers import tool_calls
from workers.generation.answers.structured import read_json, with_instructions
from workers.generation.answers.tool_calls import ToolCallFilter, spell_out
from workers.generation.backends.interface import (
    Completion,
    Message,
    Request,
    Role,
    TextGenerator,
    Tool,
    ToolCall,
    generators_of,
)
from workers.generation.choices import choice_results, choice_steps, logprobs_of
from workers.generation.prompts import Dialogue, to_message
from workers.generation.transcripts import (
    NoFilter,
    TextFilter,
    deadline,
    prompt_budget,
    sampling,
    show_at_once,
    write,
    write_quietly,
)
from workers.servers.pulls import on_demand
from workers.tools import table


@dataclass(frozen=True, kw_only=True)
class AgentState:
    """The state of a chat between its steps. `later` are the messages after those of the client;
    `searches` are the results of their searches."""

    turn: int = 1
    choice: int | None = None
    """The number of the answer if the job writes several."""
    later: tuple[Message, ...] = ()
    searches: tuple[ToolSearch, ...] = ()
    remote: tuple[RemoteTool, ...] | None = None
    """The tools of MCP servers; None if they were not read yet."""
    prompt_tokens: int = 0
    completion_tokens: int = 0

    @classmethod
    def of(cls, payload: dict[str, Any]) -> "AgentState":
        later = (
            to_message(ChatMessage.model_validate(values)) for values in payload.get("messages", [])
        )
        return cls(
            turn=payload.get("turn", 1),
            choice=payload.get("choice"),
            later=tuple(later),
            searches=tuple(map(ToolSearch.model_validate, payload.get("searches", []))),
            remote=None
            if payload.get("remote") is None
            else tuple(map(RemoteTool.model_validate, payload["remote"])),
            prompt_tokens=payload.get("prompt_tokens", 0),
            completion_tokens=payload.get("completion_tokens", 0),
        )

    def payload(self) -> dict[str, Any]:
        return {
            "turn": self.turn,
            **({} if self.choice is None else {"choice": self.choice}),
            "messages": [message.as_dict() for message in self.later],
            "searches": [search.model_dump(mode="json") for search in self.searches],
            "remote": None
            if self.remote is None
            else [tool.model_dump(mode="json") for tool in self.remote],
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
        }

    def after(self, completion: Completion, messages: Sequence[Message]) -> "AgentState":
        return replace(
            self,
            turn=self.turn + 1,
            later=(*self.later, *messages),
            prompt_tokens=self.prompt_tokens + completion.prompt_tokens,
            completion_tokens=self.completion_tokens + completion.completion_tokens,
        )

    def calls_left(self, limit: int | None) -> int | None:
        """How many more tool calls Sluice may run; None for any number."""
        run_count = sum(message.role == Role.TOOL for message in self.later)
        return None if limit is None else max(limit - run_count, 0)


@dataclass(frozen=True, kw_only=True)
class ModelOutput:
    """The output of the model in one turn: text for the client, and tool calls. `dropped` messages
    found no room in the prompt."""

    text: str
    calls: tuple[ToolCall, ...]
    completion: Completion
    dropped: int
    record: Record
    parsed: Any = None


def chat_answer(context: Context) -> Done:
    """One answer of the model; or, if the job writes several, their steps."""
    process = context.process
    with process.ledger.read_single() as session:
        job = jobs.get(session, context.claim.job_id)
        input_ = ChatInput.model_validate(job.input)
        before = (
            prompts.load(session, job.conversation_id)
            if input_.previous_job_id is None
            else prompts.continued(session, input_.previous_job_id, job.fair_key, process.storage)
        )
    state = AgentState.of(context.claim.payload)
    if _servers(input_) and state.remote is None:
        # A CPU worker reads the tools of MCP servers once, so that all attempts see the same ones.
        step = NewStep(name="chat.tools", queue=Queue.QUERY, payload=state.payload())
        return Done(children=[step])
    model = input_.model or process.settings.generation_model
    if input_.n > 1 and state.choice is None:
        payloads = [state.payload()] * input_.n
        return Done(children=choice_steps("chat.choice", model, payloads))
    base = generators_of(process).get(model)
    generator = presets.generator_for(base, input_.preset, input_.parameters)
    is_last = state.turn >= process.settings.agent_limit_turns
    answer = _generate(context, generator, job, input_, before, state, is_last=is_last)
    with_unique_id = partial(_with_unique_id, step_id=context.claim.step_id)
    answer = replace(answer, calls=tuple(map(with_unique_id, answer.calls)))
    if is_last and answer.calls:
        raise Permanent(
            f"The model was asked {state.turn} times and still calls tools instead of answering. "
            "Ask for less at once, take a more able model, or raise SLUICE_AGENT_LIMIT_TURNS."
        )
    declared = {tool.function.name for tool in input_.tools if isinstance(tool, DeclaredTool)}
    for_client = tuple(call for call in answer.calls if call.name in declared)
    # Unknown tools are among these: the model gets the error as their result.
    for_us = tuple(call for call in answer.calls if call.name not in declared)
    for_us = for_us[: state.calls_left(input_.tool_calls_limit)]
    if not input_.parallel_tool_calls:
        for_us, for_client = for_us[:1], for_client[:1]
    if for_us and not for_client:
        message = Message(role=Role.ASSISTANT, content=answer.text, tool_calls=for_us)
        after = state.after(answer.completion, [message])
        step = NewStep(name="chat.tools", queue=Queue.QUERY, payload=after.payload())
        return Done(children=[step], record=answer.record)
    name = presets.name_of(input_.preset, generator)
    return _end(job, input_, before, state, name, replace(answer, calls=for_client))


def _tools(input_: ChatInput, remote: Sequence[RemoteTool]) -> tuple[Tool, ...]:
    declared = (tool.function for tool in input_.tools if isinstance(tool, DeclaredTool))
    tools = tuple(
        Tool(name=spec.name, description=spec.description, parameters=spec.parameters)
        for spec in (*table.tools(_built_in(input_), remote), *declared)
    )
    if len({tool.name for tool in tools}) < len(tools):
        raise InvalidInput("input.tools names a tool twice.")
    return tools


def _built_in(input_: ChatInput) -> list[BuiltInTool]:
    return [tool for tool in input_.tools if isinstance(tool, BuiltInTool)]


def _servers(input_: ChatInput) -> list[McpTool]:
    return [tool for tool in input_.tools if isinstance(tool, McpTool)]


def _generate(
    context: Context,
    generator: TextGenerator,
    job: Job,
    input_: ChatInput,
    before: Dialogue,
    state: AgentState,
    *,
    is_last: bool,
) -> ModelOutput:
    """Let the model write: quietly if the text has to be checked before clients see it (tool calls
    that are required, JSON), otherwise as a stream."""
    tools = _tools(input_, state.remote or ())
    request, dropped = _request(
        context, generator, job, input_, before, state, tools, is_last=is_last
    )
    names = set() if input_.tool_choice == "none" else {tool.name for tool in tools}
    if request.must_call:
        text, calls, completion = _required_calls(context, generator, request, names, state)
        return ModelOutput(
            text=text, calls=calls, completion=completion, dropped=dropped,
            record=show_at_once(context, text),
        )  # fmt: skip
    if input_.response_format.type == "json":
        completion = write_quietly(context, generator, request)
        text, calls = _calls(completion, names, state)
        if calls:
            return ModelOutput(
                text=text, calls=calls, completion=completion, dropped=dropped,
                record=show_at_once(context, text),
            )  # fmt: skip
        json_ = read_json(context, generator, request, completion, input_.response_format)
        return ModelOutput(
            text=json_.text, calls=(), completion=json_.completion, dropped=dropped,
            parsed=json_.value, record=show_at_once(context, json_.text),
        )  # fmt: skip
    filter_: TextFilter = ToolCallFilter(names=names) if names else NoFilter()
    written = write(context, generator, request, filter_)
    _, calls = _calls(written.completion, names, state)
    return ModelOutput(
        text=written.shown, calls=calls, completion=written.completion, dropped=dropped,
        record=written.record,
    )  # fmt: skip


def _request(
    context: Context,
    generator: TextGenerator,
    job: Job,
    input_: ChatInput,
    before: Dialogue,
    state: AgentState,
    tools: Sequence[Tool],
    *,
    is_last: bool,
) -> tuple[Request, int]:
    """The request of a turn, whose messages fit the model's window, and how many messages were
    dropped for that. Raises WindowExceeded if none may be dropped."""
    sampling_ = sampling(
        input_.parameters, context.process.settings, step_id=context.claim.step_id,
        choice=state.choice or 0,
    )  # fmt: skip
    incoming = [to_message(message) for message in input_.all_messages]
    messages = (*_in_order(input_.instructions, input_.preset, before, incoming), *state.later)
    prompts.check(messages)
    if input_.response_format.type == "json":
        messages = with_instructions(context, messages, input_.response_format)
    available = () if is_last or input_.tool_choice == "none" else tuple(tools)
    native_tools = available if generator.has_native_tools else ()

    def spelled(part: Sequence[Message]) -> Sequence[Message]:
        return part if generator.has_native_tools else spell_out(part, available)

    def count(part: Sequence[Message]) -> int:
        return generator.count_tokens(spelled(part), native_tools)

    generator.learn(context.check)
    budget = prompt_budget(generator, sampling_.max_tokens)
    fitting = prompts.fit(
        context, generator, before, messages, budget_tokens=budget, count=count,
        conversation_id=job.conversation_id,
    )  # fmt: skip
    if fitting.dropped and input_.history == "whole":
        raise WindowExceeded(
            f"The messages have more tokens than the {budget:,} that the model's window leaves for "
            f"them: the {fitting.dropped} oldest find no room. Send less, ask for fewer "
            "max_tokens, take a model with a larger window, or let the oldest be dropped "
            "(`history`: trim)."
        )
    request = Request(
        messages=tuple(spelled(fitting.messages)),
        tools=native_tools,
        must_call=input_.tool_choice == "required" and state.turn == 1 and not is_last,
        parallel_calls=input_.parallel_tool_calls,
        sampling=sampling_,
        deadline=deadline(context),
        lane=context.claim.lane,
        fair_key=context.claim.fair_key,
    )
    return request, fitting.dropped


def _in_order(
    instructions: str | None,
    preset: Preset | None,
    before: Dialogue,
    messages: Sequence[Message],
) -> list[Message]:
    """System prompts first, where models expect them, then all other messages. Those of a named
    model are never stored with the conversation."""
    system = [message for message in messages if message.role == Role.SYSTEM]
    if before.keeps_system:
        system = [*before.system, *system]
    elif not system:
        system = before.system[-1:] or presets.system_of(preset)
    if instructions is not None:
        system.insert(0, Message(role=Role.SYSTEM, content=instructions))
    spoken = [message for message in messages if message.role != Role.SYSTEM]
    return [
        *system,
        *presets.spoken_of(preset),
        *before.spoken,
        *spoken,
    ]


def _calls(
    completion: Completion, names: set[str], state: AgentState
) -> tuple[str, tuple[ToolCall, ...]]:
    """The text and the tool calls of a completion: those that the server reported, or that are in
    the text."""
    if completion.tool_calls or not names:
        return completion.text, tuple(map(storable, completion.tool_calls))
    first = sum(len(message.tool_calls) for message in state.later)
    text, calls = tool_calls.parse(completion.text, names=names, first=first)
    return text, tuple(map(storable, calls))


def _with_unique_id(call: ToolCall, *, step_id: int) -> ToolCall:
    """Calls that were parsed from a text are numbered from 0. With the id of the step they are
    unique in a chat that continues another one."""
    number = re.fullmatch(r"call_(\d+)", call.id, re.ASCII)
    return call if number is None else replace(call, id=f"call_{step_id}_{number[1]}")


CALL_A_TOOL = (
    "You have to call a tool now. Answer with one JSON object and nothing else: "
    '{{"name": <the tool>, "arguments": <its arguments, an object>}}. The tools are: {names}.'
)


def _required_calls(
    context: Context,
    generator: TextGenerator,
    request: Request,
    names: set[str],
    state: AgentState,
) -> tuple[str, tuple[ToolCall, ...], Completion]:
    """An answer with a tool call. If the model calls none, it is asked once more; then raises
    Permanent."""
    completion = write_quietly(context, generator, request)
    text, calls = _calls(completion, names, state)
    if calls:
        return text, calls, completion
    again = [
        *request.messages,
        Message(role=Role.ASSISTANT, content=completion.text or "(no answer)"),
        Message(role=Role.USER, content=CALL_A_TOOL.format(names=", ".join(sorted(names)))),
    ]
    second = write_quietly(context, generator, replace(request, messages=tuple(again)))
    text, calls = _calls(second, names, state)
    if not calls:
        raise Permanent(
            f"{generator.reference} called no tool, and tool_choice is required. Describe the "
            "tools and the question better, or name a model that is made for calling tools."
        )
    tokens = completion.completion_tokens + second.completion_tokens
    whole = replace(
        second,
        prompt_tokens=completion.prompt_tokens + second.prompt_tokens,
        completion_tokens=tokens,
    )
    return text, calls, whole


def storable(call: ToolCall) -> ToolCall:
    """The call in a form that can be stored. Raises Retryable if its arguments cannot be: the model
    may write better ones in the next attempt."""
    try:
        arguments = check_json(storable_json(call.arguments), limit_bytes=SCHEMA_LIMIT_BYTES)
    except (ValueError, RecursionError) as error:
        reason = "is nested too deeply" if isinstance(error, RecursionError) else error
        raise Retryable(
            f"The model called the tool {shown(call.name)} with arguments that cannot be stored: "
            f"the JSON {reason}."
        ) from error
    return replace(
        call,
        id=storable_text(call.id)[:LINE_LIMIT_CHARS],
        name=storable_text(call.name)[:LINE_LIMIT_CHARS],
        arguments=arguments,
    )


def _end(
    job: Job,
    input_: ChatInput,
    before: Dialogue,
    state: AgentState,
    model: str,
    answer: ModelOutput,
) -> Done:
    message = Message(role=Role.ASSISTANT, content=answer.text, tool_calls=answer.calls)
    whole = state.after(answer.completion, [message])
    result = ChatResult(
        message=message.as_dict(),
        model=model,
        usage=Usage(prompt_tokens=whole.prompt_tokens, completion_tokens=whole.completion_tokens),
        finish_reason=answer.completion.finish_reason.value,
        turns=state.turn,
        steps=[message.as_dict() for message in state.later],
        searches=list(state.searches),
        messages_dropped=answer.dropped,
        parsed=answer.parsed,
        logprobs=logprobs_of(answer.completion, input_.parameters, model),
    )
    # A system prompt that is the conversation's newest one already is not stored again.
    known = {message.content for message in before.system[-1:]}
    stored = [
        message.as_dict()
        for message in [*map(to_message, input_.all_messages), *whole.later]
        if message.role != Role.SYSTEM or message.content not in known
    ]

    def record(transaction: Transaction) -> None:
        answer.record(transaction)
        if job.conversation_id is not None:
            conversations.append(transaction, job.conversation_id, stored, job.id)

    values = result.model_dump(mode="json")
    if state.choice is not None:
        values["choice"] = state.choice
    return Done(result=values, record=record)


def all_choices(transaction: Transaction, job_id: UUID) -> dict[str, Any]:
    """The result of a job that writes several answers: common fields are those of the first one,
    and the tokens of all answers are added up."""
    results = choice_results(transaction, job_id, "chat.choice")
    whole = ChatResult.model_validate(
        {key: results[0][key] for key in results[0] if key != "choice"}
    )
    usages = [Usage.model_validate(result["usage"]) for result in results]
    total = Usage(
        prompt_tokens=whole.usage.prompt_tokens,
        completion_tokens=sum(usage.completion_tokens for usage in usages),
    )
    choices = [
        ChatChoice.model_validate({key: result[key] for key in ChatChoice.model_fields})
        for result in results
    ]
    return whole.model_copy(update={"usage": total, "choices": choices}).model_dump(mode="json")


def chat_tools(context: Context) -> Done:
    """Read the tools of MCP servers, or run the tool calls of the turn before; on CPU workers."""
    input_ = context.input(ChatInput)
    state = AgentState.of(context.claim.payload)
    if not state.later:
        remote = table.remote_tools(context, _servers(input_))
        return Done(children=[_next_answer(context, input_, replace(state, remote=tuple(remote)))])
    results: list[Message] = []
    searches = list(state.searches)
    for call in state.later[-1].tool_calls:
        context.publish_tool_call(call.id, {"name": call.name, "arguments": call.arguments})
        first = 1 + sum(len(search.hits) for search in searches)
        output = table.run(
            context, call.name, call.arguments, _built_in(input_), remote=state.remote or (),
            first=first,
        )  # fmt: skip
        context.publish_tool_call(call.id, {"name": call.name, "result": output.text})
        results.append(Message(role=Role.TOOL, content=output.text, tool_call_id=call.id))
        if output.hits is not None:
            hits = list(output.hits)
            searches.append(ToolSearch(call_id=call.id, query=output.query, first=first, hits=hits))
    after = replace(state, later=(*state.later, *results), searches=tuple(searches))
    return Done(children=[_next_answer(context, input_, after)])


def _next_answer(context: Context, input_: ChatInput, state: AgentState) -> NewStep:
    model = input_.model or context.process.settings.generation_model
    name = "chat.answer" if state.choice is None else "chat.choice"
    return NewStep(name=name, queue=Queue.GENERATE, route=route_of(model), payload=state.payload())


CHAT_ANSWER = Handler(run=on_demand(chat_answer))
CHAT_CHOICE = Handler(run=on_demand(chat_answer), finish=all_choices)
CHAT_TOOLS = Handler(run=chat_tools)
