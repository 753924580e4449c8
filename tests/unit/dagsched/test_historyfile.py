"""Runs in files: what is kept, and what a file that can't be trusted may do."""

import json
import os
import random
import struct
import tracemalloc
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dagsched.columns import KINDS, pack, unpack
from dagsched.delayed import delayed
from dagsched.errors import DagschedError, VersionMismatch
from dagsched.graph import build_graph
from dagsched.history import History
from dagsched.historyfile import load_history, save_history
from dagsched.tables import Rows
from dagsched.trace import Execution, Repeat, TraceBuilder, TraceEvent

HEAD = struct.Struct("<8sII")


def run_of_three() -> History:
    """A run with all that can happen: a repeat, an event, a failure, a size, an own name."""
    first = delayed(abs, name="first")(-1)
    graph = build_graph(delayed(max)(first, delayed(abs)(-2)))
    builder = TraceBuilder()
    builder.add(2, 3, 1, np.array([0, 1]), np.array([1000, 1500, 1700]))
    builder.add(5, 6, 2, np.array([0]), np.array([2000, 2600]))
    trace = builder.build(np.arange(3), failed=[2], subtree_starts=np.array([0, 2, 3]))
    names = graph.task_names()
    trace = replace(
        trace,
        names=names,
        repeats=builder.repeats(np.arange(3)),
        size_bytes=np.array([-1, 8, -1]),
        in_bytes=np.array([0, 0, -1]),
        bundle=np.array([2, 1, -1]),
        bundles=Rows.of("bundles", np.array([[2, 3, 1, 1, 1000, 1700, 2, 5, 6]])),
        transfers=Rows.of(
            "transfers",
            np.array([[1, 1, 2, 5, 8, -1, 1750, 1760], [-1, 3, 2, 5, 9, 1200, 1800, 1800]]),
            every=4,
        ),
        spills=Rows.of("spills", np.array([[1, 1, 5, 2, 8, 1900, 1950]])),
        events=[TraceEvent(1800, "node_lost", 2, text="it died"), TraceEvent(1900, "cut")],
    )
    history = History.of_graph(graph)
    return replace(
        history, trace=trace, run_id="cafe0123-7", state="failed", submitted_ns=900, ended_ns=3000
    )


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_history(run_of_three(), tmp_path / "x.dagsched")


def test_several_save_to_one_file_and_what_a_dead_one_left_is_in_nobodys_way(
    tmp_path: Path,
) -> None:
    history, target = run_of_three(), tmp_path / ("x" * 240 + ".dagsched")
    with ThreadPoolExecutor(4) as pool:
        for saving in [pool.submit(save_history, history, target) for _ in range(100)]:
            assert saving.result(30) == target
    (tmp_path / f".x.dagsched.{os.getpid()}").touch()
    save_history(history, tmp_path / "x.dagsched")
    assert load_history(target).task_count == load_history(tmp_path / "x.dagsched").task_count == 3
    assert len(list(tmp_path.iterdir())) == 3


def test_what_is_loaded_is_what_was_saved(saved: Path) -> None:
    before, after = run_of_three(), load_history(saved)
    serials = after.names.serials
    assert (np.diff(serials) == np.diff(before.names.serials)).all()
    assert [after.names.key(task) for task in range(3)] == [
        f"{name}-{serial}" for name, serial in zip(["first", "abs", "max"], serials, strict=True)
    ]
    for table in ("tasks", "bundles", "transfers", "spills"):
        found = after.trace.table(table)
        assert found.keys() == before.trace.table(table).keys()
        for name, column in before.trace.table(table).items():
            assert column.tolist() == found[name].tolist(), name
    every = [rows.every for rows in (after.trace.bundles, after.trace.transfers)]
    assert every == [1, 4]
    assert after.trace.events == before.trace.events
    assert after.trace.repeats == [Repeat(0, Execution(2, 3, 1, 1000, 1500))]
    assert after.trace.failed == (2,)
    assert (after.indptr.tolist(), after.deps.tolist()) == ([0, 0, 0, 2], [0, 1])
    facts = ("run_id", "state", "submitted_ns", "ended_ns", "stats")
    assert [getattr(after, name) for name in facts] == [getattr(before, name) for name in facts]


def test_a_graph_that_was_not_run_and_one_without_tasks_can_be_saved(tmp_path: Path) -> None:
    for dag, count in ((delayed(abs)(-1), 1), ([], 0)):
        history = load_history(save_history(History.of_graph(build_graph(dag)), tmp_path / "x"))
        assert (history.task_count, history.has_run) == (count, False)


def test_keys_of_another_library_are_kept(tmp_path: Path) -> None:
    graph = replace(build_graph(delayed(abs)(delayed(abs)(-1))), own_keys=[("x", 0), "sum"])
    history = History.of_graph(graph)
    loaded = load_history(save_history(history, tmp_path / "x"))
    for names in (history.names, loaded.names):
        assert [names.key(task) for task in range(2)] == ["('x', 0)", "sum"]


def test_sources_are_no_edges(tmp_path: Path) -> None:
    shared = np.zeros(100_000)
    graph = build_graph(delayed(max)(delayed(abs)(shared), delayed(abs)(shared)))
    history = History.of_graph(graph)
    assert len(graph.sources) == 1
    assert (history.indptr.tolist(), history.deps.tolist()) == ([0, 0, 0, 2], [0, 1])


def test_a_file_in_the_way_is_replaced_and_nothing_else_is_left(saved: Path) -> None:
    saved.write_bytes(b"old")
    save_history(run_of_three(), saved)
    assert load_history(saved).task_count == 3
    assert list(saved.parent.iterdir()) == [saved]


def test_a_file_that_can_not_be_written_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"can't be saved .*: name a file in a directory that is"):
        save_history(run_of_three(), tmp_path / "absent" / "x")
    with pytest.raises(OSError, match="can't be saved"):
        save_history(run_of_three(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_other_files_are_refused(tmp_path: Path) -> None:
    for content in (b"", b"PK\3\4", b"\x80\5N.", b"dagsched", HEAD.pack(b"dagsched", 1, 5) + b"[]"):
        (tmp_path / "x").write_bytes(content)
        with pytest.raises(DagschedError, match="x is no run saved by dagsched, or it is damaged"):
            load_history(tmp_path / "x")
    with pytest.raises(FileNotFoundError):
        load_history(tmp_path / "y")


def test_a_later_version_says_so(saved: Path) -> None:
    content = saved.read_bytes()
    saved.write_bytes(content[:8] + struct.pack("<I", 2) + content[12:])
    with pytest.raises(VersionMismatch, match="version 2 of the format, this dagsched reads 1"):
        load_history(saved)


def test_a_file_cut_short_anywhere_is_refused(saved: Path) -> None:
    content = saved.read_bytes()
    for length in range(len(content)):
        saved.write_bytes(content[:length])
        with pytest.raises(DagschedError):
            load_history(saved)


def test_what_follows_the_end_is_refused(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes() + b"x")
    with pytest.raises(DagschedError, match="its end is missing, or there is more"):
        load_history(saved)


def test_damage_is_an_error_or_goes_unseen_and_is_never_anything_else(saved: Path) -> None:
    content = saved.read_bytes()
    rng = random.Random(7)
    refused = 0
    for _ in range(2_000):
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        saved.write_bytes(damaged)
        try:
            load_history(saved)
        except DagschedError:
            refused += 1
    assert refused > 1_500


def rewritten(path: Path, column: str, kind: str, items: int, packed: bytes) -> None:
    """Put another column in the place of one, or behind all."""
    content = path.read_bytes()
    _, _, length = HEAD.unpack(content[: HEAD.size])
    head = json.loads(content[HEAD.size : HEAD.size + length])
    place, parts = HEAD.size + length, []
    for entry in head["columns"]:
        data = content[place : place + entry[3]]
        place += entry[3]
        if entry[0] == column:
            entry[1:], data = [kind, items, len(packed)], packed
        parts.append(data)
    if column not in [entry[0] for entry in head["columns"]]:
        head["columns"].append([column, kind, items, len(packed)])
        parts.append(packed)
    text = json.dumps(head).encode()
    path.write_bytes(HEAD.pack(b"dagsched", 1, len(text)) + text + b"".join(parts))


@pytest.mark.parametrize(
    ("column", "values", "problem"),
    [
        ("deps", [2, 3], "depends on itself or on a later one"),
        ("deps", [0, 1], "depends on itself or on a later one"),
        ("inputs", [0, 0, 3], "edges are not those"),
        ("inputs", [0, -1, 3], "less than no dependencies"),
        ("function", [0, 1, 9], "a task has no function"),
        ("node", [1, 1], "column node does not have an item a task"),
        ("subtree", [1, 1], "column subtree does not have an item a task"),
        ("bundle", [1, 1], "column bundle does not have an item a task"),
        ("transfers.task", [1, 3], "table transfers has another's task"),
        ("transfers.task", [1, -2], "table transfers has another's task"),
        ("transfers.size_bytes", [1], "table transfers is not whole"),
        ("spills.kind", [3], "a spill of no kind"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(saved: Path, column, values, problem) -> None:
    kind, packed = pack(np.array(values))
    rewritten(saved, column, kind, len(values), packed)
    with pytest.raises(DagschedError, match=problem):
        load_history(saved)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("failed", [3]),
        ("failed", ["x"]),
        ("repeats", [[3, 1, 1, 1, 1, 1]]),
        ("repeats", [[0, 1]]),
        ("events", [[0, "lost", -1, -1, 5, 0, 0, ""]]),
        ("events", [["now", "lost"]]),
        ("functions", [1, 2, 3]),
        ("own", []),
        ("keys", ["only one"]),
        ("stats", {"brokers": [{}], "executors": [], "run": {}}),
    ],
)
def test_words_that_make_no_sense_are_refused(saved: Path, column, value) -> None:
    text = json.dumps(value).encode()
    rewritten(saved, column, "json", len(text), zlib.compress(text))
    with pytest.raises(DagschedError, match="or it is damaged"):
        load_history(saved)


@pytest.mark.parametrize("every", [0, -1, 1 << 40, "2", None])
def test_a_table_of_no_number_of_rows_is_refused(saved: Path, every: object) -> None:
    content = saved.read_bytes()
    _, version, head_bytes = HEAD.unpack_from(content)
    head = json.loads(content[HEAD.size : HEAD.size + head_bytes])
    assert head["run"]["every"] == {"transfers": 4}
    head["run"]["every"] = {"transfers": every}
    text = json.dumps(head).encode()
    columns = content[HEAD.size + head_bytes :]
    saved.write_bytes(HEAD.pack(b"dagsched", version, len(text)) + text + columns)
    with pytest.raises(DagschedError, match="the table transfers has no number of rows"):
        load_history(saved)


def test_no_more_memory_is_taken_than_the_file_and_the_limit_allow(saved: Path) -> None:
    bomb = zlib.compress(bytes(50_000_000), 9)
    rewritten(saved, "node", "u1", 3, bomb)  # says little, is much
    tracemalloc.start()
    try:
        with pytest.raises(DagschedError, match=r"packed bytes are not 3"):
            load_history(saved)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()
    rewritten(saved, "node", "i8", 10**12, bomb)  # says more than zlib can pack
    with pytest.raises(DagschedError, match="says that it is longer than it can be"):
        load_history(saved)
    rewritten(saved, "node", "u1", 50_000_000, bomb)
    with pytest.raises(DagschedError, match=r"needs 50,\d+,\d+ bytes of memory, and 1,000,000 are"):
        load_history(saved, bytes_max=1_000_000)


def test_columns_take_the_smallest_kind_and_come_back() -> None:
    seen = set()
    for values in ([], [0, 255], [256], [70_000], [-1], [-129], [-(2**20)], [2**40, -(2**62)]):
        array = np.array(values, np.int64)
        kind, packed = pack(array)
        seen.add(kind)
        assert unpack(kind, len(values), packed).tolist() == values
    assert seen == set(KINDS)
