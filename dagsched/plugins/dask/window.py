"""How many runs a client has under way at a time; the others wait here for their turn.

What a node does for a run costs it a little for each other run that it has, so thousands at once
would be slow.
"""

import heapq
import itertools
import threading
from typing import Protocol


class Launch(Protocol):
    """What waits for its turn."""

    priority: int

    def launch(self) -> bool:
        """Begins; False: nothing has begun, or it is over already."""


class Window:
    """Lets what enters begin, by priority and age, at most so many at a time.

    Args:
        count_max: how many.
    """

    def __init__(self, count_max: int) -> None:
        self._count_max = count_max
        self._count = 0
        self._numbers = itertools.count()
        self._waiting: list[tuple[int, int, Launch]] = []
        self._lock = threading.Lock()
        self._is_advancing = False

    def enter(self, item: Launch) -> None:
        """Has something begin at its turn, maybe now."""
        with self._lock:
            heapq.heappush(self._waiting, (-item.priority, next(self._numbers), item))
        self._advance()

    def leave(self) -> None:
        """One that had begun is over."""
        with self._lock:
            self._count -= 1
        self._advance()

    def _advance(self) -> None:
        # One thread at a time, in a loop: what ends at once leaves from within its launch.
        with self._lock:
            if self._is_advancing:
                return
            self._is_advancing = True
        interrupt: BaseException | None = None
        while True:
            with self._lock:
                if self._count >= self._count_max or not self._waiting:
                    self._is_advancing = False
                    break
                self._count += 1
                item = heapq.heappop(self._waiting)[-1]
            has_begun = False
            try:
                has_begun = item.launch()
            except BaseException as error:  # noqa: BLE001 - Ctrl-C; the others must not wait for ever
                interrupt = error
            if not has_begun:
                with self._lock:
                    self._count -= 1
        if interrupt is not None:
            raise interrupt
