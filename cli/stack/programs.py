"""Sluice's own parts of the local stack: the API, the workers and beat, each `python -m ...`.

They get the addresses of the servers through `SLUICE_*` variables, as on other machines.
"""

import os
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import shared
from cli.stack.readiness import http_ready, sweeper_ready, worker_ready
from cli.stack.servers import QUIET
from cli.stack.stackfile import Part, Stack
from shared.config import EXTRACTIVE, Settings

_TIMEOUT_S = 20
"""Of `nvidia-smi`: an idle driver takes seconds to answer the first time."""


def cuda_devices() -> int:
    """The number of CUDA devices that child processes see; 0 without a driver. Uses no torch."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([device for device in visible.split(",") if device.strip() not in ("", "-1")])
    program = shutil.which("nvidia-smi")
    if program is None:
        return 0
    try:
        listing = subprocess.run(
            [program, "-L"], capture_output=True, text=True, check=True, timeout=_TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError):
        return 0
    return sum(line.startswith("GPU ") for line in listing.stdout.splitlines())


AUTO = "auto"
LOOPBACK = "127.0.0.1,localhost,::1"


@dataclass(frozen=True, kw_only=True)
class ServerAddresses:
    """Where the servers of this stack are."""

    database_url: str = field(repr=False)
    redis_url: str = field(repr=False)
    vectors_url: str = field(repr=False)
    api_host: str
    api_port: int

    @property
    def api_url(self) -> str:
        return api_address(self.api_host, self.api_port)


def api_address(host: str, port: int) -> str:
    """The URL of the API for this machine. An API that listens everywhere is at loopback."""
    local = {"0.0.0.0": "127.0.0.1", "": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{local}]:{port}" if ":" in local else f"http://{local}:{port}"


@dataclass(frozen=True, kw_only=True)
class WorkerCounts:
    """The numbers of workers. `models` and `device` are for generation workers.

    Without `models` each serves the default of `python -m workers generate`.
    """

    cpu_workers: int = 1
    gpu_workers: int = 1
    models: tuple[str, ...] = ()
    device: str | None = None


def program_parts(
    settings: Settings, addresses: ServerAddresses, workers: WorkerCounts
) -> list[Part]:
    """The API, the workers, and beat."""
    env = _environment(settings, addresses) | _default_model(settings, workers)
    key = first_key(settings)
    api = Part(
        name="api",
        argv=_python("api"),
        ready=lambda _pid: http_ready(f"{addresses.api_url}/healthz"),
        env=env,
        port=addresses.api_port,
        hint="read the log; `sluice doctor` checks the settings that the API reads.",
    )
    beat = Part(
        name="beat",
        argv=_python("workers", "beat"),
        ready=lambda _pid: sweeper_ready(addresses.api_url, key),
        env=env,
        # A webhook that is being sent may take this long.
        stop_grace_s=settings.webhook_timeout_s + 5,
        hint="read its log; it sweeps, and sends webhooks.",
    )
    cpu = [
        _worker("cpu", number, (), env, addresses, key) for number in _numbers(workers.cpu_workers)
    ]
    models = [argument for model in workers.models for argument in ("--model", model)]
    devices = _devices(settings, workers)
    gpu = [
        _worker("generate", number, (*models, *devices[number - 1]), env, addresses, key)
        for number in _numbers(workers.gpu_workers)
    ]
    return [api, *cpu, *gpu, beat]


def _numbers(count: int) -> range:
    return range(1, count + 1)


def _default_model(settings: Settings, workers: WorkerCounts) -> dict[str, str]:
    """The first served model is the default of jobs without a model, unless a setting has one."""
    references = [model for model in workers.models if "/" in model or model == EXTRACTIVE]
    if not references or "generation_model" in settings.model_fields_set:
        return {}
    return {"SLUICE_GENERATION_MODEL": references[0]}


def _devices(settings: Settings, workers: WorkerCounts) -> list[tuple[str, ...]]:
    """The arguments for each generation worker. Several get one GPU each.

    A single worker may use all GPUs for a large model.
    """
    device = workers.device or settings.generation_device
    count = cuda_devices() if device == AUTO and workers.gpu_workers > 1 else 0
    if count > 1:
        return [("--device", f"cuda:{number % count}") for number in range(workers.gpu_workers)]
    return [("--device", workers.device) if workers.device else ()] * workers.gpu_workers


def first_key(settings: Settings) -> str | None:
    """A key that the API of these settings accepts, or None if it needs none."""
    return next((secret.get_secret_value() for _, secret in settings.api_secrets), None)


def _worker(
    kind: str,
    number: int,
    arguments: tuple[str, ...],
    env: dict[str, str],
    addresses: ServerAddresses,
    key: str | None,
) -> Part:
    part_name = f"{kind}-{number}"
    # The database knows workers by name, and several machines may share it.
    worker_name = f"{part_name}@{socket.gethostname()}"
    return Part(
        name=part_name,
        argv=_python("workers", kind, "--name", worker_name, *arguments),
        ready=lambda pid: worker_ready(addresses.api_url, worker_name, pid, key),
        env=env,
        # A model is loaded, and may have to be downloaded first; generation models have gigabytes.
        ready_timeout_s=180 if kind == "cpu" else 1800,
        stop_grace_s=15,
        hint="read the log; `sluice doctor` checks the packages and the models.",
    )


def _environment(settings: Settings, addresses: ServerAddresses) -> dict[str, str]:
    return {
        **common_environment(),
        "SLUICE_HOME": str(settings.home_path),
        "SLUICE_DATABASE_URL": addresses.database_url,
        "SLUICE_REDIS_URL": addresses.redis_url,
        "SLUICE_VECTORS_URL": addresses.vectors_url,
        "SLUICE_CHROMA_URL": "",
        "SLUICE_API_HOST": addresses.api_host,
        "SLUICE_API_PORT": str(addresses.api_port),
    }


def stack_environment(stack: Stack) -> dict[str, str]:
    """The environment of one more worker for a running stack."""
    return {
        **common_environment(),
        "SLUICE_HOME": str(stack.home),
        "SLUICE_DATABASE_URL": stack.database_url,
        "SLUICE_REDIS_URL": stack.redis_url,
        "SLUICE_VECTORS_URL": stack.vectors_url,
        "SLUICE_CHROMA_URL": "",
    }


def common_environment() -> dict[str, str]:
    # Parts are started with `-P`, so that an `api/` in the working directory is not imported.
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
    }


def _python(*arguments: str) -> tuple[str, ...]:
    return (sys.executable, "-P", "-m", *arguments)
