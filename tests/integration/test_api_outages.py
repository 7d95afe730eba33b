"""The API while Redis or Postgres is down, and as a process: start, exposure, end."""

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from api.__main__ import check_exposure
from shared.config import Settings
from shared.database.engine import upgrade
from shared.database.transaction import Ledger, make_ledger
from shared.errors import ConfigurationError
from shared.jobs import claims, steps
from tests.api_server import run_api, served
from tests.integration.answers import EMBED, problem
from tests.servers import Server, free_port, start_postgres, start_redis
from tests.waits import PATIENCE_S, until

URLS = {"SLUICE_DATABASE_URL": "postgresql://x/x", "SLUICE_REDIS_URL": "redis://x"}


@pytest.mark.usefixtures("clean")
class TestRedisDown:
    @pytest.fixture
    def redis(self, server_home: Path) -> Iterator[Server]:
        server = start_redis(server_home / "redis-that-dies")
        yield server
        server.stop()

    @pytest.fixture
    def own(self, settings: Settings, redis: Server) -> Settings:
        return settings.model_copy(
            update={"redis_url": Settings(redis_url=redis.url).redis_url, "sse_poll_s": 0.2}
        )

    @pytest.fixture
    def client(self, own: Settings) -> Iterator[httpx.Client]:
        with (
            served(own) as url,
            httpx.Client(base_url=url, timeout=30, trust_env=False) as client,
        ):
            yield client

    @pytest.fixture
    def ledger(self, own: Settings) -> Iterator[Ledger]:
        ledger = make_ledger(own)
        yield ledger
        ledger.close()

    def test_jobs_are_taken_and_rung_for_again_when_it_is_back(
        self, client: httpx.Client, redis: Server, ledger: Ledger
    ) -> None:
        client.post("/v1/jobs", json=EMBED)
        redis.kill()

        for _ in range(5):
            assert client.post("/v1/jobs", json=EMBED).status_code == 202

        assert client.get("/v1/queues").json()["items"][1] | {"messages": 0} == {
            "name": "embed", "queued": 6, "running": 0, "paused": False, "messages": 0,
        }  # fmt: skip
        assert client.get("/v1/queues").json()["items"][1]["messages"] is None
        checks = client.get("/readyz").json()["checks"]
        assert (checks["redis"]["ok"], checks["database"]["ok"]) == (False, True)
        redis.start()
        while not ledger.bell.waiting("embed"):
            client.post("/v1/jobs", json=EMBED)

    def test_waiting_and_events_go_by_postgres(
        self, client: httpx.Client, redis: Server, ledger: Ledger
    ) -> None:
        redis.kill()
        job_id = client.post("/v1/jobs", json=EMBED).json()["id"]
        streaming = threading.Event()

        def work() -> None:
            streaming.wait(120)
            with ledger.begin() as session:
                claim = claims.claim(session, "embed", worker="w", lease_s=60)
            assert claim is not None
            with ledger.begin() as session:
                steps.succeed(session, claim, result={"model": "m"})

        worker = threading.Thread(target=work)
        worker.start()
        with client.stream("GET", f"/v1/jobs/{job_id}/events") as stream:
            names = []
            for line in stream.iter_lines():
                if line.startswith("event: "):
                    names.append(line.removeprefix("event: "))
                    streaming.set()
        worker.join()
        assert names[0] == "state"
        assert names[-1] == "end"
        # Waiting for a job that has ended already.
        key = {"Idempotency-Key": "k", "Prefer": "wait=0"}
        job_id = client.post("/v1/jobs", json=EMBED, headers=key).json()["id"]
        worker = threading.Thread(target=work)
        worker.start()
        answer = client.post("/v1/jobs", json=EMBED, headers=key | {"Prefer": "wait=20"})
        worker.join()
        assert (answer.status_code, answer.json()["id"]) == (200, job_id)

    def test_a_redis_that_hangs_does_not_stop_submitting(
        self, settings: Settings, redis: Server
    ) -> None:
        own = settings.model_copy(
            update={
                "redis_url": Settings(redis_url=redis.url).redis_url,
                "connect_timeout_s": 0.5,
            }
        )
        with (
            served(own) as url,
            httpx.Client(base_url=url, timeout=PATIENCE_S, trust_env=False) as client,
        ):
            client.post("/v1/jobs", json=EMBED)
            redis.signal(signal.SIGSTOP)
            try:
                answers = [client.post("/v1/jobs", json=EMBED, timeout=120) for _ in range(10)]
            finally:
                redis.signal(signal.SIGCONT)
        assert {answer.status_code for answer in answers} == {202}


def test_postgres_down_is_503_and_names_it_until_it_is_back(
    settings: Settings, server_home: Path
) -> None:
    postgres = start_postgres(server_home / "postgres-that-dies")
    upgrade(postgres.url)
    own = settings.model_copy(
        update={"database_url": Settings(database_url=postgres.url).database_url}
    )
    try:
        with (
            served(own) as url,
            httpx.Client(base_url=url, timeout=PATIENCE_S, trust_env=False) as client,
        ):
            job = client.post("/v1/jobs", json=EMBED).json()
            postgres.kill()

            for answer in (
                client.post("/v1/jobs", json=EMBED),
                client.get(f"/v1/jobs/{job['id']}"),
                client.get(f"/v1/jobs/{job['id']}/events"),
                client.post("/v1/files", files={"file": ("a.txt", b"x")}),
            ):
                assert "SLUICE_DATABASE_URL" in problem(answer, 503)["detail"]
            assert client.get("/healthz").status_code == 200
            assert client.get("/readyz").json()["checks"]["database"]["ok"] is False
            assert not [p for p in Path(own.storage()).rglob("*") if p.is_file()]

            postgres.start()

            def answer_with_database() -> httpx.Response | None:
                answer = client.get(f"/v1/jobs/{job['id']}")
                return None if answer.status_code == 503 else answer

            back = until(answer_with_database, "the API finds the database again")
            assert back is not None
            assert back.json()["state"] == "queued"
    finally:
        postgres.stop()


def test_a_model_server_that_is_missing_is_named_at_once(settings: Settings) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}"
    away = settings.model_copy(update={"ollama_url": nowhere})
    with (
        served(away) as url,
        httpx.Client(base_url=url, timeout=PATIENCE_S, trust_env=False) as client,
    ):
        detail = problem(client.get("/v1/models/ollama/llama3.2"), 503)["detail"]
    assert f"Ollama at {nowhere} (SLUICE_OLLAMA_URL) does not answer" in detail


def test_a_database_without_tables_says_what_to_do(
    settings: Settings, postgres_server: Server
) -> None:
    bare = Settings(database_url=postgres_server.url).database_url
    own = settings.model_copy(update={"database_url": bare})
    with served(own) as url:
        answer = httpx.post(f"{url}/v1/jobs", json=EMBED, trust_env=False)
        ready = httpx.get(f"{url}/readyz", trust_env=False).json()

    assert "sluice migrate" in problem(answer, 503)["detail"]
    assert "sluice migrate" in ready["checks"]["database"]["detail"]


class TestProcess:
    def test_sigterm_ends_it_soon_although_a_stream_is_open(self, live_api: Server) -> None:
        with httpx.Client(base_url=live_api.url, timeout=60, trust_env=False) as client:
            job = client.post("/v1/jobs", json=EMBED).json()
            with client.stream("GET", f"/v1/jobs/{job['id']}/events") as stream:
                lines = stream.iter_lines()
                assert next(lines).startswith("id: ")
                live_api.signal(signal.SIGTERM)
                assert "end" not in list(lines)  # the stream was closed, not cut
        live_api.stop()
        assert "Traceback" not in live_api.log.read_text()

    def test_it_refuses_to_serve_strangers_without_keys(self, tmp_path: Path) -> None:
        ended = run_api(URLS | {"SLUICE_API_HOST": "0.0.0.0"}, cwd=tmp_path)

        assert ended.returncode == 2
        assert "SLUICE_API_KEYS" in ended.stderr
        assert "SLUICE_API_ALLOW_ANONYMOUS" in ended.stderr
        assert "Traceback" not in ended.stderr
        for host in ("::", "192.0.2.1", "example.test"):
            with pytest.raises(ConfigurationError, match="SLUICE_API_KEYS"):
                check_exposure(Settings(_env_file=None, api_host=host))

    @pytest.mark.parametrize(
        ("env", "named"),
        [
            ({}, "SLUICE_DATABASE_URL"),
            ({"SLUICE_DATABASE_URL": "postgresql://x"}, "SLUICE_REDIS_URL"),
            (URLS | {"SLUICE_API_PORT": "many"}, "SLUICE_API_PORT"),
            (URLS | {"SLUICE_API_KEYS": "s3cret"}, "SLUICE_API_KEYS"),
        ],
    )
    def test_what_is_missing_or_wrong_is_named(
        self, env: dict[str, str], named: str, tmp_path: Path
    ) -> None:
        ended = run_api(env, cwd=tmp_path)

        assert ended.returncode == 2
        assert named in ended.stderr
        assert "s3cret" not in ended.stderr
        assert "Traceback" not in ended.stderr
