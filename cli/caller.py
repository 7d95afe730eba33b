"""What all calls of the HTTP API are made of: one transport, typed answers, pages."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

from cli.transport import Transport
from cli.wire import Page, Wire

PAGE_ITEMS = 100

W = TypeVar("W", bound=Wire)


def silent(_message: str) -> None:
    """For clients whose program wants to know nothing of what they wait for."""


class Caller:
    """Calls over one transport; `notify` is told in sentences what is waited for."""

    def __init__(self, transport: Transport, notify: Callable[[str], None]) -> None:
        self.transport = transport
        self.notify = notify

    @property
    def url(self) -> str:
        return self.transport.url

    def _get(self, shape: type[W], path: str) -> W:
        return shape.model_validate(self.transport.json("GET", path))

    def _all(self, shape: type[W], path: str) -> list[W]:
        return [shape.model_validate(item) for item in self.transport.listed("GET", path)]

    def _post(self, path: str, *, safe: bool = True) -> Any:
        return self.transport.json("POST", path, safe=safe)

    def _pages(
        self, shape: type[W], path: str, params: Mapping[str, Any], page_items: int
    ) -> Iterator[W]:
        cursor: str | None = None
        while True:
            page_params = {**params, "limit": page_items, "cursor": cursor}
            page = Page.model_validate(self.transport.json("GET", path, params=page_params))
            for item in page.items:
                yield shape.model_validate(item)
            cursor = page.next_cursor
            if not cursor:
                return


def part(value: str) -> str:
    """A name as one part of a path, whatever is in it."""
    return quote(value, safe="")
