"""Tables on the terminal, readable at 80 columns."""

from collections.abc import Sequence
from typing import Any

import rich.box
import rich.console
import rich.markup
import rich.table


def show(title: str, heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints a table; the first column is left-aligned, the others right."""
    table = rich.table.Table(title=title or None, box=rich.box.SIMPLE_HEAD, title_justify="left")
    for number, head in enumerate(heads):
        first = number == 0
        table.add_column(
            head, justify="left" if first else "right", overflow="fold" if first else "ellipsis"
        )
    for row in rows:
        table.add_row(*(rich.markup.escape(str(cell)) for cell in row))
    rich.console.Console().print(table)
