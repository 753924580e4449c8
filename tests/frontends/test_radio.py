"""The radio astronomy example: counts of its published graphs, and its numbers."""

import importlib
import operator
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dagsched import NodeEnv, RunEnv, addprocs, procs, rmprocs
from dagsched.graph import build_graph
from tests.checkout import ROOT

FOLDER = ROOT / "examples" / "radio_astronomy"
NAMES = ("kernels", "facade", "graphs")
CELL = 1e-3


@pytest.fixture(scope="module")
def radio() -> Iterator[Any]:
    """The example's modules, under the names that they have for each other."""
    sys.path.insert(0, str(FOLDER))
    yield SimpleNamespace(**{name: importlib.import_module(name) for name in NAMES})
    sys.path.remove(str(FOLDER))
    for name in NAMES:
        del sys.modules[name]


class Writing:
    """The facade without anything that runs."""

    def __init__(self, facade: Any) -> None:
        self._deferred = facade.Execute(env=object())

    def execute(self, function: Any, nout: int | None = None) -> Any:
        return self._deferred.execute(function, nout)


def count(dag: Any) -> int:
    """Tasks that do something: taking one of several results isn't counted."""
    graph = build_graph(dag)
    takes = [function is operator.getitem for function in graph.functions]
    return sum(not takes[index] for index in graph.function_of)


def test_counts_of_the_published_graphs(radio: Any) -> None:
    do, g = Writing(radio.facade), radio.graphs
    seven = g.Size(channels=7, slices=37, cycles=5)
    vis, model = g.observe(do, seven)
    assert count(g.invert(do, vis, model, seven)) == 282
    assert count([*g.predict(do, vis, model, seven), model]) == 281
    assert count(g.ical(do, vis, model, seven, 1)) == 5_428
    assert count(g.simulated(do, seven, 0.0, 1)) == 5_702
    wide = g.Size(channels=77, slices=11, cycles=5)
    vis, model = g.observe(do, wide)
    assert count(g.ical(do, vis, model, wide)) == 16_210
    faceted = g.Size(channels=3, slices=11, cycles=0, facets=4)
    vis, model = g.observe(do, faceted)
    facets = do.execute(radio.kernels.image_scatter, nout=16)(model, 4)
    images = [g.invert(do, vis, facet, faceted) for facet in facets]
    gathered = do.execute(radio.kernels.image_gather)(images, model)
    assert count(gathered) == 646
    small = g.SIZES["laptop"]
    assert count(g.simulated(do, small)) == 314
    assert count(g.simulated(do, small, 0.5)) == 317
    assert count(g.simulated(do, small, 0.5, 1)) == 383


def flux(radio: Any, result: Any) -> tuple[list[float], float]:
    """What was found of each source's flux, and the noise over the peak."""
    model, left, _ = result
    size = radio.graphs.SIZES["laptop"]
    true = radio.kernels.sky(None, size.pixels, size.sources)
    found = [
        float(model[y - 1 : y + 2, x - 1 : x + 2].sum() / true[y - 1 : y + 2, x - 1 : x + 2].sum())
        for y, x in np.argwhere(true)
    ]
    return found, float(left[0].std() / true.max())


@pytest.mark.parametrize(
    ("phase", "first", "least", "most", "noise_max"),
    [(0.0, None, 0.96, 1.02, 1.5e-3), (0.5, None, 0.4, 0.75, 3e-2), (0.5, 1, 0.97, 1.03, 6e-3)],
)
def test_the_flux_is_found(
    radio: Any, phase: float, first: int | None, least: float, most: float, noise_max: float
) -> None:
    do = radio.facade.Execute(deferred=False)
    result = radio.graphs.simulated(do, radio.graphs.SIZES["laptop"], phase, first)
    found, noise = flux(radio, result)
    assert least < min(found)
    assert max(found) < most
    assert noise < noise_max


def test_prediction_is_the_measurement_equation(radio: Any) -> None:
    k = radio.kernels
    vis, image = k.create_vis(0, 3, 27, 3), k.sky(None, 128, 4)
    exact = k.direct_predict(vis, image, CELL)
    parts = [k.predict(part, image, CELL) for part in k.scatter(vis, 9)]
    error = np.abs(k.gather(parts, vis)["vis"] - exact).max() / np.abs(exact).max()
    assert error <= 2e-2


def test_prediction_and_inversion_are_adjoint(radio: Any) -> None:
    k, random = radio.kernels, np.random.default_rng(5)
    (part,) = k.scatter(k.create_vis(0, 3, 20, 2), 1)
    image = random.standard_normal((64, 64))
    rows = len(part["vis"])
    values = random.standard_normal(rows) + 1j * random.standard_normal(rows)
    forward = np.vdot(values, k.predict(part, image, CELL)["vis"]).real
    back, weight = k.invert({**part, "vis": values}, image, CELL, False)
    assert weight == rows
    assert forward == pytest.approx((image * back).sum(), rel=1e-10)


@pytest.fixture
def two_nodes() -> Iterator[RunEnv]:
    a, b, c, d = addprocs(4)
    nodes = [NodeEnv(a, "127.0.0.1", [b]), NodeEnv(c, "127.0.0.1", [d])]
    with RunEnv(nodes=nodes, metastore="memory://") as environment:
        yield environment
    rmprocs(procs()[1:])


def test_serial_and_two_nodes_give_the_same_bytes(
    radio: Any, env: RunEnv, two_nodes: RunEnv
) -> None:
    size = radio.graphs.Size(channels=2, slices=3, cycles=1, pixels=64, antennas=10)
    serial = radio.graphs.simulated(radio.facade.Execute(deferred=False), size, 0.5, 0)
    for environment in (env, two_nodes):
        do = radio.facade.Execute(env=environment)
        result = do.compute(radio.graphs.simulated(do, size, 0.5, 0), sync=True)
        assert pickle.dumps([a.tobytes() for a in (result[0], result[2])]) == pickle.dumps(
            [a.tobytes() for a in (serial[0], serial[2])]
        )


def test_the_facade_defers_or_calls_at_once(radio: Any, env: RunEnv) -> None:
    for do in (radio.facade.Execute(deferred=False), radio.facade.Execute(env=env)):
        values = do.scatter([[1, 2], [3]])
        sums = [do.execute(sum)(value) for value in values]
        assert do.compute(sums, sync=True) == [3, 3]
        assert do.gather(do.compute({"a": sums})) == {"a": [3, 3]}
        assert do.gather(do.scatter(7)) == 7
        do.close()


def test_it_runs_and_draws(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(FOLDER / "run.py"), "--picture", str(tmp_path / "ical.svg")],
        cwd=tmp_path, env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
        timeout=110, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"0.5 rad, self-calibration: 607 tasks in .* flux 0.98", done.stdout)
    assert (tmp_path / "ical.svg").stat().st_size > 10_000
