"""Does a reduction of far more than the store finish within it, and what does withholding save?

Question: how many bytes are alive, in shared memory and in files, while blocks of 16 to 64 MB are
made and reduced on two executors, with and without withholding (`Config.withhold_roots`)?

    python benchmarks/memory.py                     20 GB within 2 GB, a tree and a fold
    python benchmarks/memory.py --gb 2 --store 0.2  the same, small

A *tree* adds neighbours pairwise. A *fold* adds one block after the other to a sum, and each such
step takes longer than making a block: whoever doesn't withhold makes them all.
"""

import argparse
import contextlib
import os
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from dagsched import Config, Delayed, RunEnv, delayed, submit

MB, GB = 1_000_000, 1_000_000_000
BLOCK_MB = (16, 24, 32, 48, 64)
SAMPLE_S = 0.1
STEP_S = 0.15
SHM = Path("/dev/shm")
OWN = f"memory{os.getpid()}"
"""In the names of all segments of this process's environments."""


def block(number, count):
    return np.full(count, float(number))


def add(x, y):
    """Sums as long as the shorter one; the first element is what counts."""
    count = min(len(x), len(y))
    return x[:count] + y[:count]


def add_slowly(x, y):
    end = time.monotonic() + STEP_S
    value = add(x, y)
    time.sleep(max(0.0, end - time.monotonic()))
    return value


def first(x):
    return float(x[0])


def blocks(total_bytes: int) -> list[Delayed]:
    made, size = [], 0
    while size < total_bytes:
        count = BLOCK_MB[len(made) % len(BLOCK_MB)] * MB // 8
        made.append(delayed(block)(len(made), count))
        size += 8 * count
    return made


def tree(parts: list[Delayed]) -> Delayed:
    while len(parts) > 1:
        pairs = [delayed(add)(x, y) for x, y in zip(parts[::2], parts[1::2], strict=False)]
        parts = pairs + ([parts[-1]] if len(parts) % 2 else [])
    return delayed(first)(parts[0])


def fold(parts: list[Delayed]) -> Delayed:
    total = parts[0]
    for part in parts[1:]:
        total = delayed(add_slowly)(total, part)
    return delayed(first)(total)


SHAPES = {"tree": tree, "fold": fold}


@dataclass
class Samples:
    """What was seen over time, in GB."""

    seconds: list[float] = field(default_factory=list)
    live: list[float] = field(default_factory=list)
    spilled: list[float] = field(default_factory=list)
    shared: list[float] = field(default_factory=list)  # segments in /dev/shm, warm empty ones too
    private: list[float] = field(default_factory=list)  # resident and not shared, all processes


def shared_bytes() -> int:
    total = 0
    for entry in os.scandir(SHM):
        if OWN in entry.name:
            with contextlib.suppress(FileNotFoundError):
                total += entry.stat().st_blocks * 512
    return total


def private_bytes() -> int:
    me, total = psutil.Process(), 0
    for process in [me, *me.children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess):
            memory = process.memory_info()
            total += memory.rss - memory.shared
    return total


def sample(env: RunEnv, samples: Samples, over: threading.Event) -> None:
    begin = time.monotonic()
    while not over.wait(SAMPLE_S):
        rows_now = env.stats()["brokers"]
        if not rows_now:
            continue
        node = rows_now[0]
        samples.seconds.append(time.monotonic() - begin)
        samples.live.append(node["live_bytes"] / GB)
        samples.spilled.append(node["spilled_bytes"] / GB)
        samples.shared.append(shared_bytes() / GB)
        samples.private.append(private_bytes() / GB)


@dataclass
class Result:
    shape: str
    is_withholding: bool
    seconds: float
    node: dict[str, int]
    samples: Samples


def measured(shape: str, options: argparse.Namespace, *, is_withholding: bool) -> Result:
    config = Config(
        store_bytes_max=int(options.store * GB),
        withhold_roots=is_withholding,
        spill_directory=options.spill,
    )
    samples, over = Samples(), threading.Event()
    with RunEnv(
        executors=options.executors, metastore="memory://", config=config, rootpath=f"/{OWN}"
    ) as env:
        env.wait_for_nodes(timeout=60)
        parts = blocks(int(options.gb * GB))
        right = len(parts) * (len(parts) - 1) / 2
        graph = SHAPES[shape](parts)
        begin = time.monotonic()
        run = submit(env, graph)
        watcher = threading.Thread(target=sample, args=(env, samples, over))
        watcher.start()
        try:
            value = run.result(options.timeout)
        finally:
            over.set()
            watcher.join()
        seconds = time.monotonic() - begin
        if value != right:
            sys.exit(f"{shape}: {value} is not {right}")
        [node] = run.stats()["brokers"]
    left = [name for name in os.listdir(SHM) if OWN in name]
    if left:
        sys.exit(f"left behind: {left}")
    return Result(shape, is_withholding, seconds, node, samples)


COLUMNS = (
    "graph", "withholding", "seconds", "most alive", "most in files", "most in /dev/shm",
    "objects moved to files", "bundles withheld", "private memory",
)  # fmt: skip


def rows(results: list[Result]) -> list[str]:
    lines = [
        f"| {' | '.join(COLUMNS)} |",
        f"|{' --- |' * len(COLUMNS)}",
    ]
    for result in results:
        node, seen = result.node, result.samples
        lines.append(
            f"| {result.shape} | {'yes' if result.is_withholding else 'no'} | "
            f"{result.seconds:.1f} | {node['peak_bytes'] / GB:.2f} GB | "
            f"{max(seen.spilled, default=0):.2f} GB | {max(seen.shared, default=0):.2f} GB | "
            f"{node['spill_count']} | {node['withheld_count']} | "
            f"{max(seen.private, default=0):.2f} GB |"
        )
    return lines


def draw(results: list[Result], store_gb: float, path: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    shapes = list(dict.fromkeys(result.shape for result in results))
    figure, axes = plt.subplots(
        1, len(shapes), figsize=(6 * len(shapes), 3.6), squeeze=False, layout="constrained"
    )
    for axis, shape in zip(axes[0], shapes, strict=True):
        for result in results:
            if result.shape == shape:
                how, color = ("with", "C0") if result.is_withholding else ("without", "C3")
                seen = result.samples
                axis.plot(seen.seconds, seen.live, color, label=f"alive, {how} withholding")
                axis.plot(seen.seconds, seen.shared, color, ls=":", label=f"in /dev/shm, {how}")
        axis.axhline(store_gb, color="0.6", lw=0.8)
        axis.annotate("bound of the store", (0, store_gb), color="0.4", fontsize=8, va="bottom")
        axis.set(title=shape, xlabel="seconds", ylabel="GB")
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gb", type=float, default=20.0, help="blocks in all (default: 20 GB)")
    parser.add_argument("--store", type=float, default=2.0, help="bound in GB (default: 2)")
    parser.add_argument("--executors", type=int, default=2)
    parser.add_argument("--shape", choices=[*SHAPES, "both"], default="both")
    parser.add_argument("--spill", help="directory of files (default: the run directory)")
    parser.add_argument("--timeout", type=float, default=1800.0, help="seconds for one run")
    parser.add_argument("--plot", type=Path, help="draw memory over time into this file (PNG)")
    options = parser.parse_args()
    shapes = list(SHAPES) if options.shape == "both" else [options.shape]
    results = [
        measured(shape, options, is_withholding=is_withholding)
        for shape in shapes
        for is_withholding in (True, False)
    ]
    print("\n".join(rows(results)))
    if options.plot is not None:
        draw(results, options.store, options.plot)


if __name__ == "__main__":
    main()
