"""The signals that a broker heeds: SIGTERM wakes its poller, SIGINT is the client's matter."""

import os
import signal
from collections.abc import Callable

from dagsched.brokers.poller import Poller


class Signals:
    """Tells of SIGTERM through the poller, from `open` to `close`.

    Args:
        poller: of this thread, which must be the main one.
        came: called when the signal has come.
    """

    def __init__(self, poller: Poller, came: Callable[[], None]) -> None:
        self._poller = poller
        self._came = came
        self._fds: tuple[int, int] | None = None

    def open(self) -> None:
        """Listen."""
        read_fd, write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._fds = (read_fd, write_fd)
        signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, lambda _number, _frame: None)  # the descriptor has it
        # A terminal's Ctrl-C is for the client, which will tell us what follows from it.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self._poller.add(read_fd, self._came)

    def close(self) -> None:
        """Listen no more."""
        if self._fds is not None:
            signal.set_wakeup_fd(-1)
            for fd in self._fds:
                os.close(fd)
