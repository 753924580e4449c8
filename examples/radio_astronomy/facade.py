"""The few calls through which imaging pipelines of the Algorithm Reference Library run anywhere.

`Execute` writes calls down and runs them on an environment, or calls at once: the same
program is then a plain serial one.
"""
# ruff: noqa: INP001 - an example is no package

from dagsched import RunEnv, collect, delayed, rundag
from dagsched.containers import leaves, rebuild
from dagsched.delayed import Delayed


def _is_delayed(item):
    return isinstance(item, Delayed)


def _references(*refs):
    return list(refs)


def _itself(value):
    return value


class Execute:
    """Deferred with `deferred`, otherwise immediate.

    Args:
        deferred: whether calls are written down.
        env: an environment; None: a local one, closed by `close`.
    """

    def __init__(self, deferred=True, env=None):
        self.deferred = deferred
        self._own = deferred and env is None
        self.env = RunEnv() if self._own else env

    def execute(self, function, nout=None):
        """The function, to be called at once or later; `nout`: it gives so many results."""
        return delayed(function, nout=nout) if self.deferred else function

    def compute(self, x, sync=False):
        """Values of calls inside containers, or references to values that are there."""
        if not self.deferred:
            return x
        if sync:
            return rundag(self.env, x, progress=False)
        found = list(dict.fromkeys(leaves(x, _is_delayed)))
        refs = rundag(self.env, delayed(_references, meta=True)(*found), progress=False)
        return rebuild(x, dict(zip(found, refs, strict=True)).__getitem__, _is_delayed)

    def scatter(self, x):
        """A list of values, or one, put on a node; later calls take them as arguments."""
        if not self.deferred:
            return x
        return self.compute([*map(delayed(_itself), x)] if type(x) is list else delayed(_itself)(x))

    def gather(self, x):
        """The values of references inside containers."""
        return collect(x) if self.deferred else x

    def close(self):
        """Ends the environment, if it was made here."""
        if self._own:
            self.env.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
