"""How many tasks ended in each half second of the last minute. Pure."""

SLOT_S = 0.5
SLOTS = 120


class Rates:
    """Counts by half second; what is older than a minute is forgotten.

    Example:
        >>> rates = Rates(0.0)
        >>> rates.add(10.1, 30)
        >>> rates.add(10.4, 20)
        >>> rates.per_second(10.4, 5.0), rates.series(10.4)[-2:]
        (10.0, [0.0, 100.0])
    """

    def __init__(self, now: float) -> None:
        self._began_s = now
        self._counts = [0] * SLOTS
        self._newest = int(now / SLOT_S)

    def add(self, now: float, count: int) -> None:
        """So many have ended, at `now` (monotonic seconds)."""
        slot = int(now / SLOT_S)
        self._forget(slot)
        if slot > self._newest - SLOTS:
            self._counts[slot % SLOTS] += count

    def per_second(self, now: float, window_s: float) -> float:
        """Mean of the last `window_s` (in whole half seconds), or since the beginning if later."""
        self._forget(int(now / SLOT_S))
        # Less than a window after the beginning there is less to divide by.
        window_s = min(window_s, max(now - self._began_s, SLOT_S))
        slots = max(1, min(SLOTS, -int(-window_s // SLOT_S)))
        newest = self._newest
        count = sum(self._counts[slot % SLOTS] for slot in range(newest - slots + 1, newest + 1))
        return count / window_s

    def series(self, now: float) -> list[float]:
        """Tasks per second of each half second of the last minute, oldest first."""
        self._forget(int(now / SLOT_S))
        newest = self._newest
        slots = range(newest - SLOTS + 1, newest + 1)
        return [self._counts[slot % SLOTS] / SLOT_S for slot in slots]

    def _forget(self, slot: int) -> None:
        for old in range(max(self._newest + 1, slot - SLOTS + 1), slot + 1):
            self._counts[old % SLOTS] = 0
        self._newest = max(self._newest, slot)
