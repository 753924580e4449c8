"""Running one lane of a gang: a bundle that waits, while it runs, for values of other executors.

A lane is run in stretches: before some it waits for what other lanes hand over, after some it hands
over what they need. If it can't do all that it has, or another lane can't, it ends with the rest
deferred, and tells the broker all values that it has and somebody may need.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from time import monotonic_ns
from typing import Any

from dagsched.brokers.code import RunCode
from dagsched.brokers.execution import (
    BundleRun,
    Services,
    int32_list,
)
from dagsched.brokers.exports import Exports
from dagsched.brokers.handover import Handover, Key
from dagsched.brokers.status import AWAITING_POSITION, IDLE_POSITION, POSITION, STOP
from dagsched.errors import InternalError
from dagsched.pickling import dumps
from dagsched.protocol.messages import TRACE_GAP, Frame, RunBundle
from dagsched.serialize import load_value

LONG_LANE_NS = 1_000_000_000
"""As `LONG_BUNDLE_NS`, for tasks that were measured: the machine may have other things to do."""


@dataclass(slots=True)
class _Stretch:
    """Tasks that are run without a look at other lanes."""

    begin: int
    end: int = 0
    awaited: list[tuple[int, int]] = field(default_factory=list)  # position, uses in this lane
    handed: list[tuple[int, int]] = field(default_factory=list)  # position, lane


class LaneRun(BundleRun):
    """One lane while it runs; arguments as of `BundleRun`, and how values change executors."""

    def __init__(
        self,
        message: RunBundle,
        frames: Sequence[Frame],
        imports: Sequence[Frame],
        code: RunCode,
        services: Services,
        status: memoryview,
        handover: Handover,
    ) -> None:
        super().__init__(message, frames, imports, code, services, status)
        self._handover = handover
        self._key = Key(message.run, message.bundle, message.attempt)
        self._awaited = int32_list(frames[5])
        self._handed = int32_list(frames[6])
        self._arrived: dict[int, Any] = {}  # not taken in yet
        self._taken_in: set[int] = set()
        self._unsent: set[int] = set()  # too large to be handed over
        self._is_peer_broken = False
        self._until = 0

    def run_tasks(self, codes: Sequence[int]) -> None:
        """All stretches, as far as they go."""
        self._handover.begin()
        outcome = self.outcome
        self._until = outcome.stamps[-1] + LONG_LANE_NS
        rows = self.rows(codes)
        for stretch in self._stretches():
            if stretch.awaited and not self._await(stretch.awaited):
                self._defer_from(stretch.begin)
                break
            if stretch.begin:
                outcome.done.append(TRACE_GAP)
                outcome.stamps.append(monotonic_ns())
            elif stretch.awaited:
                outcome.stamps[0] = monotonic_ns()
            self.run_rows(islice(rows, stretch.end - stretch.begin), self._until)
            if stretch.handed:
                self._hand_over(stretch.handed)
            if self._is_broken():
                if not outcome.deferred or outcome.deferred[-1] != self.positions[-1]:
                    self._defer_from(stretch.end)
                break
        self._end()

    def _stretches(self) -> Iterator[_Stretch]:
        awaited, handed = self._awaited, self._handed
        begins: dict[int, list[tuple[int, int]]] = {}
        for index, position, uses in zip(awaited[::3], awaited[1::3], awaited[2::3], strict=True):
            begins.setdefault(index, []).append((position, uses))
        given: dict[int, list[int]] = {}
        for index, lane in zip(handed[::2], handed[1::2], strict=True):
            given.setdefault(index, []).append(lane)
        stretch = _Stretch(0)
        for index, position in enumerate(self.positions):
            if index in begins or (stretch.handed and index not in given):
                if index > stretch.begin:
                    stretch.end = index
                    yield stretch
                    stretch = _Stretch(index)
                stretch.awaited = begins.get(index, [])
            for lane in given.get(index, ()):
                stretch.handed.append((position, lane))
        stretch.end = len(self.positions)
        yield stretch

    def _is_broken(self) -> bool:
        outcome = self.outcome
        return bool(outcome.deferred or outcome.failures or outcome.expanded or self._unsent)

    # --- from other lanes -------------------------------------------------------------------------

    def _await(self, awaited: Sequence[tuple[int, int]]) -> bool:
        """Wait for values of other lanes; False: they won't come, or not soon enough."""
        arrived, status, wait = self._arrived, self.status, False
        status[POSITION] = IDLE_POSITION
        for position, uses in awaited:
            while position not in arrived:
                if wait:
                    status[POSITION] = AWAITING_POSITION
                    if status[STOP] == self.message.bundle or monotonic_ns() > self._until:
                        return False
                is_there = self._receive(wait=wait)
                if self._is_peer_broken:
                    return False
                wait = not is_there
            if not self._take_in(position, arrived.pop(position), uses):
                return False
        return True

    def _receive(self, *, wait: bool) -> bool:
        message = self._handover.receive(self._key, wait=wait)
        if message is None:
            return False
        is_broken, data = message
        if is_broken:
            self._is_peer_broken = True
            return True
        self.status[POSITION] = IDLE_POSITION  # whatever is unpickled may run code
        try:
            values = load_value(data)
        except BaseException:  # noqa: BLE001 - whoever gets it as an object will say what is wrong
            self._is_peer_broken = True
            return True
        if not isinstance(values, dict):
            raise InternalError("what a lane hands over are values by position")
        self._arrived.update(values)
        return True

    def _take_in(self, position: int, value: object, uses: int) -> bool:
        """Keep a value for its uses here; False: there is no room for it."""
        if uses == 1:
            self.values.once[position] = value
        else:
            try:
                self.values.keep(position, [value], uses, is_exported=False, items=self)
            except Exception:  # noqa: BLE001 - it is told where its maker exports it
                return False
        self._taken_in.add(position)
        return True

    # --- to other lanes ---------------------------------------------------------------------------

    def _hand_over(self, handed: Sequence[tuple[int, int]]) -> None:
        """Send the values that there are; what is too large to be sent is kept for the broker."""
        by_lane: dict[int, dict[int, object]] = {}
        if handed[0][0] != handed[-1][0]:
            self.status[POSITION] = IDLE_POSITION  # who pickles may be any of them
        for position, lane in handed:
            value, is_there = self._value(position)
            if is_there:
                by_lane.setdefault(lane, {})[position] = value
        for lane, values in by_lane.items():
            slot = self.message.slots[lane]
            try:
                is_sent = self._handover.send(slot, self._key, dumps(values))
            except Exception:  # noqa: BLE001 - the broker's export tells what can't be pickled
                is_sent = False
            if is_sent:
                continue
            for position, value in values.items():
                try:
                    is_sent = self._handover.send(slot, self._key, dumps({position: value}))
                except Exception:  # noqa: BLE001 - the same
                    is_sent = False
                if not is_sent:
                    self._unsent.add(position)

    def _value(self, position: int) -> tuple[object, bool]:
        """The value of a task of this lane, and whether there is one small enough."""
        values = self.values
        if position in values.raw:
            return values.raw[position], True
        prepared = values.prepared.get(position)
        if prepared is None:
            return None, False
        if prepared.location is not None:
            self._unsent.add(position)
            return None, False
        return load_value(prepared.stream), True

    # --- the end ----------------------------------------------------------------------------------

    def _end(self) -> None:
        """Nothing more is run: see that others get, or can get, what they need."""
        if not self._is_broken() and not self._handover.flush(self._should_stop):
            self._unsent.update(self._handed_positions())
        if self._is_broken():
            for lane, slot in enumerate(self.message.slots):
                if lane != self.message.lane:
                    self._handover.send_broken(slot, self._key)
            outcome = self.outcome
            if not (outcome.deferred or outcome.failures or outcome.expanded):
                self._handover.flush(self._should_stop)  # the broker will not stop the others
        while self._receive(wait=False):
            pass
        if self._is_broken():
            uses = dict(zip(self._awaited[1::3], self._awaited[2::3], strict=True))
            for position, value in self._arrived.items():
                self._take_in(position, value, uses.get(position, 1))
        self.status[POSITION] = IDLE_POSITION

    def _should_stop(self) -> bool:
        return self.status[STOP] == self.message.bundle or monotonic_ns() > self._until

    def _handed_positions(self) -> list[int]:
        return [self.positions[index] for index in dict.fromkeys(self._handed[::2])]

    def entries(self) -> list[Any]:
        """See `BundleRun`: positions don't rise here."""
        rising = sorted(self.positions)
        of = dict(zip(rising, self.code.entries_of(rising), strict=True))
        return [of[position] for position in self.positions]

    def exported(self) -> set[int]:
        """See `BundleRun`: what is handed over is kept as long."""
        return super().exported().union(self._handed_positions())

    def add_more(self, exports: Exports) -> None:
        """If this or another lane is broken, the broker gets what it may have to give to others."""
        if self._is_broken() or self._is_peer_broken:
            there: set[int] = set()
            for info in exports.infos:
                there.update(range(info.first, info.first + info.count))
            for position in self._handed_positions():
                if position not in there and (
                    position in self.values.raw or position in self.values.prepared
                ):
                    exports.add_single(position)
        super().add_more(exports)

    def release(self) -> None:
        """See `BundleRun`."""
        super().release()
        self._arrived.clear()

    def ended_here(self) -> set[int]:
        """See `BundleRun`: values that came from other lanes are as good."""
        return super().ended_here().union(self._taken_in)

    def _seconds(self) -> list[tuple[int, int, float]]:
        spent: dict[int, list[int]] = {}
        of = dict(zip(self.positions, self.function_of, strict=True))
        done, stamps = self.outcome.done, self.outcome.stamps
        for position, begin, end in zip(done, stamps, stamps[1:], strict=False):
            if position != TRACE_GAP:
                booked = spent.setdefault(of[position], [0, 0])
                booked[0] += 1
                booked[1] += end - begin
        return [(index, calls, total / 1e9) for index, (calls, total) in sorted(spent.items())]
