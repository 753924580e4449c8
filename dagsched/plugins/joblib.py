"""joblib on an environment: ``register()``, then ``joblib.parallel_config("dagsched")``.

Responsible for the backend: how joblib's batches become calls of a `DagschedExecutor`, and for
large arrays, which are shared by the batches of one call of `joblib.Parallel`.
"""

import io
import pickle
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from dagsched.delayed import delayed, identity
from dagsched.pickling import CloudPickler
from dagsched.plugins.futures import DagschedExecutor
from dagsched.plugins.optional import require
from dagsched.ref import Ref
from dagsched.serialize import numpy_array_type

require("joblib", "joblib")

from joblib import parallel_config  # noqa: E402
from joblib._parallel_backends import (  # noqa: E402 - where joblib's own backends have them from
    AutoBatchingMixin,
    FallbackToBackend,
    ParallelBackendBase,
    SequentialBackend,
)
from joblib.parallel import register_parallel_backend  # noqa: E402

if TYPE_CHECKING:
    from dagsched.runenv import RunEnv

SHARED_BYTES_MIN = 1 << 20
"""Arrays from this size on are shared, and mapped by all executors of a node."""

FIRST_BYTES_MAX = 16 << 20
"""Up to this size they go with the first batch that has them, and are shared from the second on:
most arrays that are made for a call are seen once, and sharing one costs a run."""


def register(*, make_default: bool = False) -> None:
    """Have joblib know the backend ``dagsched``.

    Args:
        make_default: it is the one that joblib uses where nothing else is asked for.

    Example:
        >>> import joblib
        >>> from dagsched.plugins.joblib import register
        >>> register()
        >>> with joblib.parallel_config("dagsched"):  # doctest: +SKIP
        ...     joblib.Parallel()(joblib.delayed(abs)(-n) for n in range(3))
        [0, 1, 2]
    """
    register_parallel_backend("dagsched", DagschedBackend, make_default=make_default)


class DagschedBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]  # joblib has no types
    """Runs joblib's batches on the executors of an environment.

    ``n_jobs`` bounds how many batches run at the same time; -1 (the default) are as many as the
    environment has executors. What runs in an executor and uses joblib itself gets threads.

    Args:
        env: the environment; None: the one that is set, or else a local one made when first used.
        options: ``initializer`` and ``initargs``, as of `DagschedExecutor`.
    """

    supports_retrieve_callback = True
    supports_inner_max_num_threads = False
    default_n_jobs = -1

    def __init__(self, env: "RunEnv | None" = None, **options: Any) -> None:
        super().__init__(**options)
        self._env = env
        self._executor: DagschedExecutor | None = None
        # By id of an array, until it ends: itself, and the reference if it is shared.
        self._shared: dict[int, tuple[weakref.ref[Any], Ref | None]] = {}

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many batches can run at the same time."""
        if n_jobs == 0:
            raise ValueError("n_jobs == 0 in Parallel has no meaning")
        if n_jobs is None:
            return 1
        if n_jobs > 0:
            return n_jobs
        count = sum(len(node.executorids) for node in self._environment().nodes)
        return max(count + 1 + n_jobs, 1)

    def configure(
        self,
        n_jobs: int = 1,
        parallel: Any = None,
        prefer: str | None = None,  # noqa: ARG002 - a hint, and this backend was asked for by name
        require: str | None = None,  # noqa: ARG002 - joblib has looked at it
        **options: Any,
    ) -> int:
        """Get ready for a call of `joblib.Parallel`; how many batches can run at once."""
        if n_jobs == 1:
            raise FallbackToBackend(SequentialBackend(nesting_level=self.nesting_level))
        n_jobs = self.effective_n_jobs(n_jobs)
        options = {**self.backend_kwargs, **options}
        self._executor = DagschedExecutor(
            n_jobs,
            self._environment(),
            initializer=options.get("initializer"),
            initargs=options.get("initargs", ()),
        )
        self.parallel = parallel
        return n_jobs

    def submit(
        self, func: Any, callback: "Callable[[Future[Any]], object] | None" = None
    ) -> "Future[Any]":
        """Have a batch called; `callback` is called with its future."""
        assert self._executor is not None
        future: Future[Any]
        try:
            with io.BytesIO() as file:
                pickler = _BatchPickler(file, self._share)
                pickler.dump((func.items, func._backend, func._n_jobs))
                data = file.getvalue()
        except Exception as error:  # noqa: BLE001 - of the user's own arguments
            future = Future()
            future.set_exception(error)
        else:
            future = self._executor.submit(_call_batch, data, *pickler.shared)
        if callback is not None:
            future.add_done_callback(callback)
        return future

    def retrieve_result_callback(self, out: "Future[Any]") -> Any:
        """The results of a batch that has ended."""
        return out.result()

    def stop_call(self) -> None:
        """Arrays may be changed between two calls of `joblib.Parallel`."""
        self._shared.clear()

    def terminate(self) -> None:
        """After the last call: nothing is left of it."""
        if self._executor is not None:
            self._executor.shutdown(wait=False)
            self._executor = None
        self._shared.clear()
        self.reset_batch_stats()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """Nobody will ask for what still runs: it is ended."""
        if self._executor is not None:
            self._executor.terminate_workers()
            self._executor = None
        if ensure_ready:
            self.configure(n_jobs=self.parallel.n_jobs, parallel=self.parallel)

    def _environment(self) -> "RunEnv":
        if self._env is not None:
            return self._env
        from dagsched.runenv import default_env

        return default_env()

    def _share(self, array: Any) -> Any:
        """What stands for a large array: a reference to its only copy, or at first itself."""
        from dagsched.submission import submit

        number = id(array)
        known = self._shared.get(number)
        if known is not None and known[1] is not None:
            return known[1]
        shared, ref = self._shared, None
        if known is not None or array.nbytes > FIRST_BYTES_MAX:
            ref = submit(self._environment(), delayed(identity)(array), as_refs=True).result()
        shared[number] = (weakref.ref(array, lambda _: shared.pop(number, None)), ref)
        return array if ref is None else ref


def _is_large_array(value: object) -> bool:
    array_type = numpy_array_type()
    if array_type is None or type(value) is not array_type:
        return False
    return value.nbytes >= SHARED_BYTES_MIN and not value.dtype.hasobject  # type: ignore[attr-defined]  # it is an array


class _BatchPickler(CloudPickler):
    """Leaves large arrays out, wherever they are; `shared` has what stands for them in order."""

    def __init__(self, file: io.BytesIO, share: Callable[[Any], Any]) -> None:
        super().__init__(file, protocol=5)
        self._share = share
        self.shared: list[Any] = []

    def reducer_override(self, obj: object) -> Any:
        """As of `pickle.Pickler`."""
        if not _is_large_array(obj):
            return super().reducer_override(obj)
        self.shared.append(self._share(obj))
        return _shared_array, (len(self.shared) - 1,)


_shared_arrays: tuple[Any, ...] = ()
"""In an executor: those of the batch that is being unpickled."""


def _shared_array(index: int) -> Any:
    return _shared_arrays[index]


def _call_batch(data: bytes, *shared: Any) -> list[Any]:
    """As `joblib.parallel.BatchedCalls` does it; in an executor."""
    global _shared_arrays
    _shared_arrays = shared
    try:
        items, backend, n_jobs = pickle.loads(data)
    finally:
        _shared_arrays = ()
    with parallel_config(backend=backend, n_jobs=n_jobs):
        return [function(*args, **kwargs) for function, args, kwargs in items]
