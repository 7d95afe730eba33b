"""`sluice prompts`: stored templates with variables, in numbered versions."""

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import click

from cli.options import ListByDefault, complete_prompts, confirm, variables_option, with_client
from cli.terminal.output import (
    first_words,
    plural,
    print_fields,
    print_json,
    print_table,
    print_text,
    say,
)
from cli.values import name_and_value
from sluice import Client, Prompt, PromptVariable

_WORDS_CELLS = 60


@click.group(cls=ListByDefault)
def prompts() -> None:
    """Store, show, compare and roll back prompts (alone: list)."""


@prompts.command("list")
@with_client
def list_prompts(client: Client, *, as_json: bool) -> int:
    """All prompts, each with its current version."""
    items = list(client.prompts())
    if as_json:
        print_json({"items": items})
        return 0
    print_table(
        ("name", "current", "latest", "variables", "about"),
        [
            (
                prompt.name, prompt.current, prompt.latest,
                " ".join(variable.name for variable in prompt.variables), _about(prompt),
            )
            for prompt in items
        ],
        flexible="about",
    )  # fmt: skip
    if not items:
        say("No prompts. `sluice prompts put NAME --file FILE` stores one.")
    return 0


@prompts.command()
@click.argument("name", shell_complete=complete_prompts)
@click.argument("template", required=False)
@click.option(
    "--file", "-f", "file", type=click.Path(exists=True, dir_okay=False, allow_dash=True),
    help="Where the template is; - is standard input.",
)  # fmt: skip
@click.option("--description", default="", help="What it is for.")
@click.option(
    "--default", "defaults", multiple=True, metavar="NAME=VALUE",
    help="What a variable is where a job does not give it; may be repeated.",
)  # fmt: skip
@click.option(
    "--describe", "descriptions", multiple=True, metavar="NAME=TEXT",
    help="What a variable is; may be repeated.",
)  # fmt: skip
@click.option("--draft", is_flag=True, help="Leave the current version what it is.")
@with_client
def put(
    client: Client,
    *,
    name: str,
    template: str | None,
    file: str | None,
    description: str,
    defaults: tuple[str, ...],
    descriptions: tuple[str, ...],
    draft: bool,
    as_json: bool,
) -> int:
    """Store TEMPLATE, in which {name} is a variable, as a new version of a prompt.

    \b
    Examples:
      sluice prompts put greeting "Say hello to {who}." --default who=everybody
      sluice prompts put answer --file answer.txt --describe tone="how to answer"
    """
    if (template is None) == (file is None):
        raise click.UsageError("Give either TEMPLATE or --file.")
    if file is not None:
        template = sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    assert template is not None
    variables: dict[str, dict[str, Any]] = {}
    for field, pairs in (("default", defaults), ("description", descriptions)):
        for pair in pairs:
            variable, text = name_and_value(pair)
            variables.setdefault(variable, {})[field] = text
    prompt = client.put_prompt(
        name, template, description=description, variables=variables, make_current=not draft
    )
    if as_json:
        print_json(prompt)
    else:
        current = "" if prompt.is_current else f", not the current one ({prompt.current})"
        print_text(f"Stored {prompt.reference}{current}.")
    return 0


@prompts.command()
@click.argument("name", metavar="NAME[@VERSION]", shell_complete=complete_prompts)
@with_client
def show(client: Client, *, name: str, as_json: bool) -> int:
    """The current version of a prompt, or one version."""
    return _print(client.prompt(name), as_json)


@prompts.command()
@click.argument("name", shell_complete=complete_prompts)
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True)
@with_client
def versions(client: Client, *, name: str, limit: int, as_json: bool) -> int:
    """The versions of a prompt, newest first."""
    items = list(itertools.islice(client.prompt_versions(name, page_items=min(limit, 100)), limit))
    if as_json:
        print_json({"items": items})
        return 0
    print_table(
        ("version", "current", "stored", "about"),
        [(p.version, "yes" if p.is_current else "", p.created_at, _about(p)) for p in items],
        flexible="about",
    )
    return 0


@prompts.command()
@click.argument("name", shell_complete=complete_prompts)
@click.option("--from", "from_", type=click.IntRange(min=1), help="Else the one before --to.")
@click.option("--to", type=click.IntRange(min=1), help="Else the newest.")
@with_client
def diff(client: Client, *, name: str, from_: int | None, to: int | None, as_json: bool) -> int:
    """What differs between two versions of a prompt."""
    difference = client.diff_prompt(name, from_, to)
    if as_json:
        print_json(difference)
        return 0
    for sign, variables in (
        ("+", difference.added),
        ("-", difference.removed),
        ("~", difference.changed),
    ):
        for variable in variables:
            print_text(f"{sign} {_variable_line(variable)}")
    if difference.template:
        print_text(difference.template.removesuffix("\n"))
    elif not (difference.added or difference.removed or difference.changed):
        say(f"{name}@{difference.from_} and {name}@{difference.to} are the same.")
    return 0


@prompts.command()
@click.argument("name", shell_complete=complete_prompts)
@click.option("--to", type=click.IntRange(min=1), help="Else the version before the current one.")
@with_client
def rollback(client: Client, *, name: str, to: int | None, as_json: bool) -> int:
    """Make an earlier version the current one. Nothing is removed."""
    prompt = client.roll_back_prompt(name, to)
    if as_json:
        print_json(prompt)
    else:
        print_text(f"{name} is {prompt.reference} now.")
    return 0


@prompts.command()
@click.argument("name", metavar="NAME[@VERSION]", shell_complete=complete_prompts)
@variables_option
@with_client
def render(client: Client, *, name: str, variables: dict[str, str], as_json: bool) -> int:
    """The text that a prompt makes of values. No model runs."""
    text = client.render_prompt(name, variables)
    if as_json:
        print_json({"prompt": name, "text": text})
    else:
        print_text(text)
    return 0


@prompts.command()
@click.argument("name", shell_complete=complete_prompts)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@with_client
def delete(client: Client, *, name: str, yes: bool, as_json: bool) -> int:
    """Delete a prompt with all its versions."""
    if not yes:
        confirm(f"Delete {name} with {plural(client.prompt(name).latest, 'version')}?")
    client.delete_prompt(name)
    if as_json:
        print_json({"deleted": name})
    else:
        print_text(f"Deleted {name}.")
    return 0


def _print(prompt: Prompt, as_json: bool) -> int:
    if as_json:
        print_json(prompt)
        return 0
    fields = [
        ("name", prompt.reference),
        ("current", prompt.current),
        ("latest", prompt.latest),
        ("about", prompt.description),
        *(("variable", _variable_line(variable)) for variable in prompt.variables),
    ]
    print_fields([(name, value) for name, value in fields if value])
    print_text()
    print_text(prompt.template)
    return 0


def _variable_line(variable: PromptVariable) -> str:
    about = f": {variable.description}" if variable.description else ""
    if variable.default is None:
        return f"{variable.name}{about}"
    return f"{variable.name}{about} (default {json.dumps(variable.default, ensure_ascii=False)})"


def _about(prompt: Prompt) -> str:
    return first_words(prompt.description or prompt.template, _WORDS_CELLS)
