"""How many modules and functions of Sluice three walks cross: a job, a document, a token.

The walks are those of docs/architecture.md. Real servers are started here, the API and a worker
run in this process, and every call of a function is noted: `python -m bench.code.hops`. What only
runs in the background (heartbeats) is counted where it happens to run; so the figures may differ by
one or two from run to run.
"""

import argparse
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import httpx

from shared.config import Settings
from shared.database.engine import upgrade
from shared.vocabulary import Queue
from tests.api_server import served
from tests.servers import start_chroma, start_postgres, start_redis
from workers.app import handlers_of
from workers.attempts.process import Process
from workers.attempts.runner import run_next

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("api", "shared", "workers")
MODEL = f"hf/{ROOT / 'tests' / 'tiny' / 'checkpoints' / 'answerer'}"


class Calls:
    """The functions that were called, by module, while `noting`."""

    def __init__(self) -> None:
        self.is_on = False
        self.functions: set[tuple[str, str]] = set()

    def profile(self, frame: FrameType, event: str, _argument: Any) -> None:
        if not self.is_on or event != "call":
            return
        code = frame.f_code
        if code.co_name == "<module>" or not code.co_filename.startswith(str(ROOT)):
            return
        path = Path(code.co_filename).relative_to(ROOT)
        if path.parts[0] in PARTS:
            self.functions.add((str(path), code.co_qualname))

    @contextmanager
    def noting(self, name: str) -> Iterator[None]:
        self.functions.clear()
        self.is_on = True
        yield
        self.is_on = False
        modules = {module for module, _ in self.functions}
        print(f"{name:12} {len(modules):8} modules {len(self.functions):8} functions", flush=True)


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    calls = Calls()
    threading.setprofile(calls.profile)
    sys.setprofile(calls.profile)
    folder = Path(tempfile.mkdtemp(prefix="sluice-bench-"))
    folder.chmod(0o755)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        servers = [
            start(folder / start.__name__) for start in (start_postgres, start_redis, start_chroma)
        ]
        for server in servers:
            stack.callback(server.stop)
        upgrade(servers[0].url)
        settings = Settings(
            _env_file=None, database_url=servers[0].url, redis_url=servers[1].url,
            chroma_url=servers[2].url, home=folder / "home", generation_device="cpu",
        )  # fmt: skip
        url = stack.enter_context(served(settings))
        process = Process(settings, "bench", routes=(MODEL,))
        stack.callback(process.ledger.close)
        walk(calls, httpx.Client(base_url=url, timeout=120, trust_env=False), process)
    return 0


def walk(calls: Calls, api: httpx.Client, process: Process) -> None:
    handlers = handlers_of([queue for queue in Queue if queue is not Queue.WEBHOOK])

    def run(kind: str, input_: dict[str, Any]) -> Any:
        job = api.post("/v1/jobs", json={"kind": kind, "input": input_}).raise_for_status().json()
        while any(run_next(process, handlers, queue.value) for queue in Queue):
            pass
        ended = api.get(f"/v1/jobs/{job['id']}").raise_for_status().json()
        assert ended["state"] == "succeeded", ended
        return ended

    def ingest(source: dict[str, Any]) -> None:
        run("ingest", {"collection": "walks", "sources": [source]})

    def chat() -> None:
        body = {"messages": [{"role": "user", "content": "hello"}], "model": MODEL}
        ended = run("chat", body | {"parameters": {"max_tokens": 4}})
        api.get(f"/v1/jobs/{ended['id']}/events").raise_for_status()

    api.put("/v1/collections/walks", json={}).raise_for_status()
    ingest({"type": "text", "text": "warm", "name": "warm"})  # what is made once is made
    chat()
    with calls.noting("a job"):
        ingest({"type": "text", "text": "One table is restored by pg_restore -t.", "name": "a"})
    with calls.noting("a document"):
        upload = api.post("/v1/files", files={"file": ("b.txt", b"A dump of one table.")})
        ingest({"type": "file", "file_id": upload.raise_for_status().json()["id"]})
        hits = run("search", {"collection": "walks", "query": "one table"})["result"]["hits"]
        assert len(hits) == 3, hits
    with calls.noting("a token"):
        chat()


if __name__ == "__main__":
    sys.exit(main())
