"""The states of jobs and steps."""

from enum import StrEnum


class State(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


OPEN = (State.QUEUED, State.RUNNING)
ENDED = (State.SUCCEEDED, State.FAILED, State.CANCELLED)
"""A row whose state is neither, which nobody writes, counts as open: it can be cancelled."""


def known(value: str) -> State:
    """The state of a row; one that is none is taken for `queued`."""
    return State(value) if value in set(State) else State.QUEUED
