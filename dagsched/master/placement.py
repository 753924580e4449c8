"""Which broker a subtree goes to: a pure function of its bytes, its work, and the brokers' loads.

Requirements (from the ancestor's cost model): a shared input counts once; what lies on a node is
done there unless moving it pays; the same inputs give the same answer. The answer is a first
choice by place of inputs, neighbours together where there are none, then moves from the broker
that would end last to the one that would end first, as long as the later of the two ends earlier.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from dagsched.ids import ProcessId, SubtreeNo

BANDWIDTH_BYTES_S = 1e9
"""Between nodes, until it is measured: what one stream of 4 MiB messages reaches on 10 Gbit/s."""

UNKNOWN_BYTES = 1_024
"""What a value that isn't computed yet is taken to weigh: enough to prefer its place."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A subtree that needs a home."""

    number: SubtreeNo
    weight_s: float
    bytes_by_broker: Mapping[ProcessId, float]  # inputs, by where they lie

    def transfer_s(self, broker: ProcessId) -> float:
        """Time to bring in what doesn't lie on `broker`."""
        there = self.bytes_by_broker.get(broker, 0.0)
        return (sum(self.bytes_by_broker.values()) - there) / BANDWIDTH_BYTES_S


@dataclass(slots=True, eq=False)
class Host:
    """A broker that takes subtrees; `end_s` is when it would be through with all it has."""

    broker: ProcessId
    executors: float  # of the best node, that its own are worth
    end_s: float

    def end_with(self, candidate: Candidate) -> float:
        """When it would end if it took `candidate` as well."""
        return self.end_s + candidate.weight_s / self.executors + candidate.transfer_s(self.broker)


def homes_of(candidates: Sequence[Candidate], hosts: Sequence[Host]) -> dict[SubtreeNo, ProcessId]:
    """The broker for each candidate. Changes the hosts' `end_s` to what it makes of them."""
    if len(hosts) == 1:
        return {candidate.number: hosts[0].broker for candidate in candidates}
    host_by_broker = {host.broker: host for host in hosts}
    taken: dict[ProcessId, list[Candidate]] = defaultdict(list)
    unbound = []
    for candidate in candidates:
        home = _nearest(candidate, host_by_broker)
        if home is None:
            unbound.append(candidate)
        else:
            taken[home.broker].append(candidate)
            home.end_s = home.end_with(candidate)
    _share_out(unbound, hosts, taken)
    _even_out(hosts, taken)
    return {candidate.number: broker for broker in sorted(taken) for candidate in taken[broker]}


def _nearest(candidate: Candidate, host_by_broker: Mapping[ProcessId, Host]) -> Host | None:
    """The host that has most of its inputs (then: ends first, has the lowest id), if any has."""
    best: Host | None = None
    best_key = (0.0, 0.0, 0)
    for broker, size_bytes in candidate.bytes_by_broker.items():
        host = host_by_broker.get(broker)
        if host is None:
            continue
        key = (-size_bytes, host.end_s, host.broker)
        if best is None or key < best_key:
            best, best_key = host, key
    return best


def _share_out(
    candidates: Sequence[Candidate],
    hosts: Sequence[Host],
    taken: dict[ProcessId, list[Candidate]],
) -> None:
    """Give candidates without a place to hosts, neighbours to the same one, up to even ends."""
    if not candidates:
        return
    work_s = sum(candidate.weight_s for candidate in candidates)
    executors = sum(host.executors for host in hosts)
    level_s = (work_s + sum(host.end_s * host.executors for host in hosts)) / executors
    turn = iter(hosts)
    host: Host | None = next(turn)
    left_over = []
    for candidate in candidates:
        # Half of it may stick out, so that as many hosts end a little late as a little early.
        while host and host.end_s + candidate.weight_s / host.executors / 2 > level_s * _SLACK:
            host = next(turn, None)
        if host is None:
            left_over.append(candidate)
        else:
            taken[host.broker].append(candidate)
            host.end_s = host.end_with(candidate)
    heap = [(host.end_s, index) for index, host in enumerate(hosts)]
    heapify(heap)
    for candidate in left_over:
        _, index = heappop(heap)
        first = hosts[index]
        taken[first.broker].append(candidate)
        first.end_s = first.end_with(candidate)
        heappush(heap, (first.end_s, index))


_SLACK = 1 + 1e-9  # sums of equal weights differ in their last bits


def _even_out(hosts: Sequence[Host], taken: dict[ProcessId, list[Candidate]]) -> None:
    """Move candidates from the host that ends last to the one that ends first, where it pays."""
    if not taken.get(max(hosts, key=_end_of).broker):
        return  # mostly so, when few are placed on many
    first_heap = [(host.end_s, index) for index, host in enumerate(hosts)]
    last_heap = [(-host.end_s, index) for index, host in enumerate(hosts)]
    heapify(first_heap)
    heapify(last_heap)
    moves_max = sum(len(candidates) for candidates in taken.values())
    for _ in range(moves_max):
        poor_index = _current_top(first_heap, hosts, 1)
        rich_index = _current_top(last_heap, hosts, -1)
        poor, rich = hosts[poor_index], hosts[rich_index]
        choice = _least_to_move(taken.get(rich.broker, ()), rich.broker, poor.broker)
        if choice is None or poor is rich or poor.end_with(choice) * _SLACK >= rich.end_s:
            return
        taken[rich.broker].remove(choice)
        rich.end_s -= choice.weight_s / rich.executors + choice.transfer_s(rich.broker)
        poor.end_s = poor.end_with(choice)
        taken[poor.broker].append(choice)
        for index in (poor_index, rich_index):
            heappush(first_heap, (hosts[index].end_s, index))
            heappush(last_heap, (-hosts[index].end_s, index))


def _end_of(host: Host) -> tuple[float, int]:
    """Of equals the one with the lowest id is the last, as in the heap of `_even_out`."""
    return host.end_s, -host.broker


def _least_to_move(
    candidates: Sequence[Candidate], rich: ProcessId, poor: ProcessId
) -> Candidate | None:
    """The one with the least to bring in; of equals the last: the first stay with neighbours."""
    return min(
        reversed(candidates),
        key=lambda candidate: candidate.transfer_s(poor) - candidate.transfer_s(rich),
        default=None,
    )


def _current_top(heap: list[tuple[float, int]], hosts: Sequence[Host], sign: int) -> int:
    """Index of the host at the top; entries whose end has changed since are thrown away."""
    while True:
        end_s, index = heap[0]
        if end_s == sign * hosts[index].end_s:
            return index
        heappop(heap)
