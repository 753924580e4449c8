"""Waiting for descriptors: which one is ready, and whom to call.

Responsible for that only; handlers must cope with being called for nothing, because a descriptor's
number may pass to another file between the kernel's word and the call.
"""

import select
from collections.abc import Callable

Handler = Callable[[], None]

READ = select.EPOLLIN
WRITE = select.EPOLLOUT

EVENTS_MAX = 256


class Poller:
    """An epoll set with a handler for each descriptor."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}

    def add(self, fd: int, handler: Handler, events: int = READ) -> None:
        """Call `handler` whenever `fd` is ready."""
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def change(self, fd: int, events: int) -> None:
        """Wait for other events of a descriptor."""
        self._epoll.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Forget a descriptor; to be called before it is closed."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def wait(self, timeout_s: float | None) -> None:
        """Wait until something is ready or the time is over; then call the handlers, each once."""
        ready = self._epoll.poll(timeout_s, EVENTS_MAX)
        for fd, _ in ready:
            handler = self._handlers.get(fd)
            if handler is not None:
                handler()

    def close(self) -> None:
        """End; the descriptors themselves stay open."""
        self._handlers.clear()
        self._epoll.close()
