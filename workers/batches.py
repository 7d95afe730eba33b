"""Several steps at once: claimed together, run by one call of their handler, recorded one by one.

Each step keeps its own attempt, lease, heartbeat and cancellation. How many are claimed is learnt
from how many were through in time: steps that are not even begun go back to the queue.
"""

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack

from sqlalchemy.orm import Session

from shared import claims, steps
from shared.claims import Claim
from shared.ledger import ring_after_commit
from workers.process import Process
from workers.pulse import Beat
from workers.step import Context, Done, RunBatch

log = logging.getLogger(__name__)

FIRST_STEPS = 16


class Appetite:
    """How many steps of each batch key a process claims at once, in the light of the last time."""

    def __init__(self, limit_steps: int) -> None:
        self._limit = limit_steps
        self._steps: dict[str, int] = {}

    def of(self, batch_key: str) -> int:
        return self._steps.get(batch_key, min(FIRST_STEPS, self._limit))

    def learn(self, batch_key: str, *, claimed: int, through: int) -> None:
        """Twice as many next time if all were through, else as many as were."""
        wanted = 2 * self.of(batch_key) if through == claimed else max(1, through)
        self._steps[batch_key] = min(self._limit, wanted)


def claim_more(process: Process, session: Session, first: Claim) -> list[Claim]:
    """The steps that are to run together with this one, which was just claimed."""
    if first.batch_key is None:
        return [first]
    more = claims.claim_companions(
        session,
        first,
        worker=process.worker_name,
        lease_s=process.settings.step_lease_s,
        limit=process.appetite.of(first.batch_key) - 1,
        doors=process.doors,
    )
    return [first, *more]


def run_batch(
    process: Process,
    run: RunBatch,
    batch: Sequence[Claim],
    conclude: Callable[[Beat, Done | Exception], None],
) -> None:
    """Run claimed steps to their records, which `conclude` makes, whatever happens in them."""
    contexts = [Context(process, claim) for claim in batch]
    hearts = {context.claim.step_id: ExitStack() for context in contexts}
    with ExitStack() as stack:
        beats = {}
        for context in contexts:
            step_id = context.claim.step_id
            stack.push(hearts[step_id])
            beats[step_id] = hearts[step_id].enter_context(process.heart.beating(context))

        def settle(context: Context, outcome: Done | Exception) -> None:
            step_id = context.claim.step_id
            beat = beats.pop(step_id)
            conclude(beat, outcome)
            hearts[step_id].close()

        failure: Exception | None = None
        try:
            run(contexts, settle)
        except Exception as error:
            failure = error
        left = [context for context in contexts if context.claim.step_id in beats]
        for context in left:
            if failure is not None:
                settle(context, failure)
        given_back = [] if failure is not None else left
        if batch[0].batch_key is not None and failure is None:
            process.appetite.learn(
                batch[0].batch_key, claimed=len(batch), through=len(batch) - len(given_back)
            )
        _give_back(process, given_back)


def _give_back(process: Process, contexts: Sequence[Context]) -> None:
    """Queue steps again that were not begun; those of jobs that are ending end."""
    if not contexts:
        return
    log.info("%s steps of a batch are given back to the queue", len(contexts))
    for context in contexts:
        with process.ledger.begin() as session:
            if steps.retry(session, context.claim, None, in_s=0, free=True):
                ring_after_commit(session, context.claim.queue)
