"""What commands say: JSON for programs, a table on a terminal, lines with tabs in between for pipes."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click
import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def say_json(document: Mapping[str, object]) -> None:
    """One JSON object on a line of its own, seen at once."""
    click.echo(msgspec.json.encode(document).decode())
    sys.stdout.flush()


def is_terminal() -> bool:
    """Whether standard output is one that can show a table."""
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def printable(text: str) -> str:
    """Text that can do a terminal no harm, on one line."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def say_rows(heads: Sequence[str], rows: Sequence[Sequence[str]], colors: Sequence[str] = ()) -> None:
    """A table on a terminal, where each row may have a color; elsewhere one line a row, columns apart by tabs."""
    if not is_terminal():
        for row in rows:
            click.echo("\t".join(map(printable, row)))
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(*heads, box=None, pad_edge=False)
    for number, row in enumerate(rows):
        color = colors[number] if number < len(colors) else ""
        table.add_row(*(Text(printable(cell), style=color if place == 0 else "") for place, cell in enumerate(row)))
    Console(highlight=False).print(table)
