"""A run's outputs as they complete, for loops: `Run.as_completed`.

Responsible for handing them from the thread that has them to those that wait, plain threads and
event loops. It fetches and unpickles nothing.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from dagsched.run import Run

logger = logging.getLogger(__name__)

Output = tuple[str, object]
"""Key and value."""


class Arrivals:
    """Outputs of one run that have arrived so far, in order."""

    def __init__(self) -> None:
        self.changed = threading.Condition()  # guards all that follows
        self.outputs: list[Output] = []
        self.is_over = False
        self.error: BaseException | None = None
        self._keys: set[str] = set()
        self._wakers: list[Callable[[], object]] = []

    def put(self, outputs: Iterable[Output]) -> None:
        """More outputs; those that are known are left out."""
        with self.changed:
            before = len(self.outputs)
            for key, value in outputs:
                if key not in self._keys:
                    self._keys.add(key)
                    self.outputs.append((key, value))
            if len(self.outputs) > before:
                self._wake()

    def end(self, error: BaseException | None) -> None:
        """No more will come; `error` says why, unless all have."""
        with self.changed:
            self.is_over, self.error = True, error
            self._wake()

    def wake_once(self, waker: Callable[[], object]) -> None:
        """Have `waker` called at the next change; `changed` is held."""
        self._wakers.append(waker)

    def _wake(self) -> None:
        wakers, self._wakers = self._wakers, []
        self.changed.notify_all()
        for waker in wakers:
            waker()


class CompletedOutputs:
    """Iterator over a run's outputs, plain and asynchronous; see `Run.as_completed`."""

    def __init__(self, run: "Run", arrivals: Arrivals) -> None:
        self._run = run
        self._arrivals = arrivals
        self._given_count = 0

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Output:
        arrivals = self._arrivals
        with arrivals.changed:
            arrivals.changed.wait_for(self._is_something_there)
            output = self._next()
        if output is None:
            raise StopIteration
        return output

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Output:
        arrivals = self._arrivals
        loop = asyncio.get_running_loop()
        while True:
            with arrivals.changed:
                if self._is_something_there():
                    output = self._next()
                    break
                woken = loop.create_future()
                arrivals.wake_once(lambda woken=woken: _wake(loop, woken))  # type: ignore[misc]  # mypy can't infer such lambdas
            await woken
        if output is None:
            raise StopAsyncIteration
        # What has arrived long ago never waits: others shall have their turn between any two.
        await asyncio.sleep(0)
        return output

    def _is_something_there(self) -> bool:
        return len(self._arrivals.outputs) > self._given_count or self._arrivals.is_over

    def _next(self) -> Output | None:
        """The next output; None: there are no more. `changed` is held."""
        if len(self._arrivals.outputs) > self._given_count:
            self._given_count += 1
            return self._arrivals.outputs[self._given_count - 1]
        if self._arrivals.error is not None:
            # Anew for each loop, as `Run.result` does, so that no traceback grows.
            raise self._run.exception() or self._arrivals.error
        return None


def _wake(loop: asyncio.AbstractEventLoop, woken: "asyncio.Future[None]") -> None:
    def set_result() -> None:
        if not woken.done():
            woken.set_result(None)

    try:
        loop.call_soon_threadsafe(set_result)
    except RuntimeError:
        logger.debug("a loop that waited for outputs is closed")
