"""Simulated time: what happens when, in one order for one seed."""

import heapq
from collections.abc import Callable


class SimClock:
    """A heap of things to do; time is that of the thing being done.

    Example:
        >>> clock, seen = SimClock(), []
        >>> clock.at(2.0, lambda: seen.append(clock.now))
        >>> clock.at(1.0, lambda: seen.append(clock.now))
        >>> while clock.step():
        ...     pass
        >>> seen
        [1.0, 2.0]
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.step_count = 0
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._tie = 0

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Do it then, or now if that is past; what comes first at one time is done first."""
        self._tie += 1
        heapq.heappush(self._heap, (max(when, self.now), self._tie, action))

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        """Do it when this time has gone by."""
        self.at(self.now + delay_s, action)

    def step(self) -> bool:
        """Do the next thing; False if there is none."""
        if not self._heap:
            return False
        self.now, _, action = heapq.heappop(self._heap)
        self.step_count += 1
        action()
        return True
