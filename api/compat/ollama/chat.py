"""`/api/chat` and `/api/generate`: jobs of the kinds `chat`, `complete` (bare prompts) and `rag`.

`context`, with which `/api/generate` goes on with what was said, is an encoding of the messages
themselves: it holds for every back end, and a chat template sees the turns as they were.
"""

import json
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Response
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from starlette.responses import JSONResponse

from api.compat import calls
from api.compat.calls import Caller, CallerDep, JobOutcome
from api.compat.ollama.dialect import (
    OLLAMA_API,
    AnyTypeRoute,
    Bodies,
    ModelRequest,
    check_keep_alive,
    is_zero,
    moment,
    nanoseconds,
    streamed,
    whole,
)
from api.compat.ollama.names import Model, ask_behind, model_of
from api.deps import Parts, PartsDep
from api.jobs.texts import TextPiece
from shared.bounds import JsonSchema, Line, Paragraph, ToolArguments, shown
from shared.config import EXTRACTIVE
from shared.errors import InvalidInput
from shared.jobs.submission import NewJob, Submitted
from shared.kinds.chat import ALTERNATIVES_LIMIT, CALLS_LIMIT, CHAT
from shared.kinds.complete import COMPLETE
from shared.kinds.kind import Kind
from shared.kinds.rag import RAG, RAG_PREFIX, rag_of
from shared.modelfiles import go_templates
from shared.modelfiles.modelfile import checked_parameters
from shared.providers import OLLAMA, OLLAMA_SERVER
from shared.vocabulary import WireShape

# What requests look like.

MESSAGE_CHARS: Final = 1_000_000
MESSAGES_LIMIT: Final = 1000
TOOLS_LIMIT: Final = 64


def _no_images(images: Any) -> Any:
    if images:
        raise ValueError("is not supported here: send text, or the text that the image shows")
    return images


NoImages = Annotated[Any, BeforeValidator(_no_images)]
KeepAlive = Annotated[float | str | None, BeforeValidator(check_keep_alive)]


def _think(value: Any) -> Any:
    if value is None or isinstance(value, bool) or value in ("low", "medium", "high", "max"):
        return value
    raise ValueError('must be true or false, or "low", "medium", "high" or "max"')


Think = Annotated[bool | Literal["low", "medium", "high", "max"], BeforeValidator(_think)]


class OllamaFunctionOfCall(WireShape):
    name: Line
    arguments: ToolArguments = {}
    index: int = 0
    description: Paragraph = ""


class OllamaCall(WireShape):
    id: Line = ""
    type: str = "function"
    function: OllamaFunctionOfCall


class OllamaMessage(WireShape):
    """`thinking` of an earlier answer is not read again by models."""

    role: Annotated[
        Literal["system", "user", "assistant", "tool"],
        BeforeValidator(lambda role: role.lower() if isinstance(role, str) else role),
    ]
    content: Annotated[str, Field(max_length=MESSAGE_CHARS)] = ""
    thinking: Annotated[str, Field(max_length=MESSAGE_CHARS)] = ""
    images: NoImages = None
    tool_calls: Annotated[list[OllamaCall], Field(fail_fast=True, max_length=CALLS_LIMIT)] = []
    tool_name: Line = ""
    tool_call_id: Line = ""
    name: Line = ""


class OllamaFunction(WireShape):
    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$", max_length=64)]
    description: Paragraph = ""
    parameters: JsonSchema = {"type": "object", "properties": {}}
    strict: Any = None

    def to_input(self) -> dict[str, Any]:
        """In the shape of a declared tool of `chat`."""
        return {"type": "function", "function": self.model_dump(exclude={"strict"})}


class OllamaTool(WireShape):
    type: Literal["function"] = "function"
    items: Any = None
    function: OllamaFunction


def _format(value: Any) -> Any:
    if value in ("", "json") or isinstance(value, dict):
        return value
    raise ValueError('must be "json" or a JSON Schema')


Format = Annotated[JsonSchema | Literal["", "json"], BeforeValidator(_format)]


class WritingRequest(ModelRequest):
    """What `/api/chat` and `/api/generate` have in common.

    `truncate` false makes a conversation that finds no room an error; `shift` would go on in a
    window that has moved, which no back end here does.
    """

    stream: bool = True
    format: Format = ""
    options: Annotated[dict[str, Any], Field(max_length=64)] = {}
    keep_alive: KeepAlive = None
    think: Think | None = None
    truncate: bool = True
    shift: bool = True
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=ALTERNATIVES_LIMIT)] = 0
    debug_render_only: Literal[False] = Field(default=False, alias="_debug_render_only")

    def parameters(self, parts: Parts, model: Model) -> dict[str, Any]:
        """What the options say, then what the model has by itself. Raises InvalidInput."""
        options = dict(self.options)
        if options.get("top_p") == 0:
            options |= {"top_p": None, "top_k": 1}  # it leaves the likeliest token alone
        ours = {**model.parameters, **checked_parameters(options)}
        if options.get("num_predict") in (-1, -2):
            ours["max_tokens"] = parts.settings.max_tokens_limit
        if self.logprobs:
            ours["logprobs"] = self.top_logprobs
        return ours

    def response_format(self) -> dict[str, Any]:
        if self.format == "":
            return {"type": "text"}
        schema = {} if self.format == "json" else {"schema": self.format}
        return {"type": "json", **schema}


class OllamaChat(WritingRequest):
    messages: Annotated[list[OllamaMessage], Field(fail_fast=True, max_length=MESSAGES_LIMIT)] = []
    tools: Annotated[list[OllamaTool], Field(fail_fast=True, max_length=TOOLS_LIMIT)] = []


class OllamaGenerate(WritingRequest):
    prompt: Annotated[str, Field(max_length=MESSAGE_CHARS)] = ""
    suffix: Annotated[str, Field(max_length=MESSAGE_CHARS)] = ""
    system: Annotated[str, Field(max_length=MESSAGE_CHARS)] = ""
    template: Annotated[str, Field(max_length=100_000)] = ""
    context: Annotated[list[int], Field(fail_fast=True, max_length=MESSAGE_CHARS)] = []
    raw: bool = False
    images: NoImages = None
    width: NoImages = None
    height: NoImages = None
    steps: NoImages = None


# From messages of the wire to ours.


def messages_of(wire: Sequence[OllamaMessage]) -> list[dict[str, Any]]:
    """Calls of tools have ids here; a result belongs to the call of its id, or else to the first
    one of its tool that has none."""
    messages: list[dict[str, Any]] = []
    waiting: list[tuple[str, str]] = []
    count = 0
    for number, message in enumerate(wire):
        values: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            own = []
            for call in message.tool_calls:
                id_ = call.id or f"call_{count}"
                count += 1
                own.append((id_, call.function.name))
            waiting = own
            values["tool_calls"] = [
                {
                    "id": id_,
                    "type": "function",
                    "function": {"name": name, "arguments": call.function.arguments},
                }
                for (id_, name), call in zip(own, message.tool_calls, strict=True)
            ]
        if message.role == "tool":
            values["tool_call_id"] = _answered(number, message, waiting)
        elif not message.content and not message.tool_calls:
            if message.role == "user":
                raise InvalidInput(f"messages.{number}.content is empty; send a text")
            continue  # an answer that was empty, as clients send it back
        messages.append(values)
    if not messages:
        raise InvalidInput("messages hold no text; send one of the user")
    return messages


def _answered(number: int, message: OllamaMessage, waiting: list[tuple[str, str]]) -> str:
    name = message.tool_name or message.name
    for known in ((message.tool_call_id, None), (None, name)):
        for call in waiting:
            if (known[0] and call[0] == known[0]) or (known[1] and call[1] == known[1]):
                waiting.remove(call)
                return call[0]
    if waiting and not name and not message.tool_call_id:
        return waiting.pop(0)[0]
    raise InvalidInput(
        f"messages.{number} is the result of a tool that no message before it calls; send the "
        "assistant's message with its tool_calls first"
    )


# Context: messages as a list of integers, three bytes of their JSON in each.

CONTEXT_MARK: Final = 0x53_4C_43
CONTEXT_ITEM_BYTES: Final = 3


def context_of(messages: Sequence[Mapping[str, Any]]) -> list[int]:
    data = json.dumps(messages, ensure_ascii=False, separators=(",", ":")).encode()
    size = CONTEXT_ITEM_BYTES
    items = [int.from_bytes(data[at : at + size], "big") for at in range(0, len(data), size)]
    return [CONTEXT_MARK, len(data), *items]


def messages_in(context: Sequence[int]) -> list[dict[str, Any]]:
    """Raises InvalidInput for the context of another server."""
    if not context:
        return []
    try:
        mark, length, *items = context
        if mark != CONTEXT_MARK:
            raise ValueError
        count, rest = divmod(length, CONTEXT_ITEM_BYTES)
        sizes = [CONTEXT_ITEM_BYTES] * count + ([rest] if rest else [])
        data = b"".join(item.to_bytes(size, "big") for item, size in zip(items, sizes, strict=True))
        messages = json.loads(data)
        return [
            {"role": str(message["role"]), "content": str(message["content"])}
            for message in messages
        ]
    except (ValueError, OverflowError, KeyError, TypeError, RecursionError, MemoryError) as error:
        raise InvalidInput(
            "context is not one that this server gave; send the last answer's, unchanged, or none"
        ) from error


# Requests as jobs.


@dataclass(frozen=True, kw_only=True)
class Work:
    """The job of a request. `said` are the messages that a context goes on from; None of bare
    prompts."""

    kind: Kind
    values: Mapping[str, Any]
    said: Sequence[Mapping[str, Any]] | None = None


def chat_work(parts: Parts, model: Model, request: OllamaChat) -> Work:
    """Raises InvalidInput."""
    messages = messages_of(request.messages)
    if model.reference.startswith(RAG_PREFIX):
        if request.tools:
            raise InvalidInput(f"tools is not supported by models {RAG_PREFIX}<collection>")
        return _rag_work(parts, model, request, messages)
    values: dict[str, Any] = {
        "model": model.reference,
        "messages": messages,
        "tools": [tool.function.to_input() for tool in request.tools],
        "parameters": request.parameters(parts, model),
        "response_format": request.response_format(),
        "history": "trim" if request.truncate else "whole",
    }
    return Work(kind=CHAT, values=values)


def generate_work(parts: Parts, model: Model, request: OllamaGenerate) -> Work:
    """Raises InvalidInput."""
    if request.suffix:
        raise InvalidInput(
            f"{shown(model.name)} does not support insert: suffix is not supported here; send the "
            "whole prompt with raw, with the model's own marks for what stands behind"
        )
    if request.raw:
        if request.template or request.system or request.context:
            raise InvalidInput("raw mode does not support template, system, or context")
        return _bare_work(parts, model, request, request.prompt, "raw")
    before = messages_in(request.context)
    system = [{"role": "system", "content": request.system}] if request.system else []
    said = [message for message in before if not (system and message["role"] == "system")]
    said = [*system, *said, {"role": "user", "content": request.prompt}]
    if model.reference.startswith(RAG_PREFIX):
        if request.template:
            raise InvalidInput(f"template is not supported by models {RAG_PREFIX}<collection>")
        work = _rag_work(parts, model, request, said)
        return Work(kind=work.kind, values=work.values, said=said)
    if request.template:
        prompt = _rendered(request, model, said)
        work = _bare_work(parts, model, request, prompt, "template")
        return Work(kind=work.kind, values=work.values, said=said)
    values: dict[str, Any] = {
        "model": model.reference,
        "messages": said,
        "parameters": request.parameters(parts, model),
        "response_format": request.response_format(),
        "history": "trim" if request.truncate else "whole",
    }
    return Work(kind=CHAT, values=values, said=said)


def _bare_work(
    parts: Parts, model: Model, request: OllamaGenerate, prompt: str, because: str
) -> Work:
    if model.reference.startswith(RAG_PREFIX):
        raise InvalidInput(f"{because} is not supported by models {RAG_PREFIX}<collection>")
    if request.format:
        raise InvalidInput(f"format is not supported together with {because}; leave one out")
    values = {
        # Nothing of a preset goes with a bare prompt but its parameters, which are there.
        "model": model.base,
        "prompts": [prompt],
        "parameters": request.parameters(parts, model),
    }
    return Work(kind=COMPLETE, values=values)


def _rendered(request: OllamaGenerate, model: Model, said: Sequence[Mapping[str, Any]]) -> str:
    template = go_templates.parse(request.template)
    messages = list(said)
    preset = None if model.definition is None else model.definition.preset
    if preset is not None:
        own = [message.model_dump() for message in preset.messages]
        messages = [*own, *messages]
        if preset.system and not any(message["role"] == "system" for message in said):
            messages = [{"role": "system", "content": preset.system}, *messages]
    prompt = template.render(messages)
    if not prompt:
        raise InvalidInput("template makes an empty prompt of this request")
    return prompt


def _rag_work(
    parts: Parts, model: Model, request: WritingRequest, messages: Sequence[Mapping[str, Any]]
) -> Work:
    """The last message is the question; those before it go to the model as far as there is room."""
    rag = rag_of(model.reference)
    assert rag is not None
    *earlier, last = messages or [{"role": ""}]
    if last["role"] != "user":
        raise InvalidInput("messages must end with the question, a message of the user")
    if any(m["role"] == "tool" or m.get("tool_calls") for m in earlier):
        raise InvalidInput(f"messages must be without tools for models {RAG_PREFIX}<collection>")
    values: dict[str, Any] = {"collection": rag.collection, "question": last["content"]}
    if rag.model is not None:
        values["model"] = rag.model
    if (rag.model or parts.settings.generation_model) == EXTRACTIVE:
        if request.format:
            raise InvalidInput(f"format is for models that generate text; {model.name} quotes")
        return Work(kind=RAG, values=values)
    system = [message["content"] for message in earlier if message["role"] == "system"]
    values |= {
        "parameters": request.parameters(parts, model),
        "response_format": request.response_format(),
        "earlier": [message for message in earlier if message["role"] != "system"],
    }
    if system:
        values["instructions"] = "\n\n".join(system)
    return Work(kind=RAG, values=values)


def _new_job(parts: Parts, caller: Caller, work: Work) -> NewJob:
    return calls.new_job(parts, caller, work.kind, calls.input_of(work.kind, work.values))


# From what a job gives to parts of a stream.

THINK_BEGINS, THINK_ENDS = "<think>", "</think>"


class ThoughtFilter:
    """Takes what a model thought in front of its answer out of it: `<think>...</think>`."""

    def __init__(self) -> None:
        self._held = ""
        self._place: Literal["front", "thought", "gap", "answer"] = "front"

    def feed(self, text: str) -> tuple[str, str]:
        """New text -> what of it is thought, and what is the answer."""
        thought, answer = "", ""
        self._held += text
        if self._place == "front":
            bare = self._held.lstrip()
            if bare.startswith(THINK_BEGINS):
                self._held = bare[len(THINK_BEGINS) :].lstrip("\n")
                self._place = "thought"
            elif not THINK_BEGINS.startswith(bare):
                self._place = "answer"
        if self._place == "thought":
            before, end, behind = self._held.partition(THINK_ENDS)
            if end:
                thought, self._held, self._place = before.rstrip("\n"), behind, "gap"
            else:
                keep = _open_end(self._held, THINK_ENDS)
                thought = self._held[: len(self._held) - keep]
                self._held = self._held[len(self._held) - keep :]
        if self._place == "gap":
            self._held = self._held.lstrip()
            if self._held:
                self._place = "answer"
        if self._place == "answer":
            answer, self._held = self._held, ""
        return thought, answer

    def close(self) -> tuple[str, str]:
        """What was held back."""
        held, self._held = self._held, ""
        return (held, "") if self._place == "thought" else ("", held)


def _open_end(text: str, mark: str) -> int:
    """How many characters at the end may be the beginning of a mark."""
    sizes = range(min(len(mark) - 1, len(text)), 0, -1)
    return next((size for size in sizes if mark.startswith(text[-size:])), 0)


@dataclass
class Clock:
    """When a call began, and when the first text came, in seconds since 1970."""

    began_at: float
    first_at: float | None = None

    def durations(self, outcome: JobOutcome, tokens: int) -> dict[str, int]:
        """Loading is all before the job's step ran: its queue, and a model that was loaded. Of an
        answer of so many tokens that came in one piece, the prompt is one pass of the model of as
        many and one more: clients divide tokens by `eval_duration`."""
        now = time.time()
        started = _seconds(outcome.started_at, self.began_at)
        ended = max(_seconds(outcome.finished_at, now), started)
        first = max(self.first_at or ended, started)
        if first >= ended:
            first = started + (ended - started) / (tokens + 1)
        return {
            "total_duration": nanoseconds(now - self.began_at),
            "load_duration": nanoseconds(started - self.began_at),
            "prompt_eval_duration": nanoseconds(first - started),
            "eval_duration": nanoseconds(ended - first),
        }


def _seconds(at: datetime | None, unless: float) -> float:
    return unless if at is None else at.timestamp()


@dataclass(frozen=True, kw_only=True)
class Form:
    """How an endpoint writes a part. `said` is None where there is no context."""

    model: str
    is_chat: bool
    thinks: bool
    said: Sequence[Mapping[str, Any]] | None = None

    def part(
        self, text: str, thought: str = "", logprobs: Sequence[Mapping[str, Any]] = (), **extra: Any
    ) -> dict[str, Any]:
        body: dict[str, Any] = {"model": self.model, "created_at": moment()}
        thinking = {"thinking": thought} if thought and self.thinks else {}
        if self.is_chat:
            calls_ = extra.pop("tool_calls", None)
            message = {"role": "assistant", "content": text, **thinking}
            body["message"] = message | ({"tool_calls": calls_} if calls_ else {})
        else:
            body |= {"response": text, **thinking}
        body["done"] = False
        if logprobs:
            body["logprobs"] = [_logprob(entry) for entry in logprobs]
        return body | extra


def _logprob(entry: Mapping[str, Any]) -> dict[str, Any]:
    def plain(value: Mapping[str, Any]) -> dict[str, Any]:
        kept = {"token": value["token"], "logprob": value["logprob"]}
        return kept if value.get("bytes") is None else kept | {"bytes": value["bytes"]}

    return plain(entry) | {"top_logprobs": [plain(other) for other in entry.get("top") or ()]}


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a job of any of the kinds has written."""

    text: str
    finish_reason: str
    tool_calls: Sequence[Mapping[str, Any]] = ()
    logprobs: Sequence[Mapping[str, Any]] = ()


def answer_of(outcome: JobOutcome) -> Answer:
    result = outcome.result
    if "answer" in result:
        return Answer(text=result["answer"], finish_reason=result["finish_reason"])
    if "message" not in result:
        choice = result["choices"][0]
        return Answer(
            text=choice["text"],
            finish_reason=choice["finish_reason"],
            logprobs=choice.get("logprobs") or (),
        )
    message = result["message"]
    return Answer(
        text=message["content"],
        finish_reason=result["finish_reason"],
        tool_calls=message.get("tool_calls") or (),
        logprobs=result.get("logprobs") or (),
    )


def _end(
    form: Form, outcome: JobOutcome, clock: Clock, text: str, answer: Answer
) -> dict[str, Any]:
    """The fields of the last part. `text` is the whole answer, without thoughts."""
    usage = outcome.result["usage"]
    fields: dict[str, Any] = {
        "done": True,
        "done_reason": "length" if answer.finish_reason == "length" else "stop",
        **clock.durations(outcome, usage["completion_tokens"]),
        "prompt_eval_count": usage["prompt_tokens"],
        "eval_count": usage["completion_tokens"],
    }
    if form.said is not None:
        fields["context"] = context_of([*form.said, {"role": "assistant", "content": text}])
    return fields


def _wire_calls(answer: Answer) -> list[dict[str, Any]]:
    return [
        {
            "id": call["id"],
            "function": {
                "index": index,
                "name": call["function"]["name"],
                "arguments": call["function"]["arguments"],
            },
        }
        for index, call in enumerate(answer.tool_calls)
    ]


async def parts_of(
    news: AsyncGenerator[calls.News, None], form: Form, clock: Clock
) -> AsyncGenerator[Mapping[str, Any], None]:
    """A body for each piece of text, and a last one with the figures."""
    filter_ = ThoughtFilter()
    text = ""
    logprobs_sent = 0
    async with aclosing(news):
        async for item in news:
            if isinstance(item, TextPiece):
                clock.first_at = clock.first_at or time.time()
                thought, more = filter_.feed(item.text)
                text += more
                entries = item.logprobs if item.logprobs_before == logprobs_sent else ()
                logprobs_sent += len(entries)
                if more or entries or (thought and form.thinks):
                    yield form.part(more, thought, entries)
            elif isinstance(item, JobOutcome):
                answer = answer_of(item)
                thought, more = filter_.close()
                text += more
                rest = answer.logprobs[logprobs_sent:]
                calls_ = _wire_calls(answer)
                if more or calls_ or rest or (thought and form.thinks):
                    extra = {"tool_calls": calls_} if calls_ else {}
                    yield form.part(more, thought, rest, **extra)
                yield form.part("", **_end(form, item, clock, text, answer))


async def whole_of(
    news: AsyncGenerator[calls.News, None], form: Form, clock: Clock
) -> AsyncGenerator[Mapping[str, Any], None]:
    """The one body of an answer that is no stream."""
    async with aclosing(news):
        async for item in news:
            if isinstance(item, TextPiece):
                clock.first_at = clock.first_at or time.time()
            elif isinstance(item, JobOutcome):
                answer = answer_of(item)
                filter_ = ThoughtFilter()
                thought, text = filter_.feed(answer.text)
                late_thought, late = filter_.close()
                text += late
                calls_ = _wire_calls(answer)
                extra: dict[str, Any] = {"tool_calls": calls_} if calls_ else {}
                end = _end(form, item, clock, text, answer)
                yield form.part(text, thought + late_thought, answer.logprobs, **extra, **end)


@dataclass(frozen=True, kw_only=True)
class Stay:
    """How long a model stays loaded behind a request: `keep_alive`, where it says so."""

    model: Model
    keep_alive: float | str | None

    @property
    def is_behind(self) -> bool:
        """Whether the Ollama server behind has the model."""
        return self.model.base.startswith(OLLAMA.prefix)

    def check(self) -> None:
        """Raises InvalidInput: models of workers are loaded while these live."""
        if is_zero(self.keep_alive) and not self.is_behind:
            raise InvalidInput(
                f"keep_alive is 0, which would unload {shown(self.model.name)}: its workers hold "
                "it as long as they run; leave it out. Only models of the Ollama server behind "
                f"({OLLAMA_SERVER.setting}) are unloaded"
            )

    async def begin(self, parts: Parts) -> None:
        """Have the server behind load the model, or unload it."""
        if not self.is_behind:
            return
        body = {"model": self.model.base.removeprefix(OLLAMA.prefix), "stream": False}
        kept = {} if self.keep_alive is None else {"keep_alive": self.keep_alive}
        await ask_behind(parts.settings, "POST", "/api/generate", body | kept)

    async def begun_behind(self, parts: Parts, frames: Bodies) -> Bodies:
        """The parts of an answer; then the time begins in which the model stays."""
        async with aclosing(frames):
            async for frame in frames:
                if frame["done"] and self.keep_alive is not None:
                    await self.begin(parts)
                yield frame


def _answered_by(
    parts: Parts, caller: Caller, made: Submitted, form: Form, stay: Stay, clock: Clock, *,
    stream: bool,
) -> Response:  # fmt: skip
    news = calls.follow(parts, caller, made)
    headers = calls.headers_of(made)
    if stream:
        return streamed(stay.begun_behind(parts, parts_of(news, form, clock)), headers)
    return whole(stay.begun_behind(parts, whole_of(news, form, clock)), headers)


async def _without_words(parts: Parts, stay: Stay, form: Form) -> Response:
    """A request without words loads a model, or unloads it."""
    await stay.begin(parts)
    reason = "unload" if is_zero(stay.keep_alive) else "load"
    return JSONResponse(form.part("", done=True, done_reason=reason))


# The routes.

router = APIRouter(route_class=AnyTypeRoute)


class OllamaAnswer(BaseModel):
    """The whole answer, or one part of a stream."""

    model_config = ConfigDict(extra="allow")

    model: str
    created_at: str
    done: bool


DOCUMENTED: dict[str, Any] = {
    "response_model": OllamaAnswer,
    "responses": OLLAMA_API.documented(400, 401, 404, 409, 413, 429, 500, 503, 504),
}


@router.post("/api/chat", **DOCUMENTED)
async def chat_as_ollama(parts: PartsDep, caller: CallerDep, request: OllamaChat) -> Response:
    """An answer to a conversation, as a stream unless `stream` is false."""
    clock = Clock(time.time())
    model = await model_of(parts, request.model_name)
    check_thinking(model, request.think)
    stay = Stay(model=model, keep_alive=request.keep_alive)
    stay.check()
    form = Form(model=request.model_name, is_chat=True, thinks=request.think is not False)
    if not request.messages:
        return await _without_words(parts, stay, form)
    new = _new_job(parts, caller, chat_work(parts, model, request))
    made = await calls.submit(parts, new, is_waited=True)
    return _answered_by(parts, caller, made, form, stay, clock, stream=request.stream)


@router.post("/api/generate", **DOCUMENTED)
async def generate_as_ollama(
    parts: PartsDep, caller: CallerDep, request: OllamaGenerate
) -> Response:
    """How a prompt goes on, as a stream unless `stream` is false."""
    clock = Clock(time.time())
    model = await model_of(parts, request.model_name)
    check_thinking(model, request.think)
    stay = Stay(model=model, keep_alive=request.keep_alive)
    stay.check()
    thinks = request.think is not False
    if not request.prompt:
        form = Form(model=request.model_name, is_chat=False, thinks=thinks)
        return await _without_words(parts, stay, form)
    work = generate_work(parts, model, request)
    form = Form(model=request.model_name, is_chat=False, thinks=thinks, said=work.said)
    made = await calls.submit(parts, _new_job(parts, caller, work), is_waited=True)
    return _answered_by(parts, caller, made, form, stay, clock, stream=request.stream)


def check_thinking(model: Model, think: bool | str | None) -> None:
    """Raises InvalidInput for what is not done: how much a model thinks is its own to say, and what
    models of the server behind think does not come through."""
    if isinstance(think, str):
        raise InvalidInput("think must be true or false here: levels are not passed on to models")
    if think and model.shown is not None:
        if "thinking" in (model.shown.get("capabilities") or ()):
            raise InvalidInput(
                "think must be false for models of the Ollama server behind: what they think does "
                "not come through"
            )
        raise InvalidInput(f'"{model.name}" does not support thinking')
