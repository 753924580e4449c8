"""Questions to the master and the threads that wait for their answers.

Responsible for numbering requests and for waking whoever asked; it knows nothing of what is asked.
"""

import threading

NO_ANSWER = object()
"""What `Answers.wait` gives when time is up or nothing will come any more."""


class Answers:
    """Requests under way, by number."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._answer_by_request: dict[int, object] = {}
        self._count = 0
        self._closed = False

    def ask(self) -> int:
        """The number of a new request, for which `wait` must be called."""
        with self._changed:
            self._count += 1
            self._answer_by_request[self._count] = NO_ANSWER
            return self._count

    def give(self, request: int, answer: object) -> None:
        """The answer to a request; dropped if nobody waits for it any more."""
        with self._changed:
            if request in self._answer_by_request:
                self._answer_by_request[request] = answer
                self._changed.notify_all()

    def wait(self, request: int, timeout_s: float | None) -> object:
        """The answer to a request, or `NO_ANSWER`."""
        with self._changed:
            try:
                self._changed.wait_for(
                    lambda: self._answer_by_request[request] is not NO_ANSWER or self._closed,
                    timeout_s,
                )
                return self._answer_by_request[request]
            finally:
                del self._answer_by_request[request]

    def close(self) -> None:
        """No answer will come any more: wake everybody."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
