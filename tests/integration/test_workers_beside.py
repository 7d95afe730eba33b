"""The process in which a CPU worker answers queries: it lives as long as the worker does."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.e2e.processes import until

PROGRAM = """
import os, signal, sys, time
from celery import signals
from workers.__main__ import _beside

def say(line):
    os.write(1, f"{line}\\n".encode())  # whole, for both write here

def run():
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    say(os.getpid())
    time.sleep(600)
    return 0

class Told(BaseException):
    pass

def tell(*_):
    raise Told

signal.signal(signal.SIGTERM, tell)
died = None
try:
    with _beside(run) as died:
        say("it runs")
        time.sleep(600)
except Told:
    say("died" if died.is_set() else "told")
"""


@contextmanager
def program() -> Iterator[tuple["subprocess.Popen[str]", psutil.Process]]:
    """A worker, and the process beside it."""
    worker = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    try:
        assert worker.stdout is not None
        said_first = {worker.stdout.readline().strip() for _ in range(2)} - {"it runs"}
        beside = psutil.Process(int(said_first.pop()))
        assert beside.ppid() == worker.pid
        yield worker, beside
    finally:
        with suppress(ProcessLookupError):
            worker.kill()
        worker.communicate(timeout=60)


def said(worker: "subprocess.Popen[str]") -> str:
    assert worker.stdout is not None
    return worker.stdout.readline().strip()


def test_it_ends_with_a_worker_that_is_told_to_end() -> None:
    with program() as (worker, beside):
        worker.send_signal(signal.SIGTERM)
        assert said(worker) == "told"
        assert not beside.is_running()


@pytest.mark.skipif(sys.platform != "linux", reason="the kernel has to tell it of the death")
def test_it_ends_with_a_worker_that_is_killed() -> None:
    with program() as (worker, beside):
        worker.kill()
        until(lambda: not beside.is_running() or beside.status() == "zombie", "it has ended")


def test_a_worker_ends_with_it() -> None:
    with program() as (worker, beside):
        beside.kill()
        assert said(worker) == "died"
        assert worker.wait(60) == 0
