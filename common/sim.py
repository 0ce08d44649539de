"""`python -m common.sim` was the simulator's command."""

from __future__ import annotations

if __name__ == "__main__":
    raise SystemExit("python -m sim SCRIPT ARGS… replaces python -m common.sim")
