"""Strict JSON bodies: what Postgres or a worker could not hold is refused here, with its place.

FastAPI reads bodies through `Request.json`; `StrictRoute` puts a stricter one in its place. Plain
`json` takes NaN, infinite numbers, NUL characters and half surrogate pairs, and JSONB takes none.
"""

import json
import re
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException

# In strict JSON these characters can only be written as escapes, so most bodies need no walk.
SUSPECT = re.compile(rb"\\u(0000|[dD][89a-fA-F])")
UNSTORABLE = re.compile("[\x00\ud800-\udfff]")


class MalformedBody(HTTPException):
    """400: the body is not JSON. 422: it is, but holds what cannot be stored."""


class StrictRequest(Request):
    async def json(self) -> Any:
        if not hasattr(self, "_strict"):
            self._strict = parse(await self.body())
        return self._strict


class StrictRoute(APIRoute):
    """A route whose body is parsed by `parse`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return strict


def parse(body: bytes) -> Any:
    """The JSON value of a body. Raises MalformedBody."""
    try:
        value = json.loads(
            body.decode("utf-8-sig"), parse_constant=_refuse_constant, parse_float=_finite
        )
    except UnicodeDecodeError as error:
        raise MalformedBody(
            400, f"The body is not UTF-8 (byte {error.start}); JSON must be."
        ) from error
    except json.JSONDecodeError as error:
        raise MalformedBody(
            400,
            f"The body is not valid JSON: {error.msg} at line {error.lineno}, "
            f"column {error.colno} (position {error.pos}).",
        ) from error
    except RecursionError as error:
        raise MalformedBody(400, "The body is nested too deeply.") from error
    except ValueError as error:  # an integer of thousands of digits
        raise MalformedBody(422, f"A number in the body is too long: {error}.") from error
    if SUSPECT.search(body):
        for path, text in _strings(value, ()):
            if found := UNSTORABLE.search(text):
                _refuse(path, found[0])
    return value


def _strings(
    value: Any, path: tuple[str | int, ...]
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, list):
        for n, item in enumerate(value):
            yield from _strings(item, (*path, n))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield path, key
            yield from _strings(item, (*path, key))


def _refuse(path: tuple[str | int, ...], character: str) -> NoReturn:
    where = ".".join(map(str, path)) or "the body"
    what = "a NUL character" if character == "\x00" else "half of a surrogate pair"
    raise MalformedBody(
        422,
        f"{where} holds {what} (\\u{ord(character):04x}), which cannot be stored; remove it.",
    )


def _refuse_constant(name: str) -> NoReturn:
    raise MalformedBody(422, f"The body holds {name}; only finite numbers are JSON.")


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise MalformedBody(422, f"The number {digits[:40]} is too large.")
    return value
