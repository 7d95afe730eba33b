"""Strict JSON bodies: values that cannot be stored are refused, with their path.

FastAPI reads bodies by `Request.json`, which `StrictRoute` replaces. Python's `json` accepts NaN,
infinite numbers, NUL characters and half surrogate pairs, which JSONB does not. The number of
values and the depth are counted in the bytes before the body is parsed.
"""

import json
import re
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException

from shared.bounds import BODY_DEPTH_LIMIT, BODY_LIMIT_VALUES, UNSTORABLE, cut

# In strict JSON these characters can be written as escapes only, so most bodies need no search.
SUSPECT = re.compile(rb"\\u(0000|[dD][89a-fA-F])")
# A string (to the end of the body if it is not closed), a bracket, or a comma. Possessive
# quantifiers keep the time linear.
TOKEN = re.compile(rb'"[^"\\]*+(?:\\.[^"\\]*+)*+"?|[\[\]{},]', re.DOTALL)
OPENING, CLOSING, PARTING = b"[{", b"]}", ord(",")
LARGE_BYTES = 256 * 1024
"""Longer bodies are parsed in a thread, so that they do not block other requests."""
PATH_CHARS = 200


class MalformedBody(HTTPException):
    """400: the body is not JSON. 422: it is JSON with values that cannot be stored."""


class StrictRequest(Request):
    async def json(self) -> Any:
        if not hasattr(self, "_strict"):
            body, limit = await self.body(), self.app.state.parts.settings.max_body_values
            if len(body) > LARGE_BYTES:
                self._strict = await run_in_threadpool(parse, body, limit_values=limit)
            else:
                self._strict = parse(body, limit_values=limit)
        return self._strict


class StrictRoute(APIRoute):
    """A route whose body is parsed by `parse`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handler = super().get_route_handler()

        async def strict(request: Request) -> Response:
            return await handler(StrictRequest(request.scope, request.receive))

        return strict


def too_many(limit_values: int) -> str:
    return (
        f"The body holds more than {limit_values:,} values. Send less at once, or raise "
        "SLUICE_MAX_BODY_VALUES on the server."
    )


class ValueCount:
    """A cheap lower bound of the number of values in a JSON body, while it arrives.

    Only blocks without quotation marks that lie outside of strings are counted. After the first
    backslash, the ends of strings are not known any more, and counting stops.
    """

    def __init__(self) -> None:
        self.values = 0
        self._in_string = False
        self._is_known = True

    def feed(self, block: bytes) -> None:
        if not self._is_known:
            return
        quotes = block.count(b'"')
        if quotes or self._in_string:
            self._is_known = b"\\" not in block
            self._in_string ^= quotes % 2 == 1
            return
        self.values += block.count(b",") + block.count(b"[") + block.count(b"{")


def check_structure(body: bytes, *, limit_values: int) -> None:
    """Raises MalformedBody for JSON with too many values, or nested too deeply."""
    opening = body.count(b"[") + body.count(b"{")
    if opening <= BODY_DEPTH_LIMIT and opening + body.count(b",") < limit_values:
        return  # within the limits even if all of these characters are outside of strings
    depth, values = 0, 1
    for match in TOKEN.finditer(body):
        token = body[match.start()]
        if token == PARTING or token in OPENING:
            values += 1
            if values > limit_values:
                raise MalformedBody(422, too_many(limit_values))
        if token in OPENING:
            depth += 1
            if depth > BODY_DEPTH_LIMIT:
                raise MalformedBody(
                    400, f"The body is nested too deeply: more than {BODY_DEPTH_LIMIT} levels."
                )
        elif token in CLOSING:
            depth -= 1


def parse(body: bytes, *, limit_values: int = BODY_LIMIT_VALUES) -> Any:
    """The JSON value of a body. Raises MalformedBody."""
    check_structure(body, limit_values=limit_values)
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
    except ValueError as error:  # an integer with thousands of digits
        raise MalformedBody(422, f"A number in the body is too long: {cut(str(error))}.") from error
    if SUSPECT.search(body):
        for path, text in _strings(value):
            if match := UNSTORABLE.search(text):
                _refuse(path, match[0])
    return value


def _strings(value: Any) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """All strings of a value, including keys, with their paths; without recursion."""
    left: list[tuple[tuple[str | int, ...], Any]] = [((), value)]
    while left:
        path, at = left.pop()
        if isinstance(at, str):
            yield path, at
        elif isinstance(at, list):
            left += [((*path, n), item) for n, item in enumerate(at)]
        elif isinstance(at, dict):
            for key, item in at.items():
                yield path, key
                left.append(((*path, key), item))


def _refuse(path: tuple[str | int, ...], character: str) -> NoReturn:
    where = cut(".".join(map(str, path)), PATH_CHARS) or "the body"
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
