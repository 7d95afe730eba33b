"""What commands have in common: connection options, `--json`, values, and what shells complete."""

import csv
import functools
import json
import math
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Concatenate, ParamSpec

import click
from click.shell_completion import CompletionItem

from cli.connection import connection
from cli.terminal.output import first_words, say
from shared.bounds import nfc
from shared.filters import escaped
from shared.kinds.hf import TASKS
from shared.providers import REFERENCE_FORMS, is_servable
from sluice import Client, Retries

# What the shell may offer for an argument: names and ids, as the API has them now.
#
# Whatever goes wrong (no API, no key, a slow answer) offers nothing, and says nothing: a
# message would break into the line that is being typed.

TIMEOUT_S = 1.0
SHOWN_ITEMS = 50
_HELP_CELLS = 60

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
Offers = Iterable[tuple[str, str]]
"""Values, and what is said beside them."""


def _completer(offers: Callable[[Client, click.Context], Offers]) -> Completer:
    def complete(
        ctx: click.Context, _parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        try:
            params = {**ctx.find_root().params, **{k: v for k, v in ctx.params.items() if v}}
            nothing_twice = Retries(connect_for_s=0, retry_for_s=0, busy_for_s=0)
            address = connection(params.get("url"), params.get("api_key"))
            with Client(*address, timeout_s=TIMEOUT_S, retries=nothing_twice) as client:
                matches = [
                    offer for offer in offers(client, ctx) if offer[0].startswith(incomplete)
                ]
        except Exception:
            return []
        return [
            CompletionItem(value, help=first_words(text, _HELP_CELLS)) for value, text in matches
        ]

    return complete


def _collections(client: Client, _: click.Context) -> Offers:
    for collection in islice(client.collections(), SHOWN_ITEMS):
        yield collection.name, f"{collection.documents:,} documents"


def _jobs(client: Client, _: click.Context) -> Offers:
    for job in islice(client.jobs(page_items=SHOWN_ITEMS), SHOWN_ITEMS):
        yield job.id, f"{job.kind}, {job.state}"


def _batches(client: Client, _: click.Context) -> Offers:
    for batch in islice(client.batches(page_items=SHOWN_ITEMS), SHOWN_ITEMS):
        yield batch.id, f"{batch.lines.total:,} lines, {batch.status}"


def _documents(client: Client, ctx: click.Context) -> Offers:
    collection = ctx.params.get("collection")
    if not collection:
        return
    for document in islice(client.documents(collection, page_items=SHOWN_ITEMS), SHOWN_ITEMS):
        yield document.source, f"{document.chunks:,} chunks"


def _conversations(client: Client, _: click.Context) -> Offers:
    for conversation in islice(client.conversations(page_items=SHOWN_ITEMS), SHOWN_ITEMS):
        yield conversation.id, f"{conversation.messages:,} messages"


def _prompts(client: Client, _: click.Context) -> Offers:
    for prompt in islice(client.prompts(page_items=SHOWN_ITEMS), SHOWN_ITEMS):
        yield prompt.name, prompt.description or prompt.template


def _models(client: Client, _: click.Context) -> Offers:
    for model in client.models():
        yield model.reference, " ".join(model.kinds)


def _queues(client: Client, _: click.Context) -> Offers:
    for queue in client.queues():
        yield queue.name, "paused" if queue.paused else f"{queue.queued:,} queued"


def complete_hf_tasks(
    _ctx: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    return [CompletionItem(name) for name in TASKS if name.startswith(incomplete)]


complete_collections = _completer(_collections)
complete_batches = _completer(_batches)
complete_jobs = _completer(_jobs)
complete_documents = _completer(_documents)
complete_conversations = _completer(_conversations)
complete_prompts = _completer(_prompts)
complete_models = _completer(_models)
complete_queues = _completer(_queues)


P = ParamSpec("P")


CONTEXT: dict[str, Any] = {"help_option_names": ["-h", "--help"]}


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where the global options point."""

    url: str | None
    api_key: str | None


def served_models(
    _context: click.Context, _parameter: click.Parameter, models: tuple[str, ...]
) -> tuple[str, ...]:
    """Click's callback for the models that a worker is to serve."""
    for model in models:
        if not is_servable(model):
            raise click.BadParameter(
                f"{model!r} is no model reference: {REFERENCE_FORMS}; or the name of a provider, "
                "such as ollama, for all of its models."
            )
    return models


def json_option(function: Callable[P, int]) -> Callable[P, int]:
    text = "Print one JSON document on stdout, and nothing else there."
    return click.option("--json", "as_json", is_flag=True, help=text)(function)


def connection_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--url` and `--api-key`, which are taken before and after a command's name."""
    options = (
        click.option("--url", metavar="URL", help="The API; else SLUICE_URL, or the local stack."),
        click.option("--api-key", metavar="KEY", help="Else SLUICE_API_KEY, which `ps` hides."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def sampling_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--max-tokens` and `--temperature`; the command gets them as `parameters`."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        names = ("max_tokens", "temperature")
        values = {name: kwargs.pop(name) for name in names}
        parameters = {name: value for name, value in values.items() if value is not None}
        return function(*args, parameters=parameters, **kwargs)

    options = (
        click.option(
            "--max-tokens", type=click.IntRange(min=1), metavar="N",
            help="How long an answer may be.",
        ),
        click.option(
            "--temperature", type=click.FloatRange(0, 2), metavar="0…2",
            help="0 always takes the likeliest word.",
        ),
    )  # fmt: skip
    for option in reversed(options):
        run = option(run)
    return run


def variables_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`--var NAME=VALUE`, repeated; the command gets them as `variables`."""

    def read(
        _ctx: click.Context, _param: click.Parameter, pairs: tuple[str, ...]
    ) -> dict[str, str]:
        variables: dict[str, str] = {}
        for pair in pairs:
            name, equals, value = pair.partition("=")
            if not equals or not name.strip():
                raise click.BadParameter(f"{pair!r} does not read NAME=VALUE.")
            variables[name.strip()] = value
        return variables

    return click.option(
        "--var", "variables", multiple=True, metavar="NAME=VALUE", callback=read,
        help="The value of a variable of the prompt; may be repeated.",
    )(function)  # fmt: skip


def with_client(function: Callable[Concatenate[Client, P], int]) -> Callable[..., int]:
    """Run a command with a client, closed at its end; adds the connection options and --json."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> int:
        url, api_key = kwargs.pop("url", None), kwargs.pop("api_key", None)
        with Client(*connection(*target(url, api_key)), notify=say) as client:
            return function(client, *args, **kwargs)

    return json_option(connection_options(run))


def target(url: str | None, api_key: str | None) -> tuple[str | None, str | None]:
    """A command's own connection options, else the global ones."""
    root = click.get_current_context().find_object(Target)
    return (url, api_key) if root is None else (url or root.url, api_key or root.api_key)


class Group(click.Group):
    """Commands whose descriptions are never cut off in the list of them."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.format_section(ctx, formatter, "Commands", self.list_commands(ctx))

    def format_section(
        self, ctx: click.Context, formatter: click.HelpFormatter, title: str, names: Sequence[str]
    ) -> None:
        rows = []
        for name in names:
            command = self.get_command(ctx, name)
            if command is not None and not command.hidden:
                rows.append((name, command.get_short_help_str(limit=1000)))
        if rows:
            with formatter.section(title):
                formatter.write_dl(rows)


class ListByDefault(Group):
    """A group whose bare name means its command `list`: `sluice jobs --state failed`.

    Options may stand before the command, too: `sluice jobs --url URL show ID`.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = self._end_of_options(args)
        is_help = any(name in args[:at] for name in CONTEXT["help_option_names"])
        if at < len(args):
            args = [args[at], *args[:at], *args[at + 1 :]]
        elif is_help:
            args = ["--help"]
        elif args or not ctx.resilient_parsing:  # Completing `sluice jobs ` offers the commands.
            args = ["list", *args]
        return super().parse_args(ctx, args)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_paragraph()
        formatter.write_text(
            f"`{ctx.command_path}` alone lists; `{ctx.command_path} list --help` has its options, "
            "which may stand behind it directly."
        )

    def _end_of_options(self, args: Sequence[str]) -> int:
        """Where the first argument is that is neither an option nor the value of one."""
        with_value = {
            name
            for command in self.commands.values()
            for parameter in command.params
            if isinstance(parameter, click.Option) and not parameter.is_flag
            for name in (*parameter.opts, *parameter.secondary_opts)
        }
        at = 0
        while at < len(args) and args[at].startswith("-") and args[at] not in ("-", "--"):
            at += 2 if args[at] in with_value else 1
        return min(at, len(args))


def confirm(question: str) -> None:
    """Ask before what cannot be undone; a script must say --yes."""
    if not sys.stdin.isatty():
        raise click.UsageError("This cannot be undone. Confirm it with --yes.")
    click.confirm(question, abort=True, err=True)


Value = str | int | float | bool


def key_values(
    _ctx: click.Context, _param: click.Parameter, pairs: tuple[str, ...]
) -> dict[str, Value | list[Any]]:
    """`year=2024` is a number, `draft=true` a truth value, `year="2024"` and all else text.

    A list is written as JSON: `tags=["new", "large"]`. A key in double quotes may hold anything:
    `"a=b"=1`.
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
    """All of the filters together, as `shared/filters.py` reads them: `year>=2024`, `team != "x"`,
    `team in office, desk`, `tags contains new`, or JSON such as `{"$or": [...]}`."""
    parts = [_json_filter(text) if text.lstrip().startswith("{") else _one(text) for text in texts]
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


def _one(text: str) -> dict[str, Any]:
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
    operator, written = _OPERATORS[sign], comparison["value"].strip()
    if not written and operator != "$eq":
        raise click.BadParameter(f'{text!r} has no value; an empty text is written "".')
    if operator in ("$in", "$nin"):
        return {escaped(key): {operator: _items(written)}}
    if _list(written) is not None:
        raise click.BadParameter(
            f"{text!r} compares with a list. Write '{key} in A, B' for one of several values, or "
            f"'{key} contains A' for an item of a list."
        )
    value = _value(written)
    return {escaped(key): value if operator == "$eq" else {operator: value}}


def _items(text: str) -> list[Any]:
    """`office, "A, B", 3`, in brackets or not; or a list as JSON."""
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
    """Names by comma; one that holds a comma is put in double quotes."""
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
