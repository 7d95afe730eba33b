"""The program that checks values by JSON Schemas: one request a line in, one answer a line out.

Users write the schemas. A pattern may backtrack without end, references may multiply, and Python's
`re` cannot be interrupted; so this program runs beside the worker (`structured.py`), and a signal
ends it if one request takes more CPU time than it may. It is run by its path, isolated: it imports
nothing of Sluice.

A request is `{"schema", "limit_s"}`, with a `"value"` if there is one to check; an answer is
`{"invalid": message}` for a wrong schema, else `{"problems": [...], "more": n}`.
"""

import json
import resource
import signal
import sys
from itertools import islice
from typing import Any, Final

from jsonschema import SchemaError
from jsonschema.validators import Draft202012Validator, validator_for
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

READY: Final = "ready"
_PROBLEMS: Final = 5
_COUNTED_PROBLEMS: Final = 100
_PROBLEM_CHARS: Final = 300


class InvalidSchema(Exception):
    """It is no JSON Schema, or refers to something outside of itself."""


def main() -> None:
    memory_bytes = int(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    _answer(READY)
    for line in sys.stdin:
        request = json.loads(line)
        # The signal's default action ends the process, even within a regular expression.
        signal.setitimer(signal.ITIMER_PROF, request["limit_s"])
        try:
            answer = _check(request)
        except InvalidSchema as error:
            answer = {"invalid": str(error)}
        except RecursionError:
            answer = {"invalid": "refers to itself without end, or is nested too deep"}
        except MemoryError:
            raise
        except Exception as error:
            # The library fails on a schema that its metaschema allows. The program goes on: the
            # next request is of someone else.
            answer = {"invalid": f"cannot be used: {_short(f'{type(error).__name__}: {error}')}"}
        signal.setitimer(signal.ITIMER_PROF, 0)
        _answer(answer)


def _answer(answer: Any) -> None:
    print(json.dumps(answer), flush=True)


def _check(request: dict[str, Any]) -> dict[str, Any]:
    validator = _validator(request["schema"])
    if "value" not in request:
        return {"problems": [], "more": 0}
    try:
        # Each of a million items may be wrong.
        errors = list(islice(validator.iter_errors(request["value"]), _COUNTED_PROBLEMS))
    except OverflowError:
        return {"problems": ["at $: a number in it is too large to be checked"], "more": 0}
    errors.sort(key=lambda error: error.json_path)
    problems = [f"at {error.json_path}: {_short(error.message)}" for error in errors[:_PROBLEMS]]
    return {"problems": problems, "more": max(0, len(errors) - _PROBLEMS)}


def _validator(schema: dict[str, Any]) -> Any:
    dialect = schema.get("$schema")
    known = dialect is None or isinstance(dialect, str)
    default: Any = None if dialect else Draft202012Validator
    kind: Any = validator_for(schema, default=default) if known else None
    if kind is None:
        raise InvalidSchema(
            f"has the unknown $schema {_short(repr(dialect))}. Leave it out for draft 2020-12"
        )
    try:
        kind.check_schema(schema)
        resource_ = Resource.from_contents(schema, default_specification=DRAFT202012)
        # A registry of its own: the default one would fetch references over the network.
        registry: Registry[Any] = Registry()
        _References(kind).check(resource_, registry.resolver_with_root(resource_))
    except SchemaError as error:
        raise InvalidSchema(
            f"is no JSON Schema: at {error.json_path}: {_short(error.message)}"
        ) from error
    except ValueError as error:
        raise InvalidSchema(f"has an $id or a $ref that is no URI: {_short(str(error))}") from error
    return kind(schema, registry=registry)


class _References:
    """Checks that each reference leads to a schema, and so on for the references of that one.

    The metaschema has checked every place where a schema is expected. A reference may also point
    to another place, such as below an unknown keyword, where anything may stand."""

    def __init__(self, kind: Any) -> None:
        self._kind = kind
        self._seen: set[int] = set()
        """The `id()` of objects in the schema, which outlives this object."""

    def check(self, resource_: Resource[Any], resolver: Any) -> None:
        contents = resource_.contents
        if id(contents) in self._seen:
            return
        if isinstance(contents, dict):
            self._seen.add(id(contents))
            for key in ("$ref", "$dynamicRef"):
                if isinstance(contents.get(key), str):
                    self._follow(contents[key], resolver)
        for inner in resource_.subresources():
            self.check(inner, resolver.in_subresource(inner))

    def _follow(self, reference: str, resolver: Any) -> None:
        try:
            resolved = resolver.lookup(reference)
        except Unresolvable as error:
            raise InvalidSchema(f"refers to {_short(reference)!r}, which is not in it") from error
        target = resolved.contents
        if isinstance(target, bool) or id(target) in self._seen:
            return
        if not isinstance(target, dict):
            raise InvalidSchema(f"refers to {_short(reference)!r}, which is no schema")
        self._kind.check_schema(target)
        self.check(
            Resource.from_contents(target, default_specification=DRAFT202012), resolved.resolver
        )


def _short(message: str) -> str:
    return message if len(message) <= _PROBLEM_CHARS else message[: _PROBLEM_CHARS - 1] + "…"


if __name__ == "__main__":
    main()
