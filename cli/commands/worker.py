"""`sluice worker`: one worker of this machine in the foreground.

The process executes `python -m workers`. Without SLUICE_DATABASE_URL, the worker joins the local
stack that runs under SLUICE_HOME, beside the workers of `sluice up`.
"""

import os
import socket
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

import click

from cli.options import Group, served_models
from cli.stack.servers import PACKAGES, how_to_install
from cli.terminal.output import say
from shared.config import Settings, load_settings
from shared.errors import ConfigurationError
from shared.models.providers import SERVED_UNLESS_NAMED


@click.group(cls=Group)
def worker() -> None:
    """Run one more worker, here or on another machine, until Ctrl-C."""


_name = click.option("--name", metavar="NAME", help="How it is known; else by its process id.")
_concurrency = click.option(
    "--concurrency", type=click.IntRange(min=1), metavar="N", help="How many steps at once."
)
_device = click.option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1, …")


@worker.command()
@click.option(
    "--model", "models", multiple=True, metavar="REFERENCE", callback=served_models,
    help=f"Serve this one; may be repeated. Else {SERVED_UNLESS_NAMED}.",
)  # fmt: skip
@_device
@_concurrency
@_name
def generate(
    *, models: tuple[str, ...], device: str | None, concurrency: int | None, name: str | None
) -> int:
    """A worker that generates: it holds or asks the models that it serves."""
    arguments = [argument for model in models for argument in ("--model", model)]
    _execute_worker("generate", [*arguments, *_device_arguments(device)], concurrency, name)
    return 0


@worker.command()
@_device
@_concurrency
@_name
def hf(*, device: str | None, concurrency: int | None, name: str | None) -> int:
    """A worker for Hugging Face tasks alone, as on a GPU; CPU workers run them, too.

    --concurrency is its number of processes, each of which holds its own models.
    """
    _execute_worker("hf", _device_arguments(device), concurrency, name)
    return 0


@worker.command()
@_concurrency
@_name
def cpu(*, concurrency: int | None, name: str | None) -> int:
    """A worker that loads, embeds, searches and runs Hugging Face tasks.

    --concurrency is its number of processes.
    """
    _execute_worker("cpu", [], concurrency, name)
    return 0


def _device_arguments(device: str | None) -> Sequence[str]:
    return () if device is None else ("--device", device)


def _execute_worker(
    role: str, arguments: Sequence[str], concurrency: int | None, name: str | None
) -> None:
    """Replace this process by the worker. Never returns."""
    if missing := [module for module in PACKAGES["worker"] if find_spec(module) is None]:
        raise ConfigurationError(
            f"A worker needs packages that are not installed ({', '.join(missing)}): "
            f"{how_to_install('worker')}, with 'gpu' in the place of 'worker' for 4-bit models."
        )
    environment = _environment(load_settings())
    # exec keeps the process id.
    name = name or f"{role}-{os.getpid()}@{socket.gethostname()}"
    argv = [sys.executable, "-P", "-m", "workers", role, "--name", name, *arguments]
    if concurrency is not None:
        argv += ["--concurrency", str(concurrency)]
    sys.stdout.flush()
    os.execve(sys.executable, argv, {**os.environ, **environment})


def _environment(settings: Settings) -> Mapping[str, str]:
    from cli.stack.programs import common_environment, stack_environment

    if settings.database_url is not None or sys.platform != "linux":
        return common_environment()
    from cli.stack.stackfile import find_stack

    stack = find_stack(settings.home_path)
    if stack is None:
        raise ConfigurationError(
            "A worker needs the addresses of the servers: set SLUICE_DATABASE_URL, "
            "SLUICE_REDIS_URL, for cpu and hf SLUICE_STORAGE_URL, and for cpu SLUICE_VECTORS_URL. "
            "Or start everything on this machine with `sluice up`; no stack runs under "
            f"{settings.home_path}."
        )
    say(f"Joining the stack at {stack.api_url}.")
    return stack_environment(stack)
