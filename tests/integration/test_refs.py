"""References: meta tasks, `collect`, arguments of later graphs, and what keeps objects alive."""

import gc
import pickle

import numpy as np
import pytest

from dagsched import Ref, RunEnv, cleanup, collect, delayed, rundag
from dagsched.errors import ClosedError, GraphError, ObjectLost
from tests import graphs


def gather(*refs: Ref) -> list[Ref]:
    return list(refs)


gathered = delayed(gather, meta=True)


def live_count(env: RunEnv) -> int:
    # A reference's end is told before the question, on the same way.
    gc.collect()
    return sum(row["live_object_count"] for row in env.stats()["brokers"])


def test_a_meta_task_gathers_without_moving_bytes(env: RunEnv) -> None:
    dag, expected = graphs.meta_graph()
    refs = rundag(env, dag)
    assert [type(ref) for ref in refs] == [Ref] * 10
    first = refs[0]
    assert first.nbytes >= 80
    assert "ndarray" in first.type_name
    assert first.nodes == (env.nodes[0].brokerid,)
    for value, array in zip(collect(refs), expected, strict=True):
        np.testing.assert_array_equal(value, array)


def test_collect_inside_a_task(env: RunEnv) -> None:
    dag, expected = graphs.quick_means()
    assert collect(rundag(env, dag)) == pytest.approx(expected)


def test_collect_is_always_right(env: RunEnv) -> None:
    dag, expected = graphs.quick_sum()
    assert collect(rundag(env, dag)) == expected


def test_large_values_by_reference(env: RunEnv) -> None:
    arrays = [delayed(np.full)(1_000_000, n, dtype=np.float64) for n in range(3)]
    refs = rundag(env, gathered(*arrays))
    assert all(ref.nbytes >= 8_000_000 for ref in refs)
    assert [float(array.sum()) for array in collect(refs)] == [0.0, 1e6, 2e6]


def test_references_as_arguments_of_a_later_graph(env: RunEnv) -> None:
    refs = rundag(env, gathered(delayed(sum)([1, 2]), delayed(np.arange)(100_000)))
    assert rundag(env, delayed(lambda x: x + 1)(refs[0])) == 4
    assert rundag(env, delayed(len)(refs[1])) == 100_000
    assert rundag(env, delayed(lambda pair: pair["a"][0] + 1)({"a": [refs[0]]})) == 4
    assert rundag(env, delayed(lambda r: type(r).__name__, meta=True)(refs[0])) == "Ref"


def test_a_reference_is_an_output_as_it_is(env: RunEnv) -> None:
    refs = rundag(env, gathered(delayed(sum)([1, 2])))
    result = rundag(env, [refs[0], delayed(sum)([5])])
    assert result == [refs[0], 5]
    assert collect(result) == [3, 5]


def test_objects_live_as_long_as_their_references(env: RunEnv) -> None:
    refs = rundag(env, gathered(*[delayed(np.arange)(50_000) for _ in range(4)]))
    assert live_count(env) == 4
    copies = [pickle.loads(pickle.dumps(ref)) for ref in refs]
    del refs[1:]
    assert live_count(env) == 4
    del copies[1:]
    assert live_count(env) == 1
    assert copies[0] == refs[0]
    del copies
    assert live_count(env) == 1
    assert len(collect(refs[0])) == 50_000
    del refs
    assert live_count(env) == 0


def test_results_that_nobody_takes_are_let_go(env: RunEnv) -> None:
    from dagsched import submit

    run = submit(env, gathered(delayed(np.arange)(50_000)))
    assert run.wait(30)
    assert live_count(env) == 1
    del run
    assert live_count(env) == 0


def test_a_value_that_was_let_go_is_lost(env: RunEnv) -> None:
    refs = rundag(env, gathered(delayed(sum)([1, 2])))
    old = refs[0]
    forged = Ref(old.run, old.position + 1000, 8, "int", old.nodes, old.env)
    with pytest.raises(ObjectLost, match=forged.key):
        collect(forged)


def test_after_cleanup_a_reference_is_closed() -> None:
    env = RunEnv(executors=1, metastore="memory://")
    refs = rundag(env, gathered(delayed(sum)([1, 2])))
    assert collect(refs) == [3]
    cleanup(env)
    with pytest.raises(ClosedError, match="environment has been closed"):
        collect(refs)


def test_a_reference_of_another_environment_is_never_taken_for_an_own(env: RunEnv) -> None:
    with (
        RunEnv(executors=1, metastore="memory://") as first,
        RunEnv(executors=1, metastore="memory://") as second,
    ):
        (other,) = rundag(first, gathered(delayed(str)("first")))
        (own,) = rundag(second, gathered(delayed(str)("second")))
        assert other.run != own.run  # so that a resumed run never meets another
        with pytest.raises(GraphError, match="another environment"):
            rundag(second, delayed(str)(other))
        with pytest.raises(ClosedError, match="another environment"):
            rundag(second, delayed(lambda hidden: collect(hidden()))(lambda: other))
        assert collect(rundag(second, [other, own])) == ["first", "second"]
    with pytest.raises(ClosedError, match="has been closed"):
        rundag(env, delayed(str)(other))


def test_sort_by_references(env: RunEnv) -> None:
    chunks = graphs.sort_inputs(40_000, 8)
    prepared = rundag(env, graphs.sort_preparation(chunks))
    refs = [ref for ref, _ in prepared]
    samples = [sample for _, sample in prepared]
    splitters = graphs.sort_splitters(collect(samples), 4)
    dag = graphs.sort_graph(refs, splitters)
    result = collect(rundag(env, dag))
    np.testing.assert_array_equal(np.concatenate(result), np.sort(np.concatenate(chunks)))
