"""The thread that runs a model for all requests under way, turn by turn.

A turn drops who was cancelled or is late, lets waiting requests join, reads a bounded number of
prompt tokens, and has every row that is ready generate one token. Errors stay with the requests
they belong to: out of memory makes the batch smaller, and only a device that is broken for the
whole process ends the loop, once all requests were handed back.
"""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final, TypeVar

import torch
from torch import Tensor

from shared.errors import Permanent, Retryable
from workers.generation.admission import Beginning, Waiting
from workers.generation.attention import Chunk
from workers.generation.engine import FinishReason, is_past
from workers.generation.faults import is_fatal, is_out_of_memory
from workers.generation.graphs import StaticSteps
from workers.generation.network import Network
from workers.generation.prefixes import Prefixes
from workers.generation.reading import shares
from workers.generation.rows import Batch, Row
from workers.generation.sampling import NOT_A_NUMBER, choose

log = logging.getLogger(__name__)

_T = TypeVar("_T")

PREFILL_LEAST_TOKENS: Final = 16
# After so many steps without running out of memory, one more row is tried.
RECOVERY_STEPS: Final = 256


@dataclass
class Counters:
    """What the loop has done so far. Written by its thread alone."""

    decode_steps: int = 0
    prefill_tokens: int = 0
    generated_tokens: int = 0
    prefix_tokens_reused: int = 0
    preemptions: int = 0
    out_of_memory: int = 0
    largest_batch: int = 0


@dataclass(frozen=True, kw_only=True)
class Limits:
    rows: int
    prefill_tokens: int


class Loop:
    """`submit` rows from any thread; `close` hands back what is under way."""

    def __init__(
        self,
        network: Network,
        *,
        limits: Limits,
        ends: frozenset[int],
        prefixes: Prefixes,
        static: StaticSteps | None,
        on_fatal: Callable[[], None],
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
        self._on_fatal = on_fatal
        self._batch = Batch(network.slab)
        self._waiting = Waiting()
        self._inbox: list[Row] = []
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    def submit(self, row: Row) -> None:
        with self._changed:
            if self._is_closed:
                raise Retryable("This generation worker is ending; another one takes over.")
            self._inbox.append(row)
            self._changed.notify()

    def close(self) -> None:
        """End after the current turn. What is under way fails with a Retryable."""
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
                    self._turn()
        except Exception as error:
            log.exception("the device or the engine is broken; handing all requests back")
            cause = error
        with self._changed:
            self._is_closed = True
            rows = [*self._batch, *self._waiting.rows, *self._inbox]
        reason = "is ending" if cause is None else f"broke down ({cause})"
        for row in rows:
            row.fail(Retryable(f"This generation worker {reason}; another one takes over."), cause)
        if cause is not None:
            self._on_fatal()

    def _take(self) -> bool:
        """What was submitted joins the line; sleeps while there is nothing at all to do.

        False once the loop is to end.
        """
        with self._changed:
            while not (self._is_closed or self._inbox or self._waiting.rows or len(self._batch)):
                self._changed.wait()
            self._waiting.rows += self._inbox
            self._inbox.clear()
            return not self._is_closed

    def _turn(self) -> None:
        self._end_early()
        self._let_join()
        self._read_prompts()
        self._generate()

    # Ending and joining

    def _end_early(self) -> None:
        for row in [*self._batch, *self._waiting.rows]:
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
            self._attempt([row], partial(self._join, row, beginning))
            if row not in self._batch.prefilling:
                break
        self.counters.largest_batch = max(self.counters.largest_batch, len(self._batch))

    def _fits(self, row: Row) -> bool:
        return self._slab.fits(*self._room_with(row))

    def _room_with(self, row: Row) -> tuple[int, int]:
        """Rows and tokens: room for the row and for what all rows generate soon."""
        if not len(self._batch):
            return 1, len(row.tokens) + 1
        tokens = max(self._batch.longest_soon(), row.tokens_soon)
        return self._slots(len(self._batch) + 1), tokens

    def _slots(self, rows: int) -> int:
        return rows if self._static is None else self._static.padded_rows(rows)

    def _join(self, row: Row, beginning: Beginning) -> None:
        self._slab.reserve(*self._room_with(row))
        slot = len(self._batch)
        if beginning.source is not None:
            self._slab.move(beginning.source, slot, beginning.tokens)
        elif beginning.kept is not None:
            self._slab.restore(beginning.kept.saved, slot, beginning.tokens)
        row.filled = beginning.tokens
        self.counters.prefix_tokens_reused += beginning.tokens
        self._batch.join(row)

    # Running the model

    def _read_prompts(self) -> None:
        pieces = shares(self._batch.prefilling, self._prefill_tokens)
        if not pieces:
            return
        ready = [row for row, count in pieces if count == row.missing_tokens]
        tokens = self._attempt([row for row, _ in pieces], partial(self._prefill, pieces, ready))
        if tokens is None:
            return
        for row, count in pieces:
            row.filled += count
            self.counters.prefill_tokens += count
        for row, token in zip(ready, tokens, strict=True):
            self._batch.promote(row)
            self._advance(row, token)

    def _prefill(self, pieces: Sequence[tuple[Row, int]], ready: Sequence[Row]) -> list[int]:
        chunks = [
            Chunk(
                slot=self._batch.slot(row),
                start=row.filled,
                ids=row.tokens[row.filled : row.filled + count],
            )
            for row, count in pieces
        ]
        logits = self._network.prefill(chunks, [row in ready for row, _ in pieces])
        return _chosen(logits, ready) if ready else []

    def _generate(self) -> None:
        if not self._batch.decoding:
            return
        self._attempt(list(self._batch), self._make_room)
        rows = list(self._batch.decoding)
        tokens = self._attempt(rows, partial(self._decode, rows)) if rows else None
        if tokens is None:
            return
        self.counters.decode_steps += 1
        for row, token in zip(rows, tokens, strict=True):
            row.filled += 1
            self._advance(row, token)
        if self.counters.decode_steps % RECOVERY_STEPS == 0:
            self._row_limit = min(self._limits.rows, self._row_limit + 1)
            self._prefill_tokens = min(self._limits.prefill_tokens, self._prefill_tokens * 2)

    def _make_room(self) -> None:
        """For one more token of every row; the youngest of the worst lane make way."""
        while not self._slab.reserve(self._slots(len(self._batch)), self._batch.longest()):
            self._preempt(max(self._batch, key=lambda row: (row.request.lane, row.age)))

    def _decode(self, rows: Sequence[Row]) -> list[int]:
        step = self._network.decode if self._static is None else self._static.decode
        logits = step([row.tokens[-1] for row in rows], [row.filled for row in rows])
        return _chosen(logits, rows)

    def _advance(self, row: Row, token: int) -> None:
        """The row has a token more, or has ended."""
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

    def _finish(self, row: Row, reason: FinishReason) -> None:
        self._leave(row)
        row.finish(reason)

    def _leave(self, row: Row) -> None:
        if row in self._waiting.rows:
            self._waiting.remove(row)
            return
        self._keep_prefix(row)
        self._batch.remove(row)

    def _keep_prefix(self, row: Row) -> None:
        tokens = row.tokens[: row.filled]
        if not self._prefixes.wants(tokens):
            return
        try:
            saved = self._slab.save(self._batch.slot(row), row.filled)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            self._prefixes.clear()
        else:
            self._prefixes.keep(tokens, saved)

    def _preempt(self, row: Row) -> None:
        """Back to the line; its prompt and what it generated are read again later."""
        self._keep_prefix(row)
        self._batch.remove(row)
        self._requeue(row)

    def _requeue(self, row: Row) -> None:
        row.filled = 0
        row.was_preempted = True
        self.counters.preemptions += 1
        self._waiting.add(row)

    # Faults

    def _attempt(self, rows: Sequence[Row], run: Callable[[], _T]) -> _T | None:
        """None where it failed, and what that means for the rows was seen to."""
        try:
            return run()
        except Exception as error:
            if is_fatal(error):
                raise
            if is_out_of_memory(error):
                self._shed(error)
            else:
                self._give_up(rows, error)
            return None

    def _shed(self, error: Exception) -> None:
        """Out of memory: half of the rows wait, the youngest. One alone is read in smaller pieces,
        and fails only where that does not help."""
        self.counters.out_of_memory += 1
        log.warning("out of memory with %d requests in the batch: %s", len(self._batch), error)
        self._prefixes.clear()
        rows = sorted(self._batch, key=lambda row: row.age)
        if len(rows) > 1:
            self._row_limit = len(rows) // 2
        elif self._prefill_tokens > PREFILL_LEAST_TOKENS:
            self._prefill_tokens = max(PREFILL_LEAST_TOKENS, self._prefill_tokens // 2)
        elif rows:
            self._batch.remove(rows[0])
            rows.pop().fail(
                Permanent(
                    "The request needs more memory than the device has left for it, even alone. "
                    "Shorten it, or give the model more room."
                ),
                error,
            )
        self._start_over(rows)

    def _give_up(self, rows: Sequence[Row], error: Exception) -> None:
        """The rows of a forward pass that failed may be to blame; the others are not."""
        log.error("the model failed on %d requests", len(rows), exc_info=error)
        others = [row for row in self._batch if row not in rows]
        for row in rows:
            row.fail(
                Retryable(f"The model failed on the batch with this request ({error})."), error
            )
        self._start_over(others)

    def _start_over(self, rows: Sequence[Row]) -> None:
        """With an empty slab. All of the rows wait, and join again as far as the limits allow."""
        self._batch.clear()
        self._slab.drop()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        for row in rows:
            self._requeue(row)


def _chosen(logits: Tensor, rows: Sequence[Row]) -> list[int]:
    return choose(logits, [row.chooser for row in rows], [row.generated_tokens for row in rows])
