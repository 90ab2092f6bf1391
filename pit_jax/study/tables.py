"""Tables on the terminal, readable at 80 columns."""

from collections.abc import Sequence
from typing import Any

import rich.box
import rich.console
import rich.table


def show(title: str, heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints a table; the first column is left-aligned, the others right."""
    table = rich.table.Table(title=title, box=rich.box.SIMPLE_HEAD, title_justify="left")
    for number, head in enumerate(heads):
        table.add_column(head, justify="left" if number == 0 else "right")
    for row in rows:
        table.add_row(*map(str, row))
    rich.console.Console().print(table)
