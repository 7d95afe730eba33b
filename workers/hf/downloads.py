"""Models from the hub: what of them is fetched, by one process of a machine at a time.

Where nothing of a model is here, the hub is asked for it with little patience: if it cannot be
reached, there is no such model. Before any weights, the little files that tell what the model is
for are fetched and looked at. The fetching is done by a thread of its own: who waits for it can be
cancelled, and a download that takes longer than a step goes on behind it.
"""

import logging
import socket
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future, wait
from glob import escape
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx
from billiard.exceptions import SoftTimeLimitExceeded
from filelock import FileLock, Timeout
from huggingface_hub import HfApi, constants, get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError
from huggingface_hub.utils.tqdm import tqdm

from shared.config import Settings
from shared.errors import Cancelled, Permanent, Unavailable
from shared.hf import Task
from workers.hf.checkpoints import CONFIG, SizeLimit, holds_model, no_weights, weight_files
from workers.hf.detect import check_task
from workers.hf.download_faults import told, unreachable
from workers.hf.selection import DESCRIPTION, has_weights, is_weights, wanted

log = logging.getLogger(__name__)

POLL_S: Final = 0.2
"""How often those who wait look whether they still should."""


def fetch(
    model: str,
    settings: Settings,
    *,
    task: Task | None,
    limit: SizeLimit,
    check: Callable[[], None],
    on_found: Callable[[], None],
) -> Path:
    """The snapshot of a model in the hub's cache, fetched if it is not there whole. `on_found` is
    called once the hub is known to have the model, and its arrival is waited for.

    Raises what `workers.hf.files.locate` does, and Unavailable for a download that goes on.
    """
    cached = _cached(model)
    if cached is not None:
        return cached
    download = _Download(model, settings, task, limit)
    download.start()
    is_found = False
    try:
        while not wait([download.outcome], timeout=POLL_S).done:
            check()
            if download.is_known and not is_found:
                is_found = True
                on_found()
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

    def __init__(self, model: str, settings: Settings, task: Task | None, limit: SizeLimit) -> None:
        super().__init__(name=f"download of {model}", daemon=True)
        self.outcome: Future[Path] = Future()
        self.stop = threading.Event()
        self.has_lock = False
        self._model = model
        self._settings = settings
        self._task = task
        self._limit = limit
        self.is_known = False

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
        self.is_known = _described(model) is not None
        if not self.is_known:
            self._look_up()
        folder = self._snapshot(DESCRIPTION)
        if not holds_model(folder):
            raise Permanent(f"{model} has no {CONFIG} on the hub; it is no model of transformers.")
        check_task(folder, model, self._task)
        tree = _tree(model, folder)
        if tree is None:
            return self._as_it_is(folder)
        patterns = wanted(tree, folder)
        if not has_weights(patterns):
            raise Permanent(no_weights(model, tree))
        taken = {name for name in tree if escape(name) in set(patterns)}
        self._limit.check(model, sum(tree[name] for name in taken if is_weights(name)))
        self._check_reachable()  # the library would try for half a minute
        log.info("downloading %s (%d files)", model, len(patterns))
        return self._snapshot(patterns, revision=folder.name)

    def _look_up(self) -> None:
        """Ask the hub for a model of which nothing is here. Soon known is what matters: whether
        the hub can be reached at all, and whether it has the model."""
        settings = self._settings
        connect_s, answer_s = settings.hub_connect_timeout_s, settings.hub_answer_timeout_s
        self._check_reachable()
        with told(self._model, settings, is_known=False):
            HfApi(token=self._token()).model_info(
                self._model,
                revision=constants.DEFAULT_REVISION,
                # Of all that httpx takes, its type is only one.
                timeout=httpx.Timeout(answer_s, connect=connect_s),  # type: ignore[arg-type]
            )
        self.is_known = True

    def _check_reachable(self) -> None:
        if not constants.HF_HUB_OFFLINE:
            with told(self._model, self._settings, is_known=self.is_known):
                check_reachable(constants.ENDPOINT, limit_s=self._settings.hub_connect_timeout_s)

    def _as_it_is(self, folder: Path) -> Path:
        """The hub is away, and what is in its cache was put there by another program."""
        try:
            weight_files(folder)
        except Permanent as error:
            raise unreachable(self._model, self._settings, error.message, is_known=True) from error
        return folder

    def _snapshot(self, patterns: Iterable[str], revision: str | None = None) -> Path:
        with told(self._model, self._settings, is_known=self.is_known):
            self._check()
            return Path(
                snapshot_download(
                    self._model,
                    revision=revision,
                    allow_patterns=list(patterns),
                    etag_timeout=self._settings.hub_answer_timeout_s,
                    token=self._token(),
                    tqdm_class=self._bar(),
                )
            )

    def _token(self) -> str | None:
        token = self._settings.hf_token
        return token.get_secret_value() if token is not None else None

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


def check_reachable(url: str, *, limit_s: float) -> None:
    """Raises OSError where nothing listens at the place of a URL, or at the proxy before it.

    A thread of its own looks: names may take longer to be resolved than anybody should wait, and
    nothing ends that.
    """
    place = urlsplit(url)
    host = place.hostname or ""
    proxies = {} if proxy_bypass(host) else getproxies()
    proxy = proxies.get(place.scheme) or proxies.get("all")
    if proxy:
        place = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    name = f"{place.hostname}:{place.port}" if place.port else str(place.hostname)
    shown = f"the proxy {name}" if proxy else name
    port = place.port or (443 if place.scheme == "https" else 80)
    outcome: Future[None] = Future()

    def connect() -> None:
        try:
            socket.create_connection((place.hostname, port), timeout=limit_s).close()
            outcome.set_result(None)
        except (OSError, UnicodeError) as error:
            outcome.set_exception(OSError(f"{shown}: {getattr(error, 'strerror', 0) or error}"))

    threading.Thread(target=connect, name=f"look for {shown}", daemon=True).start()
    if not wait([outcome], timeout=limit_s).done:
        raise OSError(
            f"{shown} was not reached within {limit_s:g} s (SLUICE_HUB_CONNECT_TIMEOUT_S)"
        )
    outcome.result()


def _cached(model: str) -> Path | None:
    """The snapshot, if all of it that is wanted is on this machine."""
    folder = _described(model)
    tree = _tree(model, folder) if folder is not None else None
    if folder is None or tree is None:
        return None
    try:
        snapshot_download(
            model,
            revision=folder.name,
            local_files_only=True,
            allow_patterns=wanted(tree, folder),
        )
    except LocalEntryNotFoundError:
        return None
    return folder


def _described(model: str) -> Path | None:
    """The snapshot, if what tells what the model is for is on this machine."""
    try:
        return Path(
            snapshot_download(model, local_files_only=True, allow_patterns=list(DESCRIPTION))
        )
    except LocalEntryNotFoundError:
        return None


def _tree(model: str, folder: Path) -> dict[str, int] | None:
    """The files that the model has on the hub, with their sizes in bytes, as far as that was ever
    asked."""
    try:
        tree = get_cached_repo_tree(model, revision=folder.name)
    except CachedRepoTreeNotFoundError:
        return None
    return {file.path: file.size for file in tree}
