"""What the stages are built on: backend, CUDA, buffers, engines, plans, options, the measured window, verification.

A program of this project that is interrupted while it imports ends here, in one line; later ``program.run`` sees to that.
"""

import os
import signal
import sys
from pathlib import Path


def _end(*_: object) -> None:
    os.write(2, f"{Path(sys.argv[0]).stem}: interrupted\n".encode(errors="replace"))
    os._exit(130)  # nothing is made yet, and an exception in the middle of an import may be swallowed


_main = Path(getattr(sys.modules["__main__"], "__file__", None) or sys.argv[0])  # -m: Python is still looking for the module
_ours = Path(__file__).resolve().parent.parent in _main.resolve().parents and "site-packages" not in _main.parts
if str(_main) == "-m" or (_ours and _main.suffix == ".py"):
    signal.signal(signal.SIGINT, _end)
    signal.signal(signal.SIGTERM, _end)
