"""Values on the command line: KEY=VALUE, filters, lists of names, and JSON objects.

The functions without an underscore are callbacks of click, but for `read_json_object`; `Number` is
a type of options. What cannot be read raises `click.BadParameter` or `click.UsageError`.
"""

import csv
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import click

from cli.terminal.output import say
from shared.bounds import nfc
from shared.filters import escaped

Value = str | int | float | bool


class Number(click.FloatRange):
    """A number within bounds. NaN, which click takes for any bounds, is none, nor is infinity."""

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is no number.", param, ctx)
        return number


def name_and_value(pair: str, *, hint: str | None = None) -> tuple[str, str]:
    """`hint` is the name of the option, for a call outside of its callback."""
    name, equals, value = pair.partition("=")
    if not equals or not name.strip():
        raise click.BadParameter(f"{pair!r} does not read NAME=VALUE.", param_hint=hint)
    return name.strip(), value


def key_values(
    _ctx: click.Context, _param: click.Parameter, pairs: tuple[str, ...]
) -> dict[str, Value | list[Any]]:
    """`year=2024` is a number, `draft=true` a boolean; `year="2024"` and everything else is text.

    A list is written as JSON: `tags=["new", "large"]`. A key in double quotes may have any
    characters: `"a=b"=1`.
    """
    values: dict[str, Value | list[Any]] = {}
    for pair in pairs:
        key, text = _key_and_text(pair)
        if nfc(key) in map(nfc, values):
            raise click.BadParameter(f"{key!r} is given twice.")
        items = _list(text)
        values[key] = _value(text) if items is None else items
    return values


def filter_of(
    _ctx: click.Context, _param: click.Parameter, texts: tuple[str, ...]
) -> dict[str, Any]:
    """The conjunction of all filters, in the language of `shared/filters.py`.

    A filter reads `year>=2024`, `team != "x"`, `team in office, desk`, `tags contains new`, or is
    JSON such as `{"$or": [...]}`.
    """
    parts = [
        _json_filter(text) if text.lstrip().startswith("{") else _comparison(text) for text in texts
    ]
    equal = [nfc(key) for part in parts for key, value in part.items() if not _is_compound(value)]
    for key in equal:
        if equal.count(key) > 1:
            raise click.BadParameter(f"{key!r} cannot equal two values; write {key} in A, B.")
    return parts[0] if len(parts) == 1 else {"$and": parts} if parts else {}


_COMPARISON = re.compile(
    r"""\s*(?P<key>"(?:[^"\\]|\\.)*"|[^"=<>!~].*?)??
        (?:\s*(?P<sign>[<>=!~]{1,3})|\s+(?P<word>not\s+in|in|contains)(?=[\s([]))
        \s*(?P<value>.*)""",
    re.VERBOSE | re.DOTALL,
)
_OPERATORS = {
    "=": "$eq", "==": "$eq", "!=": "$ne", ">": "$gt", ">=": "$gte", "<": "$lt", "<=": "$lte",
    "in": "$in", "not in": "$nin", "contains": "$contains",
}  # fmt: skip
_ITEM = re.compile(r'\s*("(?:[^"\\]|\\.)*"|[^,]*?)\s*(?:,|$)')


def _comparison(text: str) -> dict[str, Any]:
    comparison = _COMPARISON.fullmatch(text)
    if comparison is None or not (comparison["key"] or "").strip():
        raise click.BadParameter(
            f"{text!r} does not read KEY=VALUE. A filter is written year=2024, year!=2024, "
            "year>=2024 (also > < <=), 'team in office, desk', 'tags contains new', or as JSON: "
            '\'{"$or": [{"year": 2024}, {"year": 2025}]}\'.'
        )
    sign = comparison["sign"] or " ".join(comparison["word"].split())
    if sign not in _OPERATORS:
        raise click.BadParameter(
            f"{text!r} compares with {sign}, which is none of = != > >= < <=, in, not in and "
            "contains. A key that holds such a sign is put in double quotes: '\"a>b\"=1'; so is a "
            "value that begins with one: 'a=\"=1\"'."
        )
    key = comparison["key"].strip()
    if key.startswith('"'):
        key = _quoted(key, text)
    operator, value_text = _OPERATORS[sign], comparison["value"].strip()
    if not value_text and operator != "$eq":
        raise click.BadParameter(f'{text!r} has no value; an empty text is written "".')
    if operator in ("$in", "$nin"):
        return {escaped(key): {operator: _items(value_text)}}
    if _list(value_text) is not None:
        raise click.BadParameter(
            f"{text!r} compares with a list. Write '{key} in A, B' for one of several values, or "
            f"'{key} contains A' for an item of a list."
        )
    value = _value(value_text)
    return {escaped(key): value if operator == "$eq" else {operator: value}}


def _items(text: str) -> list[Any]:
    """The items of `office, "A, B", 3`, with or without brackets, or of a JSON list."""
    if (items := _list(text)) is not None:
        return items
    for brackets in ("()", "[]"):
        if text.startswith(brackets[0]) and text.endswith(brackets[1]):
            text = text[1:-1]
    return [_value(item[1]) for item in _ITEM.finditer(text) if item[1]]


def _json_filter(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise click.BadParameter(
            f"{text!r} begins as JSON and is none ({error}). A key that begins with a brace is put "
            "in double quotes."
        ) from error
    assert isinstance(value, dict)
    return value


def _is_compound(value: Any) -> bool:
    return isinstance(value, dict | list)


def _quoted(key: str, text: str) -> str:
    try:
        return str(json.loads(key))
    except ValueError as error:
        raise click.BadParameter(f'{text!r} does not read "KEY"=VALUE.') from error


def _key_and_text(pair: str) -> tuple[str, str]:
    if pair.startswith('"'):
        try:
            key, end = json.JSONDecoder().raw_decode(pair)
        except ValueError as error:
            raise click.BadParameter(f'{pair!r} does not read "KEY"=VALUE.') from error
        if not pair.startswith("=", end):
            raise click.BadParameter(f'{pair!r} does not read "KEY"=VALUE.')
        return str(key), pair[end + 1 :]
    key, equals, text = pair.partition("=")
    if not equals or not key.strip():
        raise click.BadParameter(f"{pair!r} does not read KEY=VALUE.")
    return key.strip(), text


def column_names(
    _ctx: click.Context, _param: click.Parameter, text: str | None
) -> list[str] | None:
    """Names separated by commas. A name with a comma in it is written in double quotes."""
    if text is None:
        return None
    names = next(csv.reader([text], skipinitialspace=True), [])
    if not all(names) or not names:
        raise click.BadParameter(f"{text!r} does not read NAME,NAME,…")
    return names


def _value(text: str) -> Value:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    if isinstance(value, float) and not math.isfinite(value):
        return text
    return value if isinstance(value, str | int | float | bool) else text


def _list(text: str) -> list[Any] | None:
    if not text.startswith("["):
        return None
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, list) else None


def read_json_object(source: str) -> dict[str, Any]:
    """The input of a job: JSON itself, the path of a JSON file, or `-` for standard input."""
    try:
        if source.lstrip().startswith("{"):
            name, text = "INPUT", source
        elif source == "-":
            if sys.stdin.isatty():
                say("Reading the input as JSON from the terminal; end it with Ctrl-D.")
            name, text = "Standard input", sys.stdin.buffer.read().decode("utf-8-sig")
        else:
            name, text = source, Path(source).read_bytes().decode("utf-8-sig")
        value = json.loads(text)
    except OSError as error:
        raise click.UsageError(f"Cannot read {source}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{source} is no UTF-8 text ({error}).") from error
    except ValueError as error:
        raise click.UsageError(f"{name} is no JSON: {error}.") from error
    except RecursionError as error:
        raise click.UsageError(f"{name} is nested too deep.") from error
    if not isinstance(value, dict):
        raise click.UsageError(f"{name} must be a JSON object, the `input` of the job.")
    return value
