"""What executors print: the end of it in memory, more of it in a file, both bounded.

Responsible for reading an executor's pipe without waiting and cheaply, whatever comes out of it: a
gigabyte, one endless line, binary data. Bytes are kept as they are; nobody looks for lines.
"""

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

from dagsched.config import Config
from dagsched.faults import fault

READ_BYTES = 1 << 18
"""Taken from a pipe at once; also the size that the pipe is asked to have."""

READS_A_TURN = 4
"""So that one executor's flood doesn't hold up the broker's other work."""


logger = logging.getLogger(__name__)

FdHandler = Callable[[int], None]


def _ignore(fd: int) -> None:
    """Nobody needs to know that a descriptor is about to be closed."""


class ExecutorLog:
    """The output of one executor, over all its incarnations.

    The newest half of ``log_bytes_max`` bytes is always in ``<name>.log``, or in it and in
    ``<name>.log.old``: when the first is full it becomes the second.

    Args:
        path: of the file; it and the old one are overwritten.
        config: sizes.
    """

    def __init__(self, path: Path, config: Config) -> None:
        self._path = path
        self._file_bytes_max = max(1, config.log_bytes_max // 2)
        self._tail_bytes_max = config.log_tail_bytes
        self._tail = bytearray()
        self._file_fd = -1
        self._file_bytes = 0
        self._pipe_fd = -1
        self.total_bytes = 0
        self.lost_bytes = 0  # of the file, for want of room on the disk

    @property
    def pipe_fd(self) -> int:
        """Where output comes from; -1: nobody writes at the moment."""
        return self._pipe_fd

    def open_pipe(self) -> int:
        """Begin a new incarnation.

        Returns:
            the end that its process shall write to, for the caller to hand on and close.
        """
        self.close_pipe()
        self._tail.clear()
        self._pipe_fd, write_fd = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._pipe_fd, False)
        _enlarge_pipe(self._pipe_fd)
        return write_fd

    def drain(self, before_close: FdHandler = _ignore) -> bool:
        """Take some of what has been written; False: the pipe has ended and is closed.

        Args:
            before_close: told the pipe's descriptor in that case.
        """
        for _ in range(READS_A_TURN):
            try:
                data = os.read(self._pipe_fd, READ_BYTES)
            except BlockingIOError:
                return True
            if not data:
                self.close_pipe(before_close)
                return False
            self._keep(data)
            if len(data) < READ_BYTES // 2:
                return True  # most likely all there was; else the descriptor says so again
        return True

    def finish(self, before_close: FdHandler = _ignore) -> None:
        """The process is dead: take what is left, and don't wait for others that hold the pipe."""
        # A stray that still floods the pipe must not keep us here: a pipe's content and no more.
        for _ in range(READS_A_TURN):
            if self._pipe_fd < 0 or not self.drain(before_close):
                return
        self.close_pipe(before_close)

    def tail(self) -> str:
        """The end of what the present incarnation printed."""
        return bytes(self._tail[-self._tail_bytes_max :]).decode(errors="replace")

    def close_pipe(self, before_close: FdHandler = _ignore) -> None:
        """Stop listening."""
        if self._pipe_fd >= 0:
            before_close(self._pipe_fd)
            os.close(self._pipe_fd)
            self._pipe_fd = -1

    def close(self) -> None:
        """Stop listening and close the file."""
        self.close_pipe()
        if self._file_fd >= 0:
            os.close(self._file_fd)
            self._file_fd = -1

    def _keep(self, data: bytes) -> None:
        self.total_bytes += len(data)
        self._tail += data
        if len(self._tail) > 2 * self._tail_bytes_max:
            del self._tail[: -self._tail_bytes_max]
        if self._file_fd < 0:
            self._start_file()
        room = self._file_bytes_max - self._file_bytes
        if len(data) > room:
            self._write(data[:room])
            self._path.replace(self._path.with_name(self._path.name + ".old"))
            self._start_file()
            # Of a piece larger than a whole file only the end can stay.
            data = data[room:][-self._file_bytes_max :]
        self._write(data)

    def _start_file(self) -> None:
        if self._file_fd >= 0:
            os.close(self._file_fd)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._file_fd = os.open(self._path, flags, 0o600)
        self._file_bytes = 0

    def _write(self, data: bytes) -> None:
        view = memoryview(data)
        self._file_bytes += len(data)
        try:
            fault("log.before_write")
            while view:
                view = view[os.write(self._file_fd, view) :]
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            # Work goes on without the file; its end is in memory, and a new file may fit later.
            if not self.lost_bytes:
                logger.warning("no room on disk for what executors print: %s", self._path)
            self.lost_bytes += len(view)


def _enlarge_pipe(pipe_fd: int) -> None:
    """Ask for a larger pipe, so that a flood costs fewer turns; the system may refuse."""
    import fcntl

    try:
        fcntl.fcntl(pipe_fd, fcntl.F_SETPIPE_SZ, READ_BYTES)
    except PermissionError:
        # The user's pipes take more than /proc/sys/fs/pipe-user-pages-soft allows.
        return
