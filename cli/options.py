"""Options and groups that commands share: the connection, `--json`, completion in shells."""

import functools
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Concatenate, ParamSpec

import click
from click.shell_completion import CompletionItem

from cli.connection import connection
from cli.terminal.output import first_words, say
from cli.values import Number, column_names, name_and_value
from shared.models.providers import REFERENCE_FORMS, is_servable
from sluice import Client, Retries

# Completion in shells: names and ids that the API has now.
#
# After an error (no API, no key, a slow answer) nothing is offered and nothing printed: a message
# would disturb the line that the user is typing.

TIMEOUT_S = 1.0
SHOWN_ITEMS = 50
_HELP_CELLS = 60

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
Offers = Iterable[tuple[str, str]]
"""Values with their descriptions."""


def _completer(offers: Callable[[Client, click.Context], Offers]) -> Completer:
    def complete(
        ctx: click.Context, _parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        try:
            params = {**ctx.find_root().params, **{k: v for k, v in ctx.params.items() if v}}
            no_retries = Retries(connect_for_s=0, retry_for_s=0, busy_for_s=0)
            address = connection(params.get("url"), params.get("api_key"))
            with Client(*address, timeout_s=TIMEOUT_S, retries=no_retries) as client:
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
    from shared.kinds.hf import TASKS  # imports SQLAlchemy, which most commands do without

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
    """The global options `--url` and `--api-key`."""

    url: str | None
    api_key: str | None


def served_models(
    _context: click.Context, _parameter: click.Parameter, models: tuple[str, ...]
) -> tuple[str, ...]:
    """The callback of click for models that a worker serves."""
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
    """`--url` and `--api-key`, which may stand before and after a command's name."""
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
            "--temperature", type=Number(0, 2), metavar="0…2",
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
        return dict(map(name_and_value, pairs))

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
    """A group whose list of commands shows their whole descriptions."""

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
        """The index of the first argument that is no option and no value of one."""
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
    """Ask before an action that cannot be undone. Scripts have to pass --yes."""
    if not sys.stdin.isatty():
        raise click.UsageError("This cannot be undone. Confirm it with --yes.")
    click.confirm(question, abort=True, err=True)


def media_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Whether pictures and recordings are read: the command gets `ocr` and `speech`, each as in the
    input of a job, or None."""

    @functools.wraps(function)
    def command(
        *args: Any,
        ocr: bool,
        ocr_languages: list[str] | None,
        speech: bool,
        speech_model: str | None,
        speech_language: str | None,
        **others: Any,
    ) -> Any:
        return function(
            *args,
            ocr=_requested(ocr, languages=ocr_languages),
            speech=_requested(speech, model=speech_model, language=speech_language),
            **others,
        )

    made: Callable[..., Any] = command
    for option in (
        click.option("--speech-language", metavar="NAME", help="In which is spoken, such as ko."),
        click.option("--speech-model", metavar="MODEL",
                     help="Which one transcribes, such as openai/whisper-small."),
        click.option("--speech", is_flag=True, help="Transcribe recordings, too."),
        click.option("--ocr-languages", metavar="NAME,…", callback=column_names,
                     help="Of pictures, as tesseract names them: kor,eng."),
        click.option("--ocr", is_flag=True, help="Recognize the text of pictures and scans, too."),
    ):  # fmt: skip
        made = option(made)
    return made


def _requested(is_on: bool, **details: Any) -> dict[str, Any] | None:
    chosen = {name: value for name, value in details.items() if value is not None}
    return chosen if is_on or chosen else None
