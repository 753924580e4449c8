"""What is kept of runs that are over: the newest, within limits of number, bytes and age. Pure.

Responsible for the choice, and for what the store has not been told yet. Small results stand side
by side under one key, so that hundreds of short runs a second cost one exchange now and then. A run
that would have to be computed again keeps its journal, plan and all, which then counts here.
"""

from collections import OrderedDict
from typing import NamedTuple

from dagsched.metastore.port import Settlement

_UNTOLD_MAX = 100_000
"""Removals that wait for a store that is away; those beyond are left to expire."""


class _Result(NamedTuple):
    size_bytes: int
    until_s: float
    has_journal: bool


class Results:
    """Finished runs, oldest first.

    Args:
        count_max: so many are kept.
        bytes_max: so many bytes, all told.
        expiry_s: so long each.
    """

    def __init__(self, count_max: int, bytes_max: int, expiry_s: float) -> None:
        self._count_max = count_max
        self._bytes_max = bytes_max
        self._expiry_s = expiry_s
        self._known: OrderedDict[int, _Result] = OrderedDict()
        self._bytes = 0
        self._kept: dict[int, bytes] = {}
        self._forgotten: dict[int, None] = {}
        self._dropped: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._known)

    @property
    def size_bytes(self) -> int:
        """Of all that is kept."""
        return self._bytes

    def keep(self, run: int, data: bytes, now: float) -> None:
        """Keep a result by itself."""
        self._forget(run)
        self._forgotten.pop(run, None)
        self._kept[run] = data
        self._add(run, _Result(len(data), now + self._expiry_s, has_journal=False), now)

    def keep_journal(self, run: int, size_bytes: int, now: float) -> None:
        """Keep a finished run's whole journal."""
        self._forget(run)
        self._dropped.pop(run, None)
        self._add(run, _Result(size_bytes, now + self._expiry_s, has_journal=True), now)

    def release(self, run: int) -> None:
        """A finished run goes on (its result is computed again): its journal is no result now."""
        known = self._known.pop(run, None)
        if known is not None:
            self._bytes -= known.size_bytes

    def drop_journal(self, run: int) -> None:
        """Have the store drop a run's journal."""
        self._dropped[run] = None
        if len(self._dropped) > _UNTOLD_MAX:
            del self._dropped[next(iter(self._dropped))]

    def untold(self) -> Settlement | None:
        """What the store has to be told, if there is anything."""
        if not (self._kept or self._forgotten or self._dropped):
            return None
        return Settlement(dict(self._kept), list(self._forgotten), list(self._dropped))

    def told(self) -> None:
        """The store has done all that `untold` gave."""
        self._kept.clear()
        self._forgotten.clear()
        self._dropped.clear()

    def _add(self, run: int, result: _Result, now: float) -> None:
        self._known[run] = result
        self._bytes += result.size_bytes
        while self._known:
            oldest, known = next(iter(self._known.items()))
            is_too_much = len(self._known) > self._count_max or self._bytes > self._bytes_max
            if not is_too_much and known.until_s > now:
                return
            self._forget(oldest)

    def _forget(self, run: int) -> None:
        known = self._known.pop(run, None)
        if known is None:
            return
        self._bytes -= known.size_bytes
        if known.has_journal:
            self.drop_journal(run)
        elif self._kept.pop(run, None) is None:
            self._forgotten[run] = None
            if len(self._forgotten) > _UNTOLD_MAX:
                del self._forgotten[next(iter(self._forgotten))]
