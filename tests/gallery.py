"""The pictures of viz/README.md, by real runs: `python -m tests.gallery DIRECTORY [NAME ..]`."""

import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from dagsched import NodeEnv, RunEnv, addprocs, collect, delayed, rmprocs, rundag, submit, visualize
from dagsched.config import Config
from dagsched.errors import DagschedError
from dagsched.run import Run
from dagsched.viz.png import render_png
from tests import graphs


@contextmanager
def cluster(config: Config | None = None, *, dashboard: bool = False) -> Iterator[RunEnv]:
    """Two nodes with two executors each."""
    ids = addprocs(6)
    nodes = [NodeEnv(ids[0], "127.0.0.1", ids[1:3]), NodeEnv(ids[3], "127.0.0.1", ids[4:6])]
    try:
        with RunEnv(nodes=nodes, metastore="memory://", config=config, dashboard=dashboard) as env:
            yield env
    finally:
        rmprocs(ids)


def small(run: Run, path: Path, title: str) -> None:
    """A picture of many tasks, with fewer pixels than it deserves."""
    drawing = visualize(run, title=title)
    width, height = drawing.size
    data = render_png(drawing.svg, width=width, height=height, pixels_max=1_500_000)
    path.write_bytes(data)


def deep(folder: Path) -> None:
    with cluster() as env:
        run = submit(env, graphs.straight([1] * 6**4)[0])
        run.result()
        small(run, folder / "deep.png", "deep: straight, 6^4 values")


def cross(folder: Path) -> None:
    with cluster() as env:
        run = submit(env, graphs.cross()[0])
        run.result()
        visualize(run, folder / "cross.png", title="cross-connected: six rounds")


def _sorted(env: RunEnv, count: int, results: int) -> Run:
    pairs = rundag(env, graphs.sort_preparation(graphs.sort_inputs(count)))
    splitters = graphs.sort_splitters([sample for _, sample in pairs], results)
    run = submit(env, graphs.sort_graph([chunk for chunk, _ in pairs], splitters))
    collect(run.result())
    return run


def sort(folder: Path) -> None:
    with cluster() as env:
        run = _sorted(env, 10**6, 1)
        visualize(run, folder / "sort.png", title="sort: 40 chunks to one")


def distributed_sort(folder: Path) -> None:
    with cluster() as env:
        run = _sorted(env, 10**6, 40)
        title = "distributed sort: 40 chunks to 40"
        small(run, folder / "distributed_sort.png", title)
        visualize(run, folder / "distributed_sort_gantt.png", kind="gantt", title=title)


def work(seconds: float) -> float:
    """Compute, or at least look like it."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass
    return seconds


def unreliable(seconds: float, bad: bool) -> float:
    """Work that raises at its end, if it is to."""
    work(seconds)
    if bad:
        raise ValueError("this piece has no data")
    return seconds


def failing(folder: Path) -> None:
    with cluster() as env:
        pieces = [delayed(work)(0.02) for _ in range(40)]
        sums = [
            delayed(unreliable, retries=2)(pieces[i], i == 24) for i in range(0, len(pieces), 4)
        ]
        run = submit(env, delayed(sum)(sums))
        assert isinstance(run.exception(), ValueError)
        visualize(run, folder / "failing.png", title="a task that fails, and is tried again")
        visualize(run, folder / "failing_gantt.png", kind="gantt", title="the same, by executor")
        visualize(run, folder / "failing.txt", kind="summary", title="the same, in numbers")


def block(index: int) -> np.ndarray:
    """8 MB that differ."""
    return np.full(1_000_000, float(index))


def added(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Their sum."""
    return left + right


def distance(left: np.ndarray, right: np.ndarray) -> float:
    """Between their first values."""
    return float(right[0] - left[0])


def spilling(folder: Path) -> None:
    with (
        tempfile.TemporaryDirectory() as spill,
        cluster(
            Config(store_bytes_max=64_000_000, spill_directory=spill, withhold_roots=False)
        ) as env,
    ):
        blocks = [delayed(block)(index) for index in range(64)]
        whole = blocks
        while len(whole) > 1:
            whole = [delayed(added)(*whole[i : i + 2]) for i in range(0, len(whole), 2)]
        # All blocks are needed once more when their sum is known.
        again = [delayed(distance)(one, whole[0]) for one in blocks]
        run = submit(env, delayed(sum)(again))
        assert run.result() == sum(sum(range(64)) - index for index in range(64))
        visualize(run, folder / "spilling_gantt.png", kind="gantt", title="a run that spills")
        visualize(run, folder / "spilling.txt", kind="summary", title="a run that spills")


def one(index: int) -> int:
    """Nearly nothing."""
    return index & 1


def million(folder: Path) -> None:
    with cluster() as env:
        leaf, merged = delayed(one), delayed(graphs.total)
        level = [leaf(index) for index in range(900_000)]
        while len(level) > 1:
            level = [merged(*level[i : i + 10]) for i in range(0, len(level), 10)]
        run = submit(env, level[0])
        assert run.result() == 450_000
        path = run.save(folder / "million.dagsched")
    print(f"{path.stat().st_size:,} bytes; now: dagsched viz {path} -o ..")
    for kind, name in (
        ("dag", "million.png"),
        ("gantt", "million_gantt.png"),
        ("summary", "million.txt"),
    ):
        visualize(run, folder / name, kind=kind, title="a million tasks")


def load_tile(index: int) -> float:
    """Work of its own name, as the three that follow."""
    return work(0.02 + index % 5 / 200)


def calibrate(tile: float, neighbour: float) -> float:
    """Of two tiles."""
    return work(tile + neighbour)


def image(gains: float) -> float:
    """Of one that is calibrated."""
    return work(gains / 2)


def mosaic(*images: float) -> float:
    """Of a row of images."""
    return work(0.05) + sum(images) * 0


def live(folder: Path) -> None:
    from playwright.sync_api import expect

    from tests import browsing

    with cluster(dashboard=True) as env, browsing.browser() as browser:
        assert env.dashboard_url is not None
        rundag(env, delayed(sum)([delayed(one)(index) for index in range(50_000)]))
        failed = submit(
            env, [delayed(unreliable, retries=2)(0.01, index == 7) for index in range(40)]
        )
        failed.exception()
        tiles = [delayed(load_tile)(index) for index in range(400)]
        images = [delayed(image)(delayed(calibrate)(tiles[i], tiles[i - 1])) for i in range(400)]
        run = submit(env, [delayed(mosaic)(*images[i : i + 20]) for i in range(0, 400, 20)])
        size, phone = {"width": 1200, "height": 790}, {"width": 390, "height": 844}
        url = env.dashboard_url
        with (
            browsing.visit(browser, url, viewport=size) as wide,
            browsing.visit(browser, url, viewport=phone, color_scheme="dark") as narrow,
        ):
            bar = wide.page.get_by_role("progressbar").first
            expect(bar).to_have_attribute("aria-valuenow", re.compile("^[6-9].$"), timeout=60_000)
            wide.page.screenshot(path=folder / "live.png")
            narrow.page.screenshot(path=folder / "live_phone.png")
        run.result()


PICTURES: dict[str, Callable[[Path], None]] = {
    function.__name__: function
    for function in (deep, cross, sort, distributed_sort, failing, spilling, million, live)
}


def main(args: list[str]) -> None:
    """Make the named pictures, or all."""
    folder = Path(args[0])
    folder.mkdir(parents=True, exist_ok=True)
    for name in args[1:] or PICTURES:
        try:
            PICTURES[name](folder)
        except DagschedError as error:
            raise SystemExit(f"{name}: {error}") from error


if __name__ == "__main__":
    main(sys.argv[1:])
