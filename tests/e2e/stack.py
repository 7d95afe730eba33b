"""A local stack of real processes for the end-to-end tests: started, looked into, and shot at.

`LiveStack` is one `sluice up` in a home of its own. It names the processes of the parts, kills
them without asking, runs the CLI against the stack, and reads its stores directly. Waiting is
always for a state, with a deadline that only a broken system reaches.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import psycopg
from redis import Redis

from cli.stack.launch import launch_argv
from cli.stack.ports import free_ports
from cli.stack.stackfile import PartReport, PartState, Stack, StackState, find_stack
from shared.vector_stores import store_of_urls
from sluice import Client, Retries
from tests.e2e.processes import BackgroundCommand, CompletedCommand, until
from workers.ingest import reader_child

QUICK = {
    # There is no hub here: a model is on this machine, or there is none.
    "HF_HUB_OFFLINE": "1",
    "SLUICE_STEP_LEASE_S": "3",
    "SLUICE_RETRY_BASE_S": "0.2",
    "SLUICE_RETRY_CAP_S": "1",
    "SLUICE_WORKER_HEARTBEAT_S": "2",
}
"""Settings with which a stack recovers soon from what was killed."""
ROOT = Path(__file__).resolve().parent.parent.parent
CHROMA = "/api/v2/tenants/default_tenant/databases/default_database/collections"


@contextmanager
def temporary_stack(
    prefix: str, settings: Mapping[str, str], *, home: str = "home"
) -> Iterator["LiveStack"]:
    """A stack that is ready, in a new folder; at the end it is stopped, and the folder removed.
    Others may lay what they need beside `home`, its folder in that one."""
    folder = Path(tempfile.mkdtemp(prefix=prefix))
    try:
        folder.chmod(0o755)  # PostgreSQL's own user must reach its part of it.
        # A port of its own: stacks that start at the same moment all find the default one free.
        port = {"SLUICE_API_PORT": str(free_ports(1)[0])}
        stack = LiveStack(folder / home, {**port, **settings})
        try:
            stack.wait_until_ready()
            yield stack
        finally:
            stack.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _forks(process: psutil.Process) -> list[psutil.Process]:
    """Its children that live, without those that read documents for it."""
    forks = []
    with suppress(psutil.NoSuchProcess):
        for child in process.children():
            with suppress(psutil.NoSuchProcess):
                if reader_child.__name__ not in child.cmdline():
                    forks.append(child)
    return forks


class LiveStack:
    def __init__(self, home: Path, settings: Mapping[str, str]) -> None:
        self.home = home
        self._log = home.parent / "up.log"
        self._database: psycopg.Connection[tuple[Any, ...]] | None = None
        own = {name: value for name, value in os.environ.items() if not name.startswith("SLUICE_")}
        self.environment = {
            **own,
            "SLUICE_HOME": str(home),
            "PYTHONPATH": str(ROOT),
            "PYTHONUTF8": "1",
        }
        with self._log.open("ab") as log:
            # The shim ends the stack when this process is killed and can end nothing itself.
            self.up = subprocess.Popen(
                launch_argv([sys.executable, "-P", "-m", "cli.main", "up"]),
                env={**self.environment, **settings},
                cwd=home.parent,  # with no `.env` in it
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def log_tail(self) -> str:
        with suppress(FileNotFoundError):  # the stack is gone, as at the end of the session
            return self._log.read_text(errors="replace")[-6000:]
        return ""

    def wait_until_ready(self) -> None:
        def ready() -> bool:
            assert self.up.poll() is None, f"`sluice up` has ended:\n{self.log_tail()}"
            stack = find_stack(self.home)
            return stack is not None and stack.state is StackState.READY

        until(ready, "the stack is ready", 300)

    def stop(self) -> None:
        """End it however it stands."""
        if self._database is not None:
            self._database.close()
        self.up.terminate()
        try:
            self.up.wait(90)
        except subprocess.TimeoutExpired:
            self.up.kill()
            self.up.wait()

    # The processes

    @property
    def noted(self) -> Stack:
        """The stack file, as the supervisor has it now."""
        stack = find_stack(self.home)
        assert stack is not None, f"the stack has ended:\n{self.log_tail()}"
        return stack

    def part(self, name: str) -> PartReport:
        return next(part for part in self.noted.parts if part.name == name)

    def pid(self, name: str) -> int:
        """Of a part that runs."""

        def pid() -> int | None:
            part = self.part(name)
            return part.pid if part.state is PartState.READY else None

        return until(pid, f"{name} runs") or 0

    def pool(self, name: str = "cpu-1", *, with_queries: bool = True) -> list[psutil.Process]:
        """The pool processes of a worker; of a CPU worker, those too that answer queries, which are
        below a process of their own."""
        top = psutil.Process(self.pid(name))
        below = {child: _forks(child) for child in _forks(top)}
        own = [child for child, pool in below.items() if not pool]
        return own + [process for pool in below.values() for process in pool if with_queries]

    def processes(self) -> list[psutil.Process]:
        """The supervisor and everything below it."""
        top = psutil.Process(self.noted.pid)
        return [top, *top.children(recursive=True)]

    def kill(self, name: str, *, group: bool = False) -> int:
        """SIGKILL, as a crash would; returns how often the part had been restarted before."""
        before, pid = self.part(name).restarts, self.pid(name)
        if group:
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)
        return before

    def kill_pool(self, name: str = "cpu-1", *, at_most: int | None = None) -> None:
        """SIGKILL to the pool processes of a worker, which itself lives on."""
        for process in self.pool(name)[:at_most]:
            with suppress(psutil.NoSuchProcess):
                process.kill()

    def kill_pool_at_work(self, job_id: str, *, attempt: int) -> bool:
        """Kill the pool while it runs this attempt of the job's step; False if the job ended first.

        The pool is stopped before it is looked at, so that nothing ends between look and kill.
        """
        running = (
            "SELECT count(*) FROM steps WHERE job_id = %s AND state = 'running' AND attempt = %s"
        )
        ended = "SELECT count(*) FROM jobs WHERE id = %s AND finished_at IS NOT NULL"

        def runs_or_ended() -> bool:
            return bool(self.value(running, job_id, attempt) or self.value(ended, job_id))

        until(runs_or_ended, f"attempt {attempt} runs")
        with self.pool_stopped():
            if not self.value(running, job_id, attempt):
                return False
            self.kill_pool()
        return True

    @contextmanager
    def pool_stopped(self, name: str = "cpu-1", *, with_queries: bool = True) -> Iterator[None]:
        """The pool processes of a worker stand still until the end of the block."""
        pool = self.pool(name, with_queries=with_queries)
        for process in pool:
            with suppress(psutil.NoSuchProcess):
                process.suspend()
        try:
            yield
        finally:
            for process in pool:
                with suppress(psutil.NoSuchProcess):
                    process.resume()

    def kill_and_await(self, name: str, *, group: bool = False) -> None:
        """Kill a part and wait until the supervisor has it up again."""
        before = self.kill(name, group=group)
        until(lambda: self.part(name).restarts > before, f"{name} is started again")
        self.pid(name)

    @contextmanager
    def supervisor_held(self) -> Iterator[None]:
        """What is killed meanwhile stays away until the end of the block."""
        pid = self.noted.pid
        os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(pid, signal.SIGCONT)

    def lose_redis(self) -> None:
        """Kill Redis and throw its data away: unlinked first, so that it finds nothing."""
        with self.redis() as redis:
            redis.set("sluice:test:lost", "yes")
        for path in (self.home / "redis").iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.kill_and_await("redis")
        with self.redis() as redis:
            assert redis.get("sluice:test:lost") is None

    def until_whole(self) -> None:
        """Wait until every part is up and the API says that everything is ready."""

        def whole() -> bool:
            return all(part.state is PartState.READY for part in self.noted.parts)

        until(whole, "all parts run")
        with self.client() as client:
            until(lambda: client.ready().ready, "the API is ready")

    # Its users

    def client(self) -> Client:
        """Patient from the first call on: in these tests the API is known to exist."""
        return Client(self.noted.api_url, retries=Retries(connect_for_s=60))

    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.noted.api_url, timeout=60, trust_env=False)

    def start(self, *arguments: str, cwd: Path | None = None) -> BackgroundCommand:
        """A command of the CLI, in the background."""
        return BackgroundCommand(
            subprocess.Popen(
                launch_argv([sys.executable, "-P", "-m", "cli.main", *arguments]),
                env=self.environment,
                cwd=cwd or self.home.parent,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                encoding="utf-8",
            )
        )

    def sluice(self, *arguments: str, cwd: Path | None = None) -> CompletedCommand:
        with self.start(*arguments, cwd=cwd) as running:
            return running.finish()

    def sluice_json(self, *arguments: str, cwd: Path | None = None) -> Any:
        """The document of a command that succeeds."""
        done = self.sluice(*arguments, "--json", cwd=cwd)
        assert done.code == 0, f"{arguments} ended with {done.code}:\n{done.out}\n{done.err}"
        return done.document

    # Its stores

    def sql(self, query: str, *values: object) -> list[tuple[Any, ...]]:
        """Rows of a statement; the connection is kept, for tests ask again and again."""
        if self._database is not None:
            with suppress(psycopg.OperationalError):
                return self._database.execute(query, values).fetchall()
            self._database.close()  # The server was killed meanwhile.
        self._database = psycopg.connect(self.noted.database_url, autocommit=True)
        return self._database.execute(query, values).fetchall()

    def value(self, query: str, *values: object) -> Any:
        """The first column of the first row; None where there is no row."""
        rows = self.sql(query, *values)
        return rows[0][0] if rows else None

    def redis(self) -> Redis:
        return Redis.from_url(self.noted.redis_url, decode_responses=True)

    def ledger_ids(self, collection: str) -> list[str]:
        """The ids of all chunks of a collection in Postgres, whether readers see them or not."""
        rows = self.sql(
            """
            SELECT replace(v.id::text, '-', '') || '-' || lpad(k.ordinal::text, 6, '0')
            FROM chunks k JOIN versions v ON v.id = k.version_id
            JOIN documents d ON d.id = v.document_id
            JOIN collections c ON c.id = d.collection_id WHERE c.name = %s ORDER BY 1
            """,
            collection,
        )
        return [id_ for (id_,) in rows]

    def vector_ids(self, collection: str) -> list[str]:
        """The ids of all vectors of a collection in Chroma."""
        (url,) = store_of_urls(self.noted.vectors_url).urls
        with httpx.Client(base_url=url.http, timeout=60, trust_env=False) as chroma:
            response = chroma.get(f"{CHROMA}/{collection}")
            if response.status_code == 404:
                return []
            response.raise_for_status()
            answer = chroma.post(f"{CHROMA}/{response.json()['id']}/get", json={"include": []})
            answer.raise_for_status()
            return sorted(answer.json()["ids"])

    def until_tidy(self, collection: str) -> None:
        """Wait until the sweeper has removed what readers no longer see."""
        left = """
            SELECT count(*) FROM versions v JOIN documents d ON d.id = v.document_id
            JOIN collections c ON c.id = d.collection_id
            WHERE c.name = %s AND v.state <> 'live'
        """
        until(lambda: self.value(left, collection) == 0, "only live versions are left")

    def check_agreement(self, collection: str, chunks: int | None = None) -> None:
        """Ledger and vectors hold the same chunks; each document once, and whole."""
        ledger, vectors = self.ledger_ids(collection), self.vector_ids(collection)
        assert set(vectors) == set(ledger)
        assert len(vectors) == len(ledger)
        if chunks is not None:
            assert len(ledger) == chunks
        broken = self.sql(
            """
            SELECT d.source, v.state, v.chunk_count, count(k.ordinal)
            FROM documents d JOIN collections c ON c.id = d.collection_id
            LEFT JOIN versions v ON v.document_id = d.id
            LEFT JOIN chunks k ON k.version_id = v.id
            WHERE c.name = %s GROUP BY d.id, d.source, v.id
            HAVING v.id IS DISTINCT FROM d.live_version_id OR v.chunk_count <> count(k.ordinal)
                OR v.state <> 'live' OR v.id IS NULL
            """,
            collection,
        )
        assert broken == []

    def progress(self, job_id: str) -> int:
        return int(self.value("SELECT progress_done FROM jobs WHERE id = %s", job_id) or 0)

    def state(self, job_id: str) -> str:
        return str(self.value("SELECT state FROM jobs WHERE id = %s", job_id))

    def running_steps(self, job_id: str) -> int:
        query = "SELECT count(*) FROM steps WHERE job_id = %s AND state = 'running'"
        return int(self.value(query, job_id))

    def until_job_of(self, collection: str, kind: str = "ingest") -> str:
        """The id of the first job of a collection, once there is one."""
        query = "SELECT id::text FROM jobs WHERE collection = %s AND kind = %s ORDER BY id"
        return str(until(lambda: self.value(query, collection, kind), f"a job of {collection}"))
