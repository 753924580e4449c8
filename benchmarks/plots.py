"""Pictures of results, as PNG; needs matplotlib (`pip install 'dagsched[bench]'`)."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from dagsched.bench.measuring import Spread
from dagsched.bench.metg import METG_TARGET_US, Point
from dagsched.bench.stages import Breakdown

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
"""Okabe and Ito's, which colour-blind readers can tell apart."""


def need_matplotlib() -> None:
    """Return if pictures can be drawn; to be asked before anything is measured.

    Raises:
        SystemExit: there is no matplotlib.
    """
    if importlib.util.find_spec("matplotlib") is None:
        raise SystemExit(
            "pictures need matplotlib: pip install 'dagsched[bench]'; or leave out the option"
        )


def figure_and_axes(width: float, height: float) -> tuple[Any, Any]:
    """A figure without a window."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width, height), layout="constrained")
    axes = drawn.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return drawn, axes


def save(drawn: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # Without the version of the library, so that equal results are equal files.
    drawn.savefig(path, dpi=120, metadata={"Software": None})


def plot_metg(sweeps: Mapping[str, Sequence[Sequence[Point]]], path: Path) -> None:
    """Efficiency by grain, a line a pattern: whole of the run's time, dashed of the CPU time."""
    drawn, axes = figure_and_axes(7, 4.2)
    for (pattern, rounds), colour in zip(sweeps.items(), COLOURS, strict=False):
        grains_us = [point.grain_s * 1e6 for point in rounds[0]]
        columns = list(zip(*rounds, strict=True))
        time = [100 * median(point.efficiency for point in column) for column in columns]
        shares = [[p.cpu_share for p in column if p.cpu_share is not None] for column in columns]
        axes.plot(grains_us, time, color=colour, marker="o", markersize=4, label=pattern)
        if all(shares):
            told = [100 * median(share) for share in shares]
            axes.plot(grains_us, told, color=colour, linestyle="--", linewidth=1)
    axes.axhline(50, color="grey", linewidth=0.8)
    axes.axvline(METG_TARGET_US, color="grey", linewidth=0.8, linestyle=":")
    axes.set_xscale("log")
    axes.set_ylim(0, 100)
    axes.set_xlabel("CPU time of a task's kernel, us")
    axes.set_ylabel("efficiency, %")
    axes.set_title("Task Bench, width 8, two executors (dashed: share of CPU time)", fontsize=10)
    axes.legend(frameon=False)
    save(drawn, path)


def plot_stages(told: Breakdown, path: Path) -> None:
    """A bar a stage, with its budget."""
    drawn, axes = figure_and_axes(7, 3.6)
    stages = [stage for stage in told.stages if stage.name != "all"][::-1]
    names = [f"{'    ' * stage.depth}{stage.name}" for stage in stages]
    places = range(len(stages))
    axes.barh(
        places, [stage.us.median for stage in stages],
        color=["#9ecae1" if stage.depth else COLOURS[0] for stage in stages],
        xerr=[[stage.us.median - stage.us.least for stage in stages],
              [stage.us.most - stage.us.median for stage in stages]],
        error_kw={"linewidth": 0.8},
    )  # fmt: skip
    for place, stage in zip(places, stages, strict=True):
        if stage.budget_us is not None:
            axes.plot([stage.budget_us] * 2, [place - 0.4, place + 0.4], color=COLOURS[1])
    axes.set_yticks(places, names, fontsize=8)
    axes.set_xlabel("us of CPU a task (orange: budget)")
    axes.set_title(told.graph, fontsize=10)
    save(drawn, path)


def plot_peers(costs: Mapping[str, Mapping[str, Spread]], path: Path) -> None:
    """Microseconds a task by workload, a bar a peer."""
    drawn, axes = figure_and_axes(7, 4.2)
    peers = list(dict.fromkeys(peer for by_peer in costs.values() for peer in by_peer))
    height = 0.8 / len(peers)
    for index, (peer, colour) in enumerate(zip(peers, COLOURS, strict=False)):
        found = [
            (place, by_peer[peer])
            for place, by_peer in enumerate(costs.values())
            if peer in by_peer
        ]
        axes.barh(
            [place + index * height for place, _ in found],
            [spread.median for _, spread in found],
            height, color=colour, label=peer,
        )  # fmt: skip
    axes.set_yticks([place + 0.4 - height / 2 for place in range(len(costs))], list(costs))
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlim(left=1)
    axes.set_xlabel("us a task")
    axes.set_title("The same graphs on other engines, two processes each", fontsize=10)
    drawn.legend(loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    save(drawn, path)
