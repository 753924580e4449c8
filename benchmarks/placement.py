"""How good are cut and placement? Makespans on simulated clusters, beside HEFT and random ones.

Question: how much longer than HEFT's schedule, and how much shorter than a random one, is what the
product makes of real workflow shapes, on 1 to 1,000 nodes; and what does the master pay for it?

    python benchmarks/placement.py run --set small --out small.jsonl
    python benchmarks/placement.py report small.jsonl [more.jsonl ..] [--plots benchmarks/plots]
"""

import argparse
import json
import random
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from heft import bound_s, followed_s, heft, random_s
from modelled import Model
from simulated import BUNDLE_S, Result, Simulation
from workflows import RECIPES, SHAPES, Float64, Graph

EXECUTORS = 4
HEFT_TASKS_MAX = 20_000

MODELLED_FROM = 1_000
"""From so many nodes on they are those of `modelled`, which tell no durations."""

RANDOM_BELOW = 100
"""From so many nodes on subtrees aren't placed at random, which takes minutes to simulate."""

LONG = [shape for shape in SHAPES if "1 ms" not in shape]
"""Short tasks are none of the model's business: it knows no windows and no bundles."""

LARGE = ("wide", "stencil", "layered", "tree", "fft")
SETS: dict[str, list[tuple[str, int, int]]] = {
    "small": [(shape, 1_000, nodes) for nodes in (1, 4, 16) for shape in SHAPES],
    "medium": [(shape, 10_000, 100) for shape in LONG],
    "thousand": [(shape, 10_000, 1_000) for shape in LONG]
    + [(shape, 100_000, 1_000) for shape in LARGE],
    "million": [(shape, 1_000_000, 1_000) for shape in LARGE],
}


@dataclass(frozen=True, slots=True)
class Row:
    """One graph on one cluster. Makespans in seconds; None: not measured."""

    shape: str
    tasks: int
    edges: int
    nodes: int
    seed: int
    bound_s: float
    own_s: float  # functions' mean durations are known, as after a first run
    own_told_s: float | None  # each task's duration is known
    own_first_s: float | None  # nothing is known
    heft_s: float | None  # knows each task's duration
    heft_means_s: float | None  # plans with functions' means; its plan is kept to
    random_tasks_s: float
    random_subtrees_s: float | None
    master_s: float
    cut_s: float
    subtrees: int
    bundles: int
    moved_bytes: float


def measured(shape: str, count: int, nodes: int, seed: int) -> Row:
    """Make the graph, and run it in all ways."""
    graph = SHAPES[shape](count, nodes * EXECUTORS, seed)
    is_small = graph.count <= HEFT_TASKS_MAX

    def own(
        known_s: Float64 | None, of: Graph = graph, homes: random.Random | None = None
    ) -> Result:
        if nodes >= MODELLED_FROM:
            return Model(nodes, EXECUTORS).run(of, known_s)
        return Simulation(nodes, EXECUTORS, homes=homes).run(of, known_s)

    known = own(graph.expected_s())
    has_several = len(np.unique(graph.function_of)) > 1 or shape in RECIPES
    return Row(
        shape=shape,
        tasks=graph.count,
        edges=len(graph.deps),
        nodes=nodes,
        seed=seed,
        bound_s=bound_s(graph, nodes * EXECUTORS),
        own_s=known.makespan_s,
        own_told_s=own(graph.seconds, graph.as_told()).makespan_s
        if is_small and has_several
        else None,
        own_first_s=own(None).makespan_s if is_small and nodes < MODELLED_FROM else None,
        heft_s=heft(graph, nodes, EXECUTORS).makespan_s if is_small else None,
        heft_means_s=followed_s(graph, heft(graph.as_expected(), nodes, EXECUTORS))
        if is_small
        else None,
        random_tasks_s=random_s(graph, nodes, EXECUTORS, seed, BUNDLE_S),
        random_subtrees_s=own(graph.expected_s(), homes=random.Random(seed)).makespan_s
        if is_small and 1 < nodes < RANDOM_BELOW
        else None,
        master_s=known.master_s,
        cut_s=known.cut_s,
        subtrees=known.subtree_count,
        bundles=known.bundle_count,
        moved_bytes=known.moved_bytes,
    )


def run(args: argparse.Namespace) -> None:
    """Measure what is asked for and isn't in the file yet; a line of JSON for each."""
    out = Path(args.out)
    known = {(row.shape, row.nodes, row.seed, wanted_count(row)) for row in rows_of([out])}
    cases = [
        (shape, count, nodes, seed)
        for seed in range(1, args.seeds + 1)
        for shape, count, nodes in SETS[args.set]
        if args.shape in (None, shape)
    ]
    begun_s = time.perf_counter()
    for done, (shape, count, nodes, seed) in enumerate(cases, 1):
        if (shape, nodes, seed, count) in known:
            continue
        row = measured(shape, count, nodes, seed)
        with out.open("a") as file:
            file.write(json.dumps(asdict(row)) + "\n")
        passed_s = time.perf_counter() - begun_s
        print(f"{done}/{len(cases)} {passed_s:6.0f} s  {line_of(row)}", flush=True)


def wanted_count(row: Row) -> int:
    """The round number of tasks that was asked for."""
    return 10 ** round(np.log10(row.tasks))


def rows_of(paths: list[Path]) -> list[Row]:
    """All lines of these files; those that aren't there have none."""
    return [
        Row(**json.loads(line))
        for path in paths
        if path.exists()
        for line in path.read_text().splitlines()
    ]


# --- table and plots ------------------------------------------------------------------------------

HEAD = (
    "| graph | tasks | nodes | HEFT / bound | own / HEFT | told durations | first run "
    "| HEFT on means | random tasks | random subtrees | master |"
)


def ratio(value: float | None, base: float | None) -> str:
    """Two decimals, or a dash."""
    return "-" if value is None or not base else f"{value / base:.2f}"


def line_of(row: Row) -> str:
    """A line of the table."""
    base = row.heft_s or row.bound_s
    own = ratio(row.own_s, base) + ("" if row.heft_s else " *")
    cells = [
        row.shape, f"{row.tasks:,}", f"{row.nodes:,}", ratio(row.heft_s, row.bound_s), own,
        ratio(row.own_told_s, row.heft_s), ratio(row.own_first_s, row.heft_s),
        ratio(row.heft_means_s, row.heft_s), ratio(row.random_tasks_s, base),
        ratio(row.random_subtrees_s, base), f"{100 * row.master_s / row.own_s:.2f} %",
    ]  # fmt: skip
    return f"| {' | '.join(cells)} |"


def report(args: argparse.Namespace) -> None:
    """Print the table, and draw the plots."""
    rows = rows_of([Path(path) for path in args.files])
    if not rows:
        raise SystemExit("no measurements in these files: use `run` first")
    print(HEAD)
    print("|" + " --- |" * (HEAD.count("|") - 1))
    for row in sorted(rows, key=lambda row: (row.nodes, wanted_count(row))):
        print(line_of(row))
    if args.plots:
        draw(rows, Path(args.plots))


def draw(rows: list[Row], folder: Path) -> None:
    """Two pictures: quality beside HEFT, and the distance from the bound as clusters grow."""
    try:
        import matplotlib as mpl
    except ImportError as error:
        raise SystemExit("matplotlib is missing: pip install 'dagsched[bench]'") from error
    mpl.use("agg")
    from matplotlib import pyplot as plt

    folder.mkdir(parents=True, exist_ok=True)
    draw_quality(plt, [row for row in rows if row.heft_s], folder / "placement-quality.png")
    draw_growth(plt, rows, folder / "placement-growth.png")


def draw_quality(plt: Any, rows: list[Row], path: Path) -> None:
    """By graph: makespans as multiples of HEFT's, a dot a cluster."""
    series = [
        ("own", lambda row: row.own_s, "tab:blue", "o"),
        ("HEFT that plans with the same means", lambda row: row.heft_means_s, "tab:gray", "x"),
        ("random tasks", lambda row: row.random_tasks_s, "tab:red", "_"),
    ]
    names = list(SHAPES)
    figure, axes = plt.subplots(figsize=(8, 4.5))
    axes.axhspan(0.85, 1.15, color="tab:green", alpha=0.15, label="within 15 % of HEFT")
    for index, (label, value, color, marker) in enumerate(series):
        at = [names.index(row.shape) + 0.22 * (index - 1) for row in rows]
        axes.scatter(at, [value(row) / row.heft_s for row in rows], s=22, color=color,
                     marker=marker, label=label)  # fmt: skip
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", fontsize=8)
    axes.set_ylabel("makespan / HEFT with real durations")
    axes.set_ylim(0.8, 2.5)
    axes.legend(fontsize=8, loc="upper right")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def draw_growth(plt: Any, rows: list[Row], path: Path) -> None:
    """By nodes: how far from the bound, ours and HEFT's, for 10,000 tasks and more."""
    figure, panes = plt.subplots(1, 2, figsize=(8, 3.6))
    for name in SHAPES:
        mine = [row for row in rows if row.shape == name and wanted_count(row) == 10_000]
        mine.sort(key=lambda row: row.nodes)
        if len(mine) > 1:
            nodes = [row.nodes for row in mine]
            own = [row.own_s / row.bound_s for row in mine]
            panes[0].plot(nodes, own, marker="o", markersize=3, label=name)
    panes[0].set(xscale="log", xlabel="nodes of 4", ylabel="makespan / bound, 10,000 tasks")
    panes[0].legend(fontsize=6)
    for name in SHAPES:
        mine = [row for row in rows if row.shape == name and row.nodes == 1_000]
        mine.sort(key=lambda row: row.tasks)
        if mine:
            share = [100 * row.master_s / row.own_s for row in mine]
            panes[1].plot([row.tasks for row in mine], share, marker="o", markersize=3, label=name)
    panes[1].axhline(5.0, color="tab:gray", linewidth=1)
    panes[1].set(xscale="log", yscale="log", xlabel="tasks, 1,000 nodes")
    panes[1].set_ylabel("CPU of the master, % of the makespan")
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    measuring = commands.add_parser("run", help="measure; appends to a file, goes on where it was")
    measuring.add_argument("--set", choices=SETS, default="small", help="which graphs and clusters")
    measuring.add_argument("--shape", choices=SHAPES, help="only this one")
    measuring.add_argument("--seeds", type=int, default=1, help="graphs of each kind")
    measuring.add_argument("--out", default="placement.jsonl", help="file of results")
    measuring.set_defaults(act=run)
    reporting = commands.add_parser("report", help="table and plots from files of results")
    reporting.add_argument("files", nargs="+")
    reporting.add_argument("--plots", help="folder for the plots; none are drawn without")
    reporting.set_defaults(act=report)
    args = parser.parse_args()
    args.act(args)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
