"""The result table on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from secateurs.report.record import Record
from secateurs.report.summary import Cell, footnotes, result_table, verdict
from secateurs.report.words import printable

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


def table(record: Record) -> Table:
    """The entries as a rich table, each number with how it compares with the dense model, and the verdict below.

    >>> from secateurs.report import Entry
    >>> table(Record("Digits", entries=(Entry("dense", 0.987, 1000, 1000, 8e3, 8e3, 4096, None),))).row_count
    1
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    # Text, because a plain string would be read as markup: a layer may be called "[red]".
    title, caption = Text(printable(record.title), style="bold"), Text(printable("\n".join([verdict(record), *footnotes(record)])))
    made = Table(title=title, caption=caption, caption_justify="left", box=box.SIMPLE_HEAD, padding=(0, 0, 0, 1))
    headings, rows = result_table(record)
    for index, heading in enumerate(headings):
        # A word a line, so that eight columns fit into 80 characters; only the models' names may be wrapped further.
        justify: Literal["left", "right"] = "right" if index else "left"
        made.add_column(Text("\n".join(printable(heading).split())), justify=justify, vertical="top", no_wrap=index > 0)
    for row in rows:
        made.add_row(*map(_text, row), style="bold" if row[0].is_result else "")
    return made


def _text(cell: Cell) -> Text:
    from rich.text import Text

    text = Text(printable(cell.text))
    return text.append("".join(f"\n{word}" for word in cell.note.split()), style="dim not bold")
