"""Objects that outlive their run because the client, or another run, holds a Ref to them. Pure."""

from collections.abc import Callable, Iterable

import numpy as np

from dagsched.ids import ProcessId, RunNo
from dagsched.master.outbox import Outbox
from dagsched.master.slices import positions_frame
from dagsched.master.state import Kept
from dagsched.protocol.messages import Release

RefKey = tuple[RunNo, int]


class KeptObjects:
    """By run and position: who has it, and who needs it."""

    def __init__(self, outbox: Outbox) -> None:
        self._kept: dict[RunNo, dict[int, Kept]] = {}
        self._outbox = outbox

    def __len__(self) -> int:
        return sum(map(len, self._kept.values()))

    def _find(self, key: RefKey) -> Kept | None:
        return self._kept.get(key[0], {}).get(key[1])

    def keep(self, key: RefKey, broker: ProcessId) -> None:
        """The client has a Ref to it now."""
        kept = self._kept.setdefault(key[0], {}).setdefault(key[1], Kept(broker))
        kept.held = True  # again, if a run gave back what it was given

    def broker_of(self, key: RefKey) -> ProcessId | None:
        """Who has it; None: nobody, or it isn't ours to say."""
        kept = self._find(key)
        return None if kept is None else kept.broker

    def use(self, key: RefKey) -> bool:
        """A run has it as a source; False if there is no such object."""
        kept = self._find(key)
        if kept is not None:
            kept.user_count += 1
        return kept is not None

    def end_use(self, keys: Iterable[RefKey]) -> None:
        """That run has ended."""
        for key in keys:
            kept = self._find(key)
            if kept is not None:
                kept.user_count -= 1
                self._maybe_release(key, kept)

    def drop(self, key: RefKey) -> None:
        """The client has no Ref to it any more."""
        kept = self._find(key)
        if kept is not None:
            kept.held = False
            self._maybe_release(key, kept)

    def _maybe_release(self, key: RefKey, kept: Kept) -> None:
        if kept.held or kept.user_count:
            return
        self._remove(key)
        if kept.settled:
            frame = positions_frame(np.array([key[1]], np.int32))
            self._outbox.send(kept.broker, Release(key[0]), [frame])

    def _remove(self, key: RefKey) -> None:
        of_run = self._kept[key[0]]
        del of_run[key[1]]
        if not of_run:
            del self._kept[key[0]]

    def follow(
        self, run: RunNo, task_count: int, location: Callable[[int], ProcessId | None]
    ) -> None:
        """A recovery has found out who of a run that goes on holds which task's value."""
        for position, kept in self._kept.get(run, {}).items():
            if position < task_count and not kept.settled:
                kept.broker = location(position) or kept.broker

    def settle(self, run: RunNo, broker: ProcessId) -> list[int]:
        """The run ends: positions that `broker` shall keep, rising; released one by one later."""
        positions = []
        for position, kept in self._kept.get(run, {}).items():
            if kept.broker == broker:
                kept.settled = True
                positions.append(position)
        return sorted(positions)

    def forget_run(self, run: RunNo) -> None:
        """What it held is gone, or will be made anew: it didn't end well, or it starts again."""
        self._kept.pop(run, None)

    def forget_broker(self, broker: ProcessId) -> set[RefKey]:
        """The broker is gone, and all that it held; returns what runs still wanted of it."""
        lost = {
            (run, position): kept
            for run, of_run in self._kept.items()
            for position, kept in of_run.items()
            if kept.broker == broker
        }
        for key in lost:
            self._remove(key)
        return {key for key, kept in lost.items() if kept.user_count}

    def on(self, broker: ProcessId) -> list[RefKey]:
        """All that a broker keeps of ended runs."""
        return [
            (run, position)
            for run, of_run in self._kept.items()
            for position, kept in of_run.items()
            if kept.broker == broker and kept.settled
        ]

    def move(self, key: RefKey, broker: ProcessId) -> bool:
        """Another broker has it now, settled; False: nobody wants it any more."""
        kept = self._find(key)
        if kept is not None:
            kept.broker = broker
        return kept is not None

    def release_at(self, key: RefKey, broker: ProcessId) -> None:
        """A broker took over what nobody wants any more."""
        frame = positions_frame(np.array([key[1]], np.int32))
        self._outbox.send(broker, Release(key[0]), [frame])

    def lose(self, key: RefKey) -> None:
        """Nobody has it any more."""
        if self._find(key) is not None:
            self._remove(key)

    def is_used_on(self, broker: ProcessId) -> bool:
        """Running runs have objects of this broker as sources."""
        return any(
            kept.user_count and kept.broker == broker
            for of_run in self._kept.values()
            for kept in of_run.values()
        )

    def check(self) -> list[str]:
        """What is wrong; nothing, mostly."""
        return [
            f"kept object {(run, position)}: held {kept.held}, {kept.user_count} users"
            for run, of_run in self._kept.items()
            for position, kept in of_run.items()
            if kept.user_count < 0 or not (kept.held or kept.user_count)
        ]


def lost_text(run: int, position: int) -> str:
    """What a run that has such a source is told when that is lost."""
    return f"the value at position {position} of run {run} is gone with the node that had it"
