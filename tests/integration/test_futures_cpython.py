"""CPython's own tests of executors, with ours in the place of the process pool.

They come with some installations of Python only (Debian's ``libpython3.11-testsuite``); what they
hold is written down again in `test_futures`, which always runs.
"""

import importlib
import multiprocessing
import unittest
from multiprocessing.resource_tracker import ensure_running
from types import ModuleType
from typing import Any, ClassVar

import pytest

from dagsched import RunEnv
from dagsched.plugins.futures import DagschedExecutor

NOT_OURS = {
    # They look into the process pool's own parts.
    "test_killed_child": "a process that dies is replaced, and its call made again",
    "test_saturation": "semaphores of multiprocessing are for its own children only",
    "test_idle_process_reuse_one": "has no processes of its own",
    "test_idle_process_reuse_multiple": "has no processes of its own",
    "test_max_tasks_per_child": "no such argument",
    "test_max_tasks_per_child_defaults_to_spawn_context": "no such argument",
    "test_max_tasks_early_shutdown": "no such argument",
    "test_max_workers_too_large": "Windows only",
    "test_processes_terminate": "has no processes of its own",
    "test_del_shutdown": "looks for the pool's processes and threads",
    "test_shutdown_no_wait": "looks for the pool's processes and threads",
    "test_context_manager_shutdown": "looks for the pool's processes",
    "test_shutdown_deadlock_pickle": "waits for the pool's thread by its private name",
    "test_traceback": "the cause is a RemoteTraceback of ours",
    "test_hang_gh83386": "as the next",
    "test_interpreter_shutdown": "makes its executor by name, in a script; so does the next",
    "test_submit_after_interpreter_shutdown": "see test_futures for both",
    # What can't travel is told by SerializationError, which says where in an argument or result it
    # is; and it concerns its own call only, where the process pool breaks for some of them.
    "test_error_at_task_pickle": "SerializationError",
    "test_error_at_task_unpickle": "SerializationError",
    "test_exit_at_task_unpickle": "SerializationError",
    "test_error_during_result_pickle_on_worker": "SerializationError",
    "test_exit_during_result_pickle_on_worker": "SerializationError",
    "test_error_during_result_unpickle_in_result_handler": "the error itself, of that call only",
    "test_exit_during_result_unpickle_in_result_handler": "the error itself, of that call only",
}  # fmt: skip
"""Tests that don't apply, or expect something else on purpose."""

MIXINS = {
    "InitializerMixin": "test_init",
    "FailingInitializerMixin": "test_init",
    "ExecutorShutdownTest": "test_shutdown",
    "WaitTests": "test_wait",
    "AsCompletedTests": "test_as_completed",
    "ProcessPoolExecutorTest": "test_process_pool",
    "ExecutorDeadlockTest": "test_deadlock",
}
"""Where each stands, from Python 3.12 on; before that all are in one module."""


def cpython(module: str) -> ModuleType | None:
    """A module of CPython's tests of executors, if this Python has them."""
    try:
        whole = importlib.import_module("test.test_concurrent_futures")
        return importlib.import_module(f"{whole.__name__}.{module}") if whole.__path__ else whole
    except AttributeError:
        return whole
    except ImportError:
        return None


class Adapted(DagschedExecutor):
    """Takes what these tests give the process pool."""

    def __init__(self, max_workers: int | None = None, mp_context: object = None, **more: Any):
        super().__init__(max_workers, OneEnvironment.env, **more)
        self._max_workers = max_workers
        self._processes: dict[int, Any] = {}

    @property
    def _broken(self) -> bool:
        return self._pool.is_broken


class OneEnvironment(unittest.TestCase):
    """An environment for each test."""

    env: ClassVar[RunEnv | None] = None

    def setUp(self) -> None:
        super().setUp()
        OneEnvironment.env = RunEnv(executors=2, metastore="memory://")

    def tearDown(self) -> None:
        assert OneEnvironment.env is not None
        OneEnvironment.env.close()
        super().tearDown()


def get_context(_: object) -> Any:
    return multiprocessing.get_context("spawn")


def _adapted(name: str, module: ModuleType) -> type:
    mixin = getattr(module, name)
    own = {test: None for test in NOT_OURS if hasattr(mixin, test)}
    base = mixin if hasattr(mixin, "_prime_executor") else None
    util = cpython("util") or module
    bases = (mixin,) if base is not None else (mixin, util.ExecutorMixin)
    return type(
        f"Test{name}",
        (*bases, OneEnvironment),
        {**own, "executor_type": Adapted, "get_context": get_context},
    )


for _name, _where in MIXINS.items():
    _module = cpython(_where)
    if _module is not None:
        globals()[f"Test{_name}"] = pytest.mark.slow(_adapted(_name, _module))


@pytest.fixture(scope="module", autouse=True)
def resource_tracker() -> None:
    """It stays until this process ends, whichever test has it started by making a manager."""
    ensure_running()


@pytest.mark.skipif(cpython("util") is not None, reason="they are there, and run above")
def test_this_python_has_no_tests_of_executors() -> None:
    with pytest.raises(ImportError):
        importlib.import_module("test.test_concurrent_futures")
