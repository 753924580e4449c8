"""Lanes of a gang in simulated executors, which hand values over to each other.

The schedule of all lanes is made when the last of them begins; what is stopped, dies or never comes
cuts it short. Values and their times are those of real lanes but for one thing: a lane that is
broken is so for all others at the same moment.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from dagsched.protocol.messages import RunBundle
from dagsched.testing.graphs import SimTask, mixed

HANDOVER_S = 0.000_01
LONG_LANE_S = 1.0
"""As in a real executor."""


@dataclass(slots=True)
class SimLane:
    """What one executor has of a gang."""

    message: RunBundle
    positions: list[int]
    deps: list[list[int]]
    durations_s: list[float]
    handed: list[int]  # positions that others need
    task: Callable[[int], SimTask]
    imported: Mapping[int, int]
    end: Callable[[float], None]  # to be called with the time at which it ends
    begins_s: list[float] = field(default_factory=list)
    ends_s: list[float] = field(default_factory=list)
    run_count: int = 0
    is_over: bool = False


@dataclass(slots=True)
class SimGang:
    """All lanes of a gang that have begun, and what they would make."""

    lanes: dict[int, SimLane] = field(default_factory=dict)  # by number of lane
    is_broken: bool = False
    is_begun: bool = False
    values: dict[int, int] = field(default_factory=dict)  # of all tasks that end with one

    def join(self, lane: SimLane, now: float) -> None:
        """A lane begins; it ends in vain if the others don't come."""
        self.lanes[lane.message.lane] = lane
        if self.is_broken:
            lane.end(now)
        elif len(self.lanes) == len(lane.message.slots):
            self.is_begun = True
            self._schedule(now)
        else:
            lane.end(now + LONG_LANE_S)

    def leave(self, lane: SimLane) -> None:
        """Its executor is dead, or the lane has ended."""
        lane.is_over = True

    def is_there(self, position: int, reader: SimLane, now: float) -> bool:
        """Whether some lane has made a value, and this one has it by now."""
        return position in self.values and any(
            end_s + (lane is not reader) * HANDOVER_S <= now
            for lane in self.lanes.values()
            for made, end_s in zip(lane.positions[: lane.run_count], lane.ends_s, strict=False)
            if made == position
        )

    def break_up(self, now: float) -> None:
        """No lane begins another task."""
        self.is_broken = True
        for lane in self.lanes.values():
            if lane.is_over:
                continue
            begun = sum(begin_s <= now for begin_s in lane.begins_s[: lane.run_count])
            lane.run_count = begun
            lane.end(max([now, *lane.ends_s[:begun]]))

    def died(self, lane: SimLane, now: float) -> None:
        """An executor is dead: what it had not handed over never comes."""
        lane.is_over = True
        lane.run_count = sum(end_s <= now for end_s in lane.ends_s[: lane.run_count])
        if not self.is_begun:
            return
        lost = set(lane.positions[lane.run_count :])
        for _ in self.lanes:
            for other in self.lanes.values():
                if other.is_over:
                    continue
                places = range(other.run_count)
                first = next((i for i in places if not lost.isdisjoint(other.deps[i])), None)
                if first is not None:
                    other.run_count = first
                    lost.update(other.positions[first:])
                    other.end(max(other.ends_s[0], now) + LONG_LANE_S)

    def _schedule(self, now: float) -> None:
        """When each task begins and ends, and how far each lane comes."""
        ends_s: dict[int, float] = {}
        lanes = list(self.lanes.values())
        made = {position: lane for lane in lanes for position in lane.positions}
        breaks_s = now + LONG_LANE_S
        for lane in lanes:
            lane.begins_s, lane.ends_s, lane.run_count = [], [], 0
        is_moving = True
        while is_moving:
            is_moving = False
            for lane in lanes:
                while (index := len(lane.ends_s)) < len(lane.positions):
                    needed = [d for d in lane.deps[index] if d in made]
                    if any(d not in ends_s for d in needed):
                        break
                    position = lane.positions[index]
                    begin_s = max(
                        [
                            lane.ends_s[-1] if index else now,
                            *(ends_s[d] + (made[d] is not lane) * HANDOVER_S for d in needed),
                        ]
                    )
                    lane.begins_s.append(begin_s)
                    lane.ends_s.append(begin_s + lane.durations_s[index])
                    task = lane.task(position)
                    if task.fails or task.returns >= 0:
                        breaks_s = min(breaks_s, lane.ends_s[-1])
                    else:
                        ends_s[position] = lane.ends_s[-1]
                        if task.size_bytes and position in lane.handed:
                            breaks_s = min(breaks_s, lane.ends_s[-1])  # too large for a message
                        inputs = [
                            self.values[d] if d in made else lane.imported[d]
                            for d in lane.deps[index]
                        ]
                        self.values[position] = mixed(task.salt, inputs)
                    is_moving = True
        for lane in lanes:
            lane.run_count = sum(begin_s <= breaks_s for begin_s in lane.begins_s)
            if lane.run_count < len(lane.positions):
                self.is_broken = True
            last_s = lane.ends_s[lane.run_count - 1] if lane.run_count else now
            is_whole = lane.run_count == len(lane.positions)
            lane.end(last_s if is_whole else max(last_s, breaks_s))
