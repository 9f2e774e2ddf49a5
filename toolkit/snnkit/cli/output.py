"""Tables and JSON on stdout. Rich is loaded when something is printed, not before."""

import json
import os
import sys
import unicodedata
from collections.abc import Collection, Sequence
from typing import Any

SCHEMA = 1


def printable(text: str) -> str:
    """``text`` with everything escaped that a terminal would obey: names and metadata come from anybody's files."""
    plain = (c if c == "\n" or unicodedata.category(c)[0] != "C" else repr(c)[1:-1] for c in text)
    return text if text.isascii() and text.isprintable() else "".join(plain)


def print_json(content: dict[str, Any]) -> None:
    """One object with a schema number."""
    json.dump({"schema": SCHEMA, **content}, sys.stdout, indent=2, allow_nan=False, default=str)
    sys.stdout.write("\n")


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, text: Collection[int] = (0,)
) -> None:
    """A table; the columns whose index is in ``text`` hold text, the others numbers."""
    _print(title, columns, {"": rows}, text)


def print_sections(title: str, columns: Sequence[str], sections: dict[str, Sequence[Sequence[str]]]) -> None:
    """A table of headed sections whose second column holds numbers."""
    _print(title, columns, sections, text=set(range(len(columns))) - {1})


def _print(
    title: str, columns: Sequence[str], sections: dict[str, Sequence[Sequence[str]]], text: Collection[int]
) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # without a terminal the width is fixed: the output goes to files and logs
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else 120
    console = Console(file=sys.stdout, width=width, highlight=False)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="left" if index in text else "right", overflow="fold")
    for name, rows in sections.items():
        if name:
            table.add_row(Text(name, style="bold"))
        for row in rows:
            cells = [printable(cell) for cell in row]
            table.add_row(*(Text(f"  {cell}" if name and index == 0 else cell) for index, cell in enumerate(cells)))
        table.add_section()
    console.print(Text(printable(title), style="bold"))
    console.print(table)


def say(text: str = "") -> None:
    """A line on stdout."""
    print(printable(text))


def note(text: str) -> None:
    """What to know beside the answer, on stderr."""
    print(f"note: {printable(text)}", file=sys.stderr)


def percent(value: float) -> str:
    """``12.34 %``."""
    return f"{value:.2f} %"


def number(value: float) -> str:
    """A count with thousands separators."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:,.1f}"
