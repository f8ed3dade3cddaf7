"""Prints docs/cli.md, which is made from the command line: every command, its arguments, options and notes."""

import inspect
from collections.abc import Iterator

import click

from dist_train.launch.cli import COMMANDS, commands

_HEAD = """# The command line

[All documents](index.md) · [Glossary](glossary.md)

This page is made from the commands (`python docs/cli_reference.py`), and a test checks that it is up to date.
`dist-train COMMAND --help` prints the same in a terminal. Every command has `-h, --help`. `a.b=c` replaces a value of
the config ([how a config is read](config.md#how-a-config-is-read)).
"""


def markdown() -> str:
    """The text of docs/cli.md."""
    top = click.Context(commands, info_name="dist-train")
    parts = [_HEAD, "| command | |\n|---|---|"]
    parts += [f"| [`{name}`](#dist-train-{name}) | {_cell(line)} |" for name, line in COMMANDS.items()]
    parts += ["", *_notes(commands.epilog)]
    for name in COMMANDS:
        command = commands.get_command(top, name)
        assert command is not None
        parts += _command(command, click.Context(command, info_name=name, parent=top), "##")
    return "\n".join(parts).rstrip() + "\n"


def _command(command: click.Command, context: click.Context, level: str) -> Iterator[str]:
    yield f"{level} {context.command_path}\n"
    yield f"```text\n{context.command_path} {' '.join(command.collect_usage_pieces(context))}\n```\n"
    yield from _notes(command.help)
    records = [record for option in command.params if (record := option.get_help_record(context))]
    if records:
        yield "| option | |\n|---|---|"
        yield from (f"| `{_code(names)}` | {_cell(help)} |" for names, help in records)
        yield ""
    yield from _notes(command.epilog)
    if isinstance(command, click.Group):
        for name, member in command.commands.items():
            yield from _command(member, click.Context(member, info_name=name, parent=context), f"{level}#")


def _notes(text: str | None) -> Iterator[str]:
    """Paragraphs of a help; those that click leaves as they are begin with a backspace."""
    for paragraph in inspect.cleandoc(text or "").split("\n\n"):
        if paragraph.startswith("\b\n"):
            yield f"```text\n{inspect.cleandoc(paragraph[2:])}\n```\n"
        elif paragraph.strip():
            yield f"{_plain(' '.join(paragraph.split()))}\n"


def _cell(text: str) -> str:
    return _plain(" ".join(text.split())).replace("|", "\\|")


def _plain(text: str) -> str:
    """Without what Markdown would take for a tag or for emphasis."""
    return text.replace("<", "&lt;").replace("*", "\\*")


def _code(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    print(markdown(), end="")
