"""joblib's backend, and scikit-learn on it.

Of joblib's own ``test_parallel`` all tests that take any backend hold as well, with this one in the
place of loky's and multiprocessing's, but for those that look into a backend's private parts or
names, expect loky's memmaps, its warnings, its limits of threads in children, its default of one
job, more processes than there are executors, or new ones for each initializer. What those tests
hold is written down again here.
"""

import itertools
import json
import math
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator
from typing import Any

import joblib
import numpy as np
import pytest
from joblib import Parallel, delayed, parallel_config
from joblib.parallel import TimeoutError as JoblibTimeoutError

from dagsched import RunEnv, setrunenv
from dagsched.plugins.joblib import FIRST_BYTES_MAX, SHARED_BYTES_MIN, register
from tests.checkout import ROOT

register()


@pytest.fixture(autouse=True)
def backend(env: RunEnv) -> Iterator[None]:
    """All is run by the environment."""
    with parallel_config("dagsched", env=env):
        yield


def fail_at_three(n: int) -> int:
    if n == 3:
        raise ValueError("three")
    return n


def interrupt(_: int) -> None:
    raise KeyboardInterrupt


def strided_sum(array: np.ndarray, *, start: int) -> float:
    return float(array[start::7].sum())


def change(array: np.ndarray, n: int) -> float:
    array += n
    return float(array[0])


def nested(n: int) -> tuple[str, str, list[float]]:
    outer = type(joblib.parallel.get_active_backend()[0]).__name__
    values = Parallel(n_jobs=2)(delayed(math.sqrt)(i**2) for i in range(n))
    inner = Parallel(n_jobs=2)(delayed(name_of_backend)() for _ in range(2))
    return outer, inner[0], values


def name_of_backend() -> str:
    return type(joblib.parallel.get_active_backend()[0]).__name__


STATUS = "not set up"


def set_up(status: str) -> None:
    global STATUS
    STATUS = status


def status() -> str:
    return STATUS


def test_results_are_in_order(env: RunEnv) -> None:
    assert Parallel()(delayed(math.sqrt)(n**2) for n in range(3_000)) == list(range(3_000))
    assert Parallel(n_jobs=2, batch_size=7)(delayed(lambda n: n + 1)(n) for n in range(50)) == list(
        range(1, 51)
    )
    assert Parallel(n_jobs=1)(delayed(abs)(-n) for n in range(5)) == list(range(5))
    assert Parallel(pre_dispatch="all")(delayed(abs)(-n) for n in range(50)) == list(range(50))


def test_as_many_jobs_as_executors(env: RunEnv) -> None:
    assert joblib.effective_n_jobs(-1) == 2
    assert joblib.effective_n_jobs(-2) == 1
    assert joblib.effective_n_jobs(5) == 5
    assert Parallel()._effective_n_jobs() == 2
    with pytest.raises(ValueError, match="n_jobs == 0"):
        Parallel(n_jobs=0)(delayed(abs)(n) for n in range(3))


def test_batches_grow_where_calls_are_short(env: RunEnv) -> None:
    assert len(Parallel()(delayed(abs)(n) for n in range(10_000))) == 10_000
    run = env.stats()["run"]
    assert int(run["run_id"].rpartition("-")[2]) < 1_000  # one run a batch at most


def test_a_failure_is_the_functions_own_and_ends_the_rest(env: RunEnv) -> None:
    parallel = Parallel()
    with pytest.raises(ValueError, match="three"):
        parallel(delayed(fail_at_three)(n) for n in itertools.count())
    with pytest.raises(KeyboardInterrupt):
        parallel(delayed(interrupt)(n) for n in range(4))
    assert parallel(delayed(fail_at_three)(n) for n in range(3)) == [0, 1, 2]
    with Parallel(batch_size=1) as again:  # its executor is used again and again
        assert again(delayed(abs)(n) for n in range(3)) == [0, 1, 2]
        # No more than is handed out at once: joblib mixes what it prepared into the next call.
        with pytest.raises(ValueError, match="three"):
            again(delayed(fail_at_three)(n) for n in range(4))
        assert again(delayed(abs)(n) for n in range(3)) == [0, 1, 2]


def test_what_takes_too_long_is_stopped(env: RunEnv) -> None:
    with pytest.raises(JoblibTimeoutError):
        Parallel(timeout=0.3)(delayed(time.sleep)(3600) for _ in range(3))
    # Both executors are free again, or others are in their places.
    assert Parallel()(delayed(abs)(n) for n in range(4)) == [0, 1, 2, 3]


@pytest.mark.parametrize("return_as", ["generator", "generator_unordered"])
def test_generators(env: RunEnv, return_as: str) -> None:
    taken = []

    def inputs() -> Iterator[Any]:
        for n in range(300):
            taken.append(n)
            yield delayed(time.sleep)(0.002) if n == 0 else delayed(abs)(-n)

    found = Parallel(return_as=return_as, batch_size=1)(inputs())
    first = next(found)
    assert len(taken) < 300
    rest = [first, *found]
    assert sorted(value or 0 for value in rest) == list(range(300))
    if return_as == "generator":
        assert rest == [None, *range(1, 300)]


@pytest.mark.filterwarnings("ignore:the graph holds a constant")
@pytest.mark.parametrize(
    ("size_bytes", "times"),
    [
        (2 * SHARED_BYTES_MIN, 2),  # with the first batch that has it, and then for all others
        (FIRST_BYTES_MAX + 8, 1),
    ],
)
def test_large_arrays_are_sent_once(env: RunEnv, size_bytes: int, times: int) -> None:
    array = np.random.default_rng(1).random(size_bytes // 8)
    expected = [strided_sum(array, start=n) for n in range(40)]
    sent: list[int] = []
    whole = env._cluster.start_run  # type: ignore[union-attr]  # it is open

    def start_run(dag: object, **options: Any) -> Any:
        run = whole(dag, **options)
        sent.append(sum(getattr(source, "nbytes", 0) for source in run.graph.sources
                        if isinstance(source, np.ndarray)))  # fmt: skip
        return run

    env._cluster.start_run = start_run  # type: ignore[union-attr, method-assign]  # looks on
    with_array = Parallel(batch_size=1)(delayed(strided_sum)(array, start=n) for n in range(40))
    assert with_array == expected
    assert len(sent) == 41
    assert sum(sent) == times * array.nbytes
    # In the next call they are sent anew, for they may have been changed.
    array += 1
    assert Parallel(n_jobs=2)(delayed(np.sum)(array) for _ in range(3)) == [array.sum()] * 3


@pytest.mark.filterwarnings("ignore:the graph holds a constant")
@pytest.mark.parametrize("size_bytes", [SHARED_BYTES_MIN, FIRST_BYTES_MAX + 8])
def test_arrays_that_are_made_for_a_call_are_let_go(env: RunEnv, size_bytes: int) -> None:
    made: list[weakref.ref[Any]] = []
    most = 0

    def arrays() -> Iterator[Any]:
        nonlocal most
        for n in range(24):
            array = np.full(size_bytes // 8, float(n))
            made.append(weakref.ref(array))
            most = max(most, sum(one() is not None for one in made))
            yield array

    calls = (delayed(np.max)(array) for array in arrays())
    assert Parallel(n_jobs=2, batch_size=1)(calls) == list(range(24))
    assert most < 16


def test_arrays_that_are_seen_once_cost_no_run(env: RunEnv) -> None:
    runs: list[Any] = []
    whole = env._cluster.start_run  # type: ignore[union-attr]  # it is open

    def start_run(dag: object, **options: Any) -> Any:
        runs.append(run := whole(dag, **options))
        return run

    env._cluster.start_run = start_run  # type: ignore[union-attr, method-assign]  # looks on
    calls = (delayed(np.max)(np.full(SHARED_BYTES_MIN // 8, float(n))) for n in range(10))
    assert Parallel(n_jobs=2, batch_size=1)(calls) == list(range(10))
    assert len(runs) == 10


def test_no_task_sees_what_another_did_to_a_shared_array(env: RunEnv) -> None:
    array = np.zeros(SHARED_BYTES_MIN // 8)
    found = Parallel(batch_size=1)(delayed(change)(array, n) for n in range(1, 9))
    assert found == [float(n) for n in range(1, 9)]
    assert array.sum() == 0


def test_nested_calls_get_threads(env: RunEnv) -> None:
    for outer, inner, values in Parallel()(delayed(nested)(n) for n in range(1, 4)):
        assert (outer, inner) == ("ThreadingBackend", "SequentialBackend")
        assert values == list(range(len(values)))


def test_an_initializer(env: RunEnv) -> None:
    with parallel_config("dagsched", env=env, initializer=set_up, initargs=("set up",)):
        assert Parallel()(delayed(status)() for _ in range(20)) == ["set up"] * 20


def test_the_environment_that_is_set(env: RunEnv) -> None:
    setrunenv(env)
    with parallel_config("dagsched", n_jobs=2):
        assert Parallel()(delayed(abs)(-n) for n in range(3)) == [0, 1, 2]
    assert env.stats()["run"]["state"] == "done"


def test_nothing_is_left_of_a_call(env: RunEnv) -> None:
    array = np.zeros(SHARED_BYTES_MIN // 8)
    Parallel()(delayed(np.sum)(array) for _ in range(4))
    deadline = time.monotonic() + 20
    while env.stats()["brokers"][0]["live_object_count"]:
        assert time.monotonic() < deadline
        time.sleep(0.005)  # nobody is told when a broker lets an object go
    names = [thread.name for thread in threading.enumerate()]
    assert names.count("dagsched-executor") <= 1  # the last one may be about to end


def test_without_joblib_the_error_says_what_to_install() -> None:
    code = "import sys; sys.modules['joblib'] = None; import dagsched.plugins.joblib"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert b"ImportError: joblib isn't installed" in found.stderr
    assert b"pip install 'dagsched[joblib]'" in found.stderr


def fit() -> list[Any]:
    """Scores and probabilities of some estimators, by the backend in use."""
    from sklearn.datasets import load_digits
    from sklearn.ensemble import RandomForestClassifier
    from sklearn.model_selection import GridSearchCV, cross_val_score
    from sklearn.svm import SVC

    digits = load_digits()
    data, target = digits.data[:400], digits.target[:400]
    grid = GridSearchCV(SVC(), {"C": [1, 10], "gamma": [0.001, 0.01]}, cv=3, n_jobs=2)
    grid.fit(data, target)
    forest = RandomForestClassifier(12, random_state=0, n_jobs=2).fit(data, target)
    scores = cross_val_score(SVC(), data, target, cv=3, n_jobs=2)
    found = [grid.cv_results_["mean_test_score"], forest.predict_proba(data), scores]
    return [array.tolist() for array in found]


def test_scikit_learn_gives_the_same_as_on_loky(env: RunEnv) -> None:
    # In a process of its own, for loky leaves a resource tracker and threads.
    code = (
        "import json, joblib\n"
        "from tests.integration.test_joblib import fit\n"
        "with joblib.parallel_config('loky'):\n"
        "    print(json.dumps(fit()))\n"
    )
    lokys = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, check=True, timeout=90
    )
    assert fit() == json.loads(lokys.stdout)
    assert env.stats()["run"]["state"] == "done"
