"""`sluice models`: what can answer, and the models of the Ollama server."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import click

from cli.errors import Exit, Interrupted
from cli.options import ListByDefault, confirm, with_client
from cli.terminal.output import print_fields, print_json, print_table, print_text, stdout
from cli.terminal.progress import watch_job
from sluice import Client, InvalidInput, Job
from sluice.inputs import create_input, delete_input, of_ollama, pull_input
from sluice.kinds import ModelInput

# Descriptions of models in the form of Ollama's Modelfile, read line by line.
#
#     # A model for the helpdesk.
#     FROM llama3.2
#     SYSTEM """
#     You answer for the helpdesk, in two sentences at most.
#     """
#     PARAMETER temperature 0.2
#     PARAMETER stop <|end|>
#
# Instructions are FROM, SYSTEM, TEMPLATE and PARAMETER, in any case. A value may stand in
# quotes, single (") or triple, and then run over several lines. Everything else is an error
# that names its line: what is left out silently would be missed later.

Value = str | int | float | bool | list[str]

LISTS = ("stop",)
"""Parameters that may be given several times."""
UNSUPPORTED = ("ADAPTER", "LICENSE", "MESSAGE", "REQUIRES", "RENDERER", "PARSER", "CAPABILITY")
_QUOTES = ('"""', '"')
_TRUTH = {"true": True, "false": False}


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a model is to be made of; None and empty where it does not say."""

    from_: str | None = None
    system: str | None = None
    template: str | None = None
    parameters: dict[str, Value] = field(default_factory=dict)


def read_modelfile(text: str) -> Description:
    """Raises InvalidInput, which names the line."""
    instructions: dict[str, str] = {}
    pairs: list[tuple[str, str]] = []
    for number, instruction, value in _instructions(text):
        if instruction == "PARAMETER":
            name, *rest = value.split(maxsplit=1)
            if not rest:
                raise _wrong(number, "PARAMETER needs a name and a value")
            pairs.append((name, _unquoted(rest[0], number)))
            _check_once(pairs, number)
        elif instruction in instructions:
            raise _wrong(number, f"{instruction} was given before")
        elif instruction == "FROM" and _is_path(value):
            raise _wrong(
                number,
                f"FROM {value} names a file; name a model that the server has. Files are for "
                "`ollama create` on its machine",
            )
        else:
            instructions[instruction] = value
    return Description(
        from_=instructions.get("FROM"),
        system=instructions.get("SYSTEM"),
        template=instructions.get("TEMPLATE"),
        parameters=parameters_of(pairs),
    )


def parameters_of(pairs: list[tuple[str, str]]) -> dict[str, Value]:
    """Names and values as they were written -> numbers, truth values, text, lists."""
    parameters: dict[str, Value] = {}
    for name, text in pairs:
        before = parameters.get(name)
        if name in LISTS:
            parameters[name] = [*(before if isinstance(before, list) else []), text]
        else:
            parameters[name] = _scalar(text)
    return parameters


def _instructions(text: str) -> Iterator[tuple[int, str, str]]:
    """The number of its first line, the instruction, its value."""
    lines = iter(enumerate(text.splitlines(), start=1))
    for number, line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        word, *rest = line.split(maxsplit=1)
        instruction, value = word.upper(), "".join(rest).strip()
        if instruction in UNSUPPORTED:
            raise _wrong(number, f"{instruction} is not supported; take the line out")
        if instruction not in ("FROM", "SYSTEM", "TEMPLATE", "PARAMETER"):
            raise _wrong(
                number,
                f"{word!r} is no instruction; there are FROM, SYSTEM, TEMPLATE and PARAMETER, and "
                "text of several lines stands in triple quotes",
            )
        if not value:
            raise _wrong(number, f"{instruction} needs a value")
        if instruction != "PARAMETER":
            quote = next((quote_ for quote_ in _QUOTES if value.startswith(quote_)), None)
            if quote is not None:
                value = _quoted(value.removeprefix(quote), quote, lines, number)
        yield number, instruction, value


def _quoted(beginning: str, quote: str, lines: Iterator[tuple[int, str]], number: int) -> str:
    """Up to the closing quotes, which end a line."""
    parts, at = [beginning], number
    while not parts[-1].rstrip().endswith(quote):
        following = next(lines, None)
        if following is None:
            raise _wrong(number, f"the quotes {quote} are not closed")
        at, line = following
        parts.append(line)
    parts[-1] = parts[-1].rstrip().removesuffix(quote)
    text = "\n".join(parts)
    if '"""' in text:
        raise _wrong(at, "text follows the closing quotes")
    return text


def _unquoted(value: str, number: int) -> str:
    for quote in _QUOTES:
        if value.startswith(quote):
            if len(value) < 2 * len(quote) or not value.endswith(quote):
                raise _wrong(number, f"the quotes {quote} are not closed")
            return value[len(quote) : -len(quote)]
    return value


def _check_once(pairs: list[tuple[str, str]], number: int) -> None:
    name = pairs[-1][0]
    if name not in LISTS and any(name == before for before, _ in pairs[:-1]):
        raise _wrong(number, f"the parameter {name} was given before")


def _scalar(text: str) -> Value:
    if text.lower() in _TRUTH:
        return _TRUTH[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _is_path(value: str) -> bool:
    return value.startswith((".", "/", "~")) or value.lower().endswith((".gguf", ".safetensors"))


def _wrong(number: int, what: str) -> InvalidInput:
    return InvalidInput(f"The model description, line {number}: {what}.")


_DOING = {"pull": "Pulling", "create": "Creating", "delete": "Deleting"}
_DONE = {"pull": "Pulled", "create": "Created", "delete": "Deleted"}
_SHOWN = ("details", "capabilities", "parameters", "system", "template")


@click.group(cls=ListByDefault, short_help="List models; pull, make, delete those of Ollama.")
def models() -> None:
    """List models; pull, create and delete those of the Ollama server (alone: list)."""


@models.command("list")
@with_client
def list_models(client: Client, *, as_json: bool) -> int:
    """All model references, and how many workers serve each."""
    items = client.models()
    if as_json:
        print_json({"items": items})
        return 0
    print_table(
        ("model", "kinds", "default", "workers"),
        [(m.reference, " ".join(m.kinds), "yes" if m.default else "", m.workers) for m in items],
    )
    return 0


@models.command()
@click.argument("reference")
@with_client
def show(client: Client, *, reference: str, as_json: bool) -> int:
    """One model; of those of Ollama, what that server tells of it."""
    is_short = "/" not in reference and reference not in {m.reference for m in client.models()}
    model = client.model(of_ollama(reference) if is_short else reference)
    if as_json:
        print_json(model)
        return 0
    fields: list[tuple[str, object]] = [
        ("model", model.reference),
        ("kinds", " ".join(model.kinds)),
        ("default", "yes" if model.default else "no"),
    ]
    if model.workers is not None:
        fields.append(("workers", model.workers))
    details = [(name, _shown(value)) for name in _SHOWN if (value := model.details.get(name))]
    print_fields(fields if stdout().is_terminal else [*fields, *details])
    for name, value in details if stdout().is_terminal else ():
        print_text()
        print_text(name, style="bold")
        print_text(value)
    return 0


@models.command()
@click.argument("name")
@with_client
def pull(client: Client, *, name: str, as_json: bool) -> int:
    """Have the Ollama server fetch the model NAME, as llama3.2 or ollama/llama3.2."""
    return _carry_out(client, pull_input(name), as_json)


@models.command()
@click.argument("name")
@click.option("--from", "from_", metavar="MODEL", help="The model that it is made from.")
@click.option("--system", metavar="TEXT", help="Its system prompt.")
@click.option("--template", metavar="TEXT", help="Its prompt template, in Ollama's language.")
@click.option(
    "--parameter", "pairs", multiple=True, metavar="KEY=VALUE",
    help="Such as temperature=0.2 or stop=END; may be repeated.",
)  # fmt: skip
@click.option(
    "--file", "-f", "path", type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    metavar="MODELFILE", help="A description with FROM, SYSTEM, TEMPLATE and PARAMETER lines.",
)  # fmt: skip
@with_client
def create(
    client: Client,
    *,
    name: str,
    from_: str | None,
    system: str | None,
    template: str | None,
    pairs: tuple[str, ...],
    path: str | None,
    as_json: bool,
) -> int:
    """Make the model NAME of another one, on the Ollama server.

    What options say goes before what the file says.

    \b
    Examples:
      sluice models create helpdesk --from llama3.2 --system "Two sentences at most."
      sluice models create helpdesk --file Modelfile --parameter temperature=0.2
    """
    described = Description() if path is None else read_modelfile(_read(path))
    origin = from_ or described.from_
    if origin is None:
        raise click.UsageError("Say what it is made from: --from MODEL, or FROM in the --file.")
    job_input = create_input(
        name,
        origin,
        system=described.system if system is None else system,
        template=described.template if template is None else template,
        parameters={**described.parameters, **_parameters(pairs)},
    )
    return _carry_out(client, job_input, as_json)


@models.command()
@click.argument("name")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@with_client
def delete(client: Client, *, name: str, yes: bool, as_json: bool) -> int:
    """Delete the model NAME from the Ollama server."""
    job_input = delete_input(name)
    if not yes:
        confirm(f"Delete {job_input['name']} from the Ollama server?")
    return _carry_out(client, job_input, as_json)


def _carry_out(client: Client, job_input: ModelInput, as_json: bool) -> int:
    action = job_input["action"]
    job: Job = client.submit("model", job_input, lane="interactive")
    try:
        job = client.wait(job.id) if as_json else watch_job(client, job, name=_DOING[action])
    except KeyboardInterrupt:
        raise Interrupted(
            f"The job goes on. Cancel it with `sluice jobs cancel {job.id}`."
        ) from None
    job.require_success()
    if as_json:
        print_json(job)
    else:
        print_text(f"{_DONE[action]} {job_input['name']}.")
    return Exit.OK


def _parameters(pairs: tuple[str, ...]) -> dict[str, Value]:
    split = [pair.partition("=") for pair in pairs]
    for pair, (key, equals, _) in zip(pairs, split, strict=True):
        if not key.strip() or not equals:
            raise click.BadParameter(f"{pair!r} does not read KEY=VALUE.", param_hint="--parameter")
    return parameters_of([(key.strip(), value) for key, _, value in split])


def _read(path: str) -> str:
    try:
        data = sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{path} is no UTF-8 text ({error}).") from error


def _shown(value: object) -> str:
    if isinstance(value, dict):
        return "\n".join(f"{key}: {_shown(item)}" for key, item in value.items() if item)
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    return str(value)
