"""`sluice completion`: the script that teaches a shell to complete `sluice`."""

import click
from click.shell_completion import get_completion_class

from cli.terminal.output import write_text

COMPLETE_VARIABLE = "_SLUICE_COMPLETE"


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
    return 0
