"""The batch: who joins it, what the model runs, who leaves.

An iteration ends requests that were cancelled or are late, lets waiting requests join, reads a
bounded number of prompt tokens, and generates one token for every row that is ready: so running
streams never wait for a long prompt, and a new request has its first token within a few iterations.
An error fails only the requests that it concerns, and too little memory makes the batch smaller.
`iterate` raises only if the device is broken for the whole process.
"""

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Final, TypeVar

import torch
from torch import Tensor

from shared.errors import Permanent, Retryable, SluiceError
from shared.kinds.chat import Likely, TokenLogprob
from workers.generation.backends.interface import (
    Completion,
    Delta,
    FinishReason,
    Generation,
    Request,
    is_past,
)
from workers.generation.backends.rolling.attention import (
    SHORTEST_TOKENS,
    Network,
    Prefix,
    Prefixes,
    PromptPiece,
    Slab,
    common_tokens,
)
from workers.generation.backends.rolling.graphs import StaticDecode
from workers.generation.backends.rolling.sampling import (
    NOT_A_NUMBER,
    Chooser,
    TokenScores,
    choose,
    score,
)
from workers.models.detokenize import TextStream
from workers.models.devices import is_fatal, is_out_of_memory

log = logging.getLogger(__name__)

ScoredToken = tuple[int, TokenScores | None]
"""The next token of a row, and its log-probability where the row asks for it."""
IMPOSSIBLE: Final = -9999.0
"""What OpenAI writes for the log-probability of an impossible token."""
SOON_TOKENS = 128
"""A row that joins should have room for this many more tokens."""


@dataclass(eq=False, kw_only=True)
class SlabRow:
    """A request that waits or is in the batch. `tokens` are those of its prompt and those
    generated; the slab has the keys and values of the first `filled` of them. `age` is its number
    in the order of arrival."""

    request: Request
    generation: Generation
    tokens: list[int]
    prompt_tokens: int
    max_tokens: int
    chooser: Chooser
    text: TextStream
    age: int
    pieces: list[str]
    """The text so far."""
    repeated_chars: int
    """How many characters of the next text an earlier attempt has shown."""
    spell: Callable[[int], tuple[str, list[int]]]
    """The text of one token, and its bytes."""
    logprobs: list[TokenLogprob] = field(default_factory=list)
    """Of the tokens of `pieces`, if the request asks for them."""
    pending: list[TokenLogprob] = field(default_factory=list)
    """Of tokens whose text has not come yet."""
    filled: int = 0
    times_passed: int = 0
    was_preempted: bool = False

    def show(self, piece: str, ids: tuple[int, ...] = ()) -> None:
        self.pieces.append(piece)
        known = min(len(piece), self.repeated_chars)
        self.repeated_chars -= known
        logprobs: tuple[TokenLogprob, ...] = ()
        if self.pending and piece:
            logprobs = tuple(self.pending)
            self.logprobs += logprobs
            self.pending = []
        self.generation.put(Delta(text=piece[known:], token_ids=ids, logprobs=logprobs))

    def note(self, token: int, scored: TokenScores) -> None:
        """Keep the token's log-probability until its text is shown."""
        text, bytes_ = self.spell(token)
        top = []
        for id_, logprob in scored.top:
            other, other_bytes = self.spell(id_)
            top.append(Likely(token=other, logprob=_finite(logprob), bytes=other_bytes))
        self.pending.append(
            TokenLogprob(token=text, logprob=_finite(scored.logprob), bytes=bytes_, top=top)
        )

    def finish(self, reason: FinishReason) -> None:
        rest = self.text.close()
        if self.pending and not self.text.is_stopped:
            # The last tokens may have no text, or half a character: they are reported, too.
            self.logprobs += self.pending
            self.generation.put(Delta(text="", logprobs=tuple(self.pending)))
            self.pending = []
        if rest:
            self.show(rest)
        self.generation.finish(
            Completion(
                text="".join(self.pieces),
                finish_reason=reason,
                prompt_tokens=self.prompt_tokens,
                completion_tokens=self.generated_tokens,
                logprobs=tuple(self.logprobs),
            )
        )

    def fail(self, error: SluiceError, cause: BaseException | None = None) -> None:
        error.__cause__ = cause
        self.generation.fail(error)

    @property
    def generated_tokens(self) -> int:
        return len(self.tokens) - self.prompt_tokens

    @property
    def missing_tokens(self) -> int:
        """How many tokens the model has to read before the next one can be chosen."""
        return len(self.tokens) - self.filled

    @property
    def tokens_soon(self) -> int:
        return min(len(self.tokens) + SOON_TOKENS, self.prompt_tokens + self.max_tokens)


class RollingBatch:
    """The rows that have a slot. When a row's slot changes, the slab moves its keys and values."""

    def __init__(self, slab: Slab) -> None:
        self.decoding: list[SlabRow] = []
        self.prefilling: list[SlabRow] = []
        self._slab = slab

    def __len__(self) -> int:
        return len(self.decoding) + len(self.prefilling)

    def __iter__(self) -> Iterator[SlabRow]:
        yield from self.decoding
        yield from self.prefilling

    def slot(self, row: SlabRow) -> int:
        if row in self.prefilling:
            return len(self.decoding) + self.prefilling.index(row)
        return self.decoding.index(row)

    def active(self, fair_key: str) -> int:
        return sum(row.request.fair_key == fair_key for row in self)

    def longest(self) -> int:
        return max((len(row.tokens) for row in self), default=0)

    def longest_soon(self) -> int:
        return max((row.tokens_soon for row in self), default=0)

    def join(self, row: SlabRow) -> None:
        """Take the next free slot; the caller has made room in the slab."""
        self.prefilling.append(row)

    def promote(self, row: SlabRow) -> None:
        """The row's prompt has been read: from now on it decodes."""
        at = self.prefilling.index(row)
        if at:
            first = self.prefilling[0]
            slot = len(self.decoding)
            self._slab.swap(slot, slot + at, max(first.filled, row.filled))
            self.prefilling[at] = first
        del self.prefilling[0]
        self.decoding.append(row)

    def remove(self, row: SlabRow) -> None:
        """The last row in the same state takes its slot. If a decoding row left, the last row that
        reads its prompt takes the slot that became free between the two groups."""
        if row in self.prefilling:
            at = self.prefilling.index(row)
            self._close_gap(self.prefilling, at, len(self.decoding))
            return
        self._close_gap(self.decoding, self.decoding.index(row), 0)
        if self.prefilling:
            # The slot after the rows that decode is free now.
            last = self.prefilling.pop()
            slot = len(self.decoding)
            self._slab.move(slot + 1 + len(self.prefilling), slot, last.filled)
            self.prefilling.insert(0, last)

    def clear(self) -> None:
        self.decoding.clear()
        self.prefilling.clear()

    def _close_gap(self, rows: list[SlabRow], at: int, first_slot: int) -> None:
        last = rows.pop()
        if at < len(rows):
            self._slab.move(first_slot + len(rows), first_slot + at, last.filled)
            rows[at] = last


# Counts for tests and for benchmarks.


@dataclass
class Counters:
    """What the loop has done so far. Only its thread writes them."""

    decode_steps: int = 0
    prefill_tokens: int = 0
    generated_tokens: int = 0
    prefix_tokens_reused: int = 0
    preemptions: int = 0
    out_of_memory: int = 0
    largest_batch: int = 0


# How many tokens of each prompt one iteration reads.


def shares(rows: Sequence[SlabRow], budget_tokens: int) -> list[tuple[SlabRow, int]]:
    """The tokens for each row, at most `budget_tokens` together, in the order of `rows`.

    The oldest gets half of them, so that a long prompt makes progress however many short ones
    come; the others are served in the order of what they need, so that a short prompt never waits
    for a long one. The oldest gets the rest.
    """
    if not rows:
        return []
    oldest = min(rows, key=lambda row: row.age)
    quotas = {oldest: min(oldest.missing_tokens, -(-budget_tokens // 2))}
    left = budget_tokens - quotas[oldest]
    others = (row for row in rows if row is not oldest)
    for row in sorted(others, key=lambda row: (row.missing_tokens, row.age)):
        quotas[row] = min(row.missing_tokens, left)
        left -= quotas[row]
    quotas[oldest] = min(oldest.missing_tokens, quotas[oldest] + left)
    return [(row, quotas[row]) for row in rows if quotas[row]]


# The requests that wait for a slot, and which one joins the batch next.
#
# Order: lane, requests that were preempted, the fair key with the fewest rows in the batch, age. A
# request whose keys and values do not fit yet lets smaller ones pass, but not for ever: after
# `PASSES_LIMIT` of them, no other joins until it fits. A request that begins like a prompt that
# another row is reading waits for that row, instead of reading the same tokens.

PASSES_LIMIT: Final = 16


@dataclass(frozen=True, kw_only=True)
class CachedBeginning:
    """How many tokens at a row's beginning need not be read: their keys and values are in the slot
    `source`, or in a prefix that was kept."""

    tokens: int = 0
    source: int | None = None
    kept: Prefix | None = None


class WaitingLine:
    """Used only by the model's thread."""

    def __init__(self) -> None:
        self.rows: list[SlabRow] = []

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, row: SlabRow) -> None:
        self.rows.append(row)

    def remove(self, row: SlabRow) -> None:
        self.rows.remove(row)

    def next(
        self, batch: RollingBatch, fits: Callable[[SlabRow], bool], prefixes: Prefixes
    ) -> "tuple[SlabRow, CachedBeginning] | None":
        """Take out the row that joins now; None if none can."""
        passed = []
        for row in sorted(self.rows, key=lambda row: _priority(row, batch)):
            if not fits(row):
                if row.times_passed >= PASSES_LIMIT:
                    return None
                passed.append(row)
                continue
            beginning = _beginning(row, batch, prefixes)
            if beginning is None:
                continue
            for waiting in passed:
                waiting.times_passed += 1
            self.rows.remove(row)
            return row, beginning
        return None


def _priority(row: SlabRow, batch: RollingBatch) -> tuple[int, bool, int, int]:
    request = row.request
    return request.lane, not row.was_preempted, batch.active(request.fair_key), row.age


def _beginning(row: SlabRow, batch: RollingBatch, prefixes: Prefixes) -> CachedBeginning | None:
    """None if it is better to wait until another row has read the common beginning."""
    # The last token is always read: its logits choose the next one.
    prefix = row.tokens[:-1]
    kept, length = prefixes.longest(prefix)
    best = CachedBeginning(tokens=length, kept=kept)
    coming = 0
    for slot, other in enumerate(batch):
        common = common_tokens(other.tokens, prefix)
        ready = min(common, other.filled)
        if ready > best.tokens:
            best = CachedBeginning(tokens=ready, source=slot)
        # A row that decodes has all but its last token in the slab.
        coming = max(coming, common if other.missing_tokens > 1 else ready)
    if coming - best.tokens >= SHORTEST_TOKENS:
        return None
    return best if best.tokens >= SHORTEST_TOKENS else CachedBeginning()


_T = TypeVar("_T")

PREFILL_LEAST_TOKENS: Final = 16
# After so many decode steps without running out of memory, one more row is tried.
RECOVERY_DECODES: Final = 256


@dataclass(frozen=True, kw_only=True)
class Limits:
    rows: int
    prefill_tokens: int


class Scheduler:
    """For one thread at a time. `ends` are the tokens that end a text; `static`, if given, runs
    decode steps in shapes that do not change."""

    def __init__(
        self,
        network: Network,
        *,
        limits: Limits,
        ends: frozenset[int],
        prefixes: Prefixes,
        static: StaticDecode | None,
    ) -> None:
        self.counters = Counters()
        self._network = network
        self._slab = network.slab
        self._limits = limits
        self._row_limit = limits.rows
        self._prefill_tokens = limits.prefill_tokens
        self._ends = ends
        self._prefixes = prefixes
        self._static = static
        self._batch = RollingBatch(network.slab)
        self._waiting = WaitingLine()

    @property
    def rows(self) -> list[SlabRow]:
        """All rows, in the batch or waiting."""
        return [*self._batch, *self._waiting.rows]

    def take(self, rows: Iterable[SlabRow]) -> None:
        self._waiting.rows += rows

    def iterate(self) -> None:
        self._end_early()
        self._let_join()
        self._read_prompts()
        self._generate()

    def _end_early(self) -> None:
        for row in self.rows:
            if row.generation.is_cancelled:
                self._finish(row, FinishReason.CANCELLED)
            elif is_past(row.request.deadline):
                self._finish(row, FinishReason.DEADLINE)

    def _let_join(self) -> None:
        while len(self._batch) < self._row_limit:
            chosen = self._waiting.next(self._batch, self._fits, self._prefixes)
            if chosen is None:
                break
            row, beginning = chosen
            self._try([row], partial(self._join, row, beginning))
            if row not in self._batch.prefilling:
                break
        self.counters.largest_batch = max(self.counters.largest_batch, len(self._batch))

    def _fits(self, row: SlabRow) -> bool:
        return self._slab.fits(*self._room_with(row))

    def _room_with(self, row: SlabRow) -> tuple[int, int]:
        """The rows and tokens that the slab needs with this row, and for what all rows generate
        soon."""
        if not len(self._batch):
            return 1, len(row.tokens) + 1
        tokens = max(self._batch.longest_soon(), row.tokens_soon)
        return self._slots(len(self._batch) + 1), tokens

    def _slots(self, rows: int) -> int:
        return rows if self._static is None else self._static.padded_rows(rows)

    def _join(self, row: SlabRow, beginning: CachedBeginning) -> None:
        self._slab.reserve(*self._room_with(row))
        slot = len(self._batch)
        if beginning.source is not None:
            self._slab.move(beginning.source, slot, beginning.tokens)
        elif beginning.kept is not None:
            self._slab.restore(beginning.kept.saved, slot, beginning.tokens)
        row.filled = beginning.tokens
        self.counters.prefix_tokens_reused += beginning.tokens
        self._batch.join(row)

    def _read_prompts(self) -> None:
        pieces = shares(self._batch.prefilling, self._prefill_tokens)
        if not pieces:
            return
        ready = [row for row, count in pieces if count == row.missing_tokens]
        tokens = self._try([row for row, _ in pieces], partial(self._prefill, pieces, ready))
        if tokens is None:
            return
        for row, count in pieces:
            row.filled += count
            self.counters.prefill_tokens += count
        for row, choice in zip(ready, tokens, strict=True):
            self._batch.promote(row)
            self._advance(row, choice)

    def _prefill(
        self, pieces: Sequence[tuple[SlabRow, int]], ready: Sequence[SlabRow]
    ) -> list[ScoredToken]:
        prompt_pieces = [
            PromptPiece(
                slot=self._batch.slot(row),
                start=row.filled,
                ids=row.tokens[row.filled : row.filled + count],
            )
            for row, count in pieces
        ]
        logits = self._network.prefill(prompt_pieces, [row in ready for row, _ in pieces])
        return _choose(logits, ready) if ready else []

    def _generate(self) -> None:
        if not self._batch.decoding:
            return
        self._try(list(self._batch), self._make_room)
        rows = list(self._batch.decoding)
        tokens = self._try(rows, partial(self._decode, rows)) if rows else None
        if tokens is None:
            return
        self.counters.decode_steps += 1
        for row in rows:
            row.filled += 1
        for row, choice in zip(rows, tokens, strict=True):
            self._advance(row, choice)
        if self.counters.decode_steps % RECOVERY_DECODES == 0:
            self._row_limit = min(self._limits.rows, self._row_limit + 1)
            self._prefill_tokens = min(self._limits.prefill_tokens, self._prefill_tokens * 2)

    def _make_room(self) -> None:
        """Make room for one more token of every row; if there is none, the youngest rows of the
        last lane are preempted."""
        while not self._slab.reserve(self._slots(len(self._batch)), self._batch.longest()):
            self._preempt(max(self._batch, key=lambda row: (row.request.lane, row.age)))

    def _decode(self, rows: Sequence[SlabRow]) -> list[ScoredToken]:
        decode = self._network.decode if self._static is None else self._static.decode
        logits = decode([row.tokens[-1] for row in rows], [row.filled for row in rows])
        return _choose(logits, rows)

    def _advance(self, row: SlabRow, choice: ScoredToken) -> None:
        """Add the token to the row, or end the row."""
        token, scored = choice
        if token == NOT_A_NUMBER:
            self._leave(row)
            row.fail(Permanent("The model computed no numbers (NaN): its weights are damaged."))
            return
        if token in self._ends:
            self._finish(row, FinishReason.STOP)
            return
        row.tokens.append(token)
        row.chooser.saw(token)
        self.counters.generated_tokens += 1
        if scored is not None:
            row.note(token, scored)
        try:
            piece = row.text.feed(token)
        except Exception as error:
            self._leave(row)
            row.fail(Permanent(f"The tokenizer cannot decode the token {token}."), error)
            return
        row.show(piece, (token,))
        if row.text.is_stopped:
            self._finish(row, FinishReason.STOP)
        elif row.generated_tokens >= row.max_tokens:
            self._finish(row, FinishReason.LENGTH)

    def _finish(self, row: SlabRow, reason: FinishReason) -> None:
        self._leave(row)
        row.finish(reason)

    def _leave(self, row: SlabRow) -> None:
        if row in self._waiting.rows:
            self._waiting.remove(row)
            return
        self._keep_prefix(row)
        self._batch.remove(row)

    def _keep_prefix(self, row: SlabRow) -> None:
        tokens = row.tokens[: row.filled]
        if not self._prefixes.is_new(tokens):
            return
        try:
            saved = self._slab.save(self._batch.slot(row), row.filled)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self._prefixes.clear()
        else:
            self._prefixes.keep(tokens, saved)

    def _preempt(self, row: SlabRow) -> None:
        """The row waits again; later its prompt and its generated tokens are read again."""
        self._keep_prefix(row)
        self._batch.remove(row)
        self._requeue(row)

    def _requeue(self, row: SlabRow) -> None:
        row.filled = 0
        row.was_preempted = True
        self.counters.preemptions += 1
        self._waiting.add(row)

    def _try(self, rows: Sequence[SlabRow], run: Callable[[], _T]) -> _T | None:
        """The result of `run`; None if it failed, and then its rows were failed or wait again."""
        try:
            return run()
        except Exception as error:
            if is_fatal(error):
                raise
            if is_out_of_memory(error):
                self._shrink(rows, error)
            else:
                self._give_up(rows, error)
            return None

    def _shrink(self, tried: Sequence[SlabRow], error: Exception) -> None:
        """Out of memory: the batch gets half of its size. A single row is read in smaller pieces,
        and fails only if that does not help."""
        rows = list({*self._batch, *tried})
        self.counters.out_of_memory += 1
        log.warning("out of memory with %d requests in the batch: %s", len(rows), error)
        self._prefixes.clear()
        if len(rows) > 1:
            self._row_limit = len(rows) // 2
        elif self._prefill_tokens > PREFILL_LEAST_TOKENS:
            self._prefill_tokens = max(PREFILL_LEAST_TOKENS, self._prefill_tokens // 2)
        else:
            failure = Permanent(
                "The request needs more memory than the device has left for it, even alone. "
                "Shorten it, or give the model more room."
            )
            rows.pop().fail(failure, error)
        self._start_over(rows)

    def _give_up(self, rows: Sequence[SlabRow], error: Exception) -> None:
        """A forward pass failed: its rows may be the cause, and fail. The others start over."""
        log.error("the model failed on %d requests", len(rows), exc_info=error)
        others = [row for row in self._batch if row not in rows]
        for row in rows:
            row.fail(
                Retryable(f"The model failed on the batch with this request ({error})."), error
            )
        self._start_over(others)

    def _start_over(self, rows: Sequence[SlabRow]) -> None:
        """Empty the slab. The rows wait, and join again as far as the limits allow."""
        self._batch.clear()
        self._slab.drop()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        for row in rows:
            self._requeue(row)


def _choose(logits: Tensor, rows: Sequence[SlabRow]) -> list[ScoredToken]:
    choosers = [row.chooser for row in rows]
    tokens = choose(logits, choosers, [row.generated_tokens for row in rows])
    return list(zip(tokens, score(logits, choosers, tokens), strict=True))


def _finite(logprob: float) -> float:
    """A number that JSON has: the logit of an impossible token is minus infinity."""
    return max(logprob, IMPOSSIBLE)


# The thread that a model runs in.
#
# Any thread may submit requests. The loop sleeps while there are none; it ends when it is closed
# or when the device is broken, and then fails all requests with `Retryable`, so that another
# worker serves them.


class DecodeLoop:
    """`on_fatal` is called from the loop's thread, after all requests were handed back."""

    def __init__(self, scheduler: Scheduler, on_fatal: Callable[[], None]) -> None:
        self._scheduler = scheduler
        self._on_fatal = on_fatal
        self._inbox: list[SlabRow] = []
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    def submit(self, row: SlabRow) -> None:
        with self._changed:
            if self._is_closed:
                raise Retryable("This generation worker is ending; another one takes over.")
            self._inbox.append(row)
            self._changed.notify()

    def close(self) -> None:
        """End after the current iteration. Unfinished requests fail with a Retryable."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        cause: Exception | None = None
        try:
            with torch.inference_mode():
                while self._take():
                    self._scheduler.iterate()
        except Exception as error:
            log.exception("the device or the engine is broken; handing all requests back")
            cause = error
        with self._changed:
            self._is_closed = True
            rows = [*self._scheduler.rows, *self._inbox]
        reason = "is ending" if cause is None else f"broke down ({cause})"
        for row in rows:
            row.fail(Retryable(f"This generation worker {reason}; another one takes over."), cause)
        if cause is not None:
            self._on_fatal()

    def _take(self) -> bool:
        """Wait for work, then give submitted rows to the scheduler. False if the loop was
        closed."""
        with self._changed:
            while not (self._is_closed or self._inbox or self._scheduler.rows):
                self._changed.wait()
            self._scheduler.take(self._inbox)
            self._inbox.clear()
            return not self._is_closed
