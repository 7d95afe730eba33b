"""Streams of events, as a client reads them."""

import json
from collections.abc import Iterator
from typing import Any

import httpx


class EventStream:
    """An open stream; `next` is the next event as (id, event, data)."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.comments = 0
        self._lines = response.iter_lines()

    def __iter__(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        return self

    def read_comments(self, count: int) -> None:
        """Read on until so many comments have come; no event may come before."""
        while self.comments < count:
            line = next(self._lines)
            assert line.startswith(":") or not line, line
            self.comments += line.startswith(":")

    def __next__(self) -> tuple[str, str, dict[str, Any]]:
        fields: dict[str, str] = {}
        for line in self._lines:
            if line.startswith(":"):
                self.comments += 1
            elif line:
                name, _, value = line.partition(": ")
                fields[name] = value
            elif fields:
                return fields["id"], fields["event"], json.loads(fields["data"])
        raise StopIteration
