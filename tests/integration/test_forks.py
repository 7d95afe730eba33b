"""The processes that run tests report all of them, also those that die."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
CASES = """
import os, signal, pytest
@pytest.fixture(scope="module")
def process():
    return os.getpid()
@pytest.fixture(scope="session")
def session_process():
    return os.getpid()
def test_one(process, session_process):
    assert process == session_process == os.getpid()
def test_two(process, session_process):
    assert process == session_process == os.getpid()
"""
DYING = """
import os, signal
def test_before(): pass
def test_dying(): os.kill(os.getpid(), signal.SIGKILL)
def test_leaving(): os._exit(3)
def test_behind(): print("shown"); assert 1 == 2
def test_last(): pass
"""


_OPTIONS: dict[str, Any] = {
    "cwd": ROOT, "env": os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
    "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True,
}  # fmt: skip


def _command(folder: Path, *options: str) -> list[str]:
    command = [sys.executable, "-m", "pytest", "-p", "tests.forks", "--processes", "2", "-q"]
    return [*command, "-c", "/dev/null", "--rootdir", str(folder), *options, str(folder)]


def _run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(_command(folder, *options), check=False, **_OPTIONS)


def test_all_tests_run_each_file_in_one_process(tmp_path: Path) -> None:
    for n in range(5):
        (tmp_path / f"test_{n}.py").write_text(CASES)
    done = _run(tmp_path)
    assert done.returncode == 0, done.stdout
    assert "10 passed" in done.stdout


def test_a_process_that_dies_fails_its_test_and_the_rest_runs(tmp_path: Path) -> None:
    (tmp_path / "test_dying.py").write_text(DYING)
    (tmp_path / "test_other.py").write_text(CASES)
    done = _run(tmp_path)
    assert done.returncode == 1
    assert "3 failed, 4 passed" in done.stdout
    assert "ended by SIGKILL" in done.stdout
    assert "ended with status 3" in done.stdout
    assert "shown" in done.stdout


SERVING = """
import os, pathlib, time, pytest
HERE = pathlib.Path(__file__).parent
@pytest.fixture(scope="session")
def server():
    yield
    time.sleep(0.5)
    (HERE / f"stopped.{os.getpid()}").touch()
def test_slow(server):
    (HERE / f"started.{os.getpid()}").touch()
    time.sleep(600)
"""


@pytest.mark.parametrize("whom", ["all", "the parent"])
def test_an_interrupt_ends_all_in_good_order(tmp_path: Path, whom: str) -> None:
    for n in range(2):
        (tmp_path / f"test_{n}.py").write_text(SERVING)
    with subprocess.Popen(_command(tmp_path), **_OPTIONS, start_new_session=True) as running:
        while len(list(tmp_path.glob("started.*"))) < 2:
            assert running.poll() is None, running.communicate()
            time.sleep(0.05)
        if whom == "all":  # as a terminal does
            os.killpg(running.pid, signal.SIGINT)
        else:
            running.send_signal(signal.SIGINT)
        running.communicate()
    assert running.returncode == pytest.ExitCode.INTERRUPTED
    assert len(list(tmp_path.glob("stopped.*"))) == 2


def test_it_stops_at_the_first_failure_where_asked(tmp_path: Path) -> None:
    (tmp_path / "test_dying.py").write_text(DYING)
    done = _run(tmp_path, "-x")
    assert done.returncode == 1
    assert "1 failed, 1 passed" in done.stdout
