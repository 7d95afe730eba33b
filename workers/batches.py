"""The steps of a batch: reads its file, runs its lines, and completes the answer files.

`batch.run` does a little work and then puts itself off until there is more to do. It either reads
the next part of the file, or settles the lines that have ended and makes jobs of as many others.
At most SLUICE_BATCH_OPEN_LINES lines are open at once, and batches fill at most half of a queue, so
memory and queues stay small even with 50,000 lines. The open lines are shared out between the
queues and models that lines wait for: a model that nobody serves delays its own lines only. Each
run is one fenced transaction, so a line becomes one job and is answered once.

`batch.close` runs after the batch has ended, however it ended. It rewrites the answer files, whose
lines were in the order of their ends, in the order of the input.
"""

import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from shared import files
from shared.bounds import as_object, from_json, json_line
from shared.database.transaction import Transaction
from shared.errors import (
    BatchExpired,
    Conflict,
    InvalidInput,
    NotFound,
    SluiceError,
    Unavailable,
    code_of,
    type_of,
)
from shared.files import Purpose
from shared.jobs import batches, jobs, queues, steps, submission
from shared.jobs.batches import EXPIRED, WITHOUT_RESULT, LineOutcome, NewLine, Shares, WaitingLine
from shared.jobs.claims import Claim
from shared.jobs.submission import NewJob
from shared.kinds.batch import (
    BadLine,
    BatchInput,
    BatchResult,
    EndedJob,
    LineError,
    ValidLine,
    endpoint_of,
    parse_line,
)
from shared.kinds.kind import Kind
from shared.redis.bell import queue_of
from shared.tables import Batch, File
from shared.vocabulary import Lane, LaneRank, Queue, State
from workers.attempts.context import Context, Done, Handler
from workers.attempts.retry import message_of

log = logging.getLogger(__name__)

UNIT = "lines"
READ_BYTES = 2 * 2**20
"""How much of the file one run of the step reads; a longer line is read whole."""
OPEN_AT_ONCE, OPEN_BYTES = 500, 4 * 2**20
REDRIVEN_AT_ONCE = 200
SETTLE_AT_ONCE, SETTLE_BYTES = 500, 8 * 2**20
GAP_BYTES = 4096
"""Lines that lie at most this far apart are read from the storage by one call."""
SHARE_OF_LINES = 100
"""Ended lines wait until they are 1/100 of the lines settled so far; then they are written as one
part, so that a file has few parts."""
WRITE_AFTER_S, SHARE_OF_TIME = 30.0, 200
"""However few they are, ended lines are written after this time, or after 1/200 of the time that
the batch has run if that is longer: a batch that runs for weeks has few parts, too."""
MERGED_PARTS = 2000
"""A file with this many parts is rewritten as one part, so that reading it opens few objects."""
LEAST_SHARE = 32
"""The lines of one queue and model may be at least 1/32 of the open lines."""
IDLE_FACTOR, IDLE_LIMIT_S = 4, 10.0
"""The pause between two runs grows to a quarter of the time in which no line ended, up to the
limit."""
STOPPING_S = 1.0
"""How long `batch.close` waits in one run for the last lines of a cancelled batch."""
CONTENT_TYPE = "application/jsonl"


def run(context: Context) -> Done:
    batch = _batch_row(context)
    if batch.validated_at is None:
        return _read_some(context, batch)
    return _Round(context, batch).run()


def _batch_row(context: Context) -> Batch:
    """The row of the batch, which its first run makes."""
    batch_id = context.claim.job_id
    with context.process.ledger.read() as session:
        batch = session.get(Batch, batch_id)
    if batch is not None:
        return batch
    job_input = context.input(BatchInput)
    left = timedelta(seconds=context.process.settings.batch_finish_s)
    with context.process.ledger.begin() as session:
        return batches.begin(
            session, batch_id, finish_by=job_input.finish_by or datetime.now(UTC) + left
        )


# Reading the file


def _read_some(context: Context, batch: Batch) -> Done:
    """Record the lines of the next part of the file. Raises InvalidInput once the file is read, or
    has too many errors, and some lines are wrong."""
    settings, batch_id = context.process.settings, batch.id
    file = _file(context)
    if batch.errors and (
        batch.read_bytes >= file.size_bytes or len(batch.errors) >= settings.batch_limit_errors
    ):
        raise _invalid(context, batch.errors)
    part = _LineReader(context, file, batch)
    part.read()
    at_end = part.end >= file.size_bytes
    if at_end and batch.total + len(part.lines) == 0 and not (batch.errors or part.errors):
        part.errors.append(
            LineError(line=None, code="empty_file", message="The file has no lines.")
        )

    def record(transaction: Transaction) -> None:
        errors = [*part.errors, *batches.add_lines(transaction, batch_id, part.lines)]
        errors.sort(key=lambda error: error.line or 0)
        room = settings.batch_limit_errors - len(batch.errors)
        batches.note_read(
            transaction,
            batch_id,
            read_bytes=file.size_bytes if part.is_over else part.end,
            read_lines=part.number,
            lines=len(part.lines),
            errors=errors[:room],
        )
        if at_end and not (errors or batch.errors):
            batches.note_valid(transaction, batch_id)
            total = batch.total + len(part.lines)
            jobs.report(transaction, context.claim, 0, total, UNIT)

    return Done(record=record, again_in_s=0)


def _file(context: Context) -> File:
    file_id = context.input(BatchInput).file_id
    with context.process.ledger.read() as session:
        file = files.get(session, file_id)
    if file.parts is not None and len(file.parts) != 1:
        raise InvalidInput(f"File {file.id} is written by a batch that runs; wait for its end.")
    return file


def _path(file: File) -> str:
    return file.path if file.parts is None else file.parts[0]


def _invalid(context: Context, errors: Sequence[Mapping[str, Any]]) -> InvalidInput:
    """Delete the lines of a batch whose file has errors; returns the error that ends the batch."""
    with context.process.ledger.begin() as session:
        if steps.hold(session, context.claim):
            batches.delete_lines(session, context.claim.job_id)
    first = errors[0]
    where = f"Line {first['line']:,}" if first["line"] else "The file"
    limit = context.process.settings.batch_limit_errors
    count = "at least " if len(errors) >= limit else ""
    return InvalidInput(
        f"No line was run, for {count}{len(errors):,} of the file cannot be: {where}: "
        f"{first['message']} Correct them and upload the file again; `errors` of the batch has all."
    )


class _LineReader:
    """Reads the next lines of the input file.

    `lines` and `errors` come from the bytes up to `end`, whose last line has the number `number`.
    With `is_over` the rest of the file is not read.
    """

    def __init__(self, context: Context, file: File, batch: Batch) -> None:
        self._context = context
        self._settings = context.process.settings
        self._file = file
        self._endpoint = context.input(BatchInput).endpoint
        self._total = batch.total
        self.number = batch.read_lines
        self.end = batch.read_bytes
        self.lines: list[NewLine] = []
        self.errors: list[LineError] = []
        self.is_over = False

    def read(self) -> None:
        limit = self._settings.max_body_bytes
        size = READ_BYTES
        data = self._bytes(size)
        while b"\n" not in data and self.end + len(data) < self._file.size_bytes:
            if len(data) > limit:
                self._fail(
                    "too_large",
                    f"is longer than {limit:,} bytes (SLUICE_MAX_BODY_BYTES). Make several lines "
                    "of it. The lines after it were not read.",
                )
                return
            size = min(2 * size, limit + 1)
            data = self._bytes(size)
        at_end = self.end + len(data) >= self._file.size_bytes
        whole = data if at_end else data[: data.rindex(b"\n") + 1]
        for raw in _lines(whole):
            self._take(raw)
            if self.is_over:
                return

    def _bytes(self, size: int) -> bytes:
        return self._context.process.storage.part(_path(self._file), self.end, self.end + size)

    def _take(self, raw: bytes) -> None:
        start, self.end = self.end, self.end + len(raw)
        self.number += 1
        self._context.check()
        text = raw.strip()
        if start == 0:
            text = text.removeprefix(b"\xef\xbb\xbf")
        if not text:
            return
        if self._total + len(self.lines) >= self._settings.batch_limit_lines:
            self._fail(
                "too_many_lines",
                f"is one more than the {self._settings.batch_limit_lines:,} lines that a batch may "
                "have (SLUICE_BATCH_LIMIT_LINES). Make several batches.",
                number=self.number,
            )
            return
        try:
            line = parse_line(text, endpoint=self._endpoint, settings=self._settings)
        except BadLine as error:
            self.errors.append(error.at(self.number))
            self.is_over = len(self.errors) >= self._settings.batch_limit_errors
            return
        self.lines.append(
            NewLine(
                number=self.number, custom_id=line.custom_id, start=start, size_bytes=len(raw),
                url=line.url, queue_model=line.queue_model, options=line.request.options,
            )
        )  # fmt: skip

    def _fail(self, code: str, message: str, *, number: int | None = None) -> None:
        line = number or self.number + 1
        self.errors.append(LineError(line=line, code=code, message=message))
        self.is_over = True


def _lines(data: bytes) -> Iterator[bytes]:
    """Split at line feeds only: the other characters at which `splitlines` splits may occur inside
    a line of JSON."""
    start = 0
    while start < len(data):
        end = data.find(b"\n", start) + 1 or len(data)
        yield data[start:end]
        start = end


# Letting lines run


@dataclass(kw_only=True)
class _LineOutcomes:
    """What becomes of waiting lines, by their numbers."""

    new: dict[int, NewJob] = field(default_factory=dict)
    redriven: dict[int, UUID] = field(default_factory=dict)
    """Jobs of an earlier run that failed and run again."""
    refused: dict[int, dict[str, Any]] = field(default_factory=dict)
    """Errors of lines that cannot become jobs."""
    lines: dict[int, WaitingLine] = field(default_factory=dict)
    leaves_some: bool = False
    """Whether there was room for more lines than were taken."""


@dataclass(kw_only=True)
class _Answers:
    """Lines for the two answer files, and how many tokens models read and wrote for them."""

    output: list[bytes] = field(default_factory=list)
    errors: list[bytes] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0


class _Round:
    """One run of `batch.run` after the file was read: settles lines, and opens others."""

    def __init__(self, context: Context, batch: Batch) -> None:
        self._context = context
        self._process = context.process
        self._settings = context.process.settings
        self._batch = batch
        settled = batch.succeeded + batch.failed + batch.cancelled + batch.expired
        self._settled = settled
        self._waiting = batch.total - batch.open - settled

    def run(self) -> Done:
        batch, context = self._batch, self._context
        if batch.open == 0 and self._waiting == 0:
            return self._end()
        is_late = datetime.now(UTC) >= batch.finish_by
        if is_late and batch.expired_at is None:
            return Done(record=lambda own: batches.expire(own, batch.id), again_in_s=0)
        with self._process.ledger.read() as session:
            shares = batches.shares(session, batch.id)
        share = self._share(shares)
        outcomes, more = self._outcomes(share)
        opening = _LineOutcomes()
        if batch.expired_at is None and self._waiting:
            room = self._settings.batch_open_lines - batch.open + len(outcomes)
            ended = Counter(outcome.queue_model for outcome in outcomes)
            opening = self._opening(room, {
                name: share - shares.open.get(name, 0) + ended[name] for name in shares.waiting
            })  # fmt: skip
        answers = _Answers()
        for n, outcome in enumerate(outcomes):
            context.check()
            outcomes[n] = _add_answer(context, batch.id, outcome, answers)
        for number, error in opening.refused.items():
            line = opening.lines[number]
            answers.errors.append(
                _refused_answer(batch.id, number, custom_id=line.custom_id, error=error)
            )
        write = self._parts(answers)

        def record(transaction: Transaction) -> None:
            write(transaction)
            batches.settle(
                transaction,
                batch.id,
                outcomes,
                prompt_tokens=answers.prompt_tokens,
                completion_tokens=answers.completion_tokens,
            )
            batches.refuse(transaction, batch.id, opening.refused)
            _open(transaction, batch.id, opening)
            done = self._settled + len(outcomes) + len(opening.refused)
            jobs.report(transaction, context.claim, done, batch.total, UNIT)

        at_once = more or opening.leaves_some or self._is_over(outcomes, opening)
        has_moved = bool(outcomes or opening.lines)
        return Done(record=record, again_in_s=0 if at_once else self._pause_s(has_moved))

    def _share(self, shares: Shares) -> int:
        """How many lines of one queue and model may be open."""
        parts = min(max(1, shares.count), LEAST_SHARE)
        return max(1, self._settings.batch_open_lines // parts)

    def _is_over(self, outcomes: Sequence[LineOutcome], opening: _LineOutcomes) -> bool:
        return (
            self._batch.open == len(outcomes)
            and not opening.new
            and not opening.redriven
            and self._waiting == len(opening.refused)
        )

    def _pause_s(self, has_moved: bool) -> float:
        interval_s = self._settings.batch_interval_s
        if has_moved or self._batch.settled_at is None:
            return interval_s
        now = datetime.now(UTC)
        idle_s = (now - self._batch.settled_at).total_seconds()
        pause_s = min(max(interval_s, idle_s / IDLE_FACTOR), max(interval_s, IDLE_LIMIT_S))
        if self._batch.expired_at is not None:
            return pause_s
        # The deadline of the batch may come earlier.
        return max(0.0, min(pause_s, (self._batch.finish_by - now).total_seconds()))

    def _end(self) -> Done:
        """The result of the batch. Raises BatchExpired if lines were not done in time."""
        batch = self._batch
        if batch.expired_at is not None and batch.expired:
            raise BatchExpired(
                f"{batch.finish_by.isoformat(timespec='seconds')} (finish_by) has passed before "
                f"{batch.expired:,} of {batch.total:,} lines were done; the others have their "
                f"answers. Run these with `POST /v1/batches/{batch.id}/retry`, or "
                "`sluice batch retry-failed`."
            )
        result = BatchResult(
            total=batch.total,
            succeeded=batch.succeeded,
            failed=batch.failed + batch.cancelled,
            output_file_id=batch.output_file_id,
            error_file_id=batch.error_file_id,
        )
        warnings = []
        if result.failed:
            warnings.append(
                f"{result.failed:,} of {result.total:,} lines failed; the file of errors says why. "
                f"`POST /v1/batches/{batch.id}/retry` runs them again."
            )
        return Done(result=result.model_dump(mode="json"), warnings=warnings)

    # Lines that have ended

    def _outcomes(self, share: int) -> tuple[list[LineOutcome], bool]:
        """The lines to settle in this run, none if it is too early, and whether there are more."""
        batch = self._batch
        with self._process.ledger.read() as session:
            numbers, more = batches.ended_numbers(
                session, batch.id, limit=SETTLE_AT_ONCE, limit_bytes=SETTLE_BYTES
            )
            if not numbers or not (more or self._is_time(len(numbers), share)):
                return [], False
            has_expired = batch.expired_at is not None
            return batches.ended_outcomes(session, batch.id, numbers, has_expired=has_expired), more

    def _is_time(self, count: int, share: int) -> bool:
        """Whether `count` ended lines are enough, or have waited long enough, to be written."""
        batch = self._batch
        if count == batch.open or batch.settled_at is None or batch.validated_at is None:
            return True
        now = datetime.now(UTC)
        idle_s = (now - batch.settled_at).total_seconds()
        age_s = (now - batch.validated_at).total_seconds()
        least = min(self._settled // SHARE_OF_LINES, share // 4)
        return count >= least or idle_s >= max(WRITE_AFTER_S, age_s / SHARE_OF_TIME)

    def _parts(self, answers: _Answers) -> Callable[[Transaction], None]:
        """Write a part of each answer file to the storage. The function returned records them."""
        writes = [
            self._part(answers.output, is_output=True),
            self._part(answers.errors, is_output=False),
        ]

        def write(transaction: Transaction) -> None:
            for append in writes:
                append(transaction)

        return write

    def _part(self, lines: Sequence[bytes], *, is_output: bool) -> Callable[[Transaction], None]:
        if not lines:
            return lambda _transaction: None
        file_id = self._grown_file(is_output=is_output)
        merge = self._merge_parts(file_id)
        part = files.write_part(self._process.storage, file_id, b"".join(lines))

        def append(transaction: Transaction) -> None:
            try:
                merge(transaction)
                files.append(transaction, file_id, part)
            except NotFound:  # its user has deleted it, or the batch was retried
                batches.note_file(transaction, self._batch.id, is_output=is_output, file_id=None)

        return append

    def _merge_parts(self, file_id: UUID) -> Callable[[Transaction], None]:
        """Rewrite a file of very many parts as one. The function returned records it."""
        with self._process.ledger.read() as session:
            if files.count_parts(session, file_id) < MERGED_PARTS:
                return lambda _transaction: None
            file = files.get(session, file_id)
        return _rewrite(self._context, file_id, files.blocks(self._process.storage, file))

    def _grown_file(self, *, is_output: bool) -> UUID:
        """The file that answers are appended to; the first answer makes it."""
        batch = self._batch
        known = batch.output_file_id if is_output else batch.error_file_id
        if known is not None:
            return known
        with self._process.ledger.begin() as session:
            return _begin_file(session, self._context, batch.id, is_output=is_output)

    # Lines that wait

    def _opening(self, room: int, room_of: Mapping[str, int]) -> _LineOutcomes:
        """The next waiting lines, read from the file again: at most `room`, and of each queue and
        model at most `room_of` it."""
        opening = _LineOutcomes()
        if room < 1:
            return opening
        with self._process.ledger.read() as session:
            rooms = _QueueRoom(session, self._context)
            lines, more = batches.waiting(
                session,
                self._batch.id,
                {name: rooms.at_most(name, own) for name, own in room_of.items()},
                limit=min(room, OPEN_AT_ONCE),
                limit_bytes=OPEN_BYTES,
            )
            before = [line for line in lines if line.job_id is not None][:REDRIVEN_AT_ONCE]
            if before:
                opening.lines = {line.number: line for line in before}
                opening.redriven = {line.number: line.job_id for line in before if line.job_id}
                opening.leaves_some = room > len(before)
                return opening
            opening.leaves_some = more and room > len(lines)
            for line, raw in self._texts(lines, opening):
                self._context.check()
                try:
                    valid = parse_line(
                        raw,
                        endpoint=self._context.input(BatchInput).endpoint,
                        settings=self._settings,
                    )
                    _require(session, valid)
                except (BadLine, NotFound, InvalidInput) as error:
                    opening.refused[line.number] = {"type": error.code, "message": error.message}
                    opening.lines[line.number] = line
                    continue
                if not rooms.takes(valid.request.kind):
                    opening.leaves_some = False
                    continue
                opening.lines[line.number] = line
                opening.new[line.number] = self._new_job(valid)
        return opening

    def _texts(
        self, lines: Sequence[WaitingLine], opening: _LineOutcomes
    ) -> Iterator[tuple[WaitingLine, bytes]]:
        """The bytes of the lines; lines that lie close together are read by one call."""
        try:
            file = _file(self._context)
        except NotFound as error:
            message = f"{error.message} Lines that had not begun cannot be run."
            for line in lines:
                opening.lines[line.number] = line
                opening.refused[line.number] = {"type": error.code, "message": message}
            return
        for group in _groups(lines):
            start = group[0].start
            end = group[-1].start + group[-1].size_bytes
            data = self._process.storage.part(_path(file), start, end)
            for line in group:
                at = line.start - start
                raw = data[at : at + line.size_bytes].strip()
                yield line, raw.removeprefix(b"\xef\xbb\xbf") if line.start == 0 else raw

    def _new_job(self, line: ValidLine) -> NewJob:
        claim = self._context.claim
        return NewJob(
            kind=line.request.kind,
            input=line.job_input,
            fair_key=claim.fair_key,
            lane=_lane(claim),
            metadata={"batch_id": str(self._batch.id), "custom_id": line.custom_id},
            max_attempts=claim.max_attempts - claim.free_attempts,
            batch_id=self._batch.id,
        )


def _lane(claim: Claim) -> Lane:
    return LaneRank(claim.lane).lane if claim.lane in set(LaneRank) else Lane.BULK


class _QueueRoom:
    """How many more lines each queue takes: batches fill at most half of a queue."""

    def __init__(self, session: Session, context: Context) -> None:
        self._session = session
        self._fair_key = context.claim.fair_key
        self._settings = context.process.settings
        self._left: dict[Queue, int] = {}

    def at_most(self, queue_model: str, count: int) -> int:
        """How many of `count` lines of this queue and model can be opened."""
        # Lines older than this column have it empty; `takes` counts them once they are read.
        left = self._of(queue_of(queue_model)) if queue_model else count
        return max(0, min(count, left))

    def _of(self, queue: Queue) -> int:
        if queue not in self._left:
            self._left[queue] = self._room(queue)
        return self._left[queue]

    def takes(self, kind: Kind) -> bool:
        queue = kind.first_step.queue
        if self._of(queue) < 1:
            return False
        self._left[queue] -= 1
        return True

    def _room(self, queue: Queue) -> int:
        limit = max(1, self._settings.queue_limit_steps // 2)
        room = limit - queues.count_due(self._session, queue, up_to=limit)
        if self._settings.steps_per_key is None:
            return room
        limit = max(1, self._settings.steps_per_key // 2)
        due = queues.count_due(self._session, queue, up_to=limit, fair_key=self._fair_key)
        return min(room, limit - due)


def _require(session: Session, line: ValidLine) -> None:
    """Raises NotFound if the line names a collection, a file or the like that does not exist."""
    kind, name = line.request.kind, line.job_input.get("collection")
    if name is not None:
        kind.find_collection(session, name)
    kind.require(session, [line.job_input])


def _groups(lines: Sequence[WaitingLine]) -> Iterator[list[WaitingLine]]:
    group: list[WaitingLine] = []
    for line in lines:
        if group and line.start - (group[-1].start + group[-1].size_bytes) > GAP_BYTES:
            yield group
            group = []
        group.append(line)
    if group:
        yield group


def _open(transaction: Transaction, batch_id: UUID, opening: _LineOutcomes) -> None:
    """Submit the jobs of new lines, and redrive those of lines that failed before."""
    numbers = list(opening.new)
    ids = submission.submit_batch(transaction, list(opening.new.values())) if numbers else []
    opened = dict(zip(numbers, ids, strict=True))
    for number, job_id in opening.redriven.items():
        try:
            jobs.redrive(transaction, job_id, batch_id=batch_id)
        except (Conflict, NotFound):
            # The job cannot run again: the next run of this step reads its line from the file.
            batches.forget_job(transaction, batch_id, number)
            continue
        opened[number] = job_id
    batches.note_open(transaction, batch_id, opened)


# Lines of the files


def _add_answer(
    context: Context, batch_id: UUID, outcome: LineOutcome, answers: _Answers
) -> LineOutcome:
    """Add the answer of a line to `answers`. Returns its outcome, which is changed to `failed` if
    the result cannot be written, so that one line holds up no other. Raises Unavailable if the
    storage does not answer."""
    if outcome.state != State.SUCCEEDED:
        answers.errors.append(_error_line(batch_id, outcome))
        return outcome
    try:
        body = _body(context, outcome)
    except Unavailable:
        raise
    except Exception as error:
        log.exception("line %s of batch %s has no answer", outcome.number, batch_id)
        message = f"The job has succeeded, and its answer cannot be written: {message_of(error)}"
        failed = replace(
            outcome,
            state=State.FAILED.value,
            error={"type": code_of(error), "message": message},
            has_own_error=True,
        )
        answers.errors.append(_error_line(batch_id, failed))
        return failed
    usage = as_object(as_object(body).get("usage"))
    answers.prompt_tokens += _count(usage.get("prompt_tokens") or usage.get("input_tokens"))
    answers.completion_tokens += _count(
        usage.get("completion_tokens") or usage.get("output_tokens")
    )
    response = _response(200, outcome.job_id or batch_id, body)
    answers.output.append(_line(batch_id, outcome.number, outcome.custom_id, response, None))
    return outcome


def _body(context: Context, outcome: LineOutcome) -> Any:
    """The answer as the endpoint gives it to a single request."""
    result = outcome.result
    if result is None and outcome.result_path is not None:
        result = from_json(context.process.storage.read(outcome.result_path))
    endpoint = endpoint_of(outcome.url)
    if endpoint is None or outcome.job_id is None or outcome.created_at is None:
        raise NotFound(f"There is no endpoint {outcome.url}.")
    return endpoint.answer(
        EndedJob(
            id=outcome.job_id,
            input=outcome.input,
            result=result,
            created_at=outcome.created_at,
            # Links are relative: a batch does not know under which address it was sent.
            options={"base_url": ""} | dict(outcome.options),
        )
    )


def _error_line(batch_id: UUID, outcome: LineOutcome) -> bytes:
    if outcome.state == EXPIRED:
        return _line(batch_id, outcome.number, outcome.custom_id, None, {
            "code": "batch_expired",
            "message": "This request was not done before the batch's time was up (finish_by).",
        })  # fmt: skip
    if outcome.state == State.CANCELLED:
        return _line(batch_id, outcome.number, outcome.custom_id, None, {
            "code": "batch_cancelled", "message": "This request was cancelled before it was done.",
        })  # fmt: skip
    response = _failure(outcome.error, outcome.job_id or batch_id)
    return _line(batch_id, outcome.number, outcome.custom_id, response, None)


def _refused_answer(
    batch_id: UUID, number: int, *, custom_id: str, error: Mapping[str, Any]
) -> bytes:
    return _line(batch_id, number, custom_id, _failure(error, batch_id), None)


def _failure(error: Mapping[str, Any], request_id: UUID) -> dict[str, Any]:
    """The error response that the endpoint gives to a single request."""
    code = str(error.get("type", ""))
    status = (type_of(code) or SluiceError).job_status
    type_ = "invalid_request_error" if status < 500 else "server_error"
    body = {"message": error.get("message", ""), "type": type_, "param": None, "code": code}
    return _response(status, request_id, {"error": body})


def _response(status: int, request_id: UUID, body: Any) -> dict[str, Any]:
    return {"status_code": status, "request_id": str(request_id), "body": body}


def _line(
    batch_id: UUID,
    number: int,
    custom_id: str,
    response: Mapping[str, Any] | None,
    error: Mapping[str, Any] | None,
) -> bytes:
    value = {
        "id": f"batch_req_{batch_id.hex}{number:08x}",
        "custom_id": custom_id,
        "response": response,
        "error": error,
    }
    return json_line(value).encode("utf-8", "backslashreplace") + b"\n"


def _count(value: Any) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0


# Files


def _begin_file(session: Session, context: Context, batch_id: UUID, *, is_output: bool) -> UUID:
    """Make an empty answer file. Raises Conflict if this attempt no longer holds the step."""
    if not steps.hold(session, context.claim):
        raise Conflict(f"This attempt of the batch {batch_id} runs no longer.")
    kept_s = context.input(BatchInput).output_expires_after_s
    expires_at = None if kept_s is None else datetime.now(UTC) + timedelta(seconds=kept_s)
    file = files.begin(
        session,
        name=f"batch_{batch_id.hex}_{'output' if is_output else 'error'}.jsonl",
        purpose=Purpose.BATCH_OUTPUT,
        content_type=CONTENT_TYPE,
        expires_at=expires_at,
    )
    batches.note_file(session, batch_id, is_output=is_output, file_id=file.id)
    return file.id


class _Stream:
    """A readable file over blocks of bytes; counts and hashes what is read."""

    def __init__(self, blocks: Iterator[bytes]) -> None:
        self._blocks = blocks
        self._hash = hashlib.sha256()
        self.size_bytes = 0

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()

    def read(self, _size: int = -1, /) -> bytes:
        block = next(self._blocks, b"")
        self._hash.update(block)
        self.size_bytes += len(block)
        return block


def close(context: Context) -> Done:
    """Settle the lines that were stopped, and write the files in the order of the lines."""
    process, batch_id = context.process, context.claim.job_id
    with process.ledger.read() as session:
        batch = session.get(Batch, batch_id)
    if batch is None or batch.closed_at is not None:
        return Done()
    if batch.validated_at is None:
        return Done(record=lambda transaction: batches.note_closed(transaction, batch_id))
    if not _settle_rest(context, batch):
        return Done(again_in_s=process.settings.batch_interval_s / 4)
    with process.ledger.begin() as session:
        if steps.hold(session, context.claim):
            state = State.CANCELLED.value if batch.expired_at is None else EXPIRED
            batches.end_waiting(session, batch_id, state)
    usage = _Answers()
    writes = [
        _write_in_order(context, batch_id, usage, is_output=True),
        _write_in_order(context, batch_id, usage, is_output=False),
    ]

    def record(transaction: Transaction) -> None:
        for write in writes:
            write(transaction)
        batches.note_closed(
            transaction,
            batch_id,
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
        )

    return Done(record=record)


def _settle_rest(context: Context, batch: Batch) -> bool:
    """Settle the lines that have ended since. Returns whether no line is left open."""
    deadline = time.monotonic() + STOPPING_S
    has_expired = batch.expired_at is not None
    while True:
        context.check()
        with context.process.ledger.begin() as session:
            if not steps.hold(session, context.claim):
                return False
            numbers, more = batches.ended_numbers(
                session, batch.id, limit=SETTLE_AT_ONCE, limit_bytes=2**62
            )
            batches.settle_numbers(session, batch.id, numbers, has_expired=has_expired)
            left = batches.count_open(session, batch.id)
        if not left:
            return True
        if not more and time.monotonic() > deadline:
            return False
        if not more:
            time.sleep(0.1)


def _write_in_order(
    context: Context, batch_id: UUID, usage: _Answers, *, is_output: bool
) -> Callable[[Transaction], None]:
    """Write an answer file to the storage in the order of the lines, and add up the usage of its
    answers. The function returned puts it in the place of the parts written so far."""
    process = context.process
    states = (State.SUCCEEDED.value,) if is_output else WITHOUT_RESULT
    with process.ledger.read() as session:
        batch = session.get(Batch, batch_id)
        assert batch is not None
        is_empty = not batches.settled_numbers(
            session, batch_id, states=states, after=0, limit=1, limit_bytes=1
        )
    file_id = batch.output_file_id if is_output else batch.error_file_id
    if is_empty:
        return lambda _transaction: None
    if file_id is None:
        with process.ledger.begin() as session:
            file_id = _begin_file(session, context, batch_id, is_output=is_output)
    return _rewrite(context, file_id, _answer_blocks(context, batch_id, states, usage))


def _rewrite(
    context: Context, file_id: UUID, blocks: Iterator[bytes]
) -> Callable[[Transaction], None]:
    """Write blocks to the storage. The function returned makes them the contents of the file."""
    storage = context.process.storage
    stream = _Stream(blocks)
    path = files.new_part_path(file_id)
    storage.write(path, stream)
    context.on_lost.append(lambda: storage.delete(path))
    # Parts that an attempt wrote and did not record, because it died, go as well.
    others = [other for other in files.part_paths(storage, file_id) if other != path]

    def write(transaction: Transaction) -> None:
        part = files.Part(path=path, size_bytes=stream.size_bytes)
        try:
            files.replace_parts(transaction, file_id, part, sha256=stream.sha256)
        except NotFound:  # its user has deleted it
            batches.delete_later(transaction, [path], after_s=0)
            return
        batches.delete_later(transaction, others, after_s=context.process.settings.batch_replaced_s)

    return write


def _answer_blocks(
    context: Context, batch_id: UUID, states: Sequence[str], usage: _Answers
) -> Iterator[bytes]:
    """The answers of the lines that ended in one of `states`, in their order. Adds to `usage`."""
    after = 0
    while True:
        context.check()
        with context.process.ledger.read() as session:
            numbers = batches.settled_numbers(
                session,
                batch_id,
                states=states,
                after=after,
                limit=SETTLE_AT_ONCE,
                limit_bytes=SETTLE_BYTES,
            )
            outcomes = batches.settled_outcomes(session, batch_id, numbers)
        if not outcomes:
            return
        answers = _Answers()
        for outcome in outcomes:
            _add_answer(context, batch_id, outcome, answers)
        usage.prompt_tokens += answers.prompt_tokens
        usage.completion_tokens += answers.completion_tokens
        yield b"".join([*answers.output, *answers.errors])
        after = outcomes[-1].number


def absorb_close(session: Transaction, claim: Claim, _message: str) -> None:
    """A failed `batch.close` fails no batch: its files keep the order in which lines ended."""
    batches.note_closed(session, claim.job_id)


BATCH_RUN = Handler(run=run)
BATCH_CLOSE = Handler(run=close, absorb=absorb_close)
