"""Work taken back from executors, for others that have nothing to do. Pure.

Bundles are made by what calls took before, which may be wrong a thousandfold for the next one, and
an executor may be slower than the rest: so what waits behind a bundle, and what a running bundle
has not begun, goes to whoever is idle. It costs a task nothing: executors look between tasks
whether they are to stop anyway.
"""

from typing import TYPE_CHECKING

from dagsched.brokers import bundling, dispatch
from dagsched.brokers.state import BrokerRun, Bundle, Executor, Int32

if TYPE_CHECKING:
    from dagsched.brokers.core import BrokerCore


class Reclaimer:
    """Part of `BrokerCore`, which owns the state."""

    def __init__(self, core: "BrokerCore") -> None:
        self.core = core
        self._look_at_s = 0.0  # the core's timer is set until then

    def look(self, now: float) -> float | None:
        """Nothing is ready: find something for executors that are idle.

        Returns:
            When to be called again at the latest, if that is new.
        """
        core = self.core
        executors = [e for e in core.executors.values() if e.pid and not e.killed]
        idle_count = sum(1 for e in executors if not e.queue and not e.draining)
        if not idle_count:
            return None
        if any(dispatch.peek_ready(run) for run in core.runs.values()):
            return None  # what has to be alone waits for the others
        # No more than there is somebody for: others would come back to where they waited.
        idle_count -= sum(bundle.is_recalled for e in executors for bundle in e.queue[1:])
        dues = []
        for executor in executors:
            for bundle in executor.queue[1:]:
                is_worth = bundle.weight_s >= 2 * core.config.overhead_s
                if idle_count > 0 and is_worth and self._is_free(bundle) and not bundle.is_recalled:
                    self._recall(executor, bundle)
                    idle_count -= 1
            if executor.queue and self._is_divisible(executor.queue[0]):
                head = executor.queue[0]
                due_s = head.begun_s + core.config.bundle_s + head.weight_s
                if due_s <= now:
                    self._maybe_stop(executor, head)
                else:
                    dues.append(due_s)
        when = min(dues, default=None)
        if when is None or now < self._look_at_s <= when:
            return None
        self._look_at_s = when
        return when

    def give_back(self, run: BrokerRun) -> None:
        """The master wants for other nodes what executors haven't begun: it is asked for again."""
        for executor in self.core.executors.values():
            for index, bundle in enumerate(executor.queue):
                if bundle.run is not run or not self._is_free(bundle):
                    continue
                if index:
                    self._recall(executor, bundle)
                elif self._is_divisible(bundle):
                    bundle.is_stopped = True
                    self.core.actions.stop_bundles.append((executor.id, bundle.number))

    def parts_of(self, bundle: Bundle, rest: Int32) -> list[Int32]:
        """The rest of a bundle, which had all its inputs, in parts for several executors."""
        count = sum(not executor.draining for executor in self.core.executors.values())
        return bundling.cut_rest(
            bundle.run, bundle.subtree, rest, max(1, count), self.core.config,
            by_levels=bool(bundle.lanes),
        )  # fmt: skip

    @staticmethod
    def _is_free(bundle: Bundle) -> bool:
        is_alone = bundle.solo or bool(bundle.lanes)
        return not (bundle.run.cancelled or bundle.run.draining or is_alone)

    def _is_divisible(self, bundle: Bundle) -> bool:
        return len(bundle.positions) > 1 and not bundle.is_stopped and self._is_free(bundle)

    def _recall(self, executor: Executor, bundle: Bundle) -> None:
        pair = (int(executor.id), int(bundle.number))
        if not bundle.is_recalled and pair not in self.core.actions.take_back:
            bundle.is_recalled = True
            self.core.actions.take_back.append(pair)

    def _maybe_stop(self, executor: Executor, bundle: Bundle) -> None:
        """Stop a bundle that takes longer than was thought, if others can do of it at once."""
        seen = self.core.look(executor.id)
        position = seen.position if seen is not None else -1
        if position < 0:
            return  # between two tasks, or done with them
        rest = bundle.positions[bundle.positions > position]
        bundle.is_stopped = True  # or not worth another look
        if len(rest) and (len(rest) == 1 or len(self.parts_of(bundle, rest)) > 1):
            self.core.actions.stop_bundles.append((executor.id, bundle.number))
