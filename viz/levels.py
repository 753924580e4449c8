"""Which row each mark stands in, and in what order: the first half of a layered drawing.

Pure. After Sugiyama, Tagawa and Toda, "Methods for visual understanding of hierarchical system
structures" (1981): levels by longest path, then barycentre sweeps against crossings. Edges that
pass levels get a *waypoint* in each, so that they are led around marks and not through them.
"""

from bisect import bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

SWEEPS_MAX = 8
WAYPOINTS_A_MARK = 4
"""More waypoints than this many a mark are not worth their room; edges are then drawn straight."""

CROSSINGS_EDGES_MAX = 6_000
"""Above this many edges crossings aren't counted: the order of ids stays."""

Edge = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Levels:
    """Marks and waypoints in rows. Ids from ``mark_count`` on are waypoints."""

    rows: Sequence[Sequence[int]]
    level: Sequence[int]  # of each mark and waypoint
    chains: Sequence[Sequence[int]]  # of each edge: its two marks, with waypoints between
    mark_count: int


def make_levels(count: int, edges: Sequence[Edge]) -> Levels:
    """Rows of marks from dependencies down to dependents, in an order with few crossings.

    Args:
        count: marks; each one's dependencies have lower ids.
        edges: (dependency, dependent).
    """
    level = _levels(count, edges)
    depth = max(level, default=-1) + 1
    missing = sum(level[target] - level[source] - 1 for source, target in edges)
    chains: list[Sequence[int]] = []
    rows: list[list[int]] = [[] for _ in range(depth)]
    for mark in range(count):
        rows[level[mark]].append(mark)
    led = missing <= WAYPOINTS_A_MARK * count + 200
    for source, target in edges:
        chain = [source]
        if led:
            for between in range(level[source] + 1, level[target]):
                chain.append(len(level))
                rows[between].append(len(level))
                level.append(between)
        chain.append(target)
        chains.append(chain)
    steps = [pair for chain in chains for pair in pairwise(chain)]
    rows = _ordered(rows, level, [step for step in steps if level[step[1]] - level[step[0]] == 1])
    return Levels(rows, level, chains, count)


def _levels(count: int, edges: Sequence[Edge]) -> list[int]:
    """Longest path from the roots; then each root moves down to just above its dependents."""
    level = [0] * count
    for source, target in sorted(edges, key=lambda edge: edge[1]):
        level[target] = max(level[target], level[source] + 1)
    has_dependency = {target for _, target in edges}
    nearest: dict[int, int] = {}
    for source, target in edges:
        if source not in has_dependency:
            nearest[source] = min(nearest.get(source, level[target]), level[target])
    for source, below in nearest.items():
        level[source] = below - 1
    return level


def _ordered(rows: list[list[int]], level: Sequence[int], steps: Sequence[Edge]) -> list[list[int]]:
    """The rows, sorted in sweeps by the mean place of their neighbours; the best of all is kept."""
    if len(steps) > CROSSINGS_EDGES_MAX:
        return rows
    above: list[list[int]] = [[] for _ in level]
    below: list[list[int]] = [[] for _ in level]
    for source, target in steps:
        below[source].append(target)
        above[target].append(source)
    # Waypoints begin beside the marks that they lead to, in the order of the ids there.
    place: list[float] = [float(entry) for entry in range(len(level))]
    for row in reversed(rows):
        for entry in row:
            if below[entry]:
                place[entry] = min(place[lower] for lower in below[entry])
    rows = [sorted(row, key=lambda entry: (place[entry], entry)) for row in rows]
    best, fewest = rows, _crossings(rows, below)
    for sweep in range(SWEEPS_MAX):
        if not fewest:
            break
        rows = _swept(rows, above if sweep % 2 == 0 else below, down=sweep % 2 == 0)
        crossings = _crossings(rows, below)
        if crossings < fewest:
            best, fewest = rows, crossings
    return best


def _swept(
    rows: list[list[int]], neighbours: Sequence[Sequence[int]], down: bool
) -> list[list[int]]:
    """Rows, each sorted by the mean place of its neighbours in the row just sorted."""
    result: list[list[int]] = []
    place: dict[int, int] = {}
    for row in rows if down else reversed(rows):
        means = {
            entry: sum(place[other] for other in neighbours[entry]) / len(neighbours[entry])
            if neighbours[entry]
            else float(index) * len(place) / max(1, len(row))
            for index, entry in enumerate(row)
        }
        ordered = sorted(row, key=means.__getitem__)
        place = {entry: index for index, entry in enumerate(ordered)}
        result.append(ordered)
    return result if down else result[::-1]


def _crossings(rows: Sequence[Sequence[int]], below: Sequence[Sequence[int]]) -> int:
    """Pairs of edges that cross between neighbouring rows."""
    total = 0
    for upper, lower in pairwise(rows):
        place = {entry: index for index, entry in enumerate(lower)}
        seen: list[int] = []
        for entry in upper:
            ends = sorted(place[other] for other in below[entry])
            for end in ends:
                total += len(seen) - bisect_right(seen, end)
            for end in ends:
                insort(seen, end)
    return total
