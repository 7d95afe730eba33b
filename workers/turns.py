"""In which order a worker listens at its queues: kombu's `queue_order_strategy`.

`control` always comes first, the others take turns. Behind long steps it would get one message in
a round, fewer than beat sends; the sweeps would wait until they expire, and none would be done.
"""

from collections.abc import Iterable

from shared.queue import Queue


class ControlFirst:
    """The interface of `kombu.utils.scheduling.round_robin_cycle`."""

    def __init__(self) -> None:
        self._queues: list[str] = []

    def update(self, queues: Iterable[str]) -> None:
        self._queues = list(queues)

    def consume(self, count: int) -> list[str]:
        """The queues to listen at, the first one first."""
        return sorted(self._queues, key=lambda queue: queue != Queue.CONTROL.value)[:count]

    def rotate(self, served: str) -> str:
        """The queue that a message came from goes to the end of the row."""
        if served in self._queues:
            self._queues.remove(served)
            self._queues.append(served)
        return served
