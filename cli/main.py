"""The command `sluice`: its global options, and the edge where errors become exit codes."""

import os
import sys
import traceback
from collections.abc import Sequence

import click

from cli.commands.ask import ask
from cli.commands.chat import chat
from cli.commands.collections import collections
from cli.commands.conversations import conversations
from cli.commands.documents import documents
from cli.commands.hf import hf
from cli.commands.ingest import ingest
from cli.commands.jobs import jobs
from cli.commands.models import models
from cli.commands.search import search
from cli.commands.stack import doctor, down, migrate, status, up
from cli.commands.worker import worker
from cli.exits import Exit, of_error
from cli.options import CONTEXT, Target, connection_options
from cli.output import ClosedPipe, say
from shared.errors import SluiceError


@click.group(context_settings=CONTEXT)
@connection_options
# Read by run(), which also has errors to show where the options could not be parsed.
@click.option("--debug", is_flag=True, expose_value=False, help="Show where an error comes from.")
@click.version_option(package_name="sluice", message="%(version)s")
@click.pass_context
def sluice(ctx: click.Context, /, url: str | None, api_key: str | None) -> None:
    """Ingest documents, ask questions about them, chat, run Hugging Face tasks, watch the jobs.

    Start everything on this machine with `sluice up`, then try
    `sluice ingest docs/ --collection handbook` and
    `sluice ask "What is this about?" --collection handbook`.
    """
    ctx.obj = Target(url=url, api_key=api_key)


for _command in (
    *(up, down, status, doctor, migrate, worker),
    *(ingest, ask, search, chat, hf, jobs, collections, documents, conversations, models),
):
    sluice.add_command(_command)


def run(args: Sequence[str]) -> int:
    """The exit code of one command line, its errors told on stderr."""
    try:
        code = sluice.main(list(args), prog_name="sluice", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else Exit.OK
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return _told("Interrupted.", Exit.INTERRUPTED)
    except ClosedPipe:
        # The interpreter flushes stdout once more at its end, which must not fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return Exit.CLOSED_PIPE
    except SluiceError as error:
        if "--debug" in args:
            traceback.print_exc()
        return _told(f"sluice: {error.message}", of_error(error))
    except Exception as error:
        if "--debug" in args:
            traceback.print_exc()
        text = f"sluice: unexpected {type(error).__name__}: {error}"
        return _told(f"{text}\nRun it as `sluice --debug …` to see where.", Exit.INTERNAL)


def main() -> None:
    code = run(sys.argv[1:])
    if code == Exit.INTERRUPTED:
        # The usual way out would wait for the uploads that other threads still have under way.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _told(message: str, code: Exit) -> Exit:
    say(message)
    return code


if __name__ == "__main__":
    main()
