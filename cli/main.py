"""The command `sluice`: its global options, and the edge where errors become exit codes."""

import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.metadata import version as installed_version

import click
from click.shell_completion import get_completion_class

from cli.errors import ERRORS, AnyError, Exit, Interrupted, error_document, exit_of_error
from cli.options import CONTEXT, Group, Target, connection_options, json_option
from cli.terminal.output import ClosedPipe, print_json, print_text, say, say_json, write_text

COMPLETE_VARIABLE = "_SLUICE_COMPLETE"
SECTIONS: Mapping[str, Sequence[str]] = {
    "This machine": ("up", "down", "status", "doctor", "logs", "worker", "migrate"),
    "Documents and answers": ("ingest", "sync", "watch", "ask", "search", "eval", "chat", "hf"),
    "What is stored and queued": (
        "jobs", "submit", "batch", "schedules", "collections", "documents", "conversations",
        "prompts", "models",
    ),
    "Queues and workers": ("queues", "workers"),
    "The command itself": ("completion", "help", "version"),
}  # fmt: skip
MODULES = {
    "up": "stack", "down": "stack", "status": "stack", "doctor": "stack", "migrate": "stack",
    "logs": "stack", "search": "ask", "submit": "jobs", "queues": "stack", "workers": "stack",
    "watch": "sync",
}  # fmt: skip
"""The modules of commands that have no module of their own. Modules are imported when needed."""


class Root(Group):
    """The commands in sections. `--json` may also stand before a command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = 0
        while at < len(args) and args[at].startswith("-") and args[at] != "-":
            at += 2 if args[at] in ("--url", "--api-key") else 1
        if "--json" in args[:at] and at < len(args):
            before = [argument for argument in args[:at] if argument != "--json"]
            args = [*before, args[at], "--json", *args[at + 1 :]]
        elif "--json" in args[:at]:
            args = [argument for argument in args if argument != "--json"]
        return super().parse_args(ctx, args)

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 (as click has it)
        return [name for names in SECTIONS.values() for name in names]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        command = super().get_command(ctx, cmd_name)
        if command is None and cmd_name in self.list_commands(ctx):
            module = import_module(f"cli.commands.{MODULES.get(cmd_name, cmd_name)}")
            command = getattr(module, cmd_name)
            self.add_command(command, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in SECTIONS.items():
            self.format_section(ctx, formatter, title, names)


@click.group(cls=Root, context_settings=CONTEXT, invoke_without_command=True)
@connection_options
# Read by run(), which also has errors to show where the options could not be parsed.
@click.option("--debug", is_flag=True, expose_value=False, help="Show where an error comes from.")
@click.version_option(None, "-V", "--version", package_name="sluice", message="sluice %(version)s")
@click.pass_context
def sluice(ctx: click.Context, /, url: str | None, api_key: str | None) -> None:
    """Ingest documents, ask questions about them, chat, run Hugging Face tasks, watch the jobs.

    \b
    Examples:
      sluice up                                            start everything on this machine
      sluice ingest docs/ --collection handbook
      sluice ask "What is this about?" --collection handbook
      sluice jobs list --state failed
      sluice help ingest
    """
    ctx.obj = Target(url=url, api_key=api_key)
    if ctx.invoked_subcommand is None:
        print_text(ctx.get_help())


@click.command("help")
@click.argument("words", nargs=-1, metavar="[COMMAND]...")
@click.pass_context
def help_(ctx: click.Context, /, words: tuple[str, ...]) -> int:
    """Show the help of a command, as --help does."""
    command: click.Command = sluice
    shown = ctx.find_root()
    for word in words:
        subcommand = command.get_command(shown, word) if isinstance(command, click.Group) else None
        if subcommand is None:
            raise click.UsageError(f"There is no command {' '.join(words)!r}.", ctx=shown)
        shown = click.Context(subcommand, info_name=word, parent=shown, **CONTEXT)
        command = subcommand
    print_text(shown.get_help())
    return Exit.OK


@click.command(short_help="Print the completion script of a shell.")
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, /, shell: str) -> int:
    """Print the script that completes commands, options, collections, ids and tasks.

    \b
    Examples:
      echo 'eval "$(sluice completion bash)"' >> ~/.bashrc
      echo 'eval "$(sluice completion zsh)"' >> ~/.zshrc
      sluice completion fish > ~/.config/fish/completions/sluice.fish
    """
    class_ = get_completion_class(shell)
    assert class_ is not None
    script = class_(ctx.find_root().command, {}, "sluice", COMPLETE_VARIABLE).source()
    write_text(script if script.endswith("\n") else f"{script}\n")
    return Exit.OK


@click.command()
@json_option
def version(*, as_json: bool) -> int:
    """Show the version of this command."""
    number = installed_version("sluice")
    if as_json:
        print_json({"version": number})
    else:
        print_text(f"sluice {number}")
    return Exit.OK


sluice.add_command(completion)
sluice.add_command(help_)
sluice.add_command(version)


def run(args: Sequence[str]) -> int:
    """Run one command line and return its exit code. Errors are written to stderr."""
    try:
        code = sluice.main(list(args), prog_name="sluice", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else Exit.OK
    except click.exceptions.NoArgsIsHelpError as error:
        # The name of a group alone shows its commands, which is no error.
        print_text(error.format_message())
        return Exit.OK
    except click.ClickException as error:
        if not _is_json_output(args):
            error.show()
        else:
            say_json(error_document(error, error.format_message(), error.exit_code))
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _report(args, Interrupted("Interrupted."), Exit.INTERRUPTED)
    except ClosedPipe:
        # The interpreter flushes stdout at its end; this must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.CLOSED_PIPE
    except ERRORS as error:
        if "--debug" in args:
            traceback.print_exc()
        return _report(args, error, exit_of_error(error))
    except Exception as error:
        if "--debug" in args:
            traceback.print_exc()
        text = f"unexpected {type(error).__name__}: {error}"
        where = f"{text}\nRun it as `sluice --debug …` to see where."
        if _is_json_output(args):
            say_json(error_document(error, text, Exit.INTERNAL, type_="InternalError"))
        else:
            say(f"sluice: {where}")
        return Exit.INTERNAL


def main() -> None:
    code = run(sys.argv[1:])
    if code == Exit.INTERRUPTED:
        # sys.exit would wait for uploads that still run in other threads.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _is_json_output(args: Sequence[str]) -> bool:
    words = list(args)
    return "--json" in (words[: words.index("--")] if "--" in words else words)


def _report(args: Sequence[str], error: AnyError, code: Exit) -> Exit:
    if _is_json_output(args):
        say_json(error_document(error, error.message, code))
    else:
        say(error.message if isinstance(error, Interrupted) else f"sluice: {error.message}")
    return code


if __name__ == "__main__":
    main()
