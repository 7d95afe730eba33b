"""The events of a response, with the same order and numbers for every reader.

They depend only on what the job has written, not on the pieces in which it arrived: a text is cut
at places that the text itself determines, and things done in parallel are reported one after the
other. So a reader that reconnects can continue after the last number it has seen
(`starting_after`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from shared.bounds import json_line
from shared.kinds.chat import ChatResult, ToolSearch
from shared.openai.items import (
    ItemWriter,
    ModelAnswer,
    output_text,
    settled_turns,
    turns_of,
)

ResponseEvent = dict[str, Any]

PIECE_CHARS = 16
"""Longer words are cut into pieces of this length."""
FIRST_WIDE = "\u1100"
"""From Hangul on, words have few letters, and many scripts have no spaces: each letter is a
piece."""


def cut(text: str, *, is_whole: bool) -> list[str]:
    """The text in pieces: words with the space before them. The end of a piece depends on the text
    before it and on the next character, so the last piece is left out unless `is_whole`."""
    pieces: list[str] = []
    start = 0
    for at in range(1, len(text)):
        before, here = text[at - 1], text[at]
        begins_space = here.isspace() and not before.isspace()
        if begins_space or at - start >= PIECE_CHARS or before >= FIRST_WIDE:
            pieces.append(text[start:at])
            start = at
    if is_whole and start < len(text):
        pieces.append(text[start:])
    return pieces


def frame(event: Mapping[str, Any]) -> bytes:
    text = f"event: {event['type']}\ndata: {json_line(event)}\n\n"
    return text.encode("utf-8", "backslashreplace")


@dataclass(kw_only=True)
class _OpenMessage:
    """The message that is being written."""

    item: dict[str, Any]
    waiting: str = ""
    """The text that is not written yet."""
    written_chars: int = 0
    written_bytes: int = 0
    scored: list[Mapping[str, Any]] = field(default_factory=list)
    """The known log-probabilities of tokens that are not written yet."""
    scored_count: int = 0
    """For how many tokens log-probabilities are known."""
    scored_bytes: int = 0
    """How many bytes the tokens have whose log-probabilities are written."""

    def add_logprobs(self, logprobs: Sequence[Mapping[str, Any]], before: int) -> None:
        """Add those of the tokens after the first `before`. If there is a gap, they are ignored:
        they will be sent again."""
        if before <= self.scored_count:
            new = logprobs[self.scored_count - before :]
            self.scored += new
            self.scored_count += len(new)

    def write(self, piece: str) -> list[dict[str, Any]]:
        """Count a piece of the text as written. Returns the known log-probabilities of the tokens
        that end in it."""
        self.written_bytes += len(piece.encode(errors="surrogatepass"))
        count = 0
        for entry in self.scored:
            end = self.scored_bytes + len(entry["bytes"])
            if end > self.written_bytes:
                break
            self.scored_bytes, count = end, count + 1
        written, self.scored = self.scored[:count], self.scored[count:]
        return [_without_bytes(entry) for entry in written]


@dataclass(kw_only=True)
class ResponseEvents:
    """Makes the events of one response: call `begin`, then `text` for each piece of text and
    `settled` between two answers of the model, and at last `end` or `fail`. Each returns only
    events with numbers above `starting_after`.
    """

    writer: ItemWriter
    is_queued: bool
    """Whether events say that the response is queued and when it starts: one in the background may
    wait long."""
    starting_after: int = -1
    step_id: int | None = None
    """The step whose text is being written."""
    number: int = -1
    """The number of the last event."""
    output: list[dict[str, Any]] = field(default_factory=list)
    _turns: int = 0
    """How many answers of the model are complete, with their tool calls."""
    _calls: int = 0
    """How many tool calls of the next answer are done."""
    _is_searching: bool = False
    """Whether the beginning of the next tool call was reported."""
    _message: _OpenMessage | None = None
    _message_is_done: bool = False
    _is_running: bool = False

    def begin(self, response: Mapping[str, Any]) -> Iterator[ResponseEvent]:
        """The first events. `response` is the new response, without output."""
        if not self.is_queued:
            yield from self._event("response.created", response=response)
            yield from self._runs(response)
            return
        queued = {**response, "status": "queued"}
        yield from self._event("response.created", response=queued)
        yield from self._event("response.queued", response=queued)

    def _runs(self, response: Mapping[str, Any]) -> Iterator[ResponseEvent]:
        if not self._is_running:
            self._is_running = True
            running = {**response, "status": "in_progress"}
            yield from self._event("response.in_progress", response=running)

    def text(
        self,
        step_id: int,
        text: str,
        response: Mapping[str, Any],
        logprobs: Sequence[Mapping[str, Any]] = (),
        logprobs_before: int = 0,
    ) -> Iterator[ResponseEvent]:
        """More text of a step; everything before this step is settled. `logprobs` are those of its
        tokens after the first `logprobs_before`."""
        yield from self._runs(response)
        self.step_id = step_id
        if self._message_is_done:  # late text of a step whose message is complete
            return
        message = self._message
        if message is None:
            message = self._new_message()
            yield from self._begin(message)
        message.waiting += text
        message.add_logprobs(logprobs, logprobs_before)
        yield from self._deltas(message, is_whole=False)

    def settled(
        self,
        messages: Sequence[Mapping[str, Any]],
        searches: Sequence[ToolSearch],
        response: Mapping[str, Any],
    ) -> Iterator[ResponseEvent]:
        """The messages that the job has added so far. The last tool calls may still run."""
        yield from self._runs(response)
        by_call = {search.call_id: search for search in searches}
        answered = {m["tool_call_id"] for m in messages if m["role"] == "tool"}
        for turn in settled_turns(messages)[self._turns :]:
            if not self._message_is_done:
                yield from self._close_message(turn, "completed")
            for call in turn.calls[self._calls :]:
                if not self._is_searching:
                    yield from self._search_begins(call)
                if call["id"] not in answered:
                    return
                yield from self._search_ends(call, by_call.get(call["id"]))
            if any(call["id"] not in answered for call in _all_calls(messages, self._turns)):
                return
            self._turns += 1
            self._calls = 0
            self._message_is_done = False

    def end(
        self,
        result: ChatResult,
        response: Mapping[str, Any],
        logprobs: Sequence[Mapping[str, Any]] = (),
    ) -> Iterator[ResponseEvent]:
        """All remaining events. `response` is the finished response, without its output."""
        yield from self.settled(result.steps, result.searches, response)
        last = turns_of(result)[-1]
        status = "incomplete" if response["status"] == "incomplete" else "completed"
        yield from self._close_message(last, status, logprobs)
        for call in last.calls:
            yield from self._function_call(call)
        whole = {**response, "output": self.output}
        yield from self._event(f"response.{response['status']}", response=whole)

    def fail(self, response: Mapping[str, Any]) -> Iterator[ResponseEvent]:
        yield from self._runs({**response, "error": None})
        yield from self._event("response.failed", response=response)

    def _event(self, type_: str, **fields: Any) -> Iterator[ResponseEvent]:
        self.number += 1
        if self.number > self.starting_after:
            yield {"type": type_, "sequence_number": self.number, **fields}

    # Messages

    def _new_message(self) -> _OpenMessage:
        item = self.writer.message(len(self.output), [], "in_progress")
        self._message = _OpenMessage(item=item)
        return self._message

    def _begin(self, message: _OpenMessage) -> Iterator[ResponseEvent]:
        item = message.item
        yield from self._event(
            "response.output_item.added", output_index=len(self.output), item=item
        )
        yield from self._event(
            "response.content_part.added", **self._part_of(item), part=output_text("", [])
        )

    def _part_of(self, item: Mapping[str, Any]) -> dict[str, Any]:
        return {"item_id": item["id"], "output_index": len(self.output), "content_index": 0}

    def _deltas(self, message: _OpenMessage, *, is_whole: bool) -> Iterator[ResponseEvent]:
        pieces = cut(message.waiting, is_whole=is_whole)
        chars = sum(map(len, pieces))
        message.waiting = message.waiting[chars:]
        message.written_chars += chars
        for piece in pieces:
            yield from self._event(
                "response.output_text.delta",
                **self._part_of(message.item),
                delta=piece,
                logprobs=message.write(piece),
            )

    def _close_message(
        self, turn: ModelAnswer, status: str, logprobs: Sequence[Mapping[str, Any]] = ()
    ) -> Iterator[ResponseEvent]:
        self._message_is_done = True
        if not turn.has_message:
            return
        message = self._message
        if message is None:
            message = self._new_message()
            yield from self._begin(message)
        # The whole text is known now, and what was written is its beginning.
        message.waiting = turn.text[message.written_chars :]
        message.add_logprobs(logprobs, 0)
        yield from self._deltas(message, is_whole=True)
        self._message = None
        annotations = self.writer.passages.citations(turn.text)
        part = output_text(turn.text, annotations, logprobs)
        item = self.writer.message(len(self.output), [part], status)
        place = self._part_of(item)
        for number, annotation in enumerate(annotations):
            yield from self._event(
                "response.output_text.annotation.added",
                **place,
                annotation_index=number,
                annotation=annotation,
            )
        yield from self._event(
            "response.output_text.done",
            **place,
            text=turn.text,
            logprobs=[_without_bytes(logprob) for logprob in logprobs],
        )
        yield from self._event("response.content_part.done", **place, part=part)
        yield from self._done(item)

    # Calls

    def _search_begins(self, call: Mapping[str, Any]) -> Iterator[ResponseEvent]:
        self._is_searching = True
        item = self.writer.file_search_call(len(self.output), call, None)
        item = {**item, "status": "in_progress"}
        place = {"item_id": item["id"], "output_index": len(self.output)}
        yield from self._event(
            "response.output_item.added", output_index=len(self.output), item=item
        )
        yield from self._event("response.file_search_call.in_progress", **place)
        yield from self._event("response.file_search_call.searching", **place)

    def _search_ends(
        self, call: Mapping[str, Any], search: ToolSearch | None
    ) -> Iterator[ResponseEvent]:
        if search is not None:
            self.writer.passages.add(search)
        item = self.writer.file_search_call(len(self.output), call, search)
        place = {"item_id": item["id"], "output_index": len(self.output)}
        yield from self._event("response.file_search_call.completed", **place)
        yield from self._done(item)
        self._calls += 1
        self._is_searching = False

    def _function_call(self, call: Mapping[str, Any]) -> Iterator[ResponseEvent]:
        item = self.writer.function_call(len(self.output), call)
        place = {"item_id": item["id"], "output_index": len(self.output)}
        added = {**item, "arguments": "", "status": "in_progress"}
        yield from self._event(
            "response.output_item.added", output_index=len(self.output), item=added
        )
        yield from self._event(
            "response.function_call_arguments.delta", **place, delta=item["arguments"]
        )
        yield from self._event(
            "response.function_call_arguments.done",
            **place,
            name=item["name"],
            arguments=item["arguments"],
        )
        yield from self._done(item)

    def _done(self, item: dict[str, Any]) -> Iterator[ResponseEvent]:
        index = len(self.output)
        self.output.append(item)
        yield from self._event("response.output_item.done", output_index=index, item=item)


def _all_calls(messages: Sequence[Mapping[str, Any]], turn: int) -> Sequence[Mapping[str, Any]]:
    """The tool calls of an answer of the model, also those that clients do not see."""
    answers = [message for message in messages if message["role"] == "assistant"]
    calls: Sequence[Mapping[str, Any]] = answers[turn].get("tool_calls", ())
    return calls


def _without_bytes(logprob: Mapping[str, Any]) -> dict[str, Any]:
    top = [{"token": one["token"], "logprob": one["logprob"]} for one in logprob["top_logprobs"]]
    return {"token": logprob["token"], "logprob": logprob["logprob"], "top_logprobs": top}


def output_of(
    writer: ItemWriter,
    result: ChatResult,
    *,
    is_incomplete: bool,
    logprobs: Sequence[Mapping[str, Any]] = (),
) -> list[dict[str, Any]]:
    """The items of a finished response, as its events add them up."""
    events = ResponseEvents(writer=writer, is_queued=False, starting_after=2**62)
    status = "incomplete" if is_incomplete else "completed"
    for _ in events.end(result, {"status": status}, logprobs):
        pass
    return events.output
