"""References of one environment in the client: their values, and what keeps those alive.

Responsible for fetching values, for counting the references that this process holds, and for the
values that tasks with ``persist=True`` leave in the environment. The master holds the objects.
"""

import os
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from dagsched.answers import NO_ANSWER, Answers
from dagsched.errors import ClosedError, GraphError, InternalError, ObjectLost
from dagsched.ref import Ref, resolver_of

if TYPE_CHECKING:
    from dagsched.delayed import Delayed
    from dagsched.master.core import MasterCore
    from dagsched.master.events import RunEnded
    from dagsched.plan import RunPlan
    from dagsched.protocol.messages import ObjectInfo
    from dagsched.run import Run

Call = Callable[[Callable[["MasterCore", float], None]], None]


class References:
    """Resolver of the references of one environment.

    Args:
        token: of the environment.
        call: has a function called in the master's thread.
        answers: where values arrive.
        check_open: raises if the environment can't be used.
    """

    def __init__(
        self, token: str, call: Call, answers: Answers, check_open: Callable[[], None]
    ) -> None:
        self._token = token
        self._tokens = {token}
        self._call = call
        self._answers = answers
        self._check_open = check_open
        self._pid = os.getpid()
        self._is_closed = False
        # Touched by the master's thread only.
        self._count_by_object: dict[tuple[int, int], int] = {}
        self._kept: weakref.WeakKeyDictionary[Delayed, Ref] = weakref.WeakKeyDictionary()

    def take_token(self, token: str) -> None:
        """References of an environment that was taken over can be used from now on."""
        self._tokens.add(token)

    def check_own(self, values: Iterable[object]) -> None:
        """Only references of this environment can be used in it: numbers in others mean others.

        Raises:
            ClosedError: the environment of a reference among `values` has been closed.
            GraphError: it is another one.
        """
        for value in values:
            if type(value) is Ref and value.env not in self._tokens:
                resolver_of(value)
                raise GraphError(
                    f"{value!r} belongs to another environment: collect it first, and give its "
                    "value instead"
                )

    # --- values ---------------------------------------------------------------------------------

    def fetch(self, ref: Ref) -> object:
        """The value of a reference of this environment."""
        return self.fetch_many([ref])[0]

    def fetch_many(self, refs: Sequence[Ref]) -> list[object]:
        """Values of references, asked for in one go.

        Raises:
            ClosedError: the environment has been closed.
            ObjectLost: a value is gone.
        """
        from dagsched.master.events import ValueArrived
        from dagsched.outcome import load_fetched

        self._check_open()
        wanted = [(self._answers.ask(), ref.run, ref.position) for ref in refs]

        def ask(core: "MasterCore", now: float) -> None:
            for request, run, position in wanted:
                core.fetch(request, run, position, now)

        self._call(ask)
        answers = [self._answers.wait(request, None) for request, _, _ in wanted]
        values = []
        for answer, ref in zip(answers, refs, strict=True):
            if answer is NO_ANSWER:
                self._check_open()
            if not isinstance(answer, ValueArrived) or answer.info is None:
                raise ObjectLost(
                    f"the value of {ref!r} is gone: the node that held it was lost, or it was "
                    "released; run its graph again"
                )
            values.append(load_fetched(answer.info, answer.frame, ref.position))
        return values

    def source_values(self, run: "Run") -> dict[int, object]:
        """Values of those outputs that are sources, by position."""
        count = run.graph.task_count
        values: dict[int, object] = {}
        for position in run.shape.outputs:
            if position >= count:
                source = run.graph.sources[position - count]
                values[position] = self.fetch(source) if isinstance(source, Ref) else source
        return values

    # --- what keeps them alive ------------------------------------------------------------------

    def adopt(self, ref: Ref) -> None:
        """Keep the object of a reference as long as the reference lives."""
        self.pin(ref.run, ref.position)
        weakref.finalize(ref, self.unpin, ref.run, ref.position).atexit = False

    def pin(self, run: int, position: int) -> None:
        """One reference more to an object."""
        self._change_count(run, position, 1)

    def unpin(self, run: int, position: int) -> None:
        """One reference less to an object; the last one lets it go.

        May be called by the garbage collector at any time in any thread, so it takes no lock.
        """
        self._change_count(run, position, -1)

    def close(self) -> None:
        """From now on nothing is counted: all objects go."""
        self._is_closed = True

    def _change_count(self, run: int, position: int, change: int) -> None:
        def count(core: "MasterCore", now: float) -> None:
            counts = self._count_by_object
            key = (run, position)
            left = counts.get(key, 0) + change
            if left > 0:
                counts[key] = left
            else:
                counts.pop(key, None)
                core.drop_ref(run, position, now)

        if self._is_closed or self._pid != os.getpid():
            return
        try:
            self._call(count)
        except (ClosedError, InternalError):
            # The master's thread has just ended, and all objects with it.
            self._is_closed = True

    # --- values that the environment keeps ------------------------------------------------------

    @property
    def kept(self) -> "dict[Delayed, Ref]":
        """What tasks with ``persist=True`` left, for as long as their `Delayed`s live."""
        return dict(self._kept)

    def keep(self, run: "Run", plan: "RunPlan", event: "RunEnded") -> None:
        """Remember the persisted values of a run that is done. In the master's thread."""
        import numpy as np

        from dagsched.protocol.messages import PERSISTED

        positions = np.flatnonzero(plan.flags[: plan.task_count] & PERSISTED)
        for position in positions.tolist():
            node = run.graph.persisted.get(int(run.shape.order[position]))
            broker = event.kept_brokers.get(position)
            if node is not None and broker is not None:
                self._remember(node, run.number, position, broker)

    def make(self, run: int, broker: int, info: "ObjectInfo") -> Ref:
        """A reference to an output; its object must be kept by the master while it lives."""
        ref = Ref(run, info.first, info.size_bytes, info.type_name, (broker,), self._token)
        self.adopt(ref)
        return ref

    def _remember(self, node: "Delayed", run: int, position: int, broker: int) -> None:
        ref = Ref(run, position, 0, "", (broker,), self._token)
        self.adopt(ref)
        self._kept[node] = ref

    def take_moved(self, run: int, position: int, broker: int) -> None:
        """A kept object is at another broker now, and stays there when its first one leaves."""
        for node, ref in list(self._kept.items()):
            if (ref.run, ref.position) == (run, position):
                self._remember(node, run, position, broker)

    def forget_node(self, broker: int) -> None:
        """What a lost node kept has to be computed again."""
        for delayed, ref in list(self._kept.items()):
            if ref.nodes == (broker,):
                self._kept.pop(delayed, None)
