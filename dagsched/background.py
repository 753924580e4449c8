"""A thread that does one job after the other, begun when the first job comes.

Responsible for keeping slow or foreign code (copies of large values, users' callbacks) out of the
master's thread.
"""

import logging
import queue
import threading
from collections.abc import Callable

logger = logging.getLogger(__name__)

Job = Callable[[], object]


class BackgroundThread:
    """Does jobs in order; a job that raises is logged and harms no other.

    Args:
        name: of the thread.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def do(self, job: Job) -> bool:
        """Have `job` done, after those before it; False: the thread was stopped, it won't be."""
        with self._lock:
            if self._stopped:
                return False
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()
            self._jobs.put(job)
        return True

    def stop(self, timeout_s: float) -> None:
        """End the thread after the jobs that it has; waits for it, unless called by it."""
        with self._lock:
            self._stopped = True
            thread = self._thread
        self._jobs.put(None)
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout_s)

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            try:
                job()
            except Exception:
                logger.exception("a callback of thread %s has raised", self._name)
            # Don't keep the last job's values alive while waiting for the next.
            del job
