"""PostgreSQL, Redis and Chroma as the local stack runs them, under a home that is hard to quote."""

import asyncio
import os
import re
import signal
from pathlib import Path

import psycopg
import pytest
from pydantic import SecretStr
from redis import AuthenticationError, Redis

from cli.stack.logs import LogStream
from cli.stack.readiness import store_ready
from cli.stack.servers import prepare
from cli.stack.stackfile import PartReport, PartState, find_process, run_folder, session_members
from cli.stack.supervisor import Supervisor, Timing
from cli.stack.up import Plan, make_home, make_plan
from shared.config import Settings
from shared.errors import ConfigurationError
from shared.vector_stores import store_of_urls

PATIENCE_S = 120


@pytest.fixture
def stack_settings(tmp_path: Path) -> Settings:
    home = tmp_path / "내 집 'of\" jobs"
    make_home(home)
    return Settings(_env_file=None, home=home)


def plan_of(settings: Settings) -> Plan:
    said: list[str] = []
    return make_plan(
        settings, api_port=settings.api_port, gpu_workers=1, cpu_workers=1, say=said.append
    )


def postgres_processes(reports: list[PartReport]) -> list[int]:
    """The postmaster and its children, which have sessions of their own."""
    (pid,) = [one.pid for one in reports if one.name == "postgres"]
    assert pid is not None
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    assert children
    return [pid, *map(int, children)]


def pid_of(supervisor: Supervisor, name: str) -> int | None:
    return next(one.pid for one in supervisor.reports() if one.name == name)


async def ready_again(supervisor: Supervisor, name: str, earlier: int | None) -> None:
    def done() -> bool:
        one = next(one for one in supervisor.reports() if one.name == name)
        return one.pid != earlier and one.state == PartState.READY

    async with asyncio.timeout(PATIENCE_S):
        while not done():
            await asyncio.sleep(0.02)


def check_servers(plan: Plan) -> None:
    """Each serves with its password, refuses without, and reaches no further than this machine."""
    addresses = plan.addresses
    with psycopg.connect(addresses.database_url) as connection:
        row = connection.execute(
            "SELECT current_setting('server_version_num')::int, current_setting('server_encoding'),"
            " upper('é'), '한글' ~ '^[[:alpha:]]+$', current_setting('listen_addresses'),"
            " current_setting('unix_socket_directories'), current_setting('synchronous_commit'),"
            " current_setting('password_encryption')"
        ).fetchone()
        words = connection.execute(
            "SELECT to_tsvector('simple', '데이터베이스는 — 작업을')"
        ).fetchone()
    assert row is not None
    assert row[0] >= 180_000
    assert row[1:] == ("UTF8", "É", True, "127.0.0.1", "", "on", "scram-sha-256")
    assert words == ("'데이터베이스는':1 '작업을':2",)
    wrong = re.sub(":[^:@]+@", ":wrong@", addresses.database_url)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        psycopg.connect(wrong)
    with Redis.from_url(addresses.redis_url) as redis:
        assert redis.ping()
        assert redis.config_get("appendonly") == {"appendonly": "yes"}
        assert redis.config_get("bind") == {"bind": "127.0.0.1"}
    with (
        Redis.from_url(re.sub("//.*@", "//", addresses.redis_url)) as stranger,
        pytest.raises(AuthenticationError),
    ):
        stranger.ping()
    assert store_ready(store_of_urls(addresses.vectors_url)) is None


def test_the_servers_start_survive_kills_and_leave_nothing(stack_settings: Settings) -> None:
    home = stack_settings.home_path
    first = prepare(home, lambda _: None)
    assert prepare(home, lambda _: None) == first
    # A cleared run folder costs nothing but the password, which is replaced.
    (run_folder(home) / "postgres.password").unlink()
    plan = plan_of(stack_settings)
    assert first.password not in plan.addresses.database_url
    left: list[int] = []

    async def scenario() -> None:
        log = LogStream(home / "logs", None)
        supervisor = Supervisor(log, timing=Timing(backoff_base_s=0.05))
        try:
            assert await supervisor.start(plan.servers)
            await asyncio.to_thread(check_servers, plan)
            await asyncio.to_thread(fill, plan)
            pids = {one.name: one.pid for one in supervisor.reports()}
            left.extend(postgres_processes(supervisor.reports()))
            for name in ("redis", "postgres"):
                pid = pids[name]
                assert pid is not None
                os.kill(pid, signal.SIGKILL)
                await ready_again(supervisor, name, pid)
            assert pid_of(supervisor, "chroma") == pids["chroma"]
            await asyncio.to_thread(check_servers, plan)
            await asyncio.to_thread(check_filled, plan)
            left.extend(postgres_processes(supervisor.reports()))
            left.extend(members(supervisor.reports()))
        finally:
            await supervisor.stop()
            log.close()

    asyncio.run(scenario())
    assert len(left) > 10
    assert [pid for pid in left if find_process(pid)] == []
    assert "fast shutdown request" in (home / "logs" / "postgres.log").read_text()
    # What holds a password is for its owner only, and no password is in a log.
    password = (run_folder(home) / "postgres.password").read_text()
    for path in (*run_folder(home).iterdir(), *(home / "logs").iterdir()):
        assert path.parent.stat().st_mode & 0o077 == 0
        assert "logs" not in path.parts or password not in path.read_text()
    assert (run_folder(home) / "redis.conf").stat().st_mode & 0o777 == 0o600


def fill(plan: Plan) -> None:
    with psycopg.connect(plan.addresses.database_url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT '한글' AS word")
    with Redis.from_url(plan.addresses.redis_url) as redis:
        redis.set("kept", "글")


def check_filled(plan: Plan) -> None:
    with psycopg.connect(plan.addresses.database_url) as connection:
        assert connection.execute("SELECT word FROM kept").fetchone() == ("한글",)


def members(reports: list[PartReport]) -> list[int]:
    return [
        process.pid
        for one in reports
        if one.pid is not None and one.started_ticks is not None
        for process in session_members(one.pid, one.started_ticks)
    ]


def test_data_of_another_major_version_are_refused_not_ignored(stack_settings: Settings) -> None:
    (stack_settings.home_path / "postgres" / "17").mkdir(parents=True)
    with pytest.raises(ConfigurationError, match="PostgreSQL 17"):
        prepare(stack_settings.home_path, lambda _: None)


@pytest.mark.parametrize("name", ["database_url", "redis_url", "chroma_url"])
def test_a_server_of_ones_own_that_does_not_answer_is_named(
    stack_settings: Settings, name: str
) -> None:
    urls = {
        "database_url": "postgresql+psycopg://u:p@127.0.0.1:1/d",
        "redis_url": "redis://127.0.0.1:1/0",
        "chroma_url": "http://127.0.0.1:1",
    }
    settings = stack_settings.model_copy(update={name: _secret(name, urls[name])})
    with pytest.raises(ConfigurationError, match=f"SLUICE_{name.upper()}"):
        plan_of(settings)
    assert not (stack_settings.home_path / "postgres").exists()


def _secret(name: str, url: str) -> str | SecretStr:
    return url if name == "chroma_url" else SecretStr(url)
