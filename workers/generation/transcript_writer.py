"""Writes down what is generated: to Postgres first, then to the clients' streams.

One thread and one transaction every `generation_flush_s` for all texts that a process generates.
Where Postgres does not answer, text waits here; a step that has lost its lease is told to stop.
"""

import logging
import threading
import time
from dataclasses import dataclass, field

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from shared import conversations
from shared.config import Settings
from shared.conversations import Addition
from shared.database.transaction import Ledger
from workers.attempts.context import Context

log = logging.getLogger(__name__)


@dataclass
class Script:
    """The text of one step as it grows. `offset` counts the characters that are written down."""

    context: Context
    offset: int = 0
    _text: list[str] = field(default_factory=list)
    _shown: list[str] = field(default_factory=list)
    _token_ids: list[int] = field(default_factory=list)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, text: str, shown: str, token_ids: tuple[int, ...]) -> None:
        self.context.progress()
        with self._lock:
            self._text.append(text)
            self._shown.append(shown)
            self._token_ids.extend(token_ids)

    def take(self) -> Addition | None:
        """What has come since; None if nothing has."""
        with self._lock:
            if not (self._token_ids or any(self._text) or any(self._shown)):
                return None
            addition = Addition(
                claim=self.context.claim,
                text="".join(self._text),
                shown="".join(self._shown),
                token_ids=tuple(self._token_ids),
                offset=self.offset,
            )
            self.offset += len(addition.shown)
            self._text, self._shown, self._token_ids = [], [], []
            return addition

    def put_back(self, addition: Addition) -> None:
        """It could not be written; it comes again with what follows."""
        with self._lock:
            self.offset -= len(addition.shown)
            self._text.insert(0, addition.text)
            self._shown.insert(0, addition.shown)
            self._token_ids[:0] = addition.token_ids


class TranscriptWriter:
    """Writes while any script is open."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger
        self._scripts: list[Script] = []
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None

    def open(self, script: Script) -> None:
        with self._lock:
            self._scripts.append(script)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="scribe", daemon=True)
                self._thread.start()

    def close(self, script: Script) -> None:
        """From here on the script is its owner's alone, who writes its rest with `write_rest`."""
        with self._lock:
            self._scripts.remove(script)
        with self._writing:  # a round that has taken from it has ended, or put it back
            pass

    def _run(self) -> None:
        while True:
            time.sleep(self._settings.generation_flush_s)
            with self._lock:
                if not self._scripts:
                    self._thread = None
                    return
                scripts = list(self._scripts)
            with self._writing:
                self._write(scripts)

    def _write(self, scripts: list[Script]) -> None:
        taken = [(script, addition) for script in scripts if (addition := script.take())]
        if not taken:
            return
        try:
            with self._ledger.begin() as session:
                written = conversations.append_text(session, [addition for _, addition in taken])
        except SQLAlchemyError as error:
            log.warning("generated text not written yet: %s", error)
            for script, addition in taken:
                script.put_back(addition)
            return
        for script, addition in taken:
            if addition.claim.step_id not in written:
                script.context.must_stop("The lease was lost; another worker has the step.")


def write_rest(session: Session, script: Script) -> None:
    """Write what a closed script still holds, in the transaction that records its step."""
    addition = script.take()
    if addition is not None:
        conversations.append_text(session, [addition])
