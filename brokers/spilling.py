"""Objects copied from shared memory to files, beside the broker's turns.

Responsible for the bytes only: what moves, and when the old bytes are free, the core decides. A
disk may take seconds for what memory takes in milliseconds, so one thread copies, and the turn
takes what has been copied. They share two queues and a descriptor, nothing else.
"""

import contextlib
import logging
import os
import queue
import threading
from pathlib import Path

from dagsched.brokers.objects.segments import create_segment, open_segment, unlink_segment
from dagsched.protocol.messages import Location

logger = logging.getLogger(__name__)

END_TIMEOUT_S = 2.0
"""A disk that hangs keeps the broker's end no longer."""

COPY_BYTES = 4 << 20
"""Copied by one system call, so that an end is noticed soon."""


class Spiller:
    """Copies objects to files, one each.

    Args:
        directory: of the files.
        prefix: begins their names, which go with all of the broker's at its end.
    """

    def __init__(self, directory: Path, prefix: str) -> None:
        self._prefix = f"{directory}/{prefix}"
        self._wanted: queue.SimpleQueue[tuple[int, Location] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[tuple[int, Location | None]] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_closing = False
        self._is_failing = False
        self.fd = -1

    def open(self) -> int:
        """A descriptor that is readable when something has been copied."""
        self.fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        return self.fd

    def start(self, job: int, location: Location) -> None:
        """Copy an object; its bytes must stay until `take_done` names the job."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._serve, name="spiller", daemon=True)
            self._thread.start()
        self._wanted.put((job, location))

    def take_done(self) -> list[tuple[int, Location | None]]:
        """Jobs that have ended: where the copy is; None: there is no room for it."""
        if self._thread is None:
            return []
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(self.fd)
        done = []
        with contextlib.suppress(queue.Empty):
            while True:
                done.append(self._done.get_nowait())
        return done

    def free(self, location: Location) -> bool:
        """Remove a file, if it is one of these."""
        if not location.segment.startswith(f"{self._prefix}-"):
            return False
        unlink_segment(location.segment)
        return True

    def close(self) -> None:
        """End the thread; files stay until all of the broker's are removed."""
        self._is_closing = True
        if self._thread is not None:
            self._wanted.put(None)
            self._thread.join(END_TIMEOUT_S)
            if self._thread.is_alive():
                return  # it will still write to the descriptor, which ends with the process
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _serve(self) -> None:
        while (item := self._wanted.get()) is not None and not self._is_closing:
            job, location = item
            name = f"{self._prefix}-{job}"
            copied = self._copy(location, name)
            self._done.put((job, Location(name, 0, location.size_bytes) if copied else None))
            os.eventfd_write(self.fd, 1)

    def _copy(self, location: Location, name: str) -> bool:
        """Whether the object is in the file; if not, nothing is left of that."""
        try:
            source = open_segment(location.segment)
            try:
                target = create_segment(name)
                try:
                    os.posix_fallocate(target, 0, location.size_bytes)
                    self._send(source, target, location)
                finally:
                    os.close(target)
            finally:
                os.close(source)
        except OSError as error:
            unlink_segment(name)
            if not self._is_failing:
                logger.warning("objects can't be moved to files: %s", error)
            self._is_failing = True
            return False
        self._is_failing = False
        return True

    def _send(self, source: int, target: int, location: Location) -> None:
        offset, left = location.offset, location.size_bytes
        while left:
            if self._is_closing:
                raise OSError("the broker ends")
            count = os.sendfile(target, source, offset, min(left, COPY_BYTES))
            if not count:
                raise OSError(f"segment {location.segment} ends too early")
            offset += count
            left -= count
