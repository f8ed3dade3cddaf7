"""`dist-train completion`."""

import click

from dist_train.config.stdout import tell

from .. import completion


@click.command()
@click.argument("shell", type=click.Choice(completion.SHELLS))
def command(shell: str) -> None:
    """Print what completes dist-train in a shell: commands, options, config keys with their values, configs, runs.

    \b
    bash  echo 'eval "$(dist-train completion bash)"' >> ~/.bashrc
    zsh   echo 'eval "$(dist-train completion zsh)"' >> ~/.zshrc, behind compinit
    fish  dist-train completion fish > ~/.config/fish/completions/dist-train.fish
    """
    tell(completion.script(shell))
