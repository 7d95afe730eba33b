"""Telling one client the text that a job generates: each character once, whatever is lost.

A `token` event is `{"step", "offset", "text"}`: text of one step, from a character on. The stream
in Redis may have lost entries, tell some twice, or hold those of a run before a redrive; Postgres
has all that was shown (`shared/transcripts.py`), and is asked where the stream has a gap.
"""

from dataclasses import dataclass
from typing import Any, ClassVar
from uuid import UUID

from starlette.concurrency import run_in_threadpool

from api import streams
from api.deps import Parts
from shared.payloads import Kind


@dataclass(frozen=True, kw_only=True)
class Place:
    """How far a client has read: so many characters of the text of that step."""

    step_id: int = 0
    offset: int = 0


@dataclass(frozen=True, kw_only=True)
class Token:
    """The data of a `token` event, and how far a client has read that has it."""

    data: dict[str, Any]
    place: Place

    def id(self, entry_id: str) -> str:
        return _id(entry_id, self.place)


def _id(entry_id: str, place: Place) -> str:
    return f"{entry_id}~{place.step_id}.{place.offset}" if place.step_id else entry_id


class Telling:
    KINDS: ClassVar = frozenset({Kind.RAG, Kind.CHAT})
    """The kinds of jobs that generate text."""

    def __init__(self, parts: Parts, job_id: UUID, place: Place) -> None:
        self._parts = parts
        self._job_id = job_id
        self._place = place

    def id(self, entry_id: str) -> str:
        """The id of an event told now: where to go on in the stream, and in the text."""
        return _id(entry_id, self._place)

    async def hear(self, token: dict[str, Any]) -> list[Token]:
        """What of a `token` of the stream is news to the client, with what it missed before."""
        try:
            step_id, offset, text = int(token["step"]), int(token["offset"]), str(token["text"])
        except (KeyError, TypeError, ValueError):  # nothing of Sluice's has written it
            return []
        place = self._place
        if step_id < place.step_id:
            return []
        if step_id > place.step_id or offset > place.offset:
            # A step that is new here, or a gap. Postgres knows whether there is such a step.
            return await self.catch_up()
        return self._told(step_id, place.offset, text[place.offset - offset :])

    async def catch_up(self) -> list[Token]:
        """All that Postgres has and the client does not."""
        place = self._place
        found = await run_in_threadpool(
            streams.shown_text,
            self._parts,
            self._job_id,
            step_id=place.step_id,
            offset=place.offset,
        )
        return [
            token for each in found for token in self._told(each.step_id, each.offset, each.text)
        ]

    def _told(self, step_id: int, offset: int, text: str) -> list[Token]:
        if not text:
            return []
        self._place = Place(step_id=step_id, offset=offset + len(text))
        data = {"step": step_id, "offset": offset, "text": text}
        return [Token(data=data, place=self._place)]
