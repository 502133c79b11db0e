"""Who holds a run, found out without touching it.

Taking the lock of a run to see whether it is free would refuse whoever starts that run in the same moment. Linux tells of all
locks of the machine in /proc/locks, by inode; where there is no such file nothing is known.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

TABLE = Path("/proc/locks")
LOCK = ".lock"


class Holder(NamedTuple):
    """A line of the table: the device as the kernel names it, and the process, 0 where it is in another container."""

    device: str
    pid: int


Locks = Mapping[int, tuple[Holder, ...]]
"""Who holds a lock on the file of an inode."""


def read_locks(table: Path = TABLE) -> Locks | None:
    """None where the system does not tell. A line: `1: FLOCK  ADVISORY  WRITE 812 fe:00:1234 0 EOF`; "->" marks who waits."""
    try:
        lines = table.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    found: dict[int, tuple[Holder, ...]] = {}
    for words in map(str.split, lines):
        if len(words) < 6 or words[1] == "->":
            continue
        device, _, inode = words[5].rpartition(":")
        if inode.isdigit() and words[4].lstrip("-").isdigit():
            found[int(inode)] = (*found.get(int(inode), ()), Holder(device, int(words[4])))
    return found


def holder_of(run: Path, locks: Locks | None) -> int | None:
    """The process that holds the run, 0 where it cannot be named; None where nobody holds it, or nothing is known.

    Some file systems name another device to the kernel than to us; then the process that the lock file names must hold it.
    """
    try:
        found = (run / LOCK).stat()
        named = (run / LOCK).read_bytes()[:20].strip()
    except OSError:
        return None
    device = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}"
    for holder in (locks or {}).get(found.st_ino, ()):
        if holder.device == device or str(holder.pid).encode() == named:
            return max(holder.pid, 0)
    return None
