"""From claimed steps to works with a loaded model: where it lies, what it is for, who waits for it.

While a model is being loaded, that is announced: a caller who asked not to wait is told so. Jobs
that are cancelled meanwhile end at once.
"""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from shared import loading
from shared.errors import Cancelled, SluiceError
from shared.events import Event, EventType
from shared.hf import HfInput, Task
from shared.loading import Loading
from workers.hf import detect
from workers.hf.task import LocalTask
from workers.hf.work import Work
from workers.step import Context, Done, Settle

Asked = tuple[Context, HfInput]


def load_for(asked: Sequence[Asked], settle: Settle) -> list[tuple[LocalTask, list[Work]]]:
    """The works of each task, with its model. All are of one model; what cannot run is settled."""
    loader = _Loader(asked, settle)
    try:
        with suppress(Cancelled):  # each is settled by then
            return loader.load()
    finally:
        loader.take_back()
    return []


class _Loader:
    def __init__(self, asked: Sequence[Asked], settle: Settle) -> None:
        context, wanted = asked[0]
        self._name = str(wanted.model)
        self._models = context.process.hf_models
        self._events = context.process.ledger.events
        self._settle = settle
        self._asked = list(asked)
        self._is_announced = False

    def load(self) -> list[tuple[LocalTask, list[Work]]]:
        try:
            folder = self._folder()
        except SluiceError as error:
            for context, _ in list(self._asked):
                self._end(context, error)
            return []
        found = []
        for task, works in self._works(folder).items():
            model = self._model(task, works, folder)
            if model is not None:
                found.append((model, works))
        return found

    def take_back(self) -> None:
        """The model is loaded, or cannot be."""
        if self._is_announced:
            loading.done(self._events.redis, self._name)

    def _folder(self) -> Path:
        tasks = {wanted.task for _, wanted in self._asked}
        task = tasks.pop() if len(tasks) == 1 else None
        return self._models.folder(
            self._name,
            task,
            check=self._check,
            # Not before: of a model that is nowhere, nobody is told that it is being loaded.
            on_found=lambda: self._announce(None),
        )

    def _works(self, folder: Path) -> dict[Task, list[Work]]:
        works: dict[Task, list[Work]] = {}
        for context, wanted in list(self._asked):
            try:
                task = detect.choose(
                    folder, self._name, wanted.task, wanted.inputs, wanted.parameters
                )
                works.setdefault(task, []).append(Work.of(context, task, wanted))
            except SluiceError as error:
                self._end(context, error)
        return works

    def _model(self, task: Task, works: Sequence[Work], folder: Path) -> LocalTask | None:
        found = self._models.find(self._name, task)
        if found is not None:
            return found
        self._announce(folder)
        try:
            return self._models.load(self._name, task, folder)
        except SluiceError as error:
            for work in works:
                self._end(work.context, error)
            return None

    def _announce(self, folder: Path | None) -> None:
        news = Loading(model=self._name, estimated_s=self._models.estimated_s(folder))
        loading.announce(self._events.redis, news)
        self._events.publish(
            [
                Event(job_id=context.claim.job_id, type=EventType.STATE, data=news.event())
                for context, _ in self._asked
            ]
        )
        self._is_announced = True

    def _check(self) -> None:
        """Called while a model is waited for. Raises Cancelled once nobody wants it any more."""
        for context, _ in list(self._asked):
            context.progress()
            if context.stop.is_set():
                self._end(context, Cancelled(context.stop_reason))
        if not self._asked:
            raise Cancelled("All jobs that wanted the model were cancelled.")

    def _end(self, context: Context, outcome: Done | Exception) -> None:
        self._asked = [each for each in self._asked if each[0] is not context]
        self._settle(context, outcome)
