"""The text that a job generates, for one reader: each character once, whatever is lost.

A `token` event is `{"step", "offset", "text"}`: text of one step from the character `offset` on;
with `choice`, if the job writes several answers and this is not the first. The stream in Redis may
have lost entries, have entries twice, or have those of a run before a redrive. Postgres has all
text that was shown (`shared/conversations.py`), and is read if the stream has a gap. Several steps
of a job may write at the same time.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from redis.exceptions import RedisError
from starlette.concurrency import run_in_threadpool

from api.deps import Parts
from api.jobs.following import READ_ENTRIES, StreamEntry
from shared import conversations
from shared.conversations import ShownText
from shared.redis.events import stream_key


async def entries(parts: Parts, job_id: UUID, after: str) -> list[StreamEntry]:
    """The entries of the job's stream after an id; none if Redis does not answer."""
    try:
        answer: Any = await parts.redis.xread({stream_key(job_id): after}, count=READ_ENTRIES)
    except (RedisError, OSError):
        return []
    return [StreamEntry.of(id_, fields) for _stream, rows in answer or () for id_, fields in rows]


@dataclass(frozen=True, kw_only=True)
class TextPiece:
    """New text of a step from the character `offset` on. `offsets` is the position of the reader
    after it: step -> number of characters."""

    step_id: int
    choice: int
    offset: int
    text: str
    offsets: Mapping[int, int]
    logprobs: Sequence[Mapping[str, Any]] = ()
    """The new log-probabilities (`TokenLogprob` in `shared/kinds/chat.py`), if the job has any."""
    logprobs_before: int = 0

    @property
    def data(self) -> dict[str, Any]:
        """The data of a `token` event."""
        data: dict[str, Any] = {"step": self.step_id, "offset": self.offset, "text": self.text}
        if self.choice:
            data["choice"] = self.choice
        if self.logprobs:
            data |= {"logprobs": self.logprobs, "logprobs_before": self.logprobs_before}
        return data


class Unread:
    """The text that one reader has not had yet. `offsets` is its position: it has that many
    characters of these steps, and all text of earlier steps. The stream of a job that `is_new` has
    no text of an earlier run."""

    def __init__(
        self,
        parts: Parts,
        job_id: UUID,
        offsets: Mapping[int, int] | None = None,
        *,
        is_new: bool = False,
    ) -> None:
        self._is_new = is_new
        self._parts = parts
        self._job_id = job_id
        self._gone: set[int] = set()
        """Steps that have text in the stream and none in Postgres: they are of an earlier run."""
        self.offsets: Mapping[int, int] = dict(offsets or {})
        self._logprobs: dict[int, int] = {}
        """Step -> how many log-probabilities the reader has had."""

    async def of_token(self, token: Mapping[str, Any]) -> list[TextPiece]:
        """The text that a `token` event adds, with text before it that the reader has missed."""
        try:
            step_id, offset, text = int(token["step"]), int(token["offset"]), str(token["text"])
        except (KeyError, TypeError, ValueError):  # not written by Sluice
            return []
        if step_id in self._gone:
            return []
        known = self.offsets.get(step_id, 0 if self._is_new else None)
        scored = self._logprobs.get(step_id, 0)
        if known is None or offset > known or (token.get("logprobs_before") or 0) > scored:
            # A new step, or a gap. Postgres knows whether the step is one of the present run.
            pieces = await self.of_database()
            if step_id not in self.offsets:
                self._gone.add(step_id)
            return pieces
        return self._advance(step_id, known, text[known - offset :], token)

    async def of_database(self) -> list[TextPiece]:
        """All text that Postgres has and the reader has not."""
        shown = await run_in_threadpool(
            _shown_text, self._parts, self._job_id, self.offsets, self._logprobs
        )
        return [
            piece
            for part in shown
            for piece in self._advance(part.step_id, part.offset, part.text, vars(part))
        ]

    def _advance(
        self, step_id: int, offset: int, text: str, data: Mapping[str, Any]
    ) -> list[TextPiece]:
        logprobs, before = data.get("logprobs") or (), data.get("logprobs_before") or 0
        known = self._logprobs.get(step_id, 0)
        logprobs = logprobs[known - before :]
        if not text and not logprobs:
            return []
        self._logprobs[step_id] = known + len(logprobs)
        self.offsets = {**self.offsets, step_id: offset + len(text)}
        piece = TextPiece(
            step_id=step_id,
            choice=data.get("choice") or 0,
            offset=offset,
            text=text,
            offsets=self.offsets,
            logprobs=logprobs,
            logprobs_before=known,
        )
        return [piece]


def _shown_text(
    parts: Parts, job_id: UUID, offsets: Mapping[int, int], logprobs: Mapping[int, int]
) -> list[ShownText]:
    with parts.ledger.read() as session:
        return conversations.shown_of_job(session, job_id, offsets, logprobs)
