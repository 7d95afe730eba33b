"""The processes that run tests report all of them, also those that die."""

import os
import subprocess
import sys
from pathlib import Path

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


def _run(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-p", "tests.forks", "--processes", "2", "-q"]
    return subprocess.run(
        [*command, "-c", "/dev/null", "--rootdir", folder, *options, folder],
        cwd=ROOT, env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip


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


def test_it_stops_at_the_first_failure_where_asked(tmp_path: Path) -> None:
    (tmp_path / "test_dying.py").write_text(DYING)
    done = _run(tmp_path, "-x")
    assert done.returncode == 1
    assert "1 failed, 1 passed" in done.stdout
