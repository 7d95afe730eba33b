"""Chat completions, as answers and as streams."""

from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Protocol

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict

from api.compat import calls
from api.compat.calls import Caller, CallerDep, Outcome, Pause, StreamedAnswer
from api.compat.openai.dialect import (
    DONE_FRAME,
    EVENT_STREAM,
    OPENAI,
    answer_json,
    data_frame,
    ended_of,
    error_frame,
    keep_alive,
)
from api.compat.openai.models import news_for, outcome_for, submit_for, writes
from api.deps import Parts, PartsDep
from api.http.body import StrictRoute
from api.jobs.texts import TextPiece
from shared.jobs.submission import Submitted
from shared.kinds.batch import Request
from shared.openai.chat import (
    ID_PREFIX,
    ChatRequest,
    chat_body,
    chat_job,
    choices_of,
    logprobs_body,
)
from shared.openai.sampling import usage_of
from shared.openai.wire import id_of

# The job as a stream of chunks.


class Chunks:
    """Writes the chunks of a stream: text as it comes, all else when the job has ended."""

    def __init__(self, request: ChatRequest, made: Submitted, options: Mapping[str, Any]) -> None:
        self._request = request
        self._options = options
        self._head = {
            "id": id_of(ID_PREFIX, made.id),
            "object": "chat.completion.chunk",
            "created": int(made.created_at.timestamp()),
            "model": request.model,
        }
        self._begun: set[int] = set()
        self._logprobs_sent: dict[int, int] = {}

    def of_piece(self, piece: TextPiece) -> bytes:
        logprobs = self._unsent(piece.choice, piece.logprobs, piece.logprobs_before)
        if not piece.text and not logprobs:
            return b""
        delta = {"content": piece.text}
        return self._begin(piece.choice) + self._chunk(piece.choice, delta, logprobs=logprobs)

    def of_outcome(self, outcome: Outcome) -> bytes:
        frames = []
        for index, choice in enumerate(choices_of(ended_of(outcome, self._options))):
            frames.append(self._begin(index))
            last: dict[str, Any] = {}
            if choice.annotations:
                last["annotations"] = list(choice.annotations)
            if choice.tool_calls:
                calls_ = [{"index": n, **call} for n, call in enumerate(choice.tool_calls)]
                last["tool_calls"] = calls_
            logprobs = self._unsent(index, choice.logprobs or (), 0)
            if last or logprobs:
                frames.append(self._chunk(index, last, logprobs=logprobs))
            frames.append(self._chunk(index, {}, finish_reason=choice.finish_reason))
        if self._request.stream_options.include_usage:
            usage = usage_of(outcome.result)
            frames.append(data_frame({**self._head, "choices": [], "usage": usage}))
        return b"".join(frames) + DONE_FRAME

    def _begin(self, index: int) -> bytes:
        if index in self._begun:
            return b""
        self._begun.add(index)
        return self._chunk(index, {"role": "assistant", "content": "", "refusal": None})

    def _unsent(
        self, index: int, entries: Sequence[Mapping[str, Any]], before: int
    ) -> Sequence[Mapping[str, Any]]:
        """Log-probabilities in their order: those that come out of it come with the outcome."""
        sent = self._logprobs_sent.get(index, 0)
        if before > sent:
            return ()
        new = entries[sent - before :]
        self._logprobs_sent[index] = sent + len(new)
        return new

    def _chunk(
        self,
        index: int,
        delta: Mapping[str, Any],
        *,
        logprobs: Sequence[Mapping[str, Any]] = (),
        finish_reason: str | None = None,
    ) -> bytes:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": logprobs_body(logprobs) if logprobs else None,
            "finish_reason": finish_reason,
        }
        body = {**self._head, "choices": [choice]}
        if self._request.stream_options.include_usage:
            body["usage"] = None
        return data_frame(body)


class Writer(Protocol):
    """Writes frames of a stream."""

    def of_piece(self, piece: TextPiece) -> bytes: ...

    def of_outcome(self, outcome: Outcome) -> bytes: ...


async def frames_of(
    news: AsyncGenerator[calls.News, None], writer: Writer
) -> AsyncGenerator[bytes, None]:
    """Frames of a stream, made of what a job gives as it runs."""
    async with aclosing(news):
        async for item in news:
            if isinstance(item, Pause):
                yield keep_alive(item)
            elif isinstance(item, TextPiece):
                if frame := writer.of_piece(item):
                    yield frame
            elif isinstance(item, Outcome):
                yield writer.of_outcome(item)


# The route.

router = APIRouter(route_class=StrictRoute)

STREAM = {
    EVENT_STREAM: {
        "schema": {"description": "Chunks, where `stream` is true; `data: [DONE]` ends it."}
    }
}


class ChatCompletion(BaseModel):
    """As OpenAI's description has it."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: str
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: dict[str, Any]


@router.post(
    "/chat/completions",
    response_model=ChatCompletion,
    responses=OPENAI.documented(400, 401, 404, 409, 413, 429, 500, 503, 504)
    | {200: {"description": "The answer, or a stream of it", "content": STREAM}},
)
async def create_chat_completion(
    parts: PartsDep, caller: CallerDep, request: ChatRequest
) -> Response:
    """An answer to a conversation; from a collection's passages by a model `rag/<collection>`."""
    with calls.naming_fields():
        work = chat_job(request, parts.settings, str(caller.http.base_url))
    made = await submitted(parts, caller, work, request.model, metadata=request.metadata)
    if request.stream:
        return streamed(parts, caller, made, request.model, Chunks(request, made, work.options))
    outcome = await outcome_for(parts, caller, made, request.model)
    return answer_json(chat_body(ended_of(outcome, work.options)), outcome.headers)


async def submitted(
    parts: Parts,
    caller: Caller,
    work: Request,
    model: str,
    *,
    metadata: Mapping[str, Any] | None = None,
) -> Submitted:
    """The job of a call that writes text. Raises ProblemError for a model that is not here."""
    await writes(parts, model, work.kind.name)
    new = calls.new_job(
        parts,
        caller,
        work.kind,
        work.input,
        identity=[work.input.model_dump(mode="json"), dict(work.options)],
        metadata=metadata,
    )
    return await submit_for(parts, new, model)


def streamed(
    parts: Parts, caller: Caller, made: Submitted, model: str, writer: Writer
) -> StreamedAnswer:
    """The answer as a stream, while the job runs."""
    news = news_for(parts, caller, made, model)
    return StreamedAnswer(
        frames_of(news, writer),
        media_type=EVENT_STREAM,
        failed=error_frame,
        headers=calls.headers_of(made),
    )
