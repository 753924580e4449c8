"""Thousands of positions at once, without a call for each: what nodes want of each other. Pure.

A large reduction over several nodes takes tens of thousands of values of each of them.
"""

from collections.abc import Sequence

import numpy as np

from dagsched.brokers.state import BrokerRun, Bundle, Int32
from dagsched.ids import ProcessId


def seek(run: BrokerRun, positions: Int32, brokers: Int32) -> dict[ProcessId, list[int]]:
    """Note of whom values are asked of which nothing is here; the positions by broker."""
    by_broker: dict[ProcessId, list[int]] = {}
    for number in np.unique(brokers).tolist():
        broker = ProcessId(number)
        by_broker[broker] = wanted = positions[brokers == number].tolist()
        run.sought.update(dict.fromkeys(wanted, broker))
        run.lacking.difference_update(wanted)
    return by_broker


def note_fetchers(
    run: BrokerRun, positions: Sequence[int], fetcher: tuple[ProcessId, bool]
) -> list[int]:
    """Note who wants what is in no bundle yet, and will be made; the rest of `positions`."""
    wanted = np.array(positions, np.int64)
    is_open = (wanted >= 0) & (wanted < run.total)
    places = wanted[is_open]
    is_open[is_open] = (run.object_of[places] < 0) & (run.bundle_of[places] < 0)
    for position in wanted[is_open].tolist():
        run.fetchers.setdefault(position, []).append(fetcher)
    rest: list[int] = wanted[~is_open].tolist()
    return rest


def take_waiters(run: BrokerRun, positions: Sequence[int]) -> dict[Bundle, int]:
    """Bundles that wait for these positions no more, and for how many of them they did."""
    counts: dict[Bundle, int] = {}
    for position in positions:
        for bundle in run.waiters.pop(position):
            counts[bundle] = counts.get(bundle, 0) + 1
    return counts
