"""Files, read by a process of its own. A thread that reads waits for the interpreter's lock after each system call, and threads
that decode wait for it: what they did in 2.9 ms took 3.3 to 3.9 beside it on a small machine, and 2.7 beside this process."""

from __future__ import annotations

import mmap
import os
import socket
import subprocess
import sys
import weakref
from collections.abc import Sequence
from itertools import accumulate
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from pathlib import Path
from stat import S_ISREG

from common.errors import EnvironmentFault

AT_ONCE = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)  # a pipe is opened, and waited for by nobody
LARGEST = 1 << 30  # bytes of a picture's file
THERE = hasattr(os, "memfd_create")
"""Whether there can be such a process: on Linux."""
PROGRAM = "import sys; sys.path[0] = sys.argv[1]; from common.reader import serve; serve(int(sys.argv[2]))"


def read(path: str | Path) -> bytes:
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


def content(path: str | Path) -> bytes:
    """Empty where there is no file, or none to be read: what that means is the decoder's to say."""
    try:
        return read(path)
    except OSError:
        return b""


class Reader:
    """The process, for one thread. It ends with the object, or with whoever made it, however that ends."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            words = [sys.executable, "-S", "-c", PROGRAM, str(Path(__file__).parents[1]), str(theirs.fileno())]
            # In a session of its own, as Ctrl-C is for its maker
            process = subprocess.Popen(words, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True)
        self._asked: Connection = Connection(ours.detach())
        self.pid = process.pid
        weakref.finalize(self, ended, self._asked, process)

    def read(self, paths: Sequence[Path]) -> list[memoryview]:
        """Each file's content, in memory that both processes have and that goes with the last of them. Raises
        ``EnvironmentFault`` where the process has ended."""
        try:
            self._asked.send(list(map(str, paths)))
            sizes = self._asked.recv()
            memory = recv_handle(self._asked)
        except (EOFError, ConnectionError, RuntimeError) as error:
            raise EnvironmentFault("The process that reads files has ended.") from error
        try:
            whole = memoryview(mmap.mmap(memory, sum(sizes), access=mmap.ACCESS_READ) if any(sizes) else b"")
        finally:
            os.close(memory)
        return [whole[end - size : end] for size, end in zip(sizes, accumulate(sizes))]


def ended(asked: Connection, process: subprocess.Popen[bytes]) -> None:
    asked.close()
    process.wait()


def serve(handle: int) -> None:
    """The process: for a list of paths the files' sizes, and memory with their contents one after the other."""
    asked = Connection(handle)
    while True:
        try:
            paths = asked.recv()
            with open(os.memfd_create("files"), "wb") as memory:
                sizes = [memory.write(content(path)) for path in paths]
                memory.flush()
                asked.send(sizes)
                send_handle(asked, memory.fileno(), None)
        except (EOFError, ConnectionError):
            return
