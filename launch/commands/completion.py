"""``fastserve completion``: what a shell needs to complete the command's words."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> int:
    """Print lines that let a shell complete commands and files.

    \b
    Examples:
      fastserve completion bash >> ~/.bashrc
      fastserve completion zsh >> ~/.zshrc
      fastserve completion fish > ~/.config/fish/completions/fastserve.fish
    """
    made = get_completion_class(shell)
    assert made is not None, "click has all three of them"
    cli = context.find_root().command
    click.echo(made(cli, {}, "fastserve", "_FASTSERVE_COMPLETE").source())
    return 0
