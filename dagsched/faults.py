"""Named points in the shells at which a test lets a process die, stop, wait or fail.

Nothing happens unless ``DAGSCHED_FAULTS=name:nth:action`` (several with commas) is set when a
process starts; then `fault(name)` does the action at its nth call with that name. Actions:

- ``kill``, ``stop``: SIGKILL, SIGSTOP to this process;
- ``delay:MS``: sleep so many milliseconds;
- ``error:NAME``: raise an OSError of that number (``error:ENOSPC``), or a RuntimeError;
- ``drop``, ``dup``: `fault` returns the word, for callers that send something.

Calls are counted in each process; or across all of them where ``DAGSCHED_FAULTS_LOG`` names a
file, to which each call of a named point adds a line. Light: imported by every process.
"""

import errno
import os
import signal
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

VARIABLE = "DAGSCHED_FAULTS"
LOG_VARIABLE = "DAGSCHED_FAULTS_LOG"

POINTS = {
    "arena.in_allocator": "room for an object has been found and not yet handed out",
    "arena.before_seal": "an object's bytes are being written; nobody has heard of it",
    "arena.reserve": "a new segment is to be given its bytes",
    "executor.before_hello": "an executor has been forked and has not said a word",
    "executor.before_report": "a bundle's tasks have ended, and nobody knows of it",
    "executor.after_report": "a bundle's results are with the broker, the executor is still busy",
    "broker.after_commit": "the broker has booked results, and the master has not heard of it",
    "broker.before_dispatch": "bundles are about to be sent to executors",
    "log.before_write": "what an executor printed is about to be written to its file",
    "zygote.before_fork": "an executor is about to be forked",
    "zygote.before_sweep": "the broker is gone, and what it left behind is about to be killed",
}
"""All points: a test holds this list against the source."""

_ACTIONS = frozenset({"kill", "stop", "delay", "error", "drop", "dup"})


class Fault(NamedTuple):
    """What shall happen at the nth call of a point."""

    point: str
    nth: int
    action: str
    argument: str


def parse_faults(text: str) -> list[Fault]:
    """The faults that a variable's text asks for.

    Raises:
        ValueError: there is no such point or action, or the form is wrong.

    Example:
        >>> parse_faults("log.before_write:2:delay:50")
        [Fault(point='log.before_write', nth=2, action='delay', argument='50')]
    """
    found = []
    for item in filter(None, text.split(",")):
        point, nth, action, argument = [*item.split(":", 3), "", "", ""][:4]
        if point not in POINTS or action not in _ACTIONS or not nth.isdecimal() or int(nth) < 1:
            raise ValueError(
                f"{VARIABLE}: {item!r} is not of the form name:nth:action; points are "
                f"{', '.join(POINTS)}; actions are {', '.join(sorted(_ACTIONS))}"
            )
        found.append(Fault(point, int(nth), action, argument))
    return found


class Faults:
    """Counts calls and does what was asked for.

    Args:
        faults: to do.
        log: of calls, shared by all processes; empty: each process counts its own.
    """

    def __init__(self, faults: list[Fault], log: str) -> None:
        self._faults = faults
        self._names = {fault.point for fault in faults}
        self._log = log
        self._counts: Counter[str] = Counter()

    def hit(self, name: str) -> str:
        """A point is passed."""
        if name not in self._names:
            return ""
        nth = self._count(name)
        for each in self._faults:
            if each.point == name and each.nth == nth:
                return _do(each)
        return ""

    def _count(self, name: str) -> int:
        if not self._log:
            self._counts[name] += 1
            return self._counts[name]
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        fd = os.open(self._log, flags, 0o600)
        try:
            os.write(fd, f"{name} {os.getpid()}\n".encode())
            end = os.lseek(fd, 0, os.SEEK_CUR)  # behind our own line, whoever writes meanwhile
            lines = os.pread(fd, end, 0).decode().splitlines()
        finally:
            os.close(fd)
        return sum(line.split()[0] == name for line in lines)


def _do(each: Fault) -> str:
    match each.action:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "delay":
            import time

            time.sleep(int(each.argument) / 1000)
        case "error":
            number = getattr(errno, each.argument, None)
            if isinstance(number, int):
                raise OSError(number, f"{os.strerror(number)} (asked for by {VARIABLE})")
            raise RuntimeError(f"{each.argument} (asked for by {VARIABLE})")
    return each.action


def _nothing(_name: str) -> str:
    """No faults were asked for."""
    return ""


def _chosen() -> Callable[[str], str]:
    text = os.environ.get(VARIABLE, "")
    if not text:
        return _nothing
    return Faults(parse_faults(text), os.environ.get(LOG_VARIABLE, "")).hit


fault: Callable[[str], str] = _chosen()
"""Pass a point; returns the action that was done, empty: none."""
