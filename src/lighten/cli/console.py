"""What every command shares: people read stderr, programs read stdout."""

import json
from enum import Enum
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

stderr = Console(stderr=True)


class Format(str, Enum):
    """How a command gives its result: drawn for people on stderr, or as JSON on stdout."""

    TEXT = "text"
    JSON = "json"


FormatOption = Annotated[Format, typer.Option("--format", help="text draws on stderr, json prints data on stdout.")]


def print_error(message: str) -> None:
    """One line on stderr, never wrapped and never read as markup: a path may hold square brackets."""
    line = " ".join(message.splitlines())
    stderr.print(Text.assemble(("error: ", "bold red"), line), soft_wrap=True, highlight=False)


def print_json(data: dict[str, Any]) -> None:
    """data on stdout."""
    typer.echo(json.dumps(data, indent=2))
