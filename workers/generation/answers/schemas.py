"""JSON Schemas of users, checked in a process that can be ended (`schema_child.py`).

A check has a limit of CPU time and of memory. Children are kept for the next check; one that ran
into a limit is gone, and its check says that the schema is to be made simpler.
"""

import json
import os
import queue
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from shared.errors import InvalidInput, Permanent
from workers.generation.answers import schema_child

MEMORY_BYTES: Final = 1 << 30
_WALL_FACTOR: Final = 30
"""How much longer than its CPU time a check may take, on a machine that has other work."""


class NotJson(Permanent):
    """The model's answer is not the JSON that was asked for."""


class SchemaChecker:
    """Thread-safe. At most `children` checks run at a time, by default one a core; each has
    `limit_s` of CPU time, in a process of `memory_bytes`."""

    def __init__(
        self, *, limit_s: float, memory_bytes: int = MEMORY_BYTES, children: int | None = None
    ) -> None:
        self._limit_s = limit_s
        self._memory_bytes = memory_bytes
        self._free = threading.BoundedSemaphore(children or os.cpu_count() or 1)
        self._idle: list[_Child] = []
        self._lock = threading.Lock()

    def check(self, schema: dict[str, Any]) -> None:
        """Raises InvalidInput where it is no JSON Schema, or refers to something outside of it."""
        self._ask({"schema": schema})

    def validate(self, value: Any, schema: dict[str, Any]) -> None:
        """Raises NotJson, which names what does not fit and where."""
        answer = self._ask({"schema": schema, "value": value})
        if answer["problems"]:
            more = f"; and {answer['more']} more" if answer["more"] else ""
            raise NotJson(
                f"The JSON does not fit the schema: {'; '.join(answer['problems'])}{more}."
            )

    def close(self) -> None:
        """End the children. A later check starts new ones."""
        with self._lock:
            idle, self._idle = self._idle, []
        for child in idle:
            child.end()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._free:
            with self._lock:
                child = self._idle.pop() if self._idle else None
            child = child or _Child(self._memory_bytes)
            answer = child.ask(request | {"limit_s": self._limit_s}, self._limit_s * _WALL_FACTOR)
            if answer is None:
                raise InvalidInput(
                    f"The schema of response_format takes more than {self._limit_s:g} s to check "
                    "(SLUICE_SCHEMA_CHECK_S), or too much memory. Simplify its patterns and its "
                    "references."
                )
            with self._lock:
                self._idle.append(child)
        if "invalid" in answer:
            raise InvalidInput(f"The schema of response_format {answer['invalid']}.")
        return answer


class _Child:
    """One running program; for one thread at a time."""

    def __init__(self, memory_bytes: int) -> None:
        # By its path and isolated: no settings, and nothing of the current folder, reach it.
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(Path(schema_child.__file__)), str(memory_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="schema-check", daemon=True)
        self._reader.start()
        # The time that starting takes is not the schema's.
        if not self._lines.get():
            self.end()
            raise RuntimeError(f"{schema_child.__file__} does not start")

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def ask(self, request: dict[str, Any], within_s: float) -> dict[str, Any] | None:
        """None where it has ended instead of answering; it is of no more use then."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._lines.get(timeout=within_s)
        except (OSError, queue.Empty):
            line = ""
        if not line:
            self.end()
            return None
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            # What was not sent any more cannot be: the reader is gone.
            with suppress(OSError, ValueError):
                assert pipe is not None
                pipe.close()
