"""The same graphs on other engines, one after the other, each beside ours in the same minute.

Question: how many times the seconds that we take do others, from a list of calls to the value of
the last, with two processes that are up?

    python benchmarks/peers.py [--rounds 3] [--only dask --only ray] [--plot FILE]

The standard library's process pool is always there; the others come with
`pip install 'dagsched[bench-peers]'`, and one that isn't installed is named as such.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from adapters import PEERS, Call, Dagsched, NotSupportedError, Peer, calls_of
from common import arguments, print_section
from plots import need_matplotlib, plot_peers

from dagsched.bench.display import figure, markdown, spread_text
from dagsched.bench.graphs import Measured, chain, task_bench, tree, wide
from dagsched.bench.measuring import Spread, alternated, check_value, ratios

WORKLOADS: dict[str, Callable[[], Measured]] = {
    "wide, 1,000": lambda: wide(1_000),
    "chain of 500": lambda: chain(500),
    "tree, 512 leaves": lambda: tree(512),
    "stencil, 8 x 50, 1 ms": lambda: task_bench("stencil", 8, 50, 0.001),
}

Costs = dict[str, dict[str, Spread]]
"""By workload and peer: microseconds a task."""


def timed(peer: Peer, calls: Sequence[Call], expected: object) -> float:
    start = time.perf_counter()
    value = peer.run(calls)
    seconds = time.perf_counter() - start
    check_value(value, expected)
    return seconds


def compare(peer: Peer, own: Peer, rounds: int, costs: Costs) -> list[str]:
    """Cells of a peer's row, one a workload; `costs` is filled in."""
    cells = []
    for name, make in WORKLOADS.items():
        made = make()
        calls, expected = calls_of(made), made[1]
        try:
            for each in (peer, own):
                timed(each, calls, expected)
            theirs, ours = alternated(
                rounds,
                lambda calls=calls, expected=expected: timed(peer, calls, expected),
                lambda calls=calls, expected=expected: timed(own, calls, expected),
            )
        except NotSupportedError as error:
            cells.append(str(error))
            continue
        scale = 1e6 / len(calls)
        spread = Spread.of(theirs).scaled(scale)
        costs[name].setdefault(own.name, Spread.of(ours).scaled(scale))
        costs[name][peer.name] = spread
        cells.append(f"{spread_text(spread)}, {figure(ratios(theirs, ours).median)} times")
    return cells


def row(kind: type[Peer], own: Peer, rounds: int, costs: Costs) -> list[str]:
    peer = kind()
    if not peer.is_installed():
        return [peer.name, *["not installed"] * len(WORKLOADS)]
    try:
        peer.start()
        try:
            return [f"{peer.name} {peer.version()}", *compare(peer, own, rounds, costs)]
        finally:
            peer.stop()
    except Exception as error:  # noqa: BLE001 - whatever others raise; ours are not among them
        return [peer.name, *[f"failed: {type(error).__name__}"] * len(WORKLOADS)]


def section(rounds: int, only: Sequence[str] = (), plot: Path | None = None) -> str:
    costs: Costs = {name: {} for name in WORKLOADS}
    chosen = [kind for kind in PEERS if not only or kind.name in only]
    own = Dagsched()
    own.start()
    try:
        rows = [row(kind, own, rounds, costs) for kind in chosen]
    finally:
        own.stop()
    if plot is not None:
        plot_peers(costs, plot)
    ours = [f"{own.name} {own.version()}"]
    ours += [
        spread_text(by_peer[own.name]) if own.name in by_peer else "" for by_peer in costs.values()
    ]
    heading = ["us a task, and how many times ours", *WORKLOADS]
    return markdown(heading, [ours, *rows])


def main() -> None:
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--only", action="append", choices=[kind.name for kind in PEERS])
    parser.add_argument("--plot", type=Path, help="PNG of all")
    args = parser.parse_args()
    if args.plot is not None:
        need_matplotlib()
    print_section(section(args.rounds, args.only or (), args.plot))


if __name__ == "__main__":
    main()
