"""What Linux offers for keeping hold of processes: death signals, reapers, who descends from whom.

Responsible for the system calls only; policy is the pool's and the zygote's.
"""

import ctypes
import os
import signal
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_PF_EXITING = 4
_PROC = "/proc"

EXECUTOR_OOM_SCORE = 500
"""Added to an executor's badness (of 1,000), so that the kernel takes it rather than its broker."""


def set_death_signal(number: signal.Signals) -> None:
    """Have this process get a signal when its parent's thread that forked or adopted it ends.

    The parent may be gone already: compare `os.getppid()` after the call.
    """
    _prctl(_PR_SET_PDEATHSIG, number)


def become_subreaper() -> None:
    """Adopt orphaned descendants, instead of leaving them to init."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def raise_oom_score() -> None:
    """Offer this process to the kernel when memory is short; raising needs no privilege."""
    try:
        with open("/proc/self/oom_score_adj", "w") as score:
            score.write(str(EXECUTOR_OOM_SCORE))
    except OSError:
        # Read-only /proc, as some containers have it: the kernel then chooses by size alone.
        return


def oom_kill_count() -> int:
    """Processes that the kernel has killed for want of memory since boot; -1: it doesn't tell."""
    try:
        with open(f"{_PROC}/vmstat") as lines:
            counts = [line.split()[1] for line in lines if line.startswith("oom_kill ")]
    except OSError:
        return -1
    return int(counts[0]) if counts else -1


def kill_group(group: int) -> None:
    """SIGKILL to all processes of a group, if there are any."""
    try:
        os.killpg(group, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        # Nobody, or only zombies and processes that changed their user.
        return


def kill_process(pid: int) -> None:
    """SIGKILL to a process, if there is one."""
    try:
        os.kill(pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return


def children() -> list[int]:
    """Children of this process, zombies among them, in rising order."""
    try:
        threads = list(Path("/proc/self/task").iterdir())
        found = [int(pid) for t in threads for pid in (t / "children").read_text().split()]
    except FileNotFoundError:
        # A kernel without CONFIG_PROC_CHILDREN, or a thread that has just ended.
        own = os.getpid()
        found = [pid for pid in all_processes() if parent_of(pid) == own]
    return sorted(found)


def all_processes() -> list[int]:
    """Every process that can be seen, in rising order."""
    return sorted(int(name) for name in os.listdir(_PROC) if name.isdigit())


def parent_of(pid: int) -> int | None:
    """Parent of a process; None: there is no such process any more."""
    fields = _stat_fields(pid)
    return int(fields[1]) if fields else None


def is_stopped(pid: int) -> bool:
    """Whether a process has been stopped by a signal, or by a debugger."""
    return _stat_fields(pid)[:1] in ([b"T"], [b"t"])


def _stat_fields(pid: int) -> list[bytes]:
    """State, parent, and what else the kernel says; nothing if there is no such process."""
    try:
        with open(f"{_PROC}/{pid}/stat", "rb") as stat:
            # The name, in parentheses, may hold anything; the state follows the last one.
            return stat.read().rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def is_exiting(pid: int) -> bool:
    """Whether a process is on its way out, or gone; one that exits closes its files first."""
    try:
        with open(f"{_PROC}/{pid}/stat", "rb") as stat:
            flags = int(stat.read().rpartition(b")")[2].split()[6])
    except (FileNotFoundError, ProcessLookupError):
        return True
    return bool(flags & _PF_EXITING)


def has_variable(pid: int, name: str, value: str) -> bool:
    """Whether a process was started with this in its environment (forks keep it)."""
    try:
        with open(f"{_PROC}/{pid}/environ", "rb") as environ:
            return os.fsencode(f"{name}={value}") in environ.read().split(b"\0")
    except OSError:
        return False  # gone, or not ours


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
