"""Models from the hub: what of them is fetched, by one process of a machine at a time.

Before any weights, the little files that tell what the model is for are fetched and looked at. The
fetching is done by a thread of its own: who waits for it can be cancelled, and a download that
takes longer than a step goes on behind it.
"""

import logging
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from pathlib import Path
from typing import Any, Final

from billiard.exceptions import SoftTimeLimitExceeded
from filelock import FileLock, Timeout
from huggingface_hub import constants, get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError
from huggingface_hub.utils.tqdm import tqdm

from shared.config import Settings
from shared.errors import Cancelled, Permanent, Unavailable
from shared.hf import Task
from workers.hf.checkpoints import CONFIG, holds_model, no_weights, weight_files
from workers.hf.detect import check_task
from workers.hf.download_faults import told, unreachable
from workers.hf.selection import DESCRIPTION, has_weights, wanted

log = logging.getLogger(__name__)

POLL_S: Final = 0.2
"""How often those who wait look whether they still should."""


def fetch(model: str, settings: Settings, *, task: Task | None, check: Callable[[], None]) -> Path:
    """The snapshot of a model in the hub's cache, fetched if it is not there whole.

    Raises what `workers.hf.files.locate` does, and Unavailable for a download that goes on.
    """
    cached = _cached(model)
    if cached is not None:
        return cached
    download = _Download(model, settings, task)
    download.start()
    try:
        while not wait([download.outcome], timeout=POLL_S).done:
            check()
    except SoftTimeLimitExceeded:
        if not download.has_lock:
            download.stop.set()
        raise Unavailable(
            f"{model} is still being downloaded from the hub, which goes on; the job waits for it."
        ) from None
    except BaseException:
        download.stop.set()
        raise
    return download.outcome.result()


class _Download(threading.Thread):
    """`outcome` gets the folder or the error; `stop` ends the download at its next block."""

    def __init__(self, model: str, settings: Settings, task: Task | None) -> None:
        super().__init__(name=f"download of {model}", daemon=True)
        self.outcome: Future[Path] = Future()
        self.stop = threading.Event()
        self.has_lock = False
        self._model = model
        self._settings = settings
        self._task = task

    def run(self) -> None:
        try:
            self.outcome.set_result(self._fetch_alone())
        except BaseException as error:
            self.outcome.set_exception(error)

    def _fetch_alone(self) -> Path:
        # In the cache itself: whoever shares the cache, in other containers too, shares the lock.
        folder = Path(constants.HF_HUB_CACHE) / ".locks" / "sluice"
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{self._model.replace('/', '--')}.lock")
        while not self.has_lock:
            try:
                lock.acquire(timeout=POLL_S)
                self.has_lock = True
            except Timeout:
                self._check()
        try:
            # Another process may have fetched it meanwhile.
            return _cached(self._model) or self._fetch()
        finally:
            lock.release()

    def _fetch(self) -> Path:
        model = self._model
        folder = self._snapshot(DESCRIPTION)
        if not holds_model(folder):
            raise Permanent(f"{model} has no {CONFIG} on the hub; it is no model of transformers.")
        check_task(folder, model, self._task)
        names = _listed(model, folder)
        if names is None:
            return self._as_it_is(folder)
        patterns = wanted(names, folder)
        if not has_weights(patterns):
            raise Permanent(no_weights(model, names))
        log.info("downloading %s (%d files)", model, len(patterns))
        return self._snapshot(patterns, revision=folder.name)

    def _as_it_is(self, folder: Path) -> Path:
        """The hub is away, and what is in its cache was put there by another program."""
        try:
            weight_files(folder)
        except Permanent as error:
            raise unreachable(self._model, self._settings, error.message) from error
        return folder

    def _snapshot(self, patterns: Iterable[str], revision: str | None = None) -> Path:
        token = self._settings.hf_token
        with told(self._model, self._settings):
            self._check()
            return Path(
                snapshot_download(
                    self._model,
                    revision=revision,
                    allow_patterns=list(patterns),
                    token=token.get_secret_value() if token is not None else None,
                    tqdm_class=self._bar(),
                )
            )

    def _bar(self) -> type[Any]:
        """Shows nothing: it is how the download asks, block by block, whether to go on."""
        check = self._check

        class Bar(tqdm):
            def __init__(self, *args: Any, **kwargs: Any) -> None:
                # tqdm has no types.
                super().__init__(*args, **kwargs | {"disable": True})  # type: ignore[no-untyped-call]

            def update(self, n: float | None = 1) -> None:  # noqa: ARG002 (nothing is counted)
                check()

        return Bar

    def _check(self) -> None:
        if self.stop.is_set():
            raise Cancelled("The download was given up.")


def _cached(model: str) -> Path | None:
    """The snapshot, if all of it that is wanted is on this machine."""
    try:
        folder = Path(
            snapshot_download(model, local_files_only=True, allow_patterns=list(DESCRIPTION))
        )
        names = _listed(model, folder)
        if names is None:
            return None
        snapshot_download(
            model,
            revision=folder.name,
            local_files_only=True,
            allow_patterns=wanted(names, folder),
        )
    except LocalEntryNotFoundError:
        return None
    return folder


def _listed(model: str, folder: Path) -> list[str] | None:
    """The files that the model has on the hub, as far as that was ever asked."""
    try:
        return [file.path for file in get_cached_repo_tree(model, revision=folder.name)]
    except CachedRepoTreeNotFoundError:
        return None
