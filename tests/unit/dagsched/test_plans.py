"""Plans as frames."""

from dataclasses import fields, replace
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagsched.config import Config
from dagsched.delayed import delayed
from dagsched.errors import ProtocolError
from dagsched.graph import build_graph
from dagsched.plan import ClusterShape, ConstantSource, RefSource, RunPlan
from dagsched.planning import make_plan
from dagsched.protocol.messages import CHUNK_TASKS, FunctionInfo, TaskOptions
from dagsched.protocol.plans import decode_plan, encode_plan, pack_plan, unpack_plan
from dagsched.ref import Ref
from tests import graphs

# The order of arrays among the frames, after the header.
STARTS, INDPTR, DEPS, FUNCTION_OF, FLAGS, LEVELS, OUTPUTS = range(1, 8)


def assert_same(left: RunPlan, right: RunPlan) -> None:
    for field in fields(RunPlan):
        a, b = getattr(left, field.name), getattr(right, field.name)
        if isinstance(a, np.ndarray):
            assert a.dtype == b.dtype, field.name
            assert a.tolist() == b.tolist(), field.name
        else:
            assert a == b, field.name


@st.composite
def plans(draw: st.DrawFn) -> RunPlan:
    count = draw(st.integers(0, 150))
    function_count = draw(st.integers(1, 4))
    sources: list[Any] = draw(
        st.lists(
            st.one_of(
                st.binary(max_size=20).map(ConstantSource),
                st.builds(RefSource, *[st.integers(0, 2**40)] * 3),
            ),
            max_size=4,
        )
    )
    total = count + len(sources)
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    counts = rng.integers(0, 4, count) if total else np.zeros(count, np.int64)
    places = np.sort(rng.integers(0, count + 1, draw(st.integers(0, 3))))
    names, seconds = st.text(max_size=5), st.none() | st.just(0.5)
    options = {
        position: TaskOptions(position, 2, draw(st.none() | st.floats(0.1, 9)), -1, 5)
        for position in sorted(set(rng.integers(0, count, 3).tolist()) if count else ())
    }
    return RunPlan(
        subtree_starts=np.concatenate(([0], places, [count])).astype(np.int64),
        interlocked=draw(st.booleans()),
        indptr=np.concatenate(([0], np.cumsum(counts))).astype(np.int64),
        deps=rng.integers(0, max(total, 1), counts.sum()).astype(np.int32),
        function_of=rng.integers(0, function_count, count).astype(np.int32),
        flags=rng.integers(0, 64, total).astype(np.uint8),
        level_starts=np.arange(0, count, 7, dtype=np.int32),
        functions=[
            FunctionInfo(index, rng.bytes(16), draw(names), draw(seconds))
            for index in range(function_count)
        ],
        function_pickles=[rng.bytes(index) for index in range(function_count)],
        chunks=[rng.bytes(9) for _ in range(-(-count // CHUNK_TASKS))],
        options=options,
        outputs=np.arange(total, dtype=np.int32)[::-3].copy(),
        sources=sources,
    )  # fmt: skip


@given(plans(), st.sampled_from([bytes, bytearray, memoryview]))
def test_round_trip(plan: RunPlan, kind: Any) -> None:
    frames = [kind(frame) for frame in encode_plan(plan)]
    assert_same(decode_plan(frames), plan)
    assert_same(unpack_plan([kind(frame) for frame in pack_plan(plan)]), plan)


def real_plan() -> RunPlan:
    array = np.zeros(100)
    nodes = [delayed(graphs.total, retries=1)(array, [Ref(1, 2)], index) for index in range(70)]
    graph = build_graph([*nodes, graphs.tree(200)[0]], 500)
    return make_plan(graph, ClusterShape(2, 4), Config(), {}).plan


def test_round_trip_of_a_real_plan() -> None:
    plan = real_plan()
    assert len(plan.sources) == 2
    assert len(plan.options) == 70
    assert_same(decode_plan(encode_plan(plan)), plan)


def test_constants_are_not_copied() -> None:
    plan = real_plan()
    frames = encode_plan(plan)
    constant = next(source for source in plan.sources if isinstance(source, ConstantSource))
    assert frames[-1] is constant.data
    decoded = decode_plan(frames)
    assert next(s for s in decoded.sources if isinstance(s, ConstantSource)).data is constant.data


def test_plans_of_another_version_are_refused() -> None:
    frames = encode_plan(real_plan())
    header = msgspec.msgpack.decode(frames[0])
    header[1] += 1
    frames[0] = msgspec.msgpack.encode(header)
    with pytest.raises(ProtocolError, match="a plan is of version 3; this side reads 2"):
        decode_plan(frames)


def test_a_large_plan_is_packed() -> None:
    dag = delayed(graphs.total)(*[delayed(abs)(number) for number in range(20_000)])
    plan = make_plan(build_graph(dag, 500), ClusterShape(2, 4), Config(), {}).plan
    frames = pack_plan(plan)
    arrays = sum(map(len, frames[STARTS : OUTPUTS + 1]))
    assert arrays < sum(map(len, encode_plan(plan)[STARTS : OUTPUTS + 1])) / 50
    assert_same(unpack_plan(frames), plan)


def test_packed_plans_are_refused_where_none_may_be() -> None:
    """Some bytes can stand for gigabytes, and executors run anything."""
    with pytest.raises(ProtocolError, match="packed where none may be"):
        decode_plan(pack_plan(real_plan()))
    with pytest.raises(ProtocolError, match="a plan of 7 arrays has 0 forms"):
        unpack_plan(encode_plan(real_plan()))
    frames = pack_plan(real_plan())
    header = msgspec.msgpack.decode(frames[0])
    header[-1][DEPS - 1] = "runs"
    frames[0] = msgspec.msgpack.encode(header)
    frames[DEPS] = b"x"
    with pytest.raises(ProtocolError, match="deps of a plan"):
        unpack_plan(frames)


@pytest.mark.parametrize("header", [b"", b"\xc1", b"\x90", b"not msgpack", b"\x92\xa4task\x01"])
def test_what_is_no_header(header: bytes) -> None:
    with pytest.raises(ProtocolError, match="header can't be read"):
        decode_plan([header, *encode_plan(real_plan())[1:]])


def test_wrong_numbers_of_frames() -> None:
    frames = encode_plan(real_plan())
    with pytest.raises(ProtocolError, match="without frames"):
        decode_plan([])
    with pytest.raises(ProtocolError, match=f"of {len(frames)} frames came in {len(frames) - 1}"):
        decode_plan(frames[:-1])
    with pytest.raises(ProtocolError, match="frames came in"):
        decode_plan([*frames, b""])


@pytest.mark.parametrize("array", range(STARTS, OUTPUTS + 1))
def test_arrays_that_are_cut_short(array: int) -> None:
    frames = encode_plan(real_plan())
    frames[array] = bytes(frames[array])[:-1] if array != LEVELS else b"x"
    with pytest.raises(ProtocolError):
        decode_plan(frames)


def changed(name: str, change: Any) -> RunPlan:
    plan = real_plan()
    value = getattr(plan, name)
    value = value.copy() if isinstance(value, np.ndarray) else list(value)
    return replace(plan, **{name: change(value)})


def with_item(index: int, item: Any) -> Any:
    def change(values: Any) -> Any:
        values[index] = item
        return values

    return change


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("indptr", with_item(0, 1)),
        ("indptr", with_item(3, 10**9)),
        ("indptr", lambda array: array[:-1]),
        ("deps", with_item(0, -1)),
        ("deps", with_item(0, 10**6)),
        ("function_of", with_item(0, 99)),
        ("function_of", with_item(0, -1)),
        ("flags", lambda array: array[:-1]),
        ("subtree_starts", with_item(-1, 3)),
        ("subtree_starts", lambda array: array[:0]),
        ("level_starts", lambda _: np.array([10**6], np.int32)),
        ("outputs", with_item(0, 10**6)),
        ("chunks", lambda chunks: chunks[:-1]),
        ("functions", lambda functions: functions[::-1]),
    ],
)
def test_parts_that_do_not_fit_together_are_named(name: str, change: Any) -> None:
    with pytest.raises(ProtocolError, match=rf"has wrong .*{name}"):
        decode_plan(encode_plan(changed(name, change)))


def test_options_of_tasks_that_are_not_there() -> None:
    plan = replace(real_plan(), options={10**6: TaskOptions(10**6, 1)})
    with pytest.raises(ProtocolError, match="has wrong options"):
        decode_plan(encode_plan(plan))
