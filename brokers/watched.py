"""What a node does at this moment, and has done so far, for those who watch. Pure.

Made only when the master asks on behalf of somebody who looks at it; costs a few system calls an
executor then, which are the shell's.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from dagsched.brokers.state import Counters, Executor, ExecutorCounters
from dagsched.protocol.messages import Doing, NodeStats

if TYPE_CHECKING:
    from dagsched.brokers.core import BrokerCore


class Machine(NamedTuple):
    """What the system says of this machine and of some processes; -1: it doesn't."""

    pid: int = 0  # of the broker
    cpu_load_1m: float = -1.0
    memory_used_bytes: int = -1
    memory_total_bytes: int = -1
    rss_bytes_by_pid: Mapping[int, int] = {}


LookAround = Callable[[Sequence[int]], Machine]
"""From pids of executors to what the system says."""


def no_machine(pids: Sequence[int]) -> Machine:  # noqa: ARG001 - in place of a real one
    """Nobody can look."""
    return Machine()


def watched_stats(core: "BrokerCore", now: float) -> NodeStats:
    """All that a node can say of itself: of all runs since it began, and of this moment."""
    counters = core.accounts.sums()
    stats = core.accounts.node_stats_of(counters, 0.0)
    machine = core.accounts.look_around([e.pid for e in core.executors.values() if e.pid])
    executors = []
    for row, executor in zip(stats.executors, core.executors.values(), strict=True):
        rss_bytes = machine.rss_bytes_by_pid.get(executor.pid, 0)
        doing = _doing(core, executor, now)
        executors.append(msgspec.structs.replace(row, rss_bytes=rss_bytes, doing=doing))
    return msgspec.structs.replace(
        stats,
        executors=executors,
        pid=machine.pid,
        cpu_load_1m=machine.cpu_load_1m,
        memory_used_bytes=machine.memory_used_bytes,
        memory_total_bytes=machine.memory_total_bytes,
        shared_limit_bytes=core.config.store_bytes_max or 0,
    )


def _doing(core: "BrokerCore", executor: Executor, now: float) -> Doing | None:
    """The bundle, or the task of it, that an executor runs; None: it waits for one."""
    if not executor.pid or not executor.queue:
        return None
    bundle = executor.queue[0]
    number = int(bundle.run.number)
    look = core.look(executor.id)
    if look is not None and look.position >= 0:
        return Doing(number, look.position, 1, look.since_s)
    lane = bundle.at.get(executor.id)
    positions = bundle.positions if lane is None else lane.positions
    since_s = min(bundle.begun_s, now)
    return Doing(number, int(positions[0]), len(positions), since_s)


def add_counters(sums: Counters, more: Counters) -> None:
    """Add what a node did in one run."""
    for name in ("received_count", "in_bytes", "out_bytes", "bundle_count", "retry_count",
                 "crash_retry_count", "timeout_retry_count", "stale_count",
                 "withheld_count"):  # fmt: skip
        setattr(sums, name, getattr(sums, name) + getattr(more, name))
    for number, theirs in more.executors.items():
        mine = sums.executors.setdefault(number, ExecutorCounters())
        for name in ("task_count", "bundle_count", "busy_s", "read_bytes", "written_bytes"):
            setattr(mine, name, getattr(mine, name) + getattr(theirs, name))
