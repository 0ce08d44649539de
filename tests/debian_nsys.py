"""A real Nsight Systems for a Debian machine without NVIDIA's repository: unpacked from Debian's non-free packages.

Nothing is installed but libssh (which it loads). Without a GPU it still traces NVTX ranges.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

BIN = Path("usr/lib/x86_64-linux-gnu/nsight-systems/target-linux-x64/nsys")
HOST = Path("usr/lib/nsight-systems/host-linux-x64")


class Unavailable(Exception):
    """This machine cannot have it; the message says why."""


def mirror() -> str:
    """The Debian mirror of this machine's own apt sources."""
    for path in [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]:
        if path.is_file():
            found = re.search(r"^(?:URIs:|deb(?: \[.*?\])?)\s+(\S+/debian)/?(?:\s|$)", path.read_text(), re.MULTILINE)
            if found:
                return found[1]
    raise Unavailable("no Debian mirror in the machine's apt sources")


def apt(*arguments: str, cwd: Path | None = None) -> None:
    try:
        subprocess.run(["apt-get", "-qq", *arguments], cwd=cwd, check=True, capture_output=True, timeout=300)
    except (OSError, subprocess.SubprocessError) as error:
        raise Unavailable(f"apt-get {arguments[-1]}: {error}") from None


def install(prefix: Path, suite: str) -> Path:
    """The nsys of a Debian suite, unpacked under ``prefix`` once; raises ``Unavailable``."""
    nsys = prefix / BIN
    if nsys.exists():
        return nsys
    if shutil.which("apt-get") is None or os.uname().machine != "x86_64" or os.geteuid() != 0:
        raise Unavailable("needs root on an x86-64 Debian")
    work = prefix / "work"
    (work / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (work / "sources.list").write_text(f"deb {mirror()} {suite} non-free\n")
    options = ["-o", f"Dir::Etc::SourceList={work}/sources.list", "-o", "Dir::Etc::SourceParts=/dev/null",
               "-o", f"Dir::State::Lists={work}/lists", "-o", "APT::Sandbox::User=root"]
    apt(*options, "update")
    apt(*options, "download", "nsight-systems", "nsight-systems-target", cwd=work)
    for package in work.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, prefix], check=True)
    shutil.rmtree(work)
    if "libssh.so.4" not in subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout:
        apt("update")
        apt("install", "-y", "libssh-4")
    library = re.search(r"libssh\.so\.4 .*=> (\S+)",
                        subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout)
    if library is None:
        raise Unavailable("libssh cannot be installed")
    for name in ("libssh.so.4", "libssh.so"):
        (prefix / HOST / name).unlink(missing_ok=True)
        (prefix / HOST / name).symlink_to(library[1])
    beside = nsys.parent.parent / HOST.name  # where nsys looks for its report importer
    if not beside.exists():
        beside.symlink_to(prefix / HOST)
    return nsys
