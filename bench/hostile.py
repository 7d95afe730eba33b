"""What hostile clients do to the API: its memory, and how long `/healthz` takes beside them.

50 clients for 60 s against a real `python -m api` on real PostgreSQL and Redis, without keys:
heads without end, slow heads and bodies, idle connections, 16 MiB arrays, deep JSON, 20 MB to
/models, batches of zeros, lists of large jobs, and 200 streams of events beside. Targets: less
than 300 MB of memory, 99 % of `/healthz` within 100 ms. `python -m bench.hostile --seconds 60`.
"""

import argparse
import asyncio
import json
import os
import shutil
import socket
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from multiprocessing import get_context
from pathlib import Path

import httpx
import psutil
from pydantic import SecretStr

from shared.config import Settings
from shared.database.engine import upgrade
from tests.api_server import start_api
from tests.servers import start_postgres, start_redis

MIB = 2**20
STREAMS = 200
LARGE_JOBS = 20
HEALTH_EVERY_S = 0.05
TARGET_MB, TARGET_MS = 300, 100


class Attack:
    """One address, until a time; notes the statuses of answers by the kind of client."""

    def __init__(self, port: int, until: float) -> None:
        self.port = port
        self.until = until
        self.answers: dict[str, Counter[str]] = {}

    async def repeat(self, kind: str, act: Callable[["Attack"], Awaitable[str]]) -> None:
        counts = self.answers.setdefault(kind, Counter())
        while (left_s := self.until - time.monotonic()) > 0:
            try:
                async with asyncio.timeout(left_s):
                    counts[await act(self)] += 1
            except TimeoutError:
                counts["still open"] += 1
            except OSError:
                counts["cut off"] += 1

    async def send(self, head: str, body: bytes = b"") -> str:
        """The status of one request on a connection of its own."""
        reader, writer = await self.open()
        try:
            length = f"Content-Length: {len(body)}\r\n" if body else ""
            writer.write(f"{head}\r\nHost: localhost\r\n{length}\r\n".encode())
            for at in range(0, len(body), MIB):
                writer.write(body[at : at + MIB])
                await writer.drain()
            status = await _status(reader)
            while await reader.read(MIB):
                pass
            return status
        finally:
            writer.close()

    async def drip(self, start: bytes, block: bytes, pause_s: float) -> str:
        """Go on sending until the server has had enough."""
        reader, writer = await self.open()
        try:
            writer.write(start)
            answer = asyncio.create_task(_status(reader))
            while not answer.done():
                writer.write(block)
                await writer.drain()
                await asyncio.sleep(pause_s)
            return await answer
        finally:
            writer.close()

    async def open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection("127.0.0.1", self.port)


async def _status(reader: asyncio.StreamReader) -> str:
    line = await reader.readline()
    return line.split()[1].decode() if line else "closed"


JSON = "\r\nContent-Type: application/json\r\nConnection: close"
HEAD = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
ZEROS = b'{"jobs":[' + b"0," * 200_000 + b"0]}"
ARRAY = b'{"kind":"hf","input":{"task":"fill-mask","inputs":[' + b"0," * (8 * MIB - 100) + b"0]}}"
ARRAYS = b'{"inputs":[' + b"[]," * 6_600_000 + b"[]]}"
DEEP = (
    b'{"kind":"embed","input":{"texts":["a"]},"metadata":{"a":' + b"[" * 5000 + b"]" * 5000 + b"}}"
)
KINDS: dict[str, Callable[[Attack], Awaitable[str]]] = {
    "endless head": lambda a: a.drip(b"GET / HTTP/1.1\r\n", b"X-Y: z\r\n" * 8000, 0),
    "endless header": lambda a: a.drip(b"GET / HTTP/1.1\r\nX-Y: ", b"z" * 65_536, 0),
    "slow head": lambda a: a.drip(b"GET / HTTP/1.1\r\nHost: localhost\r\n", b"X: y\r\n", 1),
    "slow body": lambda a: a.drip(HEAD + b"Content-Length: 9000000\r\n\r\n", b" ", 1),
    "idle": lambda a: a.drip(b"", b"", 0.5),
    "array of 16 MiB": lambda a: a.send("POST /v1/jobs HTTP/1.1" + JSON, ARRAY),
    "deep JSON": lambda a: a.send("POST /v1/jobs HTTP/1.1" + JSON, DEEP),
    "20 MB to /models": lambda a: a.send("POST /models/a/b HTTP/1.1" + JSON, ARRAYS),
    "batch of zeros": lambda a: a.send("POST /v1/jobs/batch HTTP/1.1" + JSON, ZEROS),
    "list of large jobs": lambda a: a.send("GET /v1/jobs?limit=200 HTTP/1.1\r\nConnection: close"),
}


async def _stream(attack: Attack, job_id: str) -> str:
    reader, writer = await attack.open()
    try:
        writer.write(f"GET /v1/jobs/{job_id}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        status = await _status(reader)
        while await reader.read(65_536):
            pass
        return status
    finally:
        writer.close()


def _health(port: int, seconds: float) -> list[float]:
    """Seconds that each `/healthz` took, on a connection of its own; in a process of its own."""
    taken_s: list[float] = []
    until = time.monotonic() + seconds
    request = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    while time.monotonic() < until:
        begin = time.perf_counter()
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=30) as probe:
            probe.sendall(request)
            while probe.recv(4096):
                pass
        taken_s.append(time.perf_counter() - begin)
        time.sleep(HEALTH_EVERY_S)
    return taken_s


async def _memory(pid: int, until: float, seen: list[int]) -> None:
    process = psutil.Process(pid)
    while time.monotonic() < until:
        seen.append(process.memory_info().rss)
        await asyncio.sleep(0.05)


async def _attack(
    attack: Attack, pid: int, seen: list[int], names: Sequence[str], clients: int, job_id: str
) -> None:
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(_memory(pid, attack.until, seen))
        for n in range(clients):
            name = names[n % len(names)]
            tasks.create_task(attack.repeat(name, KINDS[name]))
        for _ in range(STREAMS):
            tasks.create_task(attack.repeat("stream", lambda a: _stream(a, job_id)))


async def _run(url: str, pid: int, *, seconds: float, clients: int, only: str | None) -> None:
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:
        large = {"kind": "embed", "input": {"texts": ["x" * 900_000]}}
        for _ in range(LARGE_JOBS):
            answer = (await client.post("/v1/jobs", json=large)).raise_for_status()
    until = time.monotonic() + seconds
    attack = Attack(int(url.rpartition(":")[2]), until)
    seen: list[int] = []
    names = list(KINDS) if only is None else [only]
    loop = asyncio.get_running_loop()
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        health = loop.run_in_executor(pool, _health, attack.port, seconds)
        # They would be on machines of their own: they take what the API's processor time leaves.
        os.nice(10)
        await _attack(attack, pid, seen, names, clients, answer.json()["id"])
        taken_s = await health
    for name, counts in attack.answers.items():
        print(f"{name:>20}: {json.dumps(dict(counts))}")
    cuts = statistics.quantiles(taken_s, n=100)
    least, most = seen[0] / 1e6, max(seen) / 1e6
    print(f"RSS: {least:.0f} MB at the start, {most:.0f} MB at most (target: under {TARGET_MB})")
    p50, p99, longest = (value * 1e3 for value in (cuts[49], cuts[98], max(taken_s)))
    print(f"/healthz, {len(taken_s)} times: p50 {p50:.1f} ms, p99 {p99:.1f} ms, at most "
          f"{longest:.0f} ms (target: p99 under {TARGET_MS})")  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--only", choices=list(KINDS), help="one kind of client")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="sluice-bench-"))
    folder.chmod(0o755)
    postgres, redis = start_postgres(folder / "postgres"), start_redis(folder / "redis")
    try:
        upgrade(postgres.url)
        settings = Settings(
            _env_file=None,
            home=folder / "home",
            database_url=SecretStr(postgres.url),
            redis_url=SecretStr(redis.url),
        )
        server = start_api(settings, folder / "api")
        try:
            asyncio.run(
                _run(
                    server.url,
                    server.pid,
                    seconds=options.seconds,
                    clients=options.clients,
                    only=options.only,
                )
            )
        finally:
            server.stop()
    finally:
        postgres.stop()
        redis.stop()
        shutil.rmtree(folder, ignore_errors=True)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
