"""Values of all sizes and kinds through every path: inline, shared, spilled, between nodes."""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from dagsched import NodeEnv, RunEnv, addprocs, delayed, submit
from dagsched.config import Config
from tests.chaos import harness

GIB = 1 << 30
SLOW = pytest.mark.slow


@pytest.fixture(
    params=[
        pytest.param("inline", marks=SLOW),
        pytest.param("shared", marks=SLOW),
        "spilled",
        "between nodes",
    ]
)
def path(request: pytest.FixtureRequest) -> Iterator[RunEnv]:
    """Environments in which values take one path; `inline` and `shared` differ by the limit."""
    config = {
        "inline": Config(inline_bytes_max=1 << 20),
        "shared": Config(inline_bytes_max=1),
        "spilled": Config(inline_bytes_max=1, memory_limit_bytes=1),
        "between nodes": Config(inline_bytes_max=1),
    }[request.param]
    count = 2 if request.param == "between nodes" else 1
    nodes = [NodeEnv(number, "127.0.0.1", addprocs(1)) for number in addprocs(count)]
    with RunEnv(nodes=nodes, metastore="memory://", config=config) as env:
        env.wait_for_nodes(timeout=20)
        yield env


# --- kinds ----------------------------------------------------------------------------------------


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a: object, b: object) -> None:
        self.a, self.b = a, b

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Slotted) and (self.a, self.b) == (other.a, other.b)

    __hash__ = None  # type: ignore[assignment]


def structured() -> Any:
    values = np.zeros(500, [("a", "i4"), ("b", "f8", (2,)), ("c", "U5")])
    values["a"], values["c"] = np.arange(500), "text"
    return values


def objects() -> Any:
    values = np.empty(300, object)
    values[:] = [None, "text", (1, 2), {"x": 3.0}, b"bytes", 2**100] * 50
    return values


KINDS: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "empty": lambda: (b"", "", (), [], {}, set(), frozenset(), bytearray()),
    "huge number": lambda: 10**5000,
    "floats": lambda: (float("inf"), -0.0, 1e-320, complex(1, -0.0)),
    "text": lambda: "\u0000\ud7ff\U0001f600" * 10_000,
    "bytes": lambda: bytes(range(256)) * 1000,
    "bytearray": lambda: bytearray(range(256)) * 1000,
    "nested": lambda: {"a": [(1, {2: {3, 4}}), [b"x" * 50_000]], ("k",): frozenset({5})},
    "slots": lambda: Slotted([1, 2], bytearray(30_000)),
    "contiguous": lambda: np.arange(20_000.0).reshape(100, 200),
    "fortran": lambda: np.asfortranarray(np.arange(20_000.0).reshape(100, 200)),
    "strided": lambda: np.arange(60_000.0).reshape(300, 200)[::3, ::-2],
    "transposed": lambda: np.arange(60_000).reshape(30, 20, 100).transpose(2, 0, 1),
    "zero size": lambda: np.zeros((0, 7, 3), "f4"),
    "no dimension": lambda: np.array(5, "i2"),
    "big endian": lambda: np.arange(10_000, dtype=">i8"),
    "booleans": lambda: np.arange(50_000) % 3 == 0,
    "times": lambda: np.arange(10_000).astype("M8[us]"),
    "structured": structured,
    "objects": objects,
    "masked": lambda: np.ma.masked_array(np.arange(10_000), np.arange(10_000) % 7 == 0),
    "matrix of views": lambda: [np.arange(30_000.0)[n::3] for n in range(3)],
    "same twice": lambda: [np.ones(20_000)] * 2,
    "random state": lambda: np.random.default_rng(7),
}


def make(kind: str) -> Any:
    return KINDS[kind]()


def seen(value: Any) -> Any:
    """What a value is, in words and bytes that can be compared."""
    if isinstance(value, np.ma.MaskedArray):
        return ("masked", seen(value.data), seen(np.ma.getmaskarray(value)))
    if isinstance(value, np.ndarray):
        order = (value.flags.c_contiguous, value.flags.f_contiguous)
        items = value.tolist() if value.dtype.hasobject else value.tobytes()
        return (type(value).__name__, value.dtype.str, value.dtype.descr, value.shape, order, items)
    if isinstance(value, np.random.Generator):
        return ("generator", str(value.bit_generator.state))
    if type(value) in (list, tuple):
        return (type(value).__name__, [seen(item) for item in value])
    if isinstance(value, float | complex):
        return repr(value)
    return (type(value).__name__, value)


def look(value: Any) -> Any:
    return seen(value)


def test_every_kind_by_every_path(path: RunEnv) -> None:
    # A call with a timeout is a bundle alone: its input has been pickled. The client gets a copy.
    there = [delayed(look, timeout=60)(delayed(make)(kind)) for kind in KINDS]
    here = [delayed(make)(kind) for kind in KINDS]
    values = harness.value_of(path, submit(path, [there, here]))
    for kind, in_task, value in zip(KINDS, *values, strict=True):
        expected = seen(make(kind))
        assert in_task == seen(value), kind
        if kind == "matrix of views":
            assert [array.tolist() for array in value] == [array.tolist() for array in make(kind)]
        elif kind in ("strided", "transposed"):
            # Equal, and packed: the gaps of a view don't travel.
            assert (value == make(kind)).all()
            assert in_task[:2] == expected[:2]
            assert value.shape == make(kind).shape
        else:
            assert in_task == expected, kind


# --- who may write --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "kind"),
    [
        (300_000, "array"),
        *(
            pytest.param(n, kind, marks=SLOW)
            for n in (10, 300_000)
            for kind in ("bytearray", "list")
        ),
    ],
)
def test_a_consumer_writes_into_its_input(env: RunEnv, size: int, kind: str) -> None:
    def make_it() -> Any:
        return {"array": np.ones, "bytearray": bytearray, "list": _ones}[kind](size)

    expected = float(np.asarray(make_it()).sum())
    source = delayed(make_it)()
    first = delayed(_spoil_any)(source)
    # Siblings, a later reader, one alone in a bundle, and the client.
    others = [delayed(_total)(source) for _ in range(4)]
    later = delayed(_total)(source, first)
    apart = delayed(_total, timeout=60)(source, first)
    value = harness.value_of(env, submit(env, [first, others, later, apart, source]))
    assert value[:4] == [expected, [expected] * 4, expected, expected]
    assert _total(value[4]) == expected


def _ones(size: int) -> list[int]:
    return [1] * min(size, 1000)


def _spoil_any(value: Any) -> float:
    total = _total(value)
    for place in range(0, len(value), max(1, len(value) // 100)):
        value[place] = 99
    return total


def _total(value: Any, _after: object = None) -> float:
    return float(np.asarray(value).sum())


# --- views that outlive their run -----------------------------------------------------------------

_kept: list[Any] = []


def keep_view(array: Any) -> float:
    _kept.append(array[1000:2000])
    return float(array.sum())


def read_view() -> float:
    return float(_kept[0].sum())


def drop_view() -> int:
    _kept.clear()
    gc.collect()
    return len(_kept)


def test_a_view_kept_by_a_task_stays_valid_until_it_dies() -> None:
    with RunEnv(executors=1, metastore="memory://") as env:
        array = delayed(np.full, timeout=60)(500_000, 3.0)
        run = submit(env, delayed(keep_view, timeout=60)(array))
        assert harness.value_of(env, run) == 1_500_000.0
        del run

        def live_bytes() -> int:
            return sum(row["live_bytes"] for row in env.stats()["brokers"])

        # Much is written meanwhile, where the freed bytes would be used again.
        for n in range(5):
            other = submit(env, [delayed(np.full)(500_000, float(n)) for _ in range(4)])
            assert len(harness.value_of(env, other)) == 4
            assert harness.value_of(env, submit(env, delayed(read_view)())) == 3000.0
        del other
        assert live_bytes() >= 4_000_000
        assert harness.value_of(env, submit(env, delayed(drop_view)())) == 0
        harness.value_of(env, submit(env, delayed(abs)(1)))
        harness.until(lambda: live_bytes() < 4_000_000, what="space of the view freed")


def test_a_view_kept_by_the_client_stays_valid(env: RunEnv) -> None:
    (array,) = harness.value_of(env, submit(env, [delayed(np.full)(500_000, 3.0)]))
    view = array[100:200]
    del array
    for n in range(5):
        harness.value_of(env, submit(env, [delayed(np.full)(500_000, float(n)) for _ in range(4)]))
    env.close()
    assert view.sum() == 300.0


# --- sizes ----------------------------------------------------------------------------------------


def zeros(size: int) -> bytearray:
    return bytearray(size)


def ends(size: int) -> Any:
    array = np.zeros(size, np.uint8)
    array[0], array[-1] = 7, 9
    return array


def length_and_ends(array: Any) -> tuple[int, int, int]:
    return len(array), int(array[0]), int(array[-1])


def test_sizes_at_every_border(env: RunEnv) -> None:
    sizes = [0, 1, 16_383, 16_384, 16_385, (1 << 20) + 1, (64 << 20) + 1]
    made = [delayed(zeros)(size) for size in sizes]
    value = harness.value_of(env, submit(env, [made, [delayed(len, timeout=60)(m) for m in made]]))
    assert value == [[bytearray(size) for size in sizes], sizes]


def need_memory(bytes_needed: int) -> None:
    """Skip, visibly, where there isn't that much."""
    free = min(psutil.virtual_memory().available, _free_shm())
    if free < bytes_needed:
        pytest.skip(f"needs {bytes_needed / GIB:.0f} GiB of memory, and {free / GIB:.1f} are free")


def _free_shm() -> int:
    stats = os.statvfs("/dev/shm")
    return stats.f_bavail * stats.f_frsize


@SLOW
@pytest.mark.parametrize("size", [2 * GIB - 1, 2 * GIB, 2 * GIB + 1, 100 * GIB])
def test_large_values_in_shared_memory_and_back(env: RunEnv, size: int) -> None:
    need_memory(4 * size)
    made = delayed(ends)(size)
    run = submit(env, [delayed(length_and_ends, timeout=60)(made), made])
    (there, here) = harness.value_of(env, run, 20 + size / GIB)
    assert there == (size, 7, 9) == length_and_ends(here)


@SLOW
def test_a_large_value_between_nodes() -> None:
    need_memory(8 * GIB)
    nodes = [NodeEnv(number, "127.0.0.1", addprocs(1)) for number in addprocs(2)]
    with RunEnv(nodes=nodes, metastore="memory://") as env:
        env.wait_for_nodes(timeout=20)
        ref = harness.value_of(
            env, submit(env, delayed(_refs, meta=True)(delayed(ends)(2 * GIB + 1)))
        )
        looks = [delayed(length_and_ends, timeout=100)(ref[0]) for _ in range(4)]
        assert harness.value_of(env, submit(env, looks), 20) == [(2 * GIB + 1, 7, 9)] * 4
        del ref, looks


@SLOW
def test_a_large_value_in_a_file(tmp_path: Path) -> None:
    need_memory(8 * GIB)
    config = Config(memory_limit_bytes=1, spill_directory=str(tmp_path))
    with RunEnv(executors=1, metastore="memory://", config=config) as env:
        made = delayed(ends)(2 * GIB + 1)
        run = submit(env, delayed(length_and_ends, timeout=100)(made))
        assert harness.value_of(env, run, 20) == (2 * GIB + 1, 7, 9)


@SLOW
def test_a_million_results_of_one_byte(env: RunEnv) -> None:
    run = submit(env, [delayed(_byte)(n) for n in range(1_000_000)])
    values = harness.value_of(env, run, 10)
    assert values == [bytes((n % 256,)) for n in range(1_000_000)]


def _byte(n: int) -> bytes:
    return bytes((n % 256,))


def _refs(*refs: Any) -> list[Any]:
    return list(refs)
