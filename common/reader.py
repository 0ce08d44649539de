"""Files, read by a process of its own: a thread that reads waits for the interpreter's lock after each system call, and threads
that decode wait for it (docs/decoding.md)."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
import weakref
from collections.abc import Sequence
from itertools import accumulate
from multiprocessing.connection import Connection, Pipe
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from stat import S_ISREG

from common.errors import EnvironmentFault, reason

AT_ONCE = sum(getattr(os, f"O_{flag}", 0) for flag in ("RDONLY", "BINARY", "NONBLOCK", "NOCTTY"))
"""So a pipe is opened without a wait for who writes to it, and a terminal without becoming ours."""
LARGEST = 1 << 30  # bytes of a picture's file
THERE = hasattr(os, "memfd_create")  # whether there can be such a process: on Linux
PROGRAM = (  # Ctrl-C is for its maker
    "import sys; sys.path[0] = sys.argv[1]; import signal; signal.signal(2, signal.SIG_IGN); "
    "from common.reader import serve; serve(int(sys.argv[2]))"
)


def read(path: str | bytes | Path) -> bytes:
    """Of an ordinary file; of others nothing. Raises ``OSError``, also where it is too large."""
    file = os.open(path, AT_ONCE)
    try:
        facts = os.fstat(file)
        if facts.st_size > LARGEST:
            raise OSError(f"{facts.st_size:,} bytes are no picture")
        size = facts.st_size if S_ISREG(facts.st_mode) else 0
        found = os.read(file, size)
        while len(found) < size and (more := os.read(file, size)):  # a network's file system may give it in pieces
            found += more
        return found
    finally:
        os.close(file)


def content(path: str | bytes | Path) -> bytes:
    """Empty where there is no file, or none to be read: what that means is the decoder's to say."""
    try:
        return read(path)
    except OSError:
        return b""


class Reader:
    """The process, for one thread of its maker. It ends with the object, or with its maker; where that is killed, with its last
    fork. ``OSError`` or ``TypeError`` where there can be none."""

    def __init__(self) -> None:
        self._asked, theirs = Pipe()
        with theirs:
            # Without other packages, and where its maker is, as paths may be relative
            words = [sys.executable, "-S", "-c", PROGRAM, str(Path(__file__).parents[1]), str(theirs.fileno())]
            process = subprocess.Popen(words, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True)
        self.pid = process.pid
        weakref.finalize(self, ended, self._asked, process)

    def read(self, paths: Sequence[Path]) -> list[memoryview]:
        """Each file's content, in memory that both processes have and that goes with the last of them. Raises
        ``EnvironmentFault`` where the process has ended, or has no memory."""
        distinct = list(dict.fromkeys(paths))
        try:
            self._asked.send(list(map(os.fsencode, distinct)))
            if isinstance(sizes := self._asked.recv(), str):
                raise OSError(sizes)
            memory = recv_handle(self._asked)
            try:
                whole = memoryview(mmap.mmap(memory, sum(sizes), access=mmap.ACCESS_READ) if any(sizes) else b"")
            finally:
                os.close(memory)
        except (EOFError, OSError, RuntimeError) as error:
            self._asked.close()  # what is left in it would be taken for the next answer
            raise EnvironmentFault(f"The process that reads files has ended, or cannot: {reason(error)}.") from error
        found = {path: whole[end - size : end] for path, size, end in zip(distinct, sizes, accumulate(sizes))}
        return [found[path] for path in paths]


def ended(asked: Connection, process: subprocess.Popen[bytes]) -> None:
    asked.close()
    process.kill()  # closing is not enough where a fork of this process has the connection too
    process.wait()


def serve(handle: int) -> None:
    """The process: for a list of paths the files' sizes, and memory with their contents one after the other; or why not."""
    asked = Connection(handle)
    while True:
        try:
            paths = asked.recv()
        except (EOFError, ConnectionError):
            return
        try:
            with open(os.memfd_create("files"), "wb") as memory:
                sizes = [memory.write(content(path)) for path in paths]
                memory.flush()
                asked.send(sizes)
                send_handle(asked, memory.fileno(), None)
        except ConnectionError:
            return
        except (OSError, MemoryError) as error:
            asked.send(reason(error))
