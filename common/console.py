"""The terminal: results go to ``out``, everything else to ``err``. Long lines are the terminal's to wrap."""

from __future__ import annotations

from rich.console import Console

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)
