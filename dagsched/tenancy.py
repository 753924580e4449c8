"""Who lives in a run directory, and who rules there: two locks.

Responsible for the locks only. ``alive.lock`` is held, shared, by the client, its brokers and
whoever adopted them: while one of them lives, nobody removes the directory or the segments of its
environment. ``master.lock`` is held, exclusively, by the one process whose master may speak to the
brokers there, and says which that is. The kernel lets go of both when their holder dies, however
that happens.
"""

import contextlib
import fcntl
import os
import time
from pathlib import Path

ALIVE_NAME = "alive.lock"
MASTER_NAME = "master.lock"
USED_NAME = "used"
"""An empty file that says: a run has been submitted, so there may be something to resume."""

STORE_NAME = "store.lock"
"""Held by the embedded store's server: see `dagsched.metastore.embedded`."""

STORE_END_TIMEOUT_S = 1.0
_RETRY_S = 0.001


class Tenancy:
    """This process's part in a run directory.

    Args:
        directory: the run directory.
        is_new: this process has made it, and makes the locks.
        alive_fd: the shared lock, from `share`; -1: not yet.
    """

    def __init__(self, directory: Path, *, is_new: bool = False, alive_fd: int = -1) -> None:
        self.directory = directory
        # Nobody else makes them, lest a directory that is just being removed should stay.
        self._flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if is_new else 0)
        self._alive_fd = alive_fd
        self._master_fd = -1

    def live(self) -> bool:
        """Say that somebody lives here; False: the directory is gone, or is being removed."""
        if self._alive_fd < 0:
            self._alive_fd = self._locked(ALIVE_NAME, fcntl.LOCK_SH)
        return self._alive_fd >= 0

    def rule(self) -> bool:
        """Become the one master; False: another process is that, or the directory is gone."""
        if self._master_fd < 0:
            self._master_fd = fd = self._locked(MASTER_NAME, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if fd >= 0:
                pid = os.getpid()
                os.ftruncate(fd, 0)
                os.pwrite(fd, b"%d %d\n" % (pid, start_ticks(pid)), 0)
        return self._master_fd >= 0

    def is_last(self) -> bool:
        """Stop living here; True: nobody else does, and nobody will until `close`."""
        if self._alive_fd < 0:
            return False
        # Of several that leave at once one gets it: each lets go of its share before it asks.
        try:
            fcntl.flock(self._alive_fd, fcntl.LOCK_UN)
            fcntl.flock(self._alive_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Let go of both locks; safe twice."""
        master_fd, self._master_fd = self._master_fd, -1
        if master_fd >= 0:
            os.ftruncate(master_fd, 0)
            os.close(master_fd)
        alive_fd, self._alive_fd = self._alive_fd, -1
        if alive_fd >= 0:
            os.close(alive_fd)

    def forget_after_fork(self) -> None:
        """In a forked child: the locks stay its parent's, who may die while the child lives."""
        for fd in (self._master_fd, self._alive_fd):
            if fd >= 0:
                os.close(fd)
        self._master_fd = self._alive_fd = -1

    def _locked(self, name: str, kind: int) -> int:
        """A descriptor with a lock; -1: another has it, or the file is gone meanwhile."""
        path = self.directory / name
        try:
            fd = os.open(path, self._flags, 0o600)
        except FileNotFoundError:
            return -1
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            # Waits, if at all, for somebody who looks whether the directory is dead, or removes it.
            fcntl.flock(fd, kind)
            if path.stat().st_ino == os.fstat(fd).st_ino:
                return fd
        os.close(fd)
        return -1


def master_pid(directory: Path) -> int | None:
    """The living process that rules in a run directory; None: there is none.

    Takes no lock, so it is in nobody's way.
    """
    try:
        pid, start = map(int, (directory / MASTER_NAME).read_bytes().split())
        return pid if start_ticks(pid) == start else None
    except (OSError, ValueError):
        return None


def claim(directory: Path) -> Tenancy | None:
    """Keep everybody out of a run directory in which nobody lives; None: somebody does."""
    tenancy = Tenancy(directory)
    try:
        fd = os.open(directory / ALIVE_NAME, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return tenancy
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    tenancy._alive_fd = fd
    return tenancy


def share(directory: Path) -> int:
    """A shared lock for a process that is about to be started; -1: there is none to be had.

    It inherits the descriptor, so that there is no moment in which nobody seems to live here.
    """
    tenancy = Tenancy(directory)
    return tenancy._alive_fd if tenancy.live() else -1


def mark_used(directory: Path) -> None:
    """Say that a run has been submitted."""
    (directory / USED_NAME).touch(0o600)


def is_used(directory: Path) -> bool:
    """Whether a run has been submitted: brokers may know of none though, for they start slowly."""
    return (directory / USED_NAME).exists()


def wait_for_store(directory: Path) -> None:
    """Wait for the embedded store of a dead client to be gone: it is killed with its client."""
    deadline = time.monotonic() + STORE_END_TIMEOUT_S
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(directory / STORE_NAME, os.O_RDWR | os.O_CLOEXEC)
        try:
            while time.monotonic() < deadline:
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    return
                time.sleep(_RETRY_S)  # waiting for a lock has no time limit
        finally:
            os.close(fd)


def start_ticks(pid: int) -> int:
    """When a process was started, in clock ticks since boot; 0 where that can't be known.

    Raises:
        ProcessLookupError: there is no such process.
    """
    try:
        status = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self/stat").exists():
            raise ProcessLookupError(pid) from None
        os.kill(pid, 0)
        return 0
    # The command's name, in parentheses, may hold blanks and parentheses: count from its end.
    fields = status[status.rindex(b")") + 2 :].split()
    if fields[0] in (b"Z", b"X"):
        raise ProcessLookupError(pid)
    return int(fields[19])
