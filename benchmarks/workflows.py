"""Graphs of known shapes with durations and sizes, as arrays: what the placement is measured on.

Workflows are drawn by the wfcommons recipes (Montage, Epigenomics, Cycles, Seismology,
1000Genomes), which follow recorded executions; the patterns are those of Task Bench (Slaughter et
al., 2020); layers and trees are our own. Everything random comes from the seed.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

Int32 = NDArray[np.int32]
Int64 = NDArray[np.int64]
Float64 = NDArray[np.float64]

TOKEN_BYTES = 1_000
"""A value of a pattern: small enough to travel in a message."""


@dataclass(frozen=True, slots=True)
class Graph:
    """Tasks in depth-first post-order, as the client numbers them."""

    indptr: Int64
    deps: Int32
    seconds: Float64  # of each task, which nobody knows beforehand
    function_of: Int32
    size_bytes: Int64  # of each task's value

    @property
    def count(self) -> int:
        """Tasks."""
        return len(self.seconds)

    def expected_s(self) -> Float64:
        """What is known of each task's duration after a first run: its function's mean."""
        calls = np.bincount(self.function_of)
        sums = np.bincount(self.function_of, self.seconds)
        return (sums / np.maximum(calls, 1))[self.function_of]

    def as_expected(self) -> "Graph":
        """The same graph, if each task took what its function takes on average."""
        return replace(self, seconds=self.expected_s())

    def as_told(self) -> "Graph":
        """The same graph, if each task were a function of its own, with a duration known."""
        return replace(self, function_of=np.arange(self.count, dtype=np.int32))

    def sinks(self) -> Int32:
        """Tasks on which nothing depends."""
        return np.setdiff1d(np.arange(self.count, dtype=np.int32), self.deps)


def graph_of(
    rows: Sequence[Sequence[int]],
    seconds: Sequence[float] | Float64,
    function_of: Sequence[int] | Int32,
    size_bytes: Sequence[int] | Int64,
) -> Graph:
    """A graph from rows of dependencies in any order of tasks, numbered anew depth first."""
    order = _post_order(rows)
    number_of = np.empty(len(rows), np.int32)
    number_of[order] = np.arange(len(rows), dtype=np.int32)
    indptr = np.zeros(len(rows) + 1, np.int64)
    np.cumsum([len(rows[task]) for task in order], out=indptr[1:])
    flat = [dep for task in order for dep in rows[task]]
    return Graph(
        indptr,
        number_of[np.array(flat, np.int64)],
        np.asarray(seconds, np.float64)[order],
        np.asarray(function_of, np.int32)[order],
        np.asarray(size_bytes, np.int64)[order],
    )


def _post_order(rows: Sequence[Sequence[int]]) -> list[int]:
    """Depth first from the sinks, dependencies in order: what `dagsched.graph` does."""
    is_needed = bytearray(len(rows))
    for row in rows:
        for dep in row:
            is_needed[dep] = 1
    done = bytearray(len(rows))
    order: list[int] = []
    stack = [task for task in range(len(rows) - 1, -1, -1) if not is_needed[task]]
    while stack:
        task = stack.pop()
        if done[task]:
            continue
        pending = [dep for dep in rows[task] if not done[dep]]
        if pending:
            stack.append(task)
            stack += reversed(pending)
        else:
            done[task] = 1
            order.append(task)
    return order


# --- recorded workflows ---------------------------------------------------------------------------

RECIPES = {
    "montage": "MontageRecipe",
    "epigenomics": "EpigenomicsRecipe",
    "cycles": "CyclesRecipe",
    "seismology": "SeismologyRecipe",
    "1000genomes": "GenomeRecipe",
}


def workflow(name: str, count: int, seed: int) -> Graph:
    """About so many tasks of a workflow; a value is all that its task wrote.

    Raises:
        SystemExit: wfcommons isn't installed.
    """
    try:
        from wfcommons import WorkflowGenerator
        from wfcommons.wfchef import recipes
    except ImportError as error:
        raise SystemExit("wfcommons is missing: pip install 'dagsched[bench]'") from error
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - wfcommons draws from numpy's global generator
    recipe = getattr(recipes, RECIPES[name])
    drawn = WorkflowGenerator(recipe.from_num_tasks(count)).build_workflow()
    names = sorted(drawn.tasks)
    number_of = {task: number for number, task in enumerate(names)}
    kinds: dict[str, int] = {}
    rows, seconds, function_of, sizes = [], [], [], []
    for task_name in names:
        task = drawn.tasks[task_name]
        rows.append(sorted(number_of[parent] for parent in drawn.tasks_parents[task_name]))
        seconds.append(max(float(task.runtime), 1e-3))
        function_of.append(kinds.setdefault(task.name.rsplit("_", 1)[0], len(kinds)))
        sizes.append(max(1, sum(int(file.size) for file in task.output_files)))
    return graph_of(rows, seconds, function_of, sizes)


# --- patterns of Task Bench -----------------------------------------------------------------------


def pattern(kind: str, width: int, steps: int, task_s: float, seed: int) -> Graph:
    """Steps of equal width and tasks of one function, as long as each other within a tenth.

    Args:
        kind: stencil (3 neighbours), nearest (5), fft, random (3 of the 9 nearest), no_comm, all.
        width: tasks a step.
        steps: how many.
        task_s: mean duration.
        seed: of durations and random neighbours.
    """
    rng = random.Random(seed)
    rows: list[list[int]] = [[] for _ in range(width)]
    for step in range(1, steps):
        base = (step - 1) * width
        rows += [
            [base + cell for cell in _needed(kind, width, step, at, rng)] for at in range(width)
        ]
    count = len(rows)
    seconds = task_s * np.random.default_rng(seed).uniform(0.9, 1.1, count)
    return graph_of(rows, seconds, np.zeros(count, np.int32), np.full(count, TOKEN_BYTES))


def _needed(kind: str, width: int, step: int, at: int, rng: random.Random) -> Sequence[int]:
    """Cells of the step before that a cell needs."""
    match kind:
        case "stencil":
            return range(max(0, at - 1), min(width, at + 2))
        case "nearest":
            return range(max(0, at - 2), min(width, at + 3))
        case "fft":
            distance = 1 << ((step - 1) % max(1, (width - 1).bit_length()))
            return [cell for cell in (at - distance, at, at + distance) if 0 <= cell < width]
        case "random":
            near = range(max(0, at - 4), min(width, at + 5))
            return sorted(rng.sample(near, 3))
        case "all":
            return range(width)
        case "no_comm":
            return [at]
    raise ValueError(f"no pattern {kind!r}")


# --- our own --------------------------------------------------------------------------------------


def layered(count: int, width: int, seed: int, task_s: float = 0.1) -> Graph:
    """Layers of random widths, one to four dependencies each, five functions, values up to MBs."""
    rng, draw = random.Random(seed), np.random.default_rng(seed)
    rows: list[list[int]] = []
    begin_of_last = 0
    while len(rows) < count:
        begin = len(rows)
        for _ in range(min(rng.randint(max(1, width // 2), 2 * width), count - begin)):
            wanted = rng.randint(1, 4) if begin else 0
            picked = {rng.randrange(begin_of_last, begin) for _ in range(wanted)}
            if begin_of_last and rng.random() < 0.1:
                picked.add(rng.randrange(begin_of_last))
            rows.append(sorted(picked))
        begin_of_last = begin
    function_of = draw.integers(0, 5, count)
    means_s = task_s * np.array([0.2, 0.5, 1.0, 2.0, 4.0])
    seconds = means_s[function_of] * draw.lognormal(-0.02, 0.2, count)
    return graph_of(rows, seconds, function_of, draw.lognormal(11.0, 1.5, count).astype(np.int64))


def tree(count: int, task_s: float, seed: int) -> Graph:
    """A binary reduction of about so many tasks."""
    rows: list[list[int]] = [[] for _ in range((count + 1) // 2)]
    level = list(range(len(rows)))
    while len(level) > 1:
        pairs = [level[at : at + 2] for at in range(0, len(level), 2)]
        level = [pair[0] for pair in pairs if len(pair) == 1]
        for pair in pairs:
            if len(pair) == 2:
                rows.append(pair)
                level.append(len(rows) - 1)
        level.sort()
    seconds = task_s * np.random.default_rng(seed).uniform(0.5, 1.5, len(rows))
    is_leaf = np.array([not row for row in rows])
    return graph_of(rows, seconds, (~is_leaf).astype(np.int32), np.full(len(rows), 100_000))


def wide(count: int, task_s: float, seed: int) -> Graph:
    """Tasks without dependencies, and one that gathers their small values."""
    seconds = task_s * np.random.default_rng(seed).lognormal(-0.125, 0.5, count)
    seconds[-1] = task_s
    rows: list[list[int]] = [[] for _ in range(count - 1)]
    rows.append(list(range(count - 1)))
    function_of = np.zeros(count, np.int32)
    function_of[-1] = 1
    return graph_of(rows, seconds, function_of, np.full(count, 100))


Make = Callable[[int, int, int], Graph]
"""A graph of about so many tasks, for so many executors, by seed."""


def _steps(kind: str, task_s: float) -> Make:
    def make(count: int, executors: int, seed: int) -> Graph:
        width = min(2 * executors, max(2, count // 8))
        return pattern(kind, width, max(2, count // width), task_s, seed)

    return make


def _recorded(name: str) -> Make:
    return lambda count, _, seed: workflow(name, count, seed)


SHAPES: dict[str, Make] = {
    **{name: _recorded(name) for name in RECIPES},
    "stencil": _steps("stencil", 0.1),
    "nearest": _steps("nearest", 0.1),
    "fft": _steps("fft", 0.1),
    "random": _steps("random", 0.1),
    "stencil of 1 ms": _steps("stencil", 0.001),
    "layered": lambda count, executors, seed: layered(
        count, min(2 * executors, max(2, count // 8)), seed
    ),
    "tree": lambda count, _, seed: tree(count, 0.1, seed),
    "tree of 1 ms": lambda count, _, seed: tree(count, 0.001, seed),
    "wide": lambda count, _, seed: wide(count, 0.1, seed),
}
