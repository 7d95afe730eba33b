"""The step `model.apply`: what a job of the kind `model` asks of the Ollama server.

Doing it again does no harm: a pull goes on where it was, a creation replaces, and a model that an
earlier attempt may have deleted is allowed to be gone.
"""

import time
from contextlib import closing
from typing import Any, Final

from ollama import ProgressResponse

from shared import jobs
from shared.payloads import ModelInput, ModelResult
from workers.generation.ollama import PROVIDER, ModelMissing, OllamaServer
from workers.generation.remote import library
from workers.step import Context, Done, Handler

UNIT: Final = "bytes"


def run(context: Context) -> Done:
    wanted = ModelInput.model_validate(_input(context))
    with closing(OllamaServer(context.process.settings)) as server:
        _apply(context, server, wanted)
    return Done(result=ModelResult(action=wanted.action, name=wanted.name).model_dump())


def _apply(context: Context, server: OllamaServer, wanted: ModelInput) -> None:
    name = wanted.name.removeprefix(PROVIDER)
    meter = _Meter(context)
    if wanted.action == "delete":
        try:
            library.delete(server, name, check=context.check)
        except ModelMissing:
            if context.claim.attempt == 1:
                raise
        return
    if wanted.action == "pull":
        library.pull(server, name, on_progress=meter.note, check=context.check)
    else:
        library.create(
            server,
            name,
            # The shape lets no creation through without it.
            from_=(wanted.from_ or "").removeprefix(PROVIDER),
            system=wanted.system,
            template=wanted.template,
            parameters=wanted.parameters,
            on_progress=meter.note,
            check=context.check,
        )
    meter.write()


class _Meter:
    """Adds up the layers of a model, and writes the sum down once a heartbeat."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._layers: dict[str, tuple[int, int]] = {}
        self._next_write = time.monotonic()

    def note(self, part: ProgressResponse) -> None:
        self._context.progress()
        if part.digest is None or part.total is None:
            return
        done, total = self._layers.get(part.digest, (0, 0))
        self._layers[part.digest] = (max(done, part.completed or 0), max(total, part.total))
        if time.monotonic() >= self._next_write:
            self.write()

    def write(self) -> None:
        if not self._layers:
            return
        done = sum(done for done, _ in self._layers.values())
        total = sum(total for _, total in self._layers.values())
        process = self._context.process
        with process.ledger.begin() as session:
            jobs.report(session, self._context.claim, done, total, UNIT)
        self._next_write = time.monotonic() + process.settings.step_heartbeat_s


def _input(context: Context) -> dict[str, Any]:
    with context.process.ledger.read() as session:
        return jobs.get(session, context.claim.job_id).input


APPLY = Handler(run=run)
