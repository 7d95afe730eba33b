"""Sweeps in this process: one whole sweep, and the past that it is to find."""

from sqlalchemy import text

from workers.app import CPU_QUEUES, handlers_of
from workers.attempts.process import Process
from workers.sweep import Sweeper


def sweep(process: Process) -> None:
    assert Sweeper(process, handlers_of(CPU_QUEUES)).sweep()


def change(process: Process, statement: str) -> None:
    with process.ledger.begin() as session:
        session.execute(text(statement))
