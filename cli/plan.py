"""What a local stack of these settings consists of: which servers it runs itself, and where.

Making a plan makes what the parts need on disk. It starts nothing that stays.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cli.parts import Part
from cli.ports import api_port, free_ports
from cli.postgres import postgres_part, postgres_url, prepare
from cli.programs import Crew, Places, program_parts
from cli.readiness import chroma_ready, database_ready, redis_ready
from cli.servers import chroma_part, chroma_url, new_password, redis_part, redis_url
from cli.stackfile import run_folder
from shared.config import Settings
from shared.errors import ConfigurationError, SluiceError


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Servers first, then what needs them."""

    servers: tuple[Part, ...]
    programs: tuple[Part, ...]
    places: Places


def make_home(home: Path) -> None:
    """The folders under home; only the owner sees what is in them."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (run_folder(home), home / "logs", home / "files"):
            folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"The folder {home} cannot be used ({error}). Set SLUICE_HOME to a folder that you "
            "may write to."
        ) from error


def make_plan(
    settings: Settings,
    *,
    gpu_workers: int,
    cpu_workers: int,
    models: Sequence[str] = (),
    device: str | None = None,
    say: Callable[[str], None],
) -> Plan:
    """Decide everything before anything is started. Takes seconds the first time."""
    home = settings.home_path
    _require_given_servers(settings)
    fixed = "api_port" in settings.model_fields_set
    port = api_port(settings.api_host, settings.api_port, fixed=fixed)
    if port != settings.api_port:
        say(f"port {settings.api_port} is taken; the API listens on {port}")
    database_port, redis_port, chroma_port = free_ports(3)
    servers: list[Part] = []

    if settings.database_url is None:
        cluster = prepare(home, say)
        servers.append(postgres_part(cluster, database_port))
        database = postgres_url(cluster, database_port)
    else:
        database = settings.require_database_url()
    if settings.redis_url is None:
        password = new_password()
        servers.append(redis_part(home, redis_port, password))
        redis = redis_url(redis_port, password)
    else:
        redis = settings.require_redis_url()
    if settings.chroma_url is None:
        servers.append(chroma_part(home, chroma_port))
        chroma = chroma_url(chroma_port)
    else:
        chroma = settings.chroma_url

    places = Places(
        database_url=database,
        redis_url=redis,
        chroma_url=chroma,
        api_host=settings.api_host,
        api_port=port,
    )
    crew = Crew(
        cpu_workers=cpu_workers, gpu_workers=gpu_workers, models=tuple(models), device=device
    )
    programs = program_parts(settings, places, crew)
    return Plan(servers=tuple(servers), programs=tuple(programs), places=places)


def migrate(plan: Plan) -> None:
    from shared.db import upgrade

    try:
        upgrade(plan.places.database_url)
    except Exception as error:
        raise SluiceError(
            f"The database could not be brought up to date: {error}\nIf this is a database of your "
            "own (SLUICE_DATABASE_URL), its user must be allowed to create tables. If a newer "
            "Sluice has used it, install that version."
        ) from error


def _require_given_servers(settings: Settings) -> None:
    if settings.database_url is not None:
        reason = database_ready(settings.require_database_url())
        _require("SLUICE_DATABASE_URL", reason)
    if settings.redis_url is not None:
        _require("SLUICE_REDIS_URL", redis_ready(settings.require_redis_url()))
    if settings.chroma_url is not None:
        _require("SLUICE_CHROMA_URL", chroma_ready(settings.chroma_url))


def _require(name: str, reason: str | None) -> None:
    if reason is not None:
        raise ConfigurationError(
            f"{name} is set, but that server does not answer: {reason}. Start it or correct the "
            f"URL; without {name} the local stack runs a server of its own."
        )
