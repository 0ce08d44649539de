"""What the stages are built on: backend, CUDA, buffers, engines, plans, options, the measured window, verification.

A program that is interrupted while it imports ends here, in one line; later ``program.run`` sees to that.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any, NoReturn


def _interrupted(*_: Any) -> NoReturn:
    os.write(2, f"{Path(sys.argv[0]).stem}: interrupted\n".encode(errors="replace"))
    os._exit(130)  # nothing is made yet, and an exception in the middle of an import may be swallowed


def _is_ours(file: str) -> bool:
    """Whether the program is a file of this project (``python -m`` is still looking for it), not pytest or a user's script."""
    path, root = Path(file).resolve(), Path(__file__).resolve().parent.parent
    return file == "-m" or (path.suffix == ".py" and root in path.parents and "site-packages" not in path.parts)


if _is_ours(getattr(sys.modules["__main__"], "__file__", None) or sys.argv[0]):
    signal.signal(signal.SIGINT, _interrupted)
    signal.signal(signal.SIGTERM, _interrupted)
