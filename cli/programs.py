"""Sluice's own parts of the local stack: the API, the workers and beat, each `python -m ...`.

They are told where everything is through `SLUICE_*` variables, as they would be on other machines.
"""

import os
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path

import shared
from cli.parts import Part
from cli.readiness import http_ready, sweeper_ready, worker_ready
from cli.servers import QUIET
from shared.config import Settings

LOOPBACK = "127.0.0.1,localhost,::1"


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where the servers of this stack are."""

    database_url: str = field(repr=False)
    redis_url: str = field(repr=False)
    chroma_url: str
    api_host: str
    api_port: int

    @property
    def api_url(self) -> str:
        return api_address(self.api_host, self.api_port)


def api_address(host: str, port: int) -> str:
    """How this machine reaches the API; one that listens everywhere listens here, too."""
    here = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{here}]:{port}" if ":" in here else f"http://{here}:{port}"


def program_parts(
    settings: Settings, places: Places, *, gpu_workers: int, cpu_workers: int
) -> list[Part]:
    """The API, as many workers of each sort as asked for, and beat."""
    env = _environment(settings, places)
    key = first_key(settings)
    api = Part(
        name="api",
        argv=_python("api"),
        ready=lambda _pid: http_ready(f"{places.api_url}/healthz"),
        env=env,
        port=places.api_port,
        hint="read the log; `sluice doctor` checks the settings that the API reads.",
    )
    beat = Part(
        name="beat",
        argv=_python("workers", "beat"),
        ready=lambda _pid: sweeper_ready(places.api_url, key),
        env=env,
        # The sweeper runs in a CPU worker, so this waits for one.
        ready_timeout_s=180,
        hint="read its log and that of the CPU worker, which does what beat asks for.",
    )
    cpu = [_worker("cpu", number, env, places, key) for number in range(1, cpu_workers + 1)]
    gpu = [_worker("generate", number, env, places, key) for number in range(1, gpu_workers + 1)]
    return [api, *cpu, *gpu, beat]


def first_key(settings: Settings) -> str | None:
    """A key that the API of these settings accepts, where it asks for one."""
    return next((key.get_secret_value() for key in settings.api_keys.values()), None)


def _worker(kind: str, number: int, env: dict[str, str], places: Places, key: str | None) -> Part:
    part_name = f"{kind}-{number}"
    # Several machines may share a database, and workers are known in it by name.
    worker_name = f"{part_name}@{socket.gethostname()}"
    return Part(
        name=part_name,
        argv=_python("workers", kind, "--name", worker_name),
        ready=lambda pid: worker_ready(places.api_url, worker_name, pid, key),
        env=env,
        ready_timeout_s=180,  # models are loaded, and may be fetched first
        stop_grace_s=15,
        hint="read the log; `sluice doctor` checks the packages and the models.",
    )


def _environment(settings: Settings, places: Places) -> dict[str, str]:
    # Found wherever the stack was started from; `-P` keeps that folder's own `api/` out.
    root = str(Path(shared.__file__).resolve().parent.parent)
    proxies = {
        name: ",".join(filter(None, [os.environ.get(name), LOOPBACK]))
        for name in ("NO_PROXY", "no_proxy")
    }
    return {
        **QUIET,
        **proxies,
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
        "PYTHONUNBUFFERED": "1",
        "SLUICE_HOME": str(settings.home_path),
        "SLUICE_DATABASE_URL": places.database_url,
        "SLUICE_REDIS_URL": places.redis_url,
        "SLUICE_CHROMA_URL": places.chroma_url,
        "SLUICE_API_HOST": places.api_host,
        "SLUICE_API_PORT": str(places.api_port),
    }


def _python(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-P", "-m", *arguments)
