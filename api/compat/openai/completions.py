"""Completions: jobs of the kind `complete`, as answers and as streams."""

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict

from api.compat import calls
from api.compat.calls import CallerDep, Outcome
from api.compat.openai.chat import STREAM, streamed, submitted
from api.compat.openai.dialect import DONE_FRAME, OPENAI, answer_json, data_frame, ended_of
from api.compat.openai.models import outcome_for
from api.deps import PartsDep
from api.http.body import StrictRoute
from api.jobs.texts import TextPiece
from shared.jobs.submission import Submitted
from shared.openai.completions import (
    ID_PREFIX,
    CompletionRequest,
    completion_body,
    completion_job,
    logprobs_body,
)
from shared.openai.wire import id_of


class TextChunks:
    """Writes the chunks of a stream."""

    def __init__(
        self, request: CompletionRequest, made: Submitted, options: Mapping[str, Any]
    ) -> None:
        self._request = request
        self._options = options
        self._head = {
            "id": id_of(ID_PREFIX, made.id),
            "object": "text_completion",
            "created": int(made.created_at.timestamp()),
            "model": request.model,
        }
        self._begun: set[int] = set()
        self._sent: dict[int, int] = {}
        self._offsets: dict[int, int] = {}

    def of_piece(self, piece: TextPiece) -> bytes:
        entries = self._unsent(piece.choice, piece.logprobs, piece.logprobs_before)
        if not piece.text and not entries:
            return b""
        return self._begin(piece.choice) + self._chunk(piece.choice, piece.text, entries)

    def of_outcome(self, outcome: Outcome) -> bytes:
        body = completion_body(ended_of(outcome, self._options))
        frames = []
        for index, choice in enumerate(outcome.result["choices"]):
            frames.append(self._begin(index))
            rest = self._unsent(index, choice["logprobs"] or (), 0)
            reason = body["choices"][index]["finish_reason"]
            frames.append(self._chunk(index, "", rest, finish_reason=reason))
        if self._request.stream_options.include_usage:
            frames.append(data_frame({**self._head, "choices": [], "usage": body["usage"]}))
        return b"".join(frames) + DONE_FRAME

    def _begin(self, index: int) -> bytes:
        """The prompt, where it is to be echoed."""
        if index in self._begun:
            return b""
        self._begun.add(index)
        if not self._request.echo:
            return b""
        return self._chunk(index, self._request.prompt[index // self._request.n], ())

    def _unsent(self, index: int, entries: Any, before: int) -> Any:
        """Log-probabilities in their order: those that come out of it come with the outcome."""
        sent = self._sent.get(index, 0)
        if before > sent:
            return ()
        new = entries[sent - before :]
        self._sent[index] = sent + len(new)
        return new

    def _chunk(
        self, index: int, text: str, entries: Any, *, finish_reason: str | None = None
    ) -> bytes:
        offset = self._offsets.get(index, 0)
        self._offsets[index] = offset + sum(len(entry["token"]) for entry in entries)
        choice = {
            "index": index,
            "text": text,
            "logprobs": logprobs_body(entries, offset=offset) if entries else None,
            "finish_reason": finish_reason,
        }
        return data_frame({**self._head, "choices": [choice]})


router = APIRouter(route_class=StrictRoute)


class TextCompletion(BaseModel):
    """As OpenAI's description has it."""

    model_config = ConfigDict(extra="allow")

    id: str
    object: str
    created: int
    model: str
    choices: list[dict[str, Any]]
    usage: dict[str, Any]


@router.post(
    "/completions",
    response_model=TextCompletion,
    responses=OPENAI.documented(400, 401, 404, 409, 413, 429, 500, 503, 504)
    | {200: {"description": "The texts, or a stream of them", "content": STREAM}},
)
async def create_completion(
    parts: PartsDep, caller: CallerDep, request: CompletionRequest
) -> Response:
    """How texts go on, as a model writes them without a chat template."""
    with calls.naming_fields():
        work = completion_job(request, parts.settings)
    made = await submitted(parts, caller, work, request.model)
    if request.stream:
        writer = TextChunks(request, made, work.options)
        return streamed(parts, caller, made, request.model, writer)
    outcome = await outcome_for(parts, caller, made, request.model, work.kind.name)
    return answer_json(completion_body(ended_of(outcome, work.options)), outcome.headers)
