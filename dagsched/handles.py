"""What makes a `Run` again in another process: a graph's shape and names, without its work.

Responsible for the bytes that the journal keeps of a client's run, which nobody but a client of
the same user loads. Functions and arguments are not among them: the plan beside them in the
journal has those, as it has the dependencies.
"""

import pickle
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

import numpy as np

from dagsched.entries import Slot, slot
from dagsched.errors import DagschedError
from dagsched.graph import TaskGraph
from dagsched.pickling import dumps
from dagsched.plan import Int32, RunPlan
from dagsched.planning import permuted
from dagsched.protocol.steps import Whole, pack_steps, unpack_steps
from dagsched.run import RunShape

VERSION = 3

_ARRAYS = ("order", "function_of", "serials", "outputs")
_WALL_S = struct.Struct("<d")


class NamedFunction:
    """Stands for a function of a run that another process has begun."""

    def __init__(self, name: str) -> None:
        self.__name__ = name

    def __call__(self, *_: object, **__: object) -> object:
        """It can't be called."""
        raise DagschedError(f"{self.__name__} is known by its name only: another client ran it")

    def __repr__(self) -> str:
        return f"<function {self.__name__} of another client>"


@dataclass(frozen=True, slots=True)
class Handle:
    """What a run's handle is made from."""

    graph: TaskGraph
    shape: RunShape
    priority: int
    submitted_wall_s: float


class HandleDumper:
    """Gives the bytes of a handle when they are asked for, which may be in another thread.

    It holds nothing of the graph's work meanwhile: a `Ref` among the arguments would stay alive.

    Args:
        graph: of the run.
        order: graph id of the task at each position.
        priority: of the run.
        submitted_wall_s: when it was submitted, for people.
    """

    __slots__ = ("_serials", "_submitted_wall_s", "_values")

    def __init__(
        self, graph: TaskGraph, order: Int32, priority: int, submitted_wall_s: float
    ) -> None:
        count = graph.task_count
        wanted = (graph.outputs[graph.outputs >= count] - count).tolist()
        self._submitted_wall_s = submitted_wall_s
        self._serials = graph.serials
        self._values: dict[str, Any] = {
            "version": VERSION,
            "priority": priority,
            "order": order,
            "function_of": graph.function_of,
            "function_names": graph.function_names,
            "options": graph.options,
            "outputs": graph.outputs,
            "shape": graph.shape,
            "own_keys": graph.own_keys,
            "source_count": len(graph.sources),
            "sources": {number: graph.sources[number] for number in wanted},
        }

    def __call__(self) -> bytes:
        """The bytes; empty if the run has something in its shape that can't travel."""
        serials = self._serials
        first = int(serials.min()) if len(serials) else 0
        values = self._values | {
            "first_serial": first,
            "order": _packed(self._values["order"]),
            "serials": _packed(serials - first),
            "function_of": _packed(self._values["function_of"]),
            "outputs": _packed(self._values["outputs"]),
            "function_names": list(self._values["function_names"]),
            "options": dict(self._values["options"]),
            "shape": _packed_shape(self._values["shape"]),
        }
        try:
            return _WALL_S.pack(self._submitted_wall_s) + dumps(values)
        except Exception:  # noqa: BLE001 - it runs code of the user's objects, which may do anything
            return b""


def load_handle(data: bytes | bytearray | memoryview, plan: RunPlan | None) -> Handle:
    """The handle in these bytes.

    Args:
        data: what a `HandleDumper` gave.
        plan: of the same run; None: the journal has it no more, so dependencies are not known.

    Raises:
        DagschedError: the bytes can't be loaded in this process.
    """
    if not data:
        raise DagschedError("what it was asked for holds something that can't travel")
    try:
        values: Mapping[str, Any] = pickle.loads(memoryview(data)[_WALL_S.size :])
        if values["version"] != VERSION:
            raise ValueError(f"a handle of version {values['version']}")
        arrays = {name: unpack_steps(*values[name]) for name in _ARRAYS}
    except Exception as error:
        raise DagschedError(
            f"what it was asked for can't be loaded here ({type(error).__name__}: {error}); "
            "modules that it needs must be importable"
        ) from error
    order: Int32 = arrays["order"]
    count = len(order)
    names = values["function_names"]
    sources = [values["sources"].get(number) for number in range(values["source_count"])]
    number_of = np.arange(count + len(sources), dtype=np.int32)
    position_of = number_of.copy()
    number_of[:count] = order
    position_of[order] = np.arange(count, dtype=np.int32)
    indptr, deps = np.zeros(count + 1, np.int64), np.zeros(0, np.int32)
    starts = np.array([0, count], np.int64)
    if plan is not None:
        indptr, deps = permuted(plan.indptr, plan.deps, position_of[:count], number_of)
        starts = plan.subtree_starts
    graph = TaskGraph(
        functions=[NamedFunction(name) for name in names],
        function_names=names,
        function_of=arrays["function_of"],
        indptr=indptr,
        deps=deps,
        entries=[None] * count,
        plain=bytearray(count),
        sources=sources,
        options=values["options"],
        serials=arrays["serials"] + values["first_serial"],
        outputs=arrays["outputs"],
        shape=_unpacked_shape(values["shape"]),
        persisted={},
        own_keys=values["own_keys"],
    )
    outputs = position_of[graph.outputs].tolist()
    shape = RunShape(order, starts, outputs, names)
    return Handle(graph, shape, values["priority"], submitted_wall_s(data) or 0.0)


def submitted_wall_s(data: bytes | bytearray | memoryview) -> float | None:
    """When a run was submitted, without loading its handle; None: there is no handle."""
    return _WALL_S.unpack_from(data)[0] if len(data) > _WALL_S.size else None


def _packed(numbers: Whole) -> tuple[str, bytes, str]:
    """Form, bytes and type of an array, as `unpack_steps` takes them."""
    form, frame = pack_steps(np.ascontiguousarray(numbers))
    return form, bytes(frame), numbers.dtype.str


def _packed_shape(shape: object) -> object:
    """What was asked for, with an array in place of a long list of outputs.

    A slot takes a microsecond to pickle, as long as its task may take to run.
    """
    if isinstance(shape, list | tuple) and type(shape) in (list, tuple):
        if set(map(type, shape)) == {Slot}:
            indices = np.fromiter(map(attrgetter("index"), shape), np.int32, len(shape))
            return _Slots(type(shape) is tuple, indices)
    return shape


def _unpacked_shape(packed: object) -> object:
    if not isinstance(packed, _Slots):
        return packed
    slots = [slot(index) for index in packed.indices.tolist()]
    return tuple(slots) if packed.is_tuple else slots


class _Slots(NamedTuple):
    """A list or tuple of slots."""

    is_tuple: bool
    indices: Int32
