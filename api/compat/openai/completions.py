"""Completions and chat completions, as answers and as streams."""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, ClassVar, Generic, TypeVar

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict

from api.compat import calls
from api.compat.calls import Caller, CallerDep, JobOutcome, Pause, StreamedAnswer
from api.compat.openai.dialect import (
    DONE_FRAME,
    EVENT_STREAM,
    OPENAI,
    answer_json,
    data_frame,
    ended_job_of,
    error_frame,
    keep_alive,
)
from api.compat.openai.models import news_for, outcome_for, require_model, submit_for
from api.deps import Parts, PartsDep
from api.http.body import StrictRoute
from api.jobs.texts import TextPiece
from shared.jobs.submission import Submitted
from shared.kinds.batch import JobSpec
from shared.openai import chat, completions
from shared.openai.chat import ChatRequest, chat_body, chat_job, choices_of
from shared.openai.completions import (
    CompletionRequest,
    completion_body,
    completion_job,
    usage_of,
)
from shared.openai.wire import id_of

# A job as a stream of chunks

RequestT = TypeVar("RequestT", bound=ChatRequest | CompletionRequest)
Entries = Sequence[Mapping[str, Any]]
"""Log-probabilities of tokens, in the shape that results of jobs have."""


class ChunkWriter(ABC, Generic[RequestT]):
    """Writes the chunks of a stream: text while the job runs, everything else at its end."""

    prefix: ClassVar[str]
    object_: ClassVar[str]
    usage_is_nullable: ClassVar[bool]
    """Whether chunks have `usage: null`, as OpenAI's description allows; else they have no
    usage."""

    def __init__(self, request: RequestT, made: Submitted, options: Mapping[str, Any]) -> None:
        self._request = request
        self._options = options
        self._head = {
            "id": id_of(self.prefix, made.id),
            "object": self.object_,
            "created": int(made.created_at.timestamp()),
            "model": request.model,
        }
        self._started: set[int] = set()
        """The choices of which something was sent."""
        self._logprobs_sent: dict[int, int] = {}

    @property
    def model(self) -> str:
        return self._request.model

    def of_piece(self, piece: TextPiece) -> bytes:
        logprobs = self._unsent(piece.choice, piece.logprobs, piece.logprobs_before)
        if not piece.text and not logprobs:
            return b""
        return self._begin(piece.choice) + self._text(piece.choice, piece.text, logprobs)

    def of_outcome(self, outcome: JobOutcome) -> bytes:
        frames = list(self._last(outcome))
        if self._request.stream_options.include_usage:
            usage = usage_of(outcome.result)
            frames.append(data_frame({**self._head, "choices": [], "usage": usage}))
        return b"".join(frames) + DONE_FRAME

    @abstractmethod
    def _first(self, index: int) -> bytes:
        """The chunk before the text of a choice, or b""."""

    @abstractmethod
    def _text(self, index: int, text: str, logprobs: Entries) -> bytes:
        """A chunk with a piece of the text of a choice."""

    @abstractmethod
    def _last(self, outcome: JobOutcome) -> Iterator[bytes]:
        """The remaining chunks of all choices."""

    def _begin(self, index: int) -> bytes:
        if index in self._started:
            return b""
        self._started.add(index)
        return self._first(index)

    def _unsent(self, index: int, entries: Entries, before: int = 0) -> Entries:
        """Those log-probabilities that were not sent yet. `before` is how many tokens came before
        `entries`; entries after a gap are left for the end, where the outcome has all."""
        sent = self._logprobs_sent.get(index, 0)
        if before > sent:
            return ()
        new = entries[sent - before :]
        self._logprobs_sent[index] = sent + len(new)
        return new

    def _chunk(self, choice: Mapping[str, Any]) -> bytes:
        body = {**self._head, "choices": [choice]}
        if self._request.stream_options.include_usage and self.usage_is_nullable:
            body["usage"] = None
        return data_frame(body)


class ChatChunkWriter(ChunkWriter[ChatRequest]):
    prefix = chat.ID_PREFIX
    object_ = "chat.completion.chunk"
    usage_is_nullable = True

    def _first(self, index: int) -> bytes:
        return self._delta(index, {"role": "assistant", "content": "", "refusal": None})

    def _text(self, index: int, text: str, logprobs: Entries) -> bytes:
        return self._delta(index, {"content": text}, logprobs=logprobs)

    def _last(self, outcome: JobOutcome) -> Iterator[bytes]:
        for index, choice in enumerate(choices_of(ended_job_of(outcome, self._options))):
            yield self._begin(index)
            last: dict[str, Any] = {}
            if choice.annotations:
                last["annotations"] = list(choice.annotations)
            if choice.tool_calls:
                last["tool_calls"] = [
                    {"index": number, **call} for number, call in enumerate(choice.tool_calls)
                ]
            logprobs = self._unsent(index, choice.logprobs or ())
            if last or logprobs:
                yield self._delta(index, last, logprobs=logprobs)
            yield self._delta(index, {}, finish_reason=choice.finish_reason)

    def _delta(
        self,
        index: int,
        delta: Mapping[str, Any],
        *,
        logprobs: Entries = (),
        finish_reason: str | None = None,
    ) -> bytes:
        return self._chunk(
            {
                "index": index,
                "delta": delta,
                "logprobs": chat.logprobs_body(logprobs) if logprobs else None,
                "finish_reason": finish_reason,
            }
        )


class TextChunkWriter(ChunkWriter[CompletionRequest]):
    prefix = completions.ID_PREFIX
    object_ = "text_completion"
    usage_is_nullable = False

    def __init__(
        self, request: CompletionRequest, made: Submitted, options: Mapping[str, Any]
    ) -> None:
        super().__init__(request, made, options)
        self._offsets: dict[int, int] = {}

    def _first(self, index: int) -> bytes:
        """The prompt, if the request has `echo`."""
        if not self._request.echo:
            return b""
        return self._text(index, self._request.prompt[index // self._request.n], ())

    def _text(
        self, index: int, text: str, logprobs: Entries, *, finish_reason: str | None = None
    ) -> bytes:
        offset = self._offsets.get(index, 0)
        self._offsets[index] = offset + sum(len(entry["token"]) for entry in logprobs)
        return self._chunk(
            {
                "index": index,
                "text": text,
                "logprobs": (
                    completions.logprobs_body(logprobs, offset=offset) if logprobs else None
                ),
                "finish_reason": finish_reason,
            }
        )

    def _last(self, outcome: JobOutcome) -> Iterator[bytes]:
        body = completion_body(ended_job_of(outcome, self._options))
        for index, choice in enumerate(outcome.result["choices"]):
            yield self._begin(index)
            rest = self._unsent(index, choice["logprobs"] or ())
            reason = body["choices"][index]["finish_reason"]
            yield self._text(index, "", rest, finish_reason=reason)


async def frames_of(
    news: AsyncGenerator[calls.News, None], chunks: ChunkWriter[Any]
) -> AsyncGenerator[bytes, None]:
    """The frames of a stream, from the news of a job."""
    async with aclosing(news):
        async for item in news:
            if isinstance(item, Pause):
                yield keep_alive(item)
            elif isinstance(item, TextPiece):
                if frame := chunks.of_piece(item):
                    yield frame
            elif isinstance(item, JobOutcome):
                yield chunks.of_outcome(item)


# Routes

router = APIRouter(route_class=StrictRoute)

STREAM = {
    EVENT_STREAM: {
        "schema": {"description": "Chunks, if `stream` is true; `data: [DONE]` ends the stream."}
    }
}
RESPONSES: dict[int | str, dict[str, Any]] = OPENAI.documented(
    400, 401, 404, 409, 413, 429, 500, 503, 504
)


class OpenAICompletion(BaseModel):
    """An answer as OpenAI describes it."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: str
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: dict[str, Any]


@router.post(
    "/chat/completions",
    response_model=OpenAICompletion,
    responses=RESPONSES
    | {200: {"description": "The answer, or a stream of it", "content": STREAM}},
)
async def create_chat_completion(
    parts: PartsDep, caller: CallerDep, request: ChatRequest
) -> Response:
    """An answer to a conversation; a model `rag/<collection>` answers from a collection's
    passages."""
    with calls.naming_fields():
        spec = chat_job(request, parts.settings, str(caller.http.base_url))
    made = await _submit(parts, caller, spec, request.model, metadata=request.metadata)
    if request.stream:
        return _stream(parts, caller, made, ChatChunkWriter(request, made, spec.options))
    outcome = await outcome_for(parts, caller, made, request.model)
    return answer_json(chat_body(ended_job_of(outcome, spec.options)), outcome.headers)


@router.post(
    "/completions",
    response_model=OpenAICompletion,
    responses=RESPONSES
    | {200: {"description": "The texts, or a stream of them", "content": STREAM}},
)
async def create_completion(
    parts: PartsDep, caller: CallerDep, request: CompletionRequest
) -> Response:
    """The continuation of texts, which a model require_model without a chat template."""
    with calls.naming_fields():
        spec = completion_job(request, parts.settings)
    made = await _submit(parts, caller, spec, request.model)
    if request.stream:
        return _stream(parts, caller, made, TextChunkWriter(request, made, spec.options))
    outcome = await outcome_for(parts, caller, made, request.model, spec.kind.name)
    return answer_json(completion_body(ended_job_of(outcome, spec.options)), outcome.headers)


async def _submit(
    parts: Parts,
    caller: Caller,
    spec: JobSpec,
    model: str,
    *,
    metadata: Mapping[str, Any] | None = None,
) -> Submitted:
    """Submit the job of a request that generates text. Raises ProblemError for an unknown model."""
    await require_model(parts, model, spec.kind.name)
    new = calls.new_job(
        parts,
        caller,
        spec.kind,
        spec.input,
        identity=[spec.input.model_dump(mode="json"), dict(spec.options)],
        metadata=metadata,
    )
    return await submit_for(parts, new, model)


def _stream(
    parts: Parts, caller: Caller, made: Submitted, chunks: ChunkWriter[Any]
) -> StreamedAnswer:
    """The answer as a stream, while the job runs."""
    news = news_for(parts, caller, made, chunks.model)
    return StreamedAnswer(
        frames_of(news, chunks),
        media_type=EVENT_STREAM,
        failed=error_frame,
        headers=calls.headers_of(made),
    )
