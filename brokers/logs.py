"""What executors print: the end of it in memory, more of it in a file, both bounded.

Responsible for reading an executor's pipe without waiting and cheaply, whatever comes out of it: a
gigabyte, one endless line, binary data. Bytes are kept as they are; nobody looks for lines. The
file is written by a thread, so that a slow disk holds nobody up but it.
"""

import errno
import logging
import os
import queue
import threading
from collections.abc import Callable
from pathlib import Path

from dagsched.config import Config
from dagsched.faults import fault

READ_BYTES = 1 << 18
"""Taken from a pipe at once; also the size that the pipe is asked to have."""

READS_A_TURN = 4
"""So that one executor's flood doesn't hold up the broker's other work."""

WAITING_BYTES_MAX = 16 << 20
"""Bytes that wait for a slow disk; what is printed beyond that is not kept."""

logger = logging.getLogger(__name__)

FdHandler = Callable[[int], None]


def _ignore(fd: int) -> None:
    """Nobody needs to know that a descriptor is about to be closed."""


class LogFile:
    """A file that keeps the end of what is written to it.

    The newest half of `bytes_max` is always in ``<name>.log``, or in it and in ``<name>.log.old``:
    when the first is full it becomes the second.

    Args:
        path: of the file; it and the old one are overwritten.
        bytes_max: of both together.
    """

    def __init__(self, path: Path, bytes_max: int) -> None:
        self._path = path
        self._bytes_max = max(1, bytes_max // 2)
        self._fd = -1
        self._bytes = 0
        self.lost_bytes = 0  # for want of room on the disk, or of time

    def write(self, data: bytes) -> None:
        """Add to the end."""
        if self._fd < 0:
            self._start()
        room = self._bytes_max - self._bytes
        if len(data) > room:
            self._append(data[:room])
            self._path.replace(self._path.with_name(self._path.name + ".old"))
            self._start()
            # Of a piece larger than a whole file only the end can stay.
            data = data[room:][-self._bytes_max :]
        self._append(data)

    def close(self) -> None:
        """Nothing more comes."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _start(self) -> None:
        self.close()
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._fd = os.open(self._path, flags, 0o600)
        self._bytes = 0

    def _append(self, data: bytes) -> None:
        view = memoryview(data)
        self._bytes += len(data)
        try:
            fault("log.before_write")
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            # Work goes on without the file; its end is in memory, and a new file may fit later.
            if not self.lost_bytes:
                logger.warning("no room on disk for what executors print: %s", self._path)
            self.lost_bytes += len(view)


class DirectWriter:
    """Writes at once, however long the disk takes."""

    def write(self, file: LogFile, data: bytes) -> None:
        """Write to a file."""
        file.write(data)

    def end(self, file: LogFile) -> None:
        """Nothing more comes for a file."""
        file.close()


class BackgroundWriter:
    """Writes in a thread of its own: nobody who dispatches tasks waits for a disk.

    What waits is bounded; what comes beyond that is counted by its file and dropped.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[LogFile, bytes | None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._taken_bytes = 0  # each of the two is changed by one thread only
        self._done_bytes = 0

    def write(self, file: LogFile, data: bytes) -> None:
        """Have something written to a file, after all that was said before."""
        if self._taken_bytes - self._done_bytes + len(data) > WAITING_BYTES_MAX:
            file.lost_bytes += len(data)
            return
        self._taken_bytes += len(data)
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="dagsched-logs", daemon=True)
            self._thread.start()
        self._queue.put((file, data))

    def end(self, file: LogFile) -> None:
        """Nothing more comes for a file."""
        if self._thread is None:
            file.close()
        else:
            self._queue.put((file, None))

    def close(self, timeout_s: float) -> None:
        """Write what waits, if the disk lets us in that time."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while (item := self._queue.get()) is not None:
            file, data = item
            if data is None:
                file.close()
                continue
            try:
                file.write(data)
            except OSError:
                logger.exception("what executors print can't be written to its file")
            self._done_bytes += len(data)


class ExecutorLog:
    """The output of one executor, over all its incarnations.

    Args:
        path: of its `LogFile`.
        config: sizes.
        writer: writes to the file.
    """

    def __init__(
        self, path: Path, config: Config, writer: "DirectWriter | BackgroundWriter | None" = None
    ) -> None:
        self._writer = writer if writer is not None else DirectWriter()
        self._file = LogFile(path, config.log_bytes_max)
        self._tail_bytes_max = config.log_tail_bytes
        self._tail = bytearray()
        self._pipe_fd = -1
        self.total_bytes = 0

    @property
    def pipe_fd(self) -> int:
        """Where output comes from; -1: nobody writes at the moment."""
        return self._pipe_fd

    @property
    def lost_bytes(self) -> int:
        """Bytes that never came to the file."""
        return self._file.lost_bytes

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
        self._writer.end(self._file)

    def _keep(self, data: bytes) -> None:
        self.total_bytes += len(data)
        self._tail += data
        if len(self._tail) > 2 * self._tail_bytes_max:
            del self._tail[: -self._tail_bytes_max]
        self._writer.write(self._file, data)


def _enlarge_pipe(pipe_fd: int) -> None:
    """Ask for a larger pipe, so that a flood costs fewer turns; the system may refuse."""
    import fcntl

    try:
        fcntl.fcntl(pipe_fd, fcntl.F_SETPIPE_SZ, READ_BYTES)
    except PermissionError:
        # The user's pipes take more than /proc/sys/fs/pipe-user-pages-soft allows.
        return
