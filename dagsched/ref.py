"""References: small stand-ins for values that stay on their nodes.

Responsible for the `Ref` type, for how references travel in pickles, and for finding whoever can
fetch a reference's value in this process: an open environment (client) or the executor's loop. It
knows nothing of how values are fetched.
"""

import os
import threading
from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

from dagsched.errors import ClosedError


class Resolver(Protocol):
    """What can turn references of one environment into values."""

    def fetch(self, ref: "Ref") -> object:
        """The value of `ref`."""

    def adopt(self, ref: "Ref") -> None:
        """`ref` came to life in this process: keep its object while it lives."""


@runtime_checkable
class BatchResolver(Protocol):
    """A resolver that asks for many values at once, in one round trip."""

    def fetch_many(self, refs: Sequence["Ref"]) -> Iterable[object]:
        """The values of `refs`, in their order."""


class Ref:
    """A reference to the value of one task of one run.

    Small, picklable and hashable; equal to any other reference to the same value. As an argument of
    a task it stands for the value. Its object is kept while a `Ref` to it lives in the client.

    Args:
        run: number of the run in its environment.
        position: place of the task in the run's order.
        nbytes: size of the value's object in bytes.
        type_name: name of the value's type.
        nodes: ids of the nodes (their brokers) that hold a copy.
        env: token of the environment.
    """

    __slots__ = ("__weakref__", "env", "nbytes", "nodes", "position", "run", "type_name")

    run: int
    position: int
    nbytes: int
    type_name: str
    nodes: tuple[int, ...]
    env: str

    def __init__(
        self,
        run: int,
        position: int,
        nbytes: int = 0,
        type_name: str = "",
        nodes: Sequence[int] = (),
        env: str = "",
    ) -> None:
        store = object.__setattr__
        store(self, "run", run)
        store(self, "position", position)
        store(self, "nbytes", nbytes)
        store(self, "type_name", type_name)
        store(self, "nodes", tuple(nodes))
        store(self, "env", env)

    @property
    def key(self) -> str:
        """Name of the value, unique in its environment."""
        return f"ref-{self.run}-{self.position}"

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a Ref can't be changed (attribute {name!r})")

    def __delattr__(self, name: str) -> None:
        raise AttributeError(f"a Ref can't be changed (attribute {name!r})")

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Ref):
            return NotImplemented
        return self.position == other.position and self.run == other.run and self.env == other.env

    def __hash__(self) -> int:
        return hash((self.env, self.run, self.position))

    def __repr__(self) -> str:
        nodes = ",".join(map(str, self.nodes))
        return f"<Ref {self.key}: {self.type_name or 'value'}, {self.nbytes} bytes on node {nodes}>"

    def __reduce__(self) -> tuple[object, ...]:
        collected = _pickled.found
        if collected is not None:
            collected.append((self.run, self.position))
        return (
            restore_ref,
            (self.run, self.position, self.nbytes, self.type_name, self.nodes, self.env),
        )


class _Pickled(threading.local):
    """Where this thread's pickled references are noted; None: nowhere."""

    found: list[tuple[int, int]] | None = None


_pickled = _Pickled()
_resolver_by_env: dict[str, Resolver] = {}
_process_resolver: Resolver | None = None
_restored_count = 0


class collecting_refs:  # noqa: N801 - used like a function, and cheaper than a generator's one
    """Context manager: a list that gets (run, position) of each `Ref` pickled within.

    Example:
        >>> import pickle
        >>> with collecting_refs() as found:
        ...     data = pickle.dumps([Ref(1, 7)])
        >>> found
        [(1, 7)]
    """

    __slots__ = ("_before",)

    def __enter__(self) -> list[tuple[int, int]]:
        self._before = _pickled.found
        found: list[tuple[int, int]] = []
        _pickled.found = found
        return found

    def __exit__(self, *exc_info: object) -> None:
        _pickled.found = self._before


def restore_ref(
    run: int, position: int, nbytes: int, type_name: str, nodes: Sequence[int], env: str
) -> Ref:
    """A reference as it comes out of a pickle; pins its object if its environment is open here."""
    global _restored_count
    _restored_count += 1
    ref = Ref(run, position, nbytes, type_name, nodes, env)
    resolver = _resolver_by_env.get(env) or _process_resolver
    if resolver is not None:
        resolver.adopt(ref)
    return ref


def set_resolver(resolver: Resolver | None) -> None:
    """Set what fetches references of environments that are not open in this process."""
    global _process_resolver
    _process_resolver = resolver


def is_executor() -> bool:
    """Whether this process is an executor, so that whoever asks is inside a task."""
    return _process_resolver is not None


def register_environment(env: str, resolver: Resolver) -> None:
    """References of the environment with token `env` are fetched by `resolver` from now on."""
    _resolver_by_env[env] = resolver


def unregister_environment(env: str) -> None:
    """References of the environment with token `env` can't be fetched any more."""
    _resolver_by_env.pop(env, None)


def resolver_of(ref: Ref) -> Resolver:
    """What can fetch `ref` in this process.

    Raises:
        ClosedError: its environment is not open here.
    """
    resolver = _resolver_by_env.get(ref.env) or _process_resolver
    if resolver is None:
        raise ClosedError(
            f"{ref!r} can't be fetched: its environment has been closed, or belongs to another "
            "process; collect references before the environment is cleaned up"
        )
    return resolver


def collect(value: object) -> object:
    """The value of a reference, or of all references inside containers.

    References inside lists, tuples, dict values, sets and dataclasses are replaced, recursively,
    types kept; anything else comes back as it is.

    Args:
        value: anything.

    Returns:
        `value` with values in place of references; `value` itself where it has none.

    Raises:
        ClosedError: the environment of a reference is not open.
        ObjectLost: a referenced value is gone.

    Example:
        >>> collect([1, "two"])
        [1, 'two']
    """
    from dagsched.containers import leaves, rebuild

    while True:
        if isinstance(value, Ref):
            before = _restored_count
            value = resolver_of(value).fetch(value)
        else:
            found = dict.fromkeys(leaves(value, _is_ref))
            refs = [ref for ref in found if isinstance(ref, Ref)]
            if not refs:
                return value
            before = _restored_count
            values: dict[object, object] = dict(zip(refs, _fetch_many(refs), strict=True))
            value = rebuild(value, values.__getitem__, _is_ref)
        # A fetched value may hold references itself; if none was restored meanwhile it has none,
        # and a large value need not be walked.
        if _restored_count == before and not isinstance(value, Ref):
            return value


def _fetch_many(refs: Sequence[Ref]) -> Iterable[object]:
    first = resolver_of(refs[0])
    if isinstance(first, BatchResolver) and all(resolver_of(ref) is first for ref in refs):
        return first.fetch_many(refs)
    return [resolver_of(ref).fetch(ref) for ref in refs]


def _is_ref(value: object) -> bool:
    return isinstance(value, Ref)


def _forget_after_fork() -> None:
    """A forked child must not use its parent's environments."""
    _resolver_by_env.clear()


os.register_at_fork(after_in_child=_forget_after_fork)
