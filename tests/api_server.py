"""The API as tests run it: in this process on a real port, or as the process `python -m api`."""

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from api.app import create_app
from api.http.server import ApiServer
from shared.config import Settings
from tests.servers import Server, free_port

ROOT = Path(__file__).resolve().parent.parent


@contextmanager
def served(settings: Settings) -> Iterator[str]:
    """The application behind a real uvicorn in a thread; yields its URL."""
    port = free_port()
    settings = settings.model_copy(update={"api_shutdown_s": 1})
    server = ApiServer(create_app(settings), settings, host="127.0.0.1", port=port)
    thread = threading.Thread(target=server.run)
    thread.start()
    url = f"http://127.0.0.1:{port}"
    try:
        while not server.started:
            assert thread.is_alive(), "the API did not start"
            time.sleep(0.005)
        yield url
    finally:
        server.should_exit = True
        thread.join()


def _is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/healthz", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def start_api(settings: Settings, folder: Path) -> Server:
    """`python -m api` with these settings, on a free port."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    folder.mkdir(parents=True, exist_ok=True)
    return Server(
        [sys.executable, "-m", "api"],
        url=url,
        folder=folder,
        is_ready=lambda: _is_up(url),
        env=environment(settings) | {"SLUICE_API_PORT": str(port)},
    )


def run_api(env: dict[str, str], cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """`python -m api` where it is to end by itself, with nothing but this environment."""
    return subprocess.run(
        [sys.executable, "-m", "api"],
        env=_base() | env,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def environment(settings: Settings) -> dict[str, str]:
    """What a process needs to read the same settings."""
    variables = _base()
    for name in settings.model_fields_set:
        value = getattr(settings, name)
        secret = getattr(value, "get_secret_value", None)
        if name == "api_keys":
            pairs = (
                f"{key}:{key_secret.get_secret_value()}" for key, key_secret in settings.api_secrets
            )
            variables["SLUICE_API_KEYS"] = ",".join(pairs)
        elif name == "api_key_scopes":
            pairs = (f"{key}:{'+'.join(scopes)}" for key, scopes in value.items())
            variables["SLUICE_API_KEY_SCOPES"] = ",".join(pairs)
        elif isinstance(value, tuple):
            variables[f"SLUICE_{name.upper()}"] = ",".join(value)
        elif value is not None:
            variables[f"SLUICE_{name.upper()}"] = str(secret() if secret else value)
    return variables


def _base() -> dict[str, str]:
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return kept | {"PYTHONPATH": str(ROOT)}
