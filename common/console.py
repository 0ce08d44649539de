"""The terminal: results go to ``out``, everything else to ``err``. Long lines are the terminal's to wrap."""

from __future__ import annotations

import os
import sys
import textwrap
from typing import Any, ClassVar

from rich.console import Console
from rich.text import Text


class Lasting(Console):
    """Goes on when nobody reads it any more (``… | head``): a result that is still to be written must not be lost."""

    def on_broken_pipe(self) -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


out = Lasting(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def show(markdown: str) -> None:
    """A page: laid out where ``out`` is a terminal, Markdown as it is for a file or a program."""
    from rich.markdown import Markdown, TableElement  # takes a while, and a stage has no pages

    class Whole(TableElement):
        """A table whose long words are broken, not cut: kernels' names differ at their ends."""

        def __rich_console__(self, console: Any, options: Any) -> Any:
            [table] = super().__rich_console__(console, options)
            narrow = console.measure(table, options=options.update(width=400)).maximum > options.max_width
            for column in table.columns:  # type: ignore[union-attr]
                column.overflow = "fold"
                if narrow:  # or the words give way to the numbers' titles
                    column.header = Text("\n", justify=column.header.justify).join(column.header.split(" "))
            yield table

    class Page(Markdown):
        elements: ClassVar[dict[str, Any]] = {**Markdown.elements, "table_open": Whole}

    out.print(Page(markdown) if out.is_terminal else markdown, markup=False, soft_wrap=not out.is_terminal)


def printable(text: str) -> str:
    """The text with what would steer a terminal, or cannot be encoded, written as escapes."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def wrapped(text: str, indent: int = 0, to: Console | None = None) -> str:
    """Broken between words for a terminal (``out``), later lines behind an indent; as it is for a file or a program."""
    if not (to := to or out).is_terminal:
        return text
    return textwrap.fill(text, to.width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)
