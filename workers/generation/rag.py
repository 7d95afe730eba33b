"""The step `rag.answer`: an answer from the passages that `rag.find` found, with citations."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath
from typing import Any, Final
from uuid import UUID

from sqlalchemy.orm import Session

from shared import conversations
from shared.bounds import comparable
from shared.config import EXTRACTIVE
from shared.database.transaction import Transaction
from shared.documents import collections, documents
from shared.documents.documents import ChunkView
from shared.jobs import jobs, steps
from shared.jobs.steps import Record
from shared.kinds.chat import Usage
from shared.kinds.rag import Citation, RagInput, RagResult
from shared.kinds.search import RERANK_STEPS
from shared.tables import Job
from workers.attempts.context import Context, Done, Handler
from workers.generation import presets, prompts
from workers.generation.answers.structured import read_json, with_instructions
from workers.generation.backends import extractive
from workers.generation.backends.interface import Completion, Request, TextGenerator, generators_of
from workers.generation.languages import language_of, not_found_sentences
from workers.generation.prompts import PromptPassage, RagPrompt, build
from workers.generation.transcripts import (
    deadline,
    prompt_budget,
    sampling,
    show_at_once,
    write,
    write_quietly,
)
from workers.retrieval.search import joined_text
from workers.servers.pulls import on_demand

# Citation markers in an answer, checked while it is streamed.
#
# A marker is `[n]`, or has several numbers: `[n, m]`, `[n; m]`. Numbers that are no passage are
# removed and counted; a marker without other numbers is removed with the space before it. Code
# between backticks is not changed: `rows[0]` cites nothing. The result does not depend on the
# pieces in which the text arrives.

_LONGEST_MARKER_CHARS: Final = 64
_MARKER: Final = re.compile(r"\[ *(\d+(?: *[,;] *\d+)*) *\]", re.ASCII)
_IN_MARKER: Final = frozenset("0123456789,; ")
_SPACES: Final = frozenset(" \t")
_FENCE_TICKS: Final = 3
_DECORATION: Final = " \t\r\n\"'“”‘’«»*_`.。।۔!！"


class MarkerFilter:
    """`feed` takes the answer piece by piece, `close` ends it; both return text to show.

    Only an open bracket that may become a marker is held back, and spaces that may be before a
    marker that is removed. `cited` has the passage numbers in the order of first use.
    """

    def __init__(self, passages: int) -> None:
        self.removed = 0
        self.cited: list[int] = []
        self._passages = passages
        self._out: list[str] = []
        self._marker = ""  # from an open bracket on
        self._outer = ""  # open brackets before that one, which are markers once it is removed
        self._spaces = ""
        self._spaces_before_removed = False
        self._at_line_start = True
        self._ticks = 0  # of the run of backticks that is being read
        self._code = 0  # how many backticks opened the code that this is in

    def feed(self, text: str) -> str:
        for char in text:
            self._take(char)
        return self._flush()

    def close(self) -> str:
        self._give_up_marker()
        self._write_spaces(before="")
        return self._flush()

    def _flush(self) -> str:
        text = "".join(self._out)
        self._out.clear()
        return text

    def _take(self, char: str) -> None:
        if self._ticks and char != "`":
            self._end_ticks()
        if self._marker:
            if char in _IN_MARKER and len(self._marker) < _LONGEST_MARKER_CHARS:
                self._marker += char
                return
            if char == "]" and (match := _MARKER.fullmatch(self._marker + char)):
                self._settle(match)
                return
            if char == "[" and len(self._outer) < _LONGEST_MARKER_CHARS:
                self._outer, self._marker = self._outer + self._marker, char
                return
            self._give_up_marker()
        if self._code:
            self._ticks += char == "`"
            if char == "\n" and self._code < _FENCE_TICKS:
                self._code = 0  # code does not go over the end of a line: it was a single backtick
            self._write(char)
        elif char == "[":
            self._marker = char
        elif char in _SPACES:
            self._take_space(char)
        else:
            self._ticks += char == "`"
            self._write_spaces(before=char)
            self._write(char)

    def _end_ticks(self) -> None:
        """Code ends with as many backticks as it began with."""
        if not self._code:
            self._code = self._ticks
        elif self._code == self._ticks or self._ticks > self._code >= _FENCE_TICKS:
            self._code = 0
        self._ticks = 0

    def _settle(self, marker: re.Match[str]) -> None:
        written = [digits.strip() for digits in re.split("[,;]", marker[1])]
        numbers = [_number(digits) for digits in written]
        valid = [number for number in numbers if 1 <= number <= self._passages]
        self.removed += len(numbers) - len(valid)
        self._marker = ""
        if not valid and self._outer:
            # "[[9]9]" becomes "[9]", which has to be checked again.
            at = self._outer.rindex("[")
            self._outer, self._marker = self._outer[:at], self._outer[at:]
            return
        if not valid:
            self._spaces_before_removed = True
            return
        self._write_outer()
        self.cited += [number for number in dict.fromkeys(valid) if number not in self.cited]
        self._write_spaces(before="[")
        is_kept = written == list(map(str, valid))
        self._write(marker[0] if is_kept else f"[{', '.join(map(str, valid))}]")

    def _write_outer(self) -> None:
        if self._outer:
            self._write_spaces(before="[")
            self._write(self._outer)
            self._outer = ""

    def _give_up_marker(self) -> None:
        """Write what was held back: it is no beginning of a marker."""
        if self._marker:
            self._write_outer()
            self._write_spaces(before="[")
            marker, self._marker = self._marker, ""
            bare = marker.rstrip(" ")
            self._write(bare)
            self._spaces = marker[len(bare) :]

    def _take_space(self, char: str) -> None:
        if self._spaces_before_removed:
            # In "a [9] b" one of the two spaces is removed, too; at the start of a line all are.
            self._spaces_before_removed = self._at_line_start
            self._spaces = "" if self._at_line_start else char
            return
        self._spaces += char

    def _write_spaces(self, *, before: str) -> None:
        if self._spaces_before_removed:
            self._spaces_before_removed = False
            if not (before.isalnum() or before in ("[", "(")):
                self._spaces = ""
        if self._spaces:
            self._write(self._spaces)
            self._spaces = ""

    def _write(self, text: str) -> None:
        self._out.append(text)
        self._at_line_start = text.endswith("\n")


def is_no_answer(answer: str) -> bool:
    """Whether the answer is the sentence for a question that the passages do not answer."""
    bare = comparable(" ".join(_MARKER.sub("", answer).split()).strip(_DECORATION))
    return bare in {comparable(one.strip(_DECORATION)) for one in not_found_sentences()}


def _number(digits: str) -> int:
    """The number in a marker; 0, which is no passage, if it has too many digits."""
    return int(digits) if len(digits) <= 9 else 0


HISTORY_SHARE = 3
"""A conversation may take 1/3 of the prompt; the rest is for passages."""


@dataclass(frozen=True, kw_only=True)
class ScoredChunk:
    """A passage that `rag.find` returned, and its score."""

    chunk: ChunkView
    score: float


def rag_answer(context: Context) -> Done:
    with context.process.ledger.read_single() as session:
        job = jobs.get(session, context.claim.job_id)
        input_ = RagInput.model_validate(job.input)
        hits = _live_hits(session, job.id, input_)
    model = input_.model or context.process.settings.generation_model
    if model == EXTRACTIVE:
        return _quote(context, job, input_, hits)
    if not hits:
        # Without passages no model is needed.
        name = model if input_.preset is None else input_.preset.name
        return _done(context, job, _not_found(input_, name))
    return _generate(context, job, input_, model, hits)


def _live_hits(session: Session, job_id: UUID, input_: RagInput) -> list[ScoredChunk]:
    """The passages that are still live: text that was erased or replaced since is not quoted."""
    step = RERANK_STEPS["rag.find"] if input_.search.rerank else "rag.find"
    matches = steps.result_of(session, job_id, step)["found"]
    collection = collections.get(session, input_.collection)
    live = documents.live_chunks(session, collection.id, [match["id"] for match in matches])
    return [
        ScoredChunk(chunk=_with_neighbours(session, live[match["id"]], match), score=match["score"])
        for match in matches
        if match["id"] in live
    ]


def _with_neighbours(session: Session, chunk: ChunkView, match: Mapping[str, Any]) -> ChunkView:
    """The passage with the text of all chunks that the search has joined."""
    first, last = match.get("ordinals") or (chunk.ordinal, chunk.ordinal)
    place = documents.parse_chunk_id(chunk.id)
    if first == last or place is None:
        return chunk
    chunks = documents.chunk_range(session, place[0], first=first, last=last)
    return replace(chunk, start=chunks[0].start, text=joined_text(chunks)) if chunks else chunk


def _quote(context: Context, job: Job, input_: RagInput, hits: Sequence[ScoredChunk]) -> Done:
    quotes = extractive.answer(
        input_.question,
        [hit.chunk.text for hit in hits],
        [hit.score for hit in hits],
        [_title(hit.chunk) for hit in hits],
    )
    result = RagResult(
        answer=quotes.answer,
        citations=[
            _citation(number, hits[index]) for number, index in enumerate(quotes.cited, start=1)
        ],
        model=EXTRACTIVE,
        usage=Usage(prompt_tokens=0, completion_tokens=0),
    )
    return _done(context, job, result)


def _title(chunk: ChunkView) -> str:
    """The context of a chunk: the name of its document, the title, and the headings above it."""
    name = PurePosixPath(chunk.source).stem
    texts = [chunk.metadata.get(key) for key in ("title", "heading")]
    return "\n".join([name, *(text for text in texts if isinstance(text, str))])


def _not_found(input_: RagInput, model: str) -> RagResult:
    return RagResult(
        answer=language_of(input_.question).not_found,
        citations=[],
        model=model,
        usage=Usage(prompt_tokens=0, completion_tokens=0),
    )


def _generate(
    context: Context, job: Job, input_: RagInput, model: str, hits: Sequence[ScoredChunk]
) -> Done:
    process = context.process
    base = generators_of(process).get(model)
    generator = presets.generator_for(base, input_.preset, input_.parameters)
    model = presets.name_of(input_.preset, generator)
    sampling_ = sampling(input_.parameters, process.settings, step_id=context.claim.step_id)
    generator.learn(context.check)
    budget = prompt_budget(generator, sampling_.max_tokens)
    with process.ledger.read_single() as session:
        before = (
            prompts.load(session, job.conversation_id)
            if input_.previous_job_id is None
            else prompts.continued(session, input_.previous_job_id, job.fair_key, process.storage)
        ).without_tools
    before = before or [prompts.to_message(message) for message in input_.earlier]
    prompt = build(
        input_.question,
        [PromptPassage(text=hit.chunk.text, source=hit.chunk.source) for hit in hits],
        template=input_.template,
        budget_tokens=budget,
        count=generator.count_tokens,
        history=prompts.newest(
            [*presets.spoken_of(input_.preset), *before],
            budget_tokens=budget // HISTORY_SHARE,
            count=generator.count_tokens,
        ),
        system=[
            *(message.content for message in presets.system_of(input_.preset)),
            *([input_.instructions] if input_.instructions else ()),
        ],
    )
    markers = MarkerFilter(prompt.used)
    request = Request(
        messages=prompt.messages,
        sampling=sampling_,
        deadline=deadline(context),
        lane=context.claim.lane,
        fair_key=context.claim.fair_key,
    )
    if input_.response_format.type == "json":
        return _generate_json(context, job, input_, generator, request, prompt, hits)
    written = write(context, generator, request, markers)
    result = _result(prompt, markers, hits, written.completion, written.shown, model)
    return _done(context, job, result, record=written.record)


def _generate_json(
    context: Context,
    job: Job,
    input_: RagInput,
    generator: TextGenerator,
    request: Request,
    prompt: RagPrompt,
    hits: Sequence[ScoredChunk],
) -> Done:
    """An answer in JSON. Markers in its strings count as citations; the JSON is not changed."""
    format_ = input_.response_format
    request = replace(request, messages=with_instructions(context, request.messages, format_))
    first = write_quietly(context, generator, request)
    answer = read_json(context, generator, request, first, format_)
    markers = MarkerFilter(prompt.used)
    markers.feed(answer.text)
    markers.close()
    model = presets.name_of(input_.preset, generator)
    result = _result(prompt, markers, hits, answer.completion, answer.text, model)
    return _done(context, job, result.model_copy(update={"parsed": answer.value}))


def _result(
    prompt: RagPrompt,
    markers: MarkerFilter,
    hits: Sequence[ScoredChunk],
    completion: Completion,
    answer: str,
    model: str,
) -> RagResult:
    cited = () if is_no_answer(answer) else markers.cited
    return RagResult(
        answer=answer,
        citations=[_citation(number, hits[number - 1]) for number in cited],
        model=model,
        usage=Usage(
            prompt_tokens=completion.prompt_tokens, completion_tokens=completion.completion_tokens
        ),
        finish_reason=completion.finish_reason.value,
        passages_dropped=prompt.dropped,
        markers_removed=markers.removed,
    )


def _done(context: Context, job: Job, result: RagResult, record: Record | None = None) -> Done:
    record_text = record or show_at_once(context, result.answer)
    turn = [
        {"role": "user", "content": job.input["question"]},
        {"role": "assistant", "content": result.answer},
    ]

    def record_all(transaction: Transaction) -> None:
        record_text(transaction)
        if job.conversation_id is not None:
            conversations.append(transaction, job.conversation_id, turn, job.id)

    return Done(result=result.model_dump(mode="json"), record=record_all)


def _citation(number: int, hit: ScoredChunk) -> Citation:
    chunk = hit.chunk
    return Citation(
        marker=f"[{number}]",
        chunk_id=chunk.id,
        document_id=str(chunk.document_id),
        source=chunk.source,
        text=chunk.text,
        start=chunk.start,
        score=hit.score,
        metadata=chunk.metadata,
    )


RAG_ANSWER = Handler(run=on_demand(rag_answer))
