"""`sluice models`: what can answer, and the models of the Ollama server."""

import sys
from pathlib import Path

import click

from cli.errors import Exit, Interrupted
from cli.options import ListByDefault, confirm, with_client
from cli.terminal.output import print_fields, print_json, print_table, print_text, stdout
from cli.terminal.progress import watch_job
from cli.values import name_and_value
from shared.modelfiles.modelfile import Description, Value, read_modelfile, values_of
from sluice import Client, Job
from sluice.inputs import create_input, delete_input, of_ollama, pull_input
from sluice.kinds import ModelInput

NAMED_MODEL_INSTRUCTIONS = ("ADAPTER", "LICENSE", "MESSAGE")
"""Instructions for named models alone, which jobs of the kind `model` cannot carry out."""
_DOING = {"pull": "Pulling", "create": "Creating", "delete": "Deleting"}
_DONE = {"pull": "Pulled", "create": "Created", "delete": "Deleted"}
_SHOWN = ("from", "details", "capabilities", "parameters", "system", "template", "messages")


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
    """One model, for a model of Ollama with the details of its server."""
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
    description = Description() if path is None else read_modelfile(_read(path))
    for instruction in (name for name in NAMED_MODEL_INSTRUCTIONS if name in description.lines):
        raise description.error(
            instruction, f"{instruction} is for named models: `sluice models define`"
        )
    origin = from_ or description.from_
    if origin is None:
        raise click.UsageError("Say what it is made from: --from MODEL, or FROM in the --file.")
    job_input = create_input(
        name,
        origin,
        system=description.system if system is None else system,
        template=description.template if template is None else template,
        parameters={**description.parameters, **_parameters(pairs)},
    )
    return _carry_out(client, job_input, as_json)


@models.command()
@click.argument("name")
@click.option("--from", "from_", metavar="MODEL", help="The model that writes, of any provider.")
@click.option("--system", metavar="TEXT", help="Its system prompt.")
@click.option("--template", metavar="TEXT", help="Its prompt template, in Ollama's language.")
@click.option(
    "--file", "-f", "path", type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    metavar="MODELFILE", help="A description in the form of Ollama's Modelfile.",
)  # fmt: skip
@with_client
def define(
    client: Client,
    *,
    name: str,
    from_: str | None,
    system: str | None,
    template: str | None,
    path: str | None,
    as_json: bool,
) -> int:
    """Make or replace the named model NAME: a preset over a model of any provider.

    Jobs name it as any other model. What options say goes before what the file says.

    \b
    Examples:
      sluice models define helpdesk --from hf/Qwen/Qwen3-4B --system "Two sentences at most."
      sluice models define helpdesk --file Modelfile
    """
    text = None if path is None else _read(path)
    if text is None and from_ is None:
        raise click.UsageError("Say what it is made from: --from MODEL, or FROM in the --file.")
    model = client.define_model(name, text, from_=from_, system=system, template=template)
    if as_json:
        print_json(model)
    else:
        print_text(f"Defined {model.reference} over {model.details['from']}.")
    return Exit.OK


@models.command()
@click.argument("name")
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@with_client
def delete(client: Client, *, name: str, yes: bool, as_json: bool) -> int:
    """Delete the named model NAME, or else the model of that name from the Ollama server."""
    named_models = {model.reference for model in client.models() if model.base is not None}
    if name.removesuffix(":latest") in named_models:
        if not yes:
            confirm(f"Delete the named model {name}?")
        client.undefine_model(name)
        if as_json:
            print_json({"deleted": name})
        else:
            print_text(f"Deleted {name}.")
        return Exit.OK
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
    return values_of([name_and_value(pair, hint="--parameter") for pair in pairs])


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
