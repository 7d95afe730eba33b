"""`/api/chat` and `/api/generate`: jobs of the kinds `chat`, `complete` (bare prompts) and `rag`.

The `context` of `/api/generate`, which continues a conversation, is here an encoding of the
messages themselves, not of tokens: so it works with every back end and chat template.
"""

import json
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
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
    single_answer,
    stream_answer,
)
from api.compat.ollama.names import Model, ask_behind, model_of
from api.deps import Parts, PartsDep
from api.jobs.texts import TextPiece
from shared.bounds import JsonSchema, Line, Paragraph, ToolArguments, shown
from shared.errors import InvalidInput
from shared.jobs.submission import NewJob, Submitted
from shared.kinds.chat import ALTERNATIVES_LIMIT, CALLS_LIMIT, CHAT
from shared.kinds.complete import COMPLETE
from shared.kinds.kind import Kind
from shared.kinds.rag import RAG, RAG_PREFIX, rag_of
from shared.modelfiles import go_templates
from shared.modelfiles.modelfile import checked_parameters
from shared.models.providers import OLLAMA, OLLAMA_SERVER
from shared.openai.chat import quotes, rag_values
from shared.vocabulary import WireShape

# Requests

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
    """A message. Models do not read the `thinking` of an earlier answer again."""

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
        """The tool in the input of a `chat`."""
        return {"type": "function", "function": self.model_dump(exclude={"strict"})}


class OllamaTool(WireShape):
    type: Literal["function"] = "function"
    items: Any = None
    function: OllamaFunction


def _format(value: Any) -> Any:
    if value in ("", "json") or isinstance(value, dict):
        return value
    raise ValueError('must be "json" or a JSON Schema')


OllamaFormat = Annotated[JsonSchema | Literal["", "json"], BeforeValidator(_format)]


class WritingRequest(ModelRequest):
    """The common fields of `/api/chat` and `/api/generate`.

    If `truncate` is false, a conversation that is too long for the window is an error. `shift`,
    which moves the window during generation, has no effect: no back end here does that.
    """

    stream: bool = True
    format: OllamaFormat = ""
    options: Annotated[dict[str, Any], Field(max_length=64)] = {}
    keep_alive: KeepAlive = None
    think: Think | None = None
    truncate: bool = True
    shift: bool = True
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=ALTERNATIVES_LIMIT)] = 0
    debug_render_only: Literal[False] = Field(default=False, alias="_debug_render_only")

    def parameters(self, parts: Parts, model: Model) -> dict[str, Any]:
        """The parameters of the model, replaced by the options that were sent. Raises
        InvalidInput."""
        options = dict(self.options)
        if options.get("top_p") == 0:
            options |= {"top_p": None, "top_k": 1}  # both mean the most probable token only
        parameters = {**model.parameters, **checked_parameters(options)}
        if options.get("num_predict") in (-1, -2):
            parameters["max_tokens"] = parts.settings.max_tokens_limit
        if self.logprobs:
            parameters["logprobs"] = self.top_logprobs
        return parameters

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


# Messages -> messages of `chat`


def messages_of(wire: Sequence[OllamaMessage]) -> list[dict[str, Any]]:
    """The messages with ids for tool calls, which Ollama's may lack. The result of a tool belongs
    to the call with its id, or else to the first call of the same tool without a result."""
    messages: list[dict[str, Any]] = []
    open_calls: list[tuple[str, str]] = []
    """Id and name of the calls that have no result yet."""
    count = 0
    for number, message in enumerate(wire):
        values: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            open_calls = []
            for call in message.tool_calls:
                id_ = call.id or f"call_{count}"
                count += 1
                open_calls.append((id_, call.function.name))
            values["tool_calls"] = [
                {
                    "id": id_,
                    "type": "function",
                    "function": {"name": name, "arguments": call.function.arguments},
                }
                for (id_, name), call in zip(open_calls, message.tool_calls, strict=True)
            ]
        if message.role == "tool":
            values["tool_call_id"] = _call_id_of(number, message, open_calls)
        elif not message.content and not message.tool_calls:
            if message.role == "user":
                raise InvalidInput(f"messages.{number}.content is empty; send a text")
            continue  # an empty answer that the client sends back
        messages.append(values)
    if not messages:
        raise InvalidInput("messages hold no text; send one of the user")
    return messages


def _call_id_of(number: int, message: OllamaMessage, open_calls: list[tuple[str, str]]) -> str:
    """The id of the call whose result a message is, which is removed from `open_calls`. Raises
    InvalidInput."""
    name = message.tool_name or message.name
    for call_id, function_name in ((message.tool_call_id, None), (None, name)):
        for call in open_calls:
            if (call_id and call[0] == call_id) or (function_name and call[1] == function_name):
                open_calls.remove(call)
                return call[0]
    if open_calls and not name and not message.tool_call_id:
        return open_calls.pop(0)[0]
    raise InvalidInput(
        f"messages.{number} is the result of a tool that no message before it calls; send the "
        "assistant's message with its tool_calls first"
    )


# Context: messages as a list of integers, each of which holds three bytes of their JSON

CONTEXT_MARK: Final = 0x53_4C_43
CONTEXT_ITEM_BYTES: Final = 3


def context_of(messages: Sequence[Mapping[str, Any]]) -> list[int]:
    data = json.dumps(messages, ensure_ascii=False, separators=(",", ":")).encode()
    size = CONTEXT_ITEM_BYTES
    items = [int.from_bytes(data[at : at + size], "big") for at in range(0, len(data), size)]
    return [CONTEXT_MARK, len(data), *items]


def messages_in(context: Sequence[int]) -> list[dict[str, Any]]:
    """The messages in a context. Raises InvalidInput for that of another server."""
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


# Requests -> jobs


@dataclass(frozen=True, kw_only=True)
class WritingJob:
    """The kind and the input of a job. `dialogue` are the messages for the context of the answer;
    None if the answer has no context."""

    kind: Kind
    values: Mapping[str, Any]
    dialogue: Sequence[Mapping[str, Any]] | None = None


def chat_job(parts: Parts, model: Model, request: OllamaChat) -> WritingJob:
    """Raises InvalidInput."""
    messages = messages_of(request.messages)
    if model.reference.startswith(RAG_PREFIX):
        if request.tools:
            raise InvalidInput(f"tools is not supported by models {RAG_PREFIX}<collection>")
        return _rag_job(parts, model, request, messages)
    values: dict[str, Any] = {
        "model": model.reference,
        "messages": messages,
        "tools": [tool.function.to_input() for tool in request.tools],
        "parameters": request.parameters(parts, model),
        "response_format": request.response_format(),
        "history": "trim" if request.truncate else "whole",
    }
    return WritingJob(kind=CHAT, values=values)


def generate_job(parts: Parts, model: Model, request: OllamaGenerate) -> WritingJob:
    """Raises InvalidInput."""
    if request.suffix:
        raise InvalidInput(
            f"{shown(model.name)} does not support insert: suffix is not supported here; send the "
            "whole prompt with raw, with the model's own marks for what stands behind"
        )
    if request.raw:
        if request.template or request.system or request.context:
            raise InvalidInput("raw mode does not support template, system, or context")
        return _bare_job(parts, model, request, request.prompt, "raw")
    before = messages_in(request.context)
    system = [{"role": "system", "content": request.system}] if request.system else []
    dialogue = [message for message in before if not (system and message["role"] == "system")]
    dialogue = [*system, *dialogue, {"role": "user", "content": request.prompt}]
    if model.reference.startswith(RAG_PREFIX):
        if request.template:
            raise InvalidInput(f"template is not supported by models {RAG_PREFIX}<collection>")
        return replace(_rag_job(parts, model, request, dialogue), dialogue=dialogue)
    if request.template:
        prompt = _render(request, model, dialogue)
        return replace(_bare_job(parts, model, request, prompt, "template"), dialogue=dialogue)
    values: dict[str, Any] = {
        "model": model.reference,
        "messages": dialogue,
        "parameters": request.parameters(parts, model),
        "response_format": request.response_format(),
        "history": "trim" if request.truncate else "whole",
    }
    return WritingJob(kind=CHAT, values=values, dialogue=dialogue)


def _bare_job(
    parts: Parts, model: Model, request: OllamaGenerate, prompt: str, because: str
) -> WritingJob:
    """The job of a prompt that is sent to the model without a chat template. `because` is the field
    of the request that asks for that."""
    if model.reference.startswith(RAG_PREFIX):
        raise InvalidInput(f"{because} is not supported by models {RAG_PREFIX}<collection>")
    if request.format:
        raise InvalidInput(f"format is not supported together with {because}; leave one out")
    values = {
        # The base, not the named model: of a preset, a bare prompt uses only the parameters.
        "model": model.base,
        "prompts": [prompt],
        "parameters": request.parameters(parts, model),
    }
    return WritingJob(kind=COMPLETE, values=values)


def _render(request: OllamaGenerate, model: Model, dialogue: Sequence[Mapping[str, Any]]) -> str:
    """The prompt that the request's template makes of the messages."""
    template = go_templates.parse(request.template)
    messages = list(dialogue)
    preset = None if model.definition is None else model.definition.preset
    if preset is not None:
        messages = [*(message.model_dump() for message in preset.messages), *messages]
        if preset.system and not any(message["role"] == "system" for message in dialogue):
            messages = [{"role": "system", "content": preset.system}, *messages]
    prompt = template.render(messages)
    if not prompt:
        raise InvalidInput("template makes an empty prompt of this request")
    return prompt


def _rag_job(
    parts: Parts, model: Model, request: WritingRequest, messages: Sequence[Mapping[str, Any]]
) -> WritingJob:
    """The last message is the question; the model reads the earlier ones, too."""
    rag = rag_of(model.reference)
    assert rag is not None
    *earlier, last = messages or [{"role": ""}]
    if last["role"] != "user":
        raise InvalidInput("messages must end with the question, a message of the user")
    if any(m["role"] == "tool" or m.get("tool_calls") for m in earlier):
        raise InvalidInput(f"messages must be without tools for models {RAG_PREFIX}<collection>")
    is_quoted = quotes(rag, parts.settings)
    if is_quoted and request.format:
        raise InvalidInput(f"format is for models that generate text; {model.name} quotes")
    values = rag_values(
        rag,
        parts.settings,
        question=last["content"],
        earlier=[message for message in earlier if message["role"] != "system"],
        system=[message["content"] for message in earlier if message["role"] == "system"],
        parameters={} if is_quoted else request.parameters(parts, model),
        response_format=request.response_format(),
    )
    return WritingJob(kind=RAG, values=values)


def _new_job(parts: Parts, caller: Caller, job: WritingJob) -> NewJob:
    return calls.new_job(parts, caller, job.kind, calls.input_of(job.kind, job.values))


# Output of a job -> parts of a stream

THINK_BEGINS, THINK_ENDS = "<think>", "</think>"


class ThoughtFilter:
    """Separates the thoughts before an answer (`<think>...</think>`) from the answer."""

    def __init__(self) -> None:
        self._held = ""
        self._place: Literal["front", "thought", "gap", "answer"] = "front"

    def feed(self, text: str) -> tuple[str, str]:
        """New text -> the new part of the thoughts, and the new part of the answer."""
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
        """The rest: the thoughts and the answer that were held back."""
        held, self._held = self._held, ""
        return (held, "") if self._place == "thought" else ("", held)


def _open_end(text: str, mark: str) -> int:
    """How many characters at the end of a text may be the beginning of a mark."""
    sizes = range(min(len(mark) - 1, len(text)), 0, -1)
    return next((size for size in sizes if mark.startswith(text[-size:])), 0)


@dataclass
class Clock:
    """When a request began, and when its first text came, in seconds since 1970."""

    began_at: float
    first_at: float | None = None

    def durations(self, outcome: JobOutcome, tokens: int) -> dict[str, int]:
        """The durations of Ollama's API. Loading is the time before the step ran, in the queue or
        while a model was loaded. If the answer of `tokens` tokens came in one piece, the time is
        divided into `tokens` + 1 equal parts, of which the prompt gets one, because clients divide
        the number of tokens by `eval_duration`."""
        now = time.time()
        start = _seconds(outcome.started_at, self.began_at)
        end = max(_seconds(outcome.finished_at, now), start)
        first = max(self.first_at or end, start)
        if first >= end:
            first = start + (end - start) / (tokens + 1)
        return {
            "total_duration": nanoseconds(now - self.began_at),
            "load_duration": nanoseconds(start - self.began_at),
            "prompt_eval_duration": nanoseconds(first - start),
            "eval_duration": nanoseconds(end - first),
        }


def _seconds(at: datetime | None, default: float) -> float:
    return default if at is None else at.timestamp()


@dataclass(frozen=True, kw_only=True)
class PartWriter:
    """Writes the parts of an answer of `/api/chat` or `/api/generate`. `dialogue` are the messages
    for the context; None if the answer has none."""

    model: str
    is_chat: bool
    thinks: bool
    """Whether thoughts are sent."""
    dialogue: Sequence[Mapping[str, Any]] | None = None

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
        plain_value = {"token": value["token"], "logprob": value["logprob"]}
        bytes_ = value.get("bytes")
        return plain_value if bytes_ is None else plain_value | {"bytes": bytes_}

    return plain(entry) | {"top_logprobs": [plain(other) for other in entry.get("top") or ()]}


@dataclass(frozen=True, kw_only=True)
class WrittenAnswer:
    """The text that a job of any of these kinds has written."""

    text: str
    finish_reason: str
    tool_calls: Sequence[Mapping[str, Any]] = ()
    logprobs: Sequence[Mapping[str, Any]] = ()


def answer_of(outcome: JobOutcome) -> WrittenAnswer:
    result = outcome.result
    if "answer" in result:
        return WrittenAnswer(text=result["answer"], finish_reason=result["finish_reason"])
    if "message" not in result:
        choice = result["choices"][0]
        return WrittenAnswer(
            text=choice["text"],
            finish_reason=choice["finish_reason"],
            logprobs=choice.get("logprobs") or (),
        )
    message = result["message"]
    return WrittenAnswer(
        text=message["content"],
        finish_reason=result["finish_reason"],
        tool_calls=message.get("tool_calls") or (),
        logprobs=result.get("logprobs") or (),
    )


def _end(
    form: PartWriter, outcome: JobOutcome, clock: Clock, text: str, answer: WrittenAnswer
) -> dict[str, Any]:
    """The additional fields of the last part. `text` is the whole answer without thoughts."""
    usage = outcome.result["usage"]
    fields: dict[str, Any] = {
        "done": True,
        "done_reason": "length" if answer.finish_reason == "length" else "stop",
        **clock.durations(outcome, usage["completion_tokens"]),
        "prompt_eval_count": usage["prompt_tokens"],
        "eval_count": usage["completion_tokens"],
    }
    if form.dialogue is not None:
        fields["context"] = context_of([*form.dialogue, {"role": "assistant", "content": text}])
    return fields


def _wire_calls(answer: WrittenAnswer) -> list[dict[str, Any]]:
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
    news: AsyncGenerator[calls.News, None], form: PartWriter, clock: Clock
) -> AsyncGenerator[Mapping[str, Any], None]:
    """A part for each piece of text, and the last part with the counts and durations."""
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
    news: AsyncGenerator[calls.News, None], form: PartWriter, clock: Clock
) -> AsyncGenerator[Mapping[str, Any], None]:
    """The only part of an answer without a stream."""
    async with aclosing(news):
        async for item in news:
            if isinstance(item, TextPiece):
                clock.first_at = clock.first_at or time.time()
            elif isinstance(item, JobOutcome):
                answer = answer_of(item)
                filter_ = ThoughtFilter()
                thought, text = filter_.feed(answer.text)
                more_thought, more = filter_.close()
                text += more
                calls_ = _wire_calls(answer)
                extra: dict[str, Any] = {"tool_calls": calls_} if calls_ else {}
                end = _end(form, item, clock, text, answer)
                yield form.part(text, thought + more_thought, answer.logprobs, **extra, **end)


@dataclass(frozen=True, kw_only=True)
class KeepLoaded:
    """How long a model stays loaded after a request, if `keep_alive` says it."""

    model: Model
    keep_alive: float | str | None

    @property
    def is_behind(self) -> bool:
        """Whether the model is one of the Ollama server behind Sluice."""
        return self.model.base.startswith(OLLAMA.prefix)

    def check(self) -> None:
        """Raises InvalidInput if a worker's model is to be unloaded: workers hold theirs."""
        if is_zero(self.keep_alive) and not self.is_behind:
            raise InvalidInput(
                f"keep_alive is 0, which would unload {shown(self.model.name)}: its workers hold "
                "it as long as they run; leave it out. Only models of the Ollama server behind "
                f"({OLLAMA_SERVER.setting}) are unloaded"
            )

    async def apply(self, parts: Parts) -> None:
        """Let the Ollama server load the model for that time, or unload it."""
        if not self.is_behind:
            return
        body = {"model": self.model.base.removeprefix(OLLAMA.prefix), "stream": False}
        time_s = {} if self.keep_alive is None else {"keep_alive": self.keep_alive}
        await ask_behind(parts.settings, "POST", "/api/generate", body | time_s)

    async def apply_after(self, parts: Parts, frames: Bodies) -> Bodies:
        """The parts of an answer; the time begins with the last one."""
        async with aclosing(frames):
            async for frame in frames:
                if frame["done"] and self.keep_alive is not None:
                    await self.apply(parts)
                yield frame


def _answer(
    parts: Parts, caller: Caller, made: Submitted, form: PartWriter, loaded: KeepLoaded,
    clock: Clock, *, stream: bool,
) -> Response:  # fmt: skip
    news = calls.follow(parts, caller, made)
    headers = calls.headers_of(made)
    if stream:
        return stream_answer(loaded.apply_after(parts, parts_of(news, form, clock)), headers)
    return single_answer(loaded.apply_after(parts, whole_of(news, form, clock)), headers)


async def _load_only(parts: Parts, loaded: KeepLoaded, form: PartWriter) -> Response:
    """The answer to a request without a prompt, which loads or unloads a model."""
    await loaded.apply(parts)
    reason = "unload" if is_zero(loaded.keep_alive) else "load"
    return JSONResponse(form.part("", done=True, done_reason=reason))


# Routes

router = APIRouter(route_class=AnyTypeRoute)


class OllamaAnswer(BaseModel):
    """A whole answer, or one part of a stream."""

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
    loaded = KeepLoaded(model=model, keep_alive=request.keep_alive)
    loaded.check()
    form = PartWriter(model=request.model_name, is_chat=True, thinks=request.think is not False)
    if not request.messages:
        return await _load_only(parts, loaded, form)
    new = _new_job(parts, caller, chat_job(parts, model, request))
    made = await calls.submit(parts, new, is_waited=True)
    return _answer(parts, caller, made, form, loaded, clock, stream=request.stream)


@router.post("/api/generate", **DOCUMENTED)
async def generate_as_ollama(
    parts: PartsDep, caller: CallerDep, request: OllamaGenerate
) -> Response:
    """The answer to a prompt, as a stream unless `stream` is false."""
    clock = Clock(time.time())
    model = await model_of(parts, request.model_name)
    check_thinking(model, request.think)
    loaded = KeepLoaded(model=model, keep_alive=request.keep_alive)
    loaded.check()
    form = PartWriter(model=request.model_name, is_chat=False, thinks=request.think is not False)
    if not request.prompt:
        return await _load_only(parts, loaded, form)
    job = generate_job(parts, model, request)
    form = replace(form, dialogue=job.dialogue)
    made = await calls.submit(parts, _new_job(parts, caller, job), is_waited=True)
    return _answer(parts, caller, made, form, loaded, clock, stream=request.stream)


def check_thinking(model: Model, think: bool | str | None) -> None:
    """Raises InvalidInput for levels of thinking, which are not supported, and for `true` with
    models of the Ollama server behind Sluice, whose thoughts are not passed on."""
    if isinstance(think, str):
        raise InvalidInput("think must be true or false here: levels are not passed on to models")
    if think and model.shown is not None:
        if "thinking" in (model.shown.get("capabilities") or ()):
            raise InvalidInput(
                "think must be false for models of the Ollama server behind: what they think does "
                "not come through"
            )
        raise InvalidInput(f'"{model.name}" does not support thinking')
