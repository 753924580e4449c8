"""Bundles sent to a real executor process: what it computes, exports, reports, survives."""

import asyncio
import operator
import os
import pickle
import signal
import sys
import time
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dagsched.brokers.objects.arena import SHM_DIRECTORY, Arena
from dagsched.brokers.objects.reader import copy_value
from dagsched.config import Config
from dagsched.entries import Slot
from dagsched.protocol.messages import (
    ForgetRun,
    FreeExtents,
    GetValue,
    ObjectInfo,
    Parcel,
    Stop,
    TaskOptions,
    ValueReply,
)
from dagsched.ref import Ref, collect
from dagsched.serialize import dump_inline, dump_value, load_exception
from tests.unit.brokers.executor_harness import ExecutorHarness, Result, Task


@pytest.fixture
def harness() -> Iterator[ExecutorHarness]:
    with ExecutorHarness() as harness:
        yield harness


def value(x: Any) -> Any:
    return x


def add(x: int, y: int, z: int = 0) -> int:
    return x + y + z


def make_list() -> list[int]:
    return [1, 2]


def append(x: list[int], item: int) -> list[int]:
    x.append(item)
    return x


def ones(size: int) -> np.ndarray:
    return np.ones(size)


def spoil(x: np.ndarray) -> float:
    x[:] += 1
    return float(x.sum())


def segments(prefix: str) -> list[str]:
    return [path.name for path in SHM_DIRECTORY.iterdir() if path.name.startswith(prefix)]


def inline(first: int, *values: Any) -> tuple[ObjectInfo, bytes]:
    data = dump_inline(values[0] if len(values) == 1 else list(values))
    return ObjectInfo(first, len(values), len(data)), data


class TestResults:
    def test_all_kinds_of_entries(self, harness: ExecutorHarness) -> None:
        tasks = {
            0: Task(value, (5,)),
            1: Task(add, None, (0, 100)),
            2: Task(add, [[None, 10, None], [(0, 0), (2, 1)]], (1, 0)),
            3: Task(add, {"args": (Slot(0),), "kwargs": {"y": 1, "z": Slot(1)}}, (2, 1)),
            4: Task(value, {"args": ([Slot(0), {"k": Slot(1)}],), "kwargs": {}}, (3, 2)),
            5: Task(add, [(7, None), ((1, 0),)], (3,)),
            64: Task(add, None, (5, 3, 1)),
            70: Task(make_list, ()),
        }
        result = harness.run(tasks, exports=[(4, 1), (64, 1), (70, 1)], imports=[inline(100, 2)])
        assert result.values == {4: [30, {"k": 22}], 64: 37 + 30 + 7, 70: [1, 2]}
        assert result.done == [0, 1, 2, 3, 4, 5, 64, 70]
        assert len(result.stamps) == 9
        assert result.stamps == sorted(result.stamps)
        message = result.message
        assert (message.run, message.bundle, message.attempt) == (1, 1, 1)
        assert [(f, n) for f, n, _ in message.seconds] == [(0, 2), (1, 5), (2, 1)]
        spent = (result.stamps[-1] - result.stamps[0]) / 1e9
        assert sum(s for _, _, s in message.seconds) == pytest.approx(spent)
        assert message.failures == message.deferred == message.held == message.dropped == []
        assert message.rss_peak_bytes > 1_000_000
        harness.wait_until_idle()
        assert harness.status.tolist()[:2] == [0, -1]

    def test_blocks(self, harness: ExecutorHarness) -> None:
        tasks = {i: Task(value, (i * 2,)) for i in range(100)}
        result = harness.run(tasks, exports=[(0, 90), (92, 1), (95, 3)], plain=True)
        assert [(o.first, o.count) for o in result.message.objects] == [(0, 90), (92, 1), (95, 3)]
        assert result.values == {i: 2 * i for i in [*range(90), 92, 95, 96, 97]}

    def test_block_too_large_is_cut_and_large_values_go_alone(
        self, harness: ExecutorHarness
    ) -> None:
        sizes = [1000] * 20 + [100_000] + [9000, 9000, 10]
        tasks = {i: Task(value, ("x" * size,)) for i, size in enumerate(sizes)}
        tasks[24] = Task(ones, (5000,))
        result = harness.run(tasks, exports=[(0, 25)])
        objects = result.message.objects
        assert [o.first for o in objects] == [0, *accumulate(o.count for o in objects)][:-1]
        assert [o.first for o in objects if o.location is not None] == [20, 24]
        assert len(objects) <= 8
        assert all(o.size_bytes <= 16_384 for o in objects if o.location is None)
        assert [len(result.values[i]) for i in range(24)] == sizes
        assert result.values[24].sum() == 5000
        assert result.message.written_bytes == sum(
            o.size_bytes for o in objects if o.location is not None
        )

    def test_block_of_many_small_values_is_cut_into_few(self, harness: ExecutorHarness) -> None:
        result = harness.run({i: Task(value, (i,)) for i in range(20_000)}, exports=[(0, 20_000)])
        objects = result.message.objects
        assert len(objects) <= 2 * sum(o.size_bytes for o in objects) / 16_384
        assert all(o.size_bytes <= 16_384 and o.location is None for o in objects)
        assert [result.values[i] for i in range(20_000)] == list(range(20_000))

    def test_referenced_tell_type_and_refs(self, harness: ExecutorHarness) -> None:
        refs = [Ref(9, 4, env="t"), Ref(9, 5, env="t")]
        tasks = {0: Task(value, ({"r": refs},)), 1: Task(value, (3,)), 2: Task(ones, (9000,))}
        result = harness.run(tasks, exports=[(0, 3)], referenced=[0, 2])
        assert [
            (o.first, o.count, o.type_name, [tuple(r) for r in o.refs])
            for o in result.message.objects
        ] == [(0, 1, "dict", [(9, 4), (9, 5)]), (1, 1, "", []), (2, 1, "numpy.ndarray", [])]

    def test_functions_and_chunks_are_kept_until_forgotten(self, harness: ExecutorHarness) -> None:
        tasks = {i: Task(add, (i, 1)) for i in range(3)}
        harness.run(tasks)
        assert harness.run({1: tasks[1]}, exports=[(1, 1)], with_code=False).values == {1: 2}
        harness.send(Parcel(ForgetRun(1)))
        harness.send(harness.parcel({1: tasks[1]}, with_code=False))
        assert harness.receiver.receive_batch() == []  # asking for what it has forgotten is fatal

    def test_returned_graph_becomes_a_plan(self, harness: ExecutorHarness) -> None:
        from dagsched.delayed import delayed
        from dagsched.protocol.plans import decode_plan

        def graph(n: int) -> object:
            return delayed(add)(delayed(value)(n), 1)

        tasks = {
            0: Task(value, (1,)),
            1: Task(graph, None, (0,)),
            2: Task(add, None, (1, 0)),
            3: Task(value, (4,)),
        }
        result = harness.run(tasks, exports=[(2, 1), (3, 1)])
        assert result.done == [0, 3]
        assert result.message.expanded == [(1, len(result.expanded[0]))]
        plan = decode_plan(result.expanded[0])
        assert plan.task_count == 2
        assert result.message.deferred == [2]
        assert result.values == {3: 4, 0: 1}  # 0 is what the deferred task will need


class TestSharing:
    def test_no_task_sees_what_another_did_to_its_input(self, harness: ExecutorHarness) -> None:
        tasks = {
            0: Task(make_list, ()),
            1: Task(append, [[None, 3], [(0, 0)]], (0,)),
            2: Task(append, [[None, 4], [(0, 0)]], (0,)),
            3: Task(append, [[None, 5], [(0, 0)]], (0,)),
            4: Task(append, [[None, 6], [(0, 0)]], (100,)),
            5: Task(append, [[None, 7], [(0, 0)]], (100,)),
            6: Task(append, [[None, 8], [(0, 0)]], (101,)),
        }
        result = harness.run(tasks, exports=[(0, 7)], imports=[inline(100, [9], [10])])
        assert result.values == {
            0: [1, 2], 1: [1, 2, 3], 2: [1, 2, 4], 3: [1, 2, 5], 4: [9, 6], 5: [9, 7], 6: [10, 8],
        }  # fmt: skip

    def test_large_values_are_mapped_privately(self, harness: ExecutorHarness) -> None:
        size = 200_000
        tasks = {
            0: Task(ones, (size,)),
            1: Task(spoil, None, (0,)),
            2: Task(spoil, None, (0,)),
            3: Task(ones, (size,)),
            4: Task(spoil, None, (3,)),
            5: Task(spoil, None, (3,)),
        }
        result = harness.run(tasks, exports=[(0, 3), (4, 2)])
        assert {p: result.values[p] for p in (1, 2, 4, 5)} == dict.fromkeys(
            (1, 2, 4, 5), 2.0 * size
        )
        assert result.values[0].sum() == size
        large = [o for o in result.message.objects if o.location is not None]
        assert [o.first for o in large] == [0]
        assert result.message.held == []
        # What was sealed for this bundle only is free again: the next one gets the same place.
        again = harness.run({0: Task(ones, (size,))}, exports=[(0, 1)])
        assert again.message.objects[0].location.offset >= large[0].location.offset + size * 8
        assert len(list(SHM_DIRECTORY.glob(f"{harness.prefix}-3-1-*"))) == 1

    def test_imports_by_location(self, harness: ExecutorHarness) -> None:
        arena = Arena(f"{harness.prefix}-0-0", Config())
        dumped = dump_value(np.arange(100_000.0))
        location = arena.write(dumped.stream, dumped.buffers)
        info = ObjectInfo(50, 1, location.size_bytes, location)
        tasks = {0: Task(spoil, None, (50,)), 1: Task(spoil, None, (50,))}
        result = harness.run(tasks, exports=[(0, 2)], imports=[(info, None)])
        assert result.values[0] == result.values[1] == np.arange(100_000).sum() + 100_000
        assert copy_value(location)[3] == 3.0
        assert result.message.read_bytes == 2 * location.size_bytes
        arena.close()

    def test_items_of_a_tuple_are_handed_out_without_copies(self, harness: ExecutorHarness) -> None:
        def three() -> tuple[Any, ...]:
            return np.ones(100_000), np.zeros(5), 7

        tasks = {
            0: Task(three, ()),
            1: Task(operator.getitem, [[None, 0], [(0, 0)]], (0,)),
            2: Task(operator.getitem, [[None, -1], [(0, 0)]], (0,)),
            3: Task(spoil, None, (1,)),
        }
        result = harness.run(tasks, exports=[(2, 2)])
        assert result.values == {2: 7, 3: 200_000.0}
        assert result.message.written_bytes == 0
        exported = harness.run(tasks, exports=[(0, 1), (3, 1)])
        assert exported.values[0][0].sum() == 100_000
        assert exported.values[3] == 200_000.0

    def test_items_that_share_memory_are_copied(self, harness: ExecutorHarness) -> None:
        def views() -> tuple[Any, ...]:
            array = np.ones(10)
            return array, array[:5]

        tasks = {
            0: Task(views, ()),
            1: Task(operator.getitem, [[None, 0], [(0, 0)]], (0,)),
            2: Task(operator.getitem, [[None, 1], [(0, 0)]], (0,)),
            3: Task(spoil, None, (1,)),
            4: Task(spoil, None, (2,)),
            5: Task(operator.getitem, [[None, 0], [(0, 0)]], (0,)),
        }
        result = harness.run(tasks, exports=[(3, 3)])
        assert (result.values[3], result.values[4], result.values[5].sum()) == (20.0, 10.0, 10.0)

    def test_mutable_constants(self, harness: ExecutorHarness) -> None:
        shared = [0]
        tasks = {i: Task(append, (shared, i)) for i in range(3)}
        result = harness.run(tasks, exports=[(0, 3)])
        assert result.values == {0: [0, 0], 1: [0, 1], 2: [0, 2]}
        again = harness.run({1: tasks[1]}, exports=[(1, 1)], with_code=False)
        assert again.values == {1: [0, 1]}

    def test_views_that_outlive_their_task_are_told(self, harness: ExecutorHarness) -> None:
        def keep(x: np.ndarray) -> None:
            sys.modules["keep"] = x[:3]  # type: ignore[assignment]

        def let_go() -> list[float]:
            return sys.modules.pop("keep").tolist()

        made = harness.run({0: Task(ones, (100_000,))}, exports=[(0, 1)])
        info = made.message.objects[0]
        held = harness.run({1: Task(keep, None, (0,))}, imports=[(info, None)])
        assert (held.message.held, held.message.dropped) == ([(1, 0)], [])
        dropped = harness.run({2: Task(let_go, ())}, exports=[(2, 1)])
        assert dropped.values == {2: [1.0, 1.0, 1.0]}
        assert (dropped.message.held, dropped.message.dropped) == ([], [(1, 0)])

    def test_freed_extents_are_used_again(self, harness: ExecutorHarness) -> None:
        places = set()
        for _ in range(3):
            made = harness.run({0: Task(ones, (100_000,))}, exports=[(0, 1)])
            location = made.message.objects[0].location
            places.add((location.segment, location.offset))
            harness.send(Parcel(FreeExtents([location])))
        assert places == {(f"{harness.prefix}-3-1-0", 0)}

    def test_what_is_kept_for_being_warm_is_given_back_when_nothing_comes(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("dagsched.brokers.executor.WARM_S", 0.05)
        with ExecutorHarness() as harness:
            prefix = f"{harness.prefix}-3-1-"
            maps = Path(f"/proc/{harness.pid}/maps")
            for _ in range(2):
                for _ in range(4):  # so that there are ranges for such arrays as well
                    made = harness.run({0: Task(ones, (1_000_000,))}, exports=[(0, 1)])
                    (info,) = made.message.objects
                    read = harness.run(
                        {1: Task(spoil, None, (0,))}, imports=[(info, None)], exports=[(1, 1)]
                    )
                    assert read.done == [1]
                    harness.send(Parcel(FreeExtents([info.location])))
                deadline_s = time.monotonic() + 10
                while prefix in maps.read_text() or segments(prefix):
                    assert time.monotonic() < deadline_s, "segments are kept for nobody"
                    time.sleep(0.01)


class TestFailures:
    def check_others_ran(self, result: Result) -> None:
        assert result.done == [0, 3]
        assert result.values[3] == 30
        assert result.message.deferred == [2]

    def tasks(self, function: Any) -> dict[int, Task]:
        return {
            0: Task(value, (1,)),
            1: Task(function, None, (0,)),
            2: Task(add, None, (1, 0)),
            3: Task(value, (30,)),
        }

    @pytest.mark.parametrize(
        ("error", "kind"),
        [
            (ValueError("bad"), "raised"),
            (StopIteration(4), "raised"),
            (MemoryError(), "raised"),
            (SystemExit(3), "not_exception"),
            (KeyboardInterrupt(), "not_exception"),
            (GeneratorExit(), "not_exception"),
            (asyncio.CancelledError(), "not_exception"),
        ],
        ids=repr,
    )
    def test_whatever_is_raised(
        self, harness: ExecutorHarness, error: BaseException, kind: str
    ) -> None:
        def fail(x: int) -> None:
            raise error

        result = harness.run(self.tasks(fail), exports=[(2, 2)])
        self.check_others_ran(result)
        assert result.values[0] == 1  # needed by the deferred task
        failure = result.failure
        assert (failure.position, failure.attempt, failure.kind) == (1, 1, kind)
        assert failure.executor == 3
        assert failure.type_name.split(".")[-1] == type(error).__name__
        loaded = load_exception(result.errors[0])
        assert type(loaded) is type(error)
        assert loaded.args == error.args
        assert "in fail" in failure.traceback
        assert "execution.py" not in failure.traceback

    def test_endless_recursion(self, harness: ExecutorHarness) -> None:
        def deeper(x: int) -> int:
            return deeper(x)

        result = harness.run(self.tasks(deeper), exports=[(2, 2)])
        self.check_others_ran(result)
        assert result.failure.type_name == "RecursionError"

    def test_result_that_can_not_travel(self, harness: ExecutorHarness) -> None:
        def generator(x: int) -> object:
            return {"g": (i for i in ())}

        tasks = {0: Task(value, (1,)), 1: Task(generator, None, (0,)), 2: Task(value, (30,))}
        for group in ([(0, 3)], [(1, 1), (2, 1)]):
            result = harness.run(tasks, exports=group)
            assert result.done == [0, 2]
            assert len(result.stamps) == 3
            assert result.values[2] == 30
            assert (result.failure.kind, result.failure.path) == ("result", "result['g']")
            assert "a generator" in result.failure.text
            assert result.errors == []

    def test_function_or_argument_that_can_not_be_loaded(self, harness: ExecutorHarness) -> None:
        class Mine:
            def __reduce__(self) -> Any:
                return operator.truediv, (1, 0)

        parcel = harness.parcel(
            {0: Task(value, (1,)), 1: Task(add, (1, 2)), 2: Task(value, (Mine(),))}
        )
        frames = list(parcel.frames)
        assert pickle.loads(frames[-1]) is add
        frames[-1] = b"\x80\x05cmissing_module_of_tests\nf\n."
        harness.send(Parcel(parcel.message, frames))
        result = harness.result()
        assert result.done == [0]
        assert [(f.position, f.kind, f.type_name) for f in result.message.failures] == [
            (1, "argument", "ModuleNotFoundError"),
            (2, "argument", "ZeroDivisionError"),
        ]
        assert "missing_module_of_tests" in result.message.failures[0].text

    def test_shared_memory_used_up(self) -> None:
        with ExecutorHarness(Config(memory_limit_bytes=5 << 20)) as harness:
            tasks = {0: Task(ones, (1 << 20,)), 1: Task(value, (1,))}
            result = harness.run(tasks, exports=[(0, 1), (1, 1)])
            assert result.done == [1]
            assert (result.failure.kind, result.failure.position) == ("memory", 0)
            assert "memory_limit_bytes" in result.failure.text
            assert harness.run({0: Task(ones, (4,))}, exports=[(0, 1)]).values[0].sum() == 4

    def test_retries_in_place_with_fresh_inputs(self, harness: ExecutorHarness) -> None:
        tries = Path(f"/tmp/{harness.prefix}-tries")

        def flaky(own: list[int], other: list[int], constant: list[int]) -> list[int]:
            for used in (own, other, constant):
                used.append(0)
            with tries.open("a") as file:
                file.write("x")
            if len(tries.read_text()) < 3:
                raise ValueError("again")
            return own + other + constant

        tasks = {
            0: Task(make_list, ()),
            1: Task(flaky, [[None, None, [5]], [(0, 0), (1, 1)]], (0, 100)),
        }
        details: dict[str, Any] = {"exports": [(1, 1)], "imports": [inline(100, [9])]}
        try:
            result = harness.run(tasks, options=[TaskOptions(1, retries=3)], **details)
            assert result.values == {1: [1, 2, 0, 9, 0, 5, 0]}
            assert (result.message.retry_count, result.done) == (2, [0, 1])
            tries.unlink()
            failed = harness.run(tasks, options=[TaskOptions(1, retries=1)], **details)
            assert (failed.failure.kind, failed.failure.attempt) == ("raised", 2)
            assert failed.message.retry_count == 1
        finally:
            tries.unlink()

    def test_stop_defers_the_rest(self, harness: ExecutorHarness) -> None:
        tasks = {
            0: Task(value, (1,)),
            1: Task(make_list, ()),
            2: Task(value, (6,)),
            3: Task(add, None, (0, 2)),
            4: Task(append, [[None, 1], [(0, 0)]], (1,)),
        }
        harness.status[2] = 1  # its number is known before it starts
        result = harness.run(tasks, exports=[(4, 1)])
        assert result.done == []
        assert result.message.deferred == [0, 1, 2, 3, 4]
        assert result.message.objects == []
        harness.status[2] = 0
        assert harness.run(tasks, exports=[(4, 1)]).values == {4: [1, 2, 1]}

    def test_stop_while_running_exports_what_the_rest_needs(self) -> None:
        started, go = os.pipe(), os.pipe()

        def wait(x: int) -> list[int]:
            os.write(started[1], b"x")
            os.read(go[0], 1)
            return [x, x]

        tasks = {
            0: Task(value, (1,)),
            1: Task(wait, (2,)),
            2: Task(value, None, (1,)),
            3: Task(add, None, (0, 0)),
            4: Task(value, None, (1,)),
        }
        with ExecutorHarness() as harness:
            harness.send(harness.parcel(tasks, exports=[(2, 1)]))
            os.read(started[0], 1)
            assert harness.status.tolist()[:2] == [1, 1]
            assert 0 < time.monotonic_ns() - harness.status[3] < 60e9
            harness.status[2] = 1
            os.write(go[1], b"x")
            result = harness.result()
        for end in (*started, *go):
            os.close(end)
        assert result.done == [0, 1]
        assert result.message.deferred == [2, 3, 4]
        assert result.values == {0: 1, 1: [2, 2]}


class TestReferences:
    def test_meta_functions_get_references(self) -> None:
        def describe(*refs: Ref) -> Any:
            return list(refs), [(r.nbytes, r.type_name, r.nodes, r.env) for r in refs]

        imports = [
            (ObjectInfo(100, 1, 5, None, "int"), b"none"),
            (ObjectInfo(101, 1, 9, None, "list"), b"none"),
        ]
        with ExecutorHarness(token="env-1") as harness:
            result = harness.run(
                {0: Task(describe, None, (100, 101))}, exports=[(0, 1)], imports=imports,
                meta=[0], ref_brokers=[(100, 2), (101, 5)], referenced=[0],
            )  # fmt: skip
        refs, details = result.values[0]
        assert refs == [Ref(1, 100, env="env-1"), Ref(1, 101, env="env-1")]
        assert details == [(5, "int", (2,), "env-1"), (9, "list", (5,), "env-1")]
        assert list(map(tuple, result.message.objects[0].refs)) == [(1, 100), (1, 101)]

    def test_collect_inside_a_task(self, harness: ExecutorHarness) -> None:
        refs = [Ref(7, 20, nodes=(4,)), Ref(7, 31, nodes=(5,)), Ref(7, 40), Ref(7, 50)]
        arena = Arena(f"{harness.prefix}-0-0", Config())
        dumped = dump_value(np.arange(50_000))
        location = arena.write(dumped.stream, dumped.buffers)
        tasks = {0: Task(lambda r: [float(np.sum(x)) for x in collect(r)], (refs[:3],))}
        tasks[1] = Task(collect, (refs[3],))
        harness.send(harness.parcel(tasks, exports=[(0, 2)]))
        asked = [harness.receive().message for _ in range(3)]
        assert asked == [GetValue(1, 7, 20, 4), GetValue(2, 7, 31, 5), GetValue(3, 7, 40, 0)]
        later = harness.parcel({0: Task(value, (8,))}, exports=[(0, 1)], run=2)
        block = inline(30, 1, 2, 3)
        harness.send(later, Parcel(ValueReply(2, block[0]), [block[1]]))
        one = inline(40, 6)
        harness.send(
            Parcel(ValueReply(3, one[0]), [one[1]]),
            Parcel(ValueReply(1, ObjectInfo(20, 1, location.size_bytes, location))),
        )
        assert harness.receive().message == GetValue(4, 7, 50, 0)
        harness.send(Parcel(ValueReply(4, None)))
        result = harness.result()
        assert result.values == {0: [float(np.arange(50_000).sum()), 2.0, 6.0]}
        assert result.failure.type_name == "dagsched.errors.ObjectLost"
        assert result.failure.position == 1
        assert harness.result().values == {0: 8}  # the bundle that came meanwhile
        arena.close()


class TestProcess:
    def test_next_task_sees_a_clean_state(self, harness: ExecutorHarness) -> None:
        def disturb() -> None:
            import resource

            os.chdir("/")
            os.environ["DAGSCHED_TEST_NEW"] = "x"
            os.environ["PATH"] = "changed"
            del os.environ["HOME"]
            os.umask(0o777)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            resource.setrlimit(
                resource.RLIMIT_NOFILE, (32, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
            )

        def probe() -> tuple[Any, ...]:
            import resource

            environ = dict(os.environ)
            return (
                str(Path.cwd()), environ.get("DAGSCHED_TEST_NEW"), environ["PATH"],
                environ.get("HOME"), os.getenv("PATH"), resource.getrlimit(resource.RLIMIT_NOFILE),
            )  # fmt: skip

        def slow_probe() -> tuple[Any, ...]:
            mask = os.umask(0)
            os.umask(mask)
            handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
            return mask, *map(int, handlers)

        os.environ.setdefault("HOME", "/root")
        with ExecutorHarness() as fresh:
            before = fresh.run({0: Task(probe, ())}, exports=[(0, 1)]).values[0]
            slow_before = fresh.run({0: Task(slow_probe, ())}, exports=[(0, 1)]).values[0]
            tasks = {0: Task(disturb, ()), 1: Task(probe, ())}
            assert fresh.run(tasks, exports=[(1, 1)]).values[1] == before
            assert fresh.run({2: Task(slow_probe, ())}, exports=[(2, 1)]).values[2] == slow_before
        assert before[0] == str(Path.cwd())
        assert slow_before[1:] == (signal.SIG_DFL, signal.SIG_IGN)

    def test_environment_set_by_a_module_stays(
        self, harness: ExecutorHarness, tmp_path: Path
    ) -> None:
        Path(tmp_path, "sets_environment.py").write_text("import os\nos.environ['SET_BY'] = 'it'\n")

        def load(directory: str) -> None:
            sys.path.append(directory)
            import sets_environment  # noqa: F401

        tasks = {0: Task(load, (str(tmp_path),)), 1: Task(os.getenv, ("SET_BY",))}
        assert harness.run(tasks, exports=[(1, 1)]).values == {1: "it"}

    def test_interrupt_is_ignored(self, harness: ExecutorHarness) -> None:
        def interrupt() -> int:
            os.kill(os.getpid(), signal.SIGINT)
            return 1

        assert harness.run({0: Task(interrupt, ())}, exports=[(0, 1)]).values == {0: 1}

    def test_module_of_the_clients_path_and_main(self, tmp_path: Path) -> None:
        Path(tmp_path, "of_the_client.py").write_text("def f():\n    return 'client'\n")

        def where() -> tuple[str, list[str]]:
            import of_the_client

            return of_the_client.f(), sorted(vars(sys.modules["__main__"]))[:1]

        with ExecutorHarness(sys_path=[str(tmp_path), *sys.path]) as harness:
            result = harness.run({0: Task(where, ())}, exports=[(0, 1)])
        assert result.values == {0: ("client", ["__doc__"])}

    def test_ends_when_told_and_when_the_broker_is_gone(self) -> None:
        told = ExecutorHarness()
        told.send(Parcel(Stop()))
        assert told.receiver.receive_batch() == []
        assert told.close() == 0
        assert ExecutorHarness().close() == 0

    def test_closed_streams_harm_nobody(self, harness: ExecutorHarness) -> None:
        def shut() -> None:
            sys.stdout.close()
            sys.stderr = None  # type: ignore[assignment]

        harness.run({0: Task(shut, ())})
        assert harness.run({0: Task(value, (1,))}, exports=[(0, 1)]).values == {0: 1}

    def test_cycles_do_not_hold_views_for_long(self, harness: ExecutorHarness) -> None:
        def cycle(x: np.ndarray) -> None:
            loop: list[Any] = [x]
            loop.append(loop)

        made = harness.run({0: Task(ones, (100_000,))}, exports=[(0, 1)])
        imports = [(made.message.objects[0], None)]
        result = harness.run({1: Task(cycle, None, (0,))}, imports=imports)
        assert result.message.held == []
