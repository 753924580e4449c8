"""What the system says of this machine and of processes' memory, where it says it.

Responsible for reading it, only: who asks, and how often, is decided elsewhere.
"""

import os
from collections.abc import Sequence

from dagsched.brokers.watched import Machine

_PROC = "/proc"


def look_around(pids: Sequence[int]) -> Machine:
    """The load and the memory of this machine, and the resident memory of some processes."""
    used, total = _memory()
    rss_bytes = {pid: size for pid in pids if (size := _resident_bytes(pid)) >= 0}
    return Machine(os.getpid(), os.getloadavg()[0], used, total, rss_bytes)


def _resident_bytes(pid: int) -> int:
    """Memory that a process has in use; -1: there is no such process."""
    try:
        with open(f"{_PROC}/{pid}/statm", "rb") as sizes:
            return int(sizes.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return -1


def _memory() -> tuple[int, int]:
    """Bytes in use, and bytes in all; -1 where the system doesn't tell."""
    try:
        with open(f"{_PROC}/meminfo") as lines:
            rows = (line.partition(":") for line in lines)
            sizes = {name: int(rest.split()[0]) << 10 for name, _, rest in rows}
        return sizes["MemTotal"] - sizes["MemAvailable"], sizes["MemTotal"]
    except (OSError, KeyError, ValueError, IndexError):
        return -1, -1
