"""How fast jobs are submitted: `POST /v1/jobs` against a bare FastAPI route over `apply_async`.

Both run as uvicorn processes on one Redis; ours also commits to a PostgreSQL with fsync on. For
1, 8 and 32 clients the two take turns, several times. No worker runs. The servers are started
here, in a temporary folder, and stopped at the end: `python -m bench.submit --seconds 3`.
"""

import argparse
import asyncio
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psycopg

from shared.database.engine import upgrade
from tests.servers import Server, free_port, start_postgres, start_redis

BODY = json.dumps(
    {"kind": "embed", "input": {"texts": ["How do I restore a dump of one table?"]}}
).encode()
ROOT = Path(__file__).resolve().parent.parent
COMMITS = 200
READY_PATH = {"sluice": "/healthz", "bare": "/docs"}


@dataclass
class Tally:
    """Seconds that each request took, over all rounds."""

    latencies_s: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each turn")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--clients", default="1,8,32")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="sluice-bench-"))
    folder.chmod(0o755)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        postgres = start_postgres(folder / "postgres", durable=True)
        stack.callback(postgres.stop)
        urls = _start(folder, postgres, lambda server: stack.callback(server.stop))
        for url in urls.values():
            asyncio.run(_load(url, 4, 1.0))  # warm up
        print(f"{'clients':>7} {'':8} {'jobs/s':>8} {'p50 ms':>8} {'p99 ms':>8} {'ratio':>7}")
        for clients in map(int, options.clients.split(",")):
            tallies = {name: Tally() for name in urls}
            for _ in range(options.rounds):
                for name, url in urls.items():
                    latencies, elapsed_s = asyncio.run(_load(url, clients, options.seconds))
                    tallies[name].latencies_s += latencies
                    tallies[name].rates.append(len(latencies) / elapsed_s)
            _report(clients, tallies)
            print(f"        one durable commit by itself, then: {_commit_ms(postgres.url):.2f} ms")
    return 0


def _start(folder: Path, postgres: Server, started: Callable[[Server], object]) -> dict[str, str]:
    redis = start_redis(folder / "redis")
    started(redis)
    env = _environment(folder, postgres.url, redis.url)
    urls = {}
    bare = ["uvicorn", "--factory", "bench.support.bare:create_app", "--no-access-log"]
    port = free_port()
    argv = [*bare, "--port", str(port), "--log-level", "warning"]
    urls["bare"] = _serve(folder, "bare", argv, port, env, started)
    urls["sluice"] = start_api(folder, postgres.url, redis.url, started)
    return urls


def _environment(folder: Path, postgres_url: str, redis_url: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith("SLUICE_")}
    return own | {
        "PYTHONPATH": str(ROOT),
        "SLUICE_DATABASE_URL": postgres_url,
        "SLUICE_REDIS_URL": redis_url,
        "SLUICE_HOME": str(folder / "home"),
        "SLUICE_QUEUE_LIMIT_STEPS": "100000000",
    }


def start_api(
    folder: Path, postgres_url: str, redis_url: str, started: Callable[[Server], object]
) -> str:
    """The API as a process of its own, at the newest revision; its address."""
    upgrade(postgres_url)
    port = free_port()
    env = _environment(folder, postgres_url, redis_url) | {"SLUICE_API_PORT": str(port)}
    return _serve(folder, "sluice", ["api"], port, env, started)


def _serve(
    folder: Path,
    name: str,
    argv: list[str],
    port: int,
    env: dict[str, str],
    started: Callable[[Server], object],
) -> str:
    url = f"http://127.0.0.1:{port}"
    (folder / name).mkdir()
    server = Server(
        [sys.executable, "-m", *argv],
        url=url,
        folder=folder / name,
        is_ready=partial(_answers, url + READY_PATH[name]),
        env=env,
    )
    started(server)
    return url


def _commit_ms(url: str) -> float:
    """The floor of ours with one client: what the disk takes, which others may use as well."""
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS probe (n int)")
        begin = time.perf_counter()
        for n in range(COMMITS):
            connection.execute("INSERT INTO probe VALUES (%s)", (n,))
        return (time.perf_counter() - begin) / COMMITS * 1e3


async def _load(url: str, clients: int, seconds: float) -> tuple[list[float], float]:
    """Requests one after another on each of so many connections; latencies and time taken."""
    port = int(url.rpartition(":")[2])
    begin = time.perf_counter()
    per_client = await asyncio.gather(*(_client(port, begin + seconds) for _ in range(clients)))
    return [
        latency for latencies in per_client for latency in latencies
    ], time.perf_counter() - begin


async def _client(port: int, until: float) -> list[float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = (
        f"POST /v1/jobs HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(BODY)}\r\n\r\n"
    ).encode()
    latencies = []
    while (sent_at := time.perf_counter()) < until:
        writer.write(head + BODY)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 202"), answer
        length = int(answer.lower().partition(b"content-length:")[2].partition(b"\r")[0])
        await reader.readexactly(length)
        latencies.append(time.perf_counter() - sent_at)
    writer.close()
    return latencies


def _report(clients: int, tallies: dict[str, Tally]) -> None:
    bare = statistics.median(tallies["bare"].rates)
    for name, tally in tallies.items():
        rate = statistics.median(tally.rates)
        cuts = statistics.quantiles(tally.latencies_s, n=100)
        print(
            f"{clients:>7} {name:8} {rate:8.0f} {cuts[49] * 1e3:8.2f} {cuts[98] * 1e3:8.2f} "
            f"{rate / bare:7.2f}",
            flush=True,
        )


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=1) as response:
            return bool(response.status == 200)
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(main())
