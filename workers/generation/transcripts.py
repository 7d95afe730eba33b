"""Runs a generator for a step: its text is stored, shown to clients, and continued after a loss.

The text of a step is durable while it grows (`TranscriptWriter`). An attempt continues the text of
the attempt before. Clients see the text through a filter, which may hold back or remove parts of
it; the output of a filter does not depend on the pieces in which the text arrives.
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

from sqlalchemy.exc import SQLAlchemyError

from shared import conversations
from shared.config import Settings
from shared.conversations import Addition
from shared.database.transaction import Ledger, Transaction
from shared.errors import InvalidInput, Timeout
from shared.jobs import jobs
from shared.jobs.steps import Record
from shared.kinds.chat import Parameters, TokenLogprob
from shared.tables import Transcript
from workers.attempts.context import Context
from workers.attempts.process import Process
from workers.generation.backends.interface import (
    Completion,
    Delta,
    FinishReason,
    Request,
    Resume,
    Sampling,
    TextGenerator,
)

# Writing generated text: to Postgres first, then to the clients' streams.
#
# One thread runs one transaction every `generation_flush_s` for all texts that a process generates.
# The beginning of a text is written at once. If Postgres does not answer, text waits here. A step
# that has lost its lease has to stop.

log = logging.getLogger(__name__)


@dataclass(eq=False)
class GrowingTranscript:
    """The text of one step while it grows. `offset` is how many characters are stored."""

    context: Context
    offset: int = 0
    on_begin: Callable[[], None] = lambda: None
    """Called when there is text for clients for the first time."""
    has_begun: bool = False
    _text: list[str] = field(default_factory=list)
    _shown: list[str] = field(default_factory=list)
    _token_ids: list[int] = field(default_factory=list)
    _logprobs: list[TokenLogprob] = field(default_factory=list)
    logprobs_before: int = 0
    """How many log-probabilities are stored."""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(
        self,
        text: str,
        shown: str,
        token_ids: tuple[int, ...] = (),
        logprobs: tuple[TokenLogprob, ...] = (),
    ) -> None:
        self.context.progress()
        with self._lock:
            self._text.append(text)
            self._shown.append(shown)
            self._token_ids.extend(token_ids)
            self._logprobs.extend(logprobs)
        if shown and not self.has_begun:
            self.has_begun = True
            self.on_begin()

    def take(self) -> Addition | None:
        """Remove and return what was added since the last call; None if nothing was."""
        with self._lock:
            if not (self._token_ids or self._logprobs or any(self._text) or any(self._shown)):
                return None
            addition = Addition(
                claim=self.context.claim,
                text="".join(self._text),
                shown="".join(self._shown),
                token_ids=tuple(self._token_ids),
                offset=self.offset,
                logprobs=tuple(self._logprobs),
                logprobs_before=self.logprobs_before,
            )
            self.offset += len(addition.shown)
            self.logprobs_before += len(addition.logprobs)
            self._text, self._shown, self._token_ids, self._logprobs = [], [], [], []
            return addition

    def put_back(self, addition: Addition) -> None:
        """Undo `take` for an addition that could not be stored; the next `take` returns it
        again."""
        with self._lock:
            self.offset -= len(addition.shown)
            self.logprobs_before -= len(addition.logprobs)
            self._logprobs[:0] = addition.logprobs
            self._text.insert(0, addition.text)
            self._shown.insert(0, addition.shown)
            self._token_ids[:0] = addition.token_ids


class TranscriptWriter:
    """Stores the texts of all open transcripts, in a thread that runs while there are any."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger
        self._transcripts: list[GrowingTranscript] = []
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None
        self._begun: list[GrowingTranscript] = []
        """The transcripts whose first text is not stored yet."""
        self._has_begun = threading.Event()

    def open(self, transcript: GrowingTranscript) -> None:
        transcript.on_begin = partial(self._begin, transcript)
        with self._lock:
            self._transcripts.append(transcript)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="transcripts", daemon=True)
                self._thread.start()

    def finish(self, transcript: GrowingTranscript) -> None:
        """Stop writing a transcript. Its owner stores the rest with `write_rest`."""
        with self._lock:
            self._transcripts.remove(transcript)
        with self._writing:
            pass  # waits for a round that may have taken text from it

    def _begin(self, transcript: GrowingTranscript) -> None:
        with self._lock:
            self._begun.append(transcript)
        self._has_begun.set()

    def _run(self) -> None:
        while True:
            flush_at = time.monotonic() + self._settings.generation_flush_s
            while (left_s := flush_at - time.monotonic()) > 0:
                if self._has_begun.wait(left_s):
                    self._write_begun()
            with self._lock:
                if not self._transcripts:
                    self._thread = None
                    return
                transcripts = list(self._transcripts)
            with self._writing:
                self._write(transcripts)

    def _write_begun(self) -> None:
        self._has_begun.clear()
        with self._writing:
            with self._lock:
                begun, self._begun = self._begun, []
                open_ = [transcript for transcript in begun if transcript in self._transcripts]
            self._write(open_)

    def _write(self, transcripts: list[GrowingTranscript]) -> None:
        taken = [
            (transcript, addition) for transcript in transcripts if (addition := transcript.take())
        ]
        if not taken:
            return
        try:
            with self._ledger.begin_single() as session:
                written = conversations.append_text(session, [addition for _, addition in taken])
        except SQLAlchemyError as error:
            log.warning("generated text not written yet: %s", error)
            for transcript, addition in taken:
                transcript.put_back(addition)
            return
        for transcript, addition in taken:
            if addition.claim.step_id not in written:
                transcript.context.must_stop("The lease was lost; another worker has the step.")


def write_rest(session: Transaction, transcript: GrowingTranscript) -> None:
    """Store the rest of a transcript in the transaction that records its step."""
    addition = transcript.take()
    if addition is not None:
        conversations.append_text(session, [addition])


INTERRUPTED = (FinishReason.CANCELLED, FinishReason.DEADLINE)


class TextFilter(Protocol):
    """Makes the text for clients from the text of a model."""

    def feed(self, text: str) -> str: ...

    def close(self) -> str: ...


class NoFilter:
    """A filter that shows all text."""

    def feed(self, text: str) -> str:
        return text

    def close(self) -> str:
        return ""


@dataclass(frozen=True, kw_only=True)
class WrittenText:
    """A completion, the text that clients saw of it, and a function that stores the rest with the
    step."""

    completion: Completion
    shown: str
    record: Record


def write(
    context: Context, generator: TextGenerator, request: Request, filter_: TextFilter
) -> WrittenText:
    """Generate a text. Raises Cancelled if the step has to stop, Timeout at the job's deadline."""
    process = context.process
    transcript = GrowingTranscript(context)
    shown: list[str] = []

    def show(text: str, shown_text: str, delta: Delta | None = None) -> None:
        shown.append(shown_text)
        if delta is None:
            transcript.add(text, shown_text)
        else:
            transcript.add(text, shown_text, delta.token_ids, delta.logprobs)

    with process.ledger.read_single() as session:
        before = conversations.of_step(session, context.claim.step_id)
    if before is not None:
        request = replace(request, resume=_resume(before, request))
        transcript.logprobs_before = len(before.logprobs or ())
        again = filter_.feed(before.text)
        shown.append(again[: len(before.shown)])
        transcript.offset = len(before.shown)
        show("", again[len(before.shown) :])
    transcript_writer_of(process).open(transcript)
    try:
        completion = _follow(
            context,
            generator,
            request,
            lambda delta: show(delta.text, filter_.feed(delta.text), delta),
        )
    except BaseException:
        transcript_writer_of(process).finish(transcript)
        _keep(context, transcript)
        raise
    transcript_writer_of(process).finish(transcript)
    show("", filter_.close())
    if completion.finish_reason in INTERRUPTED:
        _keep(context, transcript)
        context.check()
        raise Timeout
    return WrittenText(
        completion=completion,
        shown="".join(shown),
        record=partial(write_rest, transcript=transcript),
    )


def _resume(before: Transcript, request: Request) -> Resume:
    """The output of the attempt before. With log-probabilities, tokens without one are generated
    again: their text was not stored either."""
    ids = tuple(before.token_ids)
    if request.sampling.logprobs is None:
        return Resume(text=before.text, token_ids=ids)
    known = [TokenLogprob.model_validate(entry) for entry in before.logprobs or ()]
    return Resume(text=before.text, token_ids=ids[: len(known)], logprobs=tuple(known))


def _keep(context: Context, transcript: GrowingTranscript) -> None:
    """Store the text of an interrupted attempt, for the next attempt and for clients."""
    try:
        with context.process.ledger.begin() as session:
            write_rest(session, transcript)
    except SQLAlchemyError as error:
        log.warning("the end of the text of step %s is lost: %s", context.claim.step_id, error)


def write_quietly(context: Context, generator: TextGenerator, request: Request) -> Completion:
    """Generate a text that no client sees; after a loss it begins again. Raises what `write`
    raises."""
    completion = _follow(context, generator, request, lambda _delta: None)
    if completion.finish_reason in INTERRUPTED:
        context.check()
        raise Timeout
    return completion


def _follow(
    context: Context, generator: TextGenerator, request: Request, take: Callable[[Delta], None]
) -> Completion:
    # After the first text, this thread sleeps between looks: dozens of threads that wake up for
    # each token would take processor time from the model.
    pause_s = context.process.settings.generation_flush_s / 2
    generation = generator.start(request)
    has_text = False
    try:
        while not generation.is_over:
            if has_text:
                generation.wait(pause_s)
            timeout_s = 0 if has_text else pause_s
            while (delta := generation.read(timeout_s=timeout_s)) is not None:
                context.progress()
                take(delta)
                if delta.text:
                    has_text, timeout_s = True, 0
            if context.stop.is_set() and not generation.is_cancelled:
                generation.cancel()
    except BaseException:
        generation.cancel()
        raise
    assert generation.completion is not None
    return generation.completion


def show_at_once(context: Context, text: str) -> Record:
    """A function that stores a text which was not streamed, so that streams have it at the end."""
    with context.process.ledger.read_single() as session:
        before = conversations.of_step(session, context.claim.step_id)
    transcript = GrowingTranscript(context, offset=len(before.shown) if before else 0)
    transcript.add(text, text[transcript.offset :])
    return partial(write_rest, transcript=transcript)


def sampling(
    parameters: Parameters, settings: Settings, *, step_id: int, choice: int = 0
) -> Sampling:
    """Parameters -> sampling. Raises InvalidInput for more tokens than the server allows.

    Without a seed, the id of the step is the seed, so that the next attempt draws the same tokens.
    The choices of a job have consecutive seeds.
    """
    max_tokens = parameters.max_tokens or settings.max_tokens_default
    check_max_tokens(max_tokens, settings)
    return Sampling(
        max_tokens=max_tokens,
        temperature=parameters.temperature,
        top_p=parameters.top_p,
        top_k=parameters.top_k,
        stop=tuple(parameters.stop),
        seed=step_id if parameters.seed is None else (parameters.seed + choice) % 2**63,
        repetition_penalty=parameters.repetition_penalty,
        frequency_penalty=parameters.frequency_penalty,
        presence_penalty=parameters.presence_penalty,
        logprobs=parameters.logprobs,
    )


def check_max_tokens(max_tokens: int, settings: Settings) -> None:
    limit = settings.max_tokens_limit
    if max_tokens > limit:
        raise InvalidInput(
            f"parameters.max_tokens is {max_tokens:,}; this server allows {limit:,} "
            "(SLUICE_MAX_TOKENS_LIMIT)."
        )


def prompt_budget(generator: TextGenerator, max_tokens: int) -> int:
    """How many tokens a prompt may have: the window without the answer's tokens, but at least half
    of the window."""
    return generator.window_tokens - min(max_tokens, generator.window_tokens // 2)


def deadline(context: Context) -> float | None:
    """The job's deadline, by `time.monotonic()`; computed by the database's clock."""
    with context.process.ledger.read_single() as session:
        left_s = jobs.seconds_left(session, context.claim.job_id)
    return None if left_s is None else time.monotonic() + left_s


def transcript_writer_of(process: Process) -> TranscriptWriter:
    return process.held(_transcript_writer)


def _transcript_writer(process: Process) -> TranscriptWriter:
    return TranscriptWriter(process.settings, process.ledger)
