"""The terminal: results go to ``out``, everything else to ``err``. Long lines are the terminal's to wrap."""

from __future__ import annotations

import textwrap

from rich.console import Console

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def wrapped(text: str, indent: int = 0) -> str:
    """Broken between words where ``out`` is a terminal, later lines behind an indent; as it is for a file or a program."""
    if not out.is_terminal:
        return text
    return textwrap.fill(text, out.width, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False)
