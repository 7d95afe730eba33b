"""The heartbeat of a running step: extends the lease, and learns when to stop.

One thread for each running step. It never ends the step itself; it tells the context, which the
handler looks at between units of work.
"""

import logging
import threading
import time
from types import TracebackType

from sqlalchemy.exc import SQLAlchemyError

from shared import steps
from shared.steps import Pulse
from workers.step import Context

log = logging.getLogger(__name__)


class Heartbeat:
    """Beats while the `with` block runs."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self.lost = False

    def __enter__(self) -> "Heartbeat":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _beat(self) -> None:
        settings = self._context.process.settings
        lease_s = settings.step_lease_s
        started = extended = time.monotonic()
        while not self._ended.wait(settings.step_heartbeat_s):
            now = time.monotonic()
            if now - started > settings.step_soft_limit_s:
                self._context.must_stop(
                    f"The step took longer than {settings.step_soft_limit_s} s "
                    "(SLUICE_STEP_SOFT_LIMIT_S)."
                )
            extend = now - extended > lease_s / 3
            try:
                with self._context.process.ledger.begin() as session:
                    pulse = steps.heartbeat(
                        session, self._context.claim, lease_s=lease_s, extend=extend
                    )
            except SQLAlchemyError as error:
                log.warning("heartbeat failed: %s", error)
                if now - extended > lease_s:
                    self._lose()
                continue
            if extend:
                extended = now
            if pulse is Pulse.LOST:
                self._lose()
            elif pulse is Pulse.STOP:
                self._context.must_stop("The job is ending.")

    def _lose(self) -> None:
        self.lost = True
        self._context.must_stop("The lease was lost; another worker has the step.")
