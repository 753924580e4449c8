"""What tasks may change of their process, and putting it back before the next task sees it.

Responsible for working directory, environment variables, soft limits, umask, signals, timers,
locale, recursion limit and standard streams. An audit hook notes changes of the first three, so
that tasks which change nothing pay nothing; the rest is looked at once a bundle, in 5 us.
"""

import contextlib
import fcntl
import importlib
import locale
import os
import resource
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import Any

_current: "ProcessState | None" = None
_is_hooked = False
_SIGNALS = tuple(
    int(number)
    for number in signal.Signals
    # Nobody may have a handler for these two.
    if number not in (signal.SIGKILL, signal.SIGSTOP)
)
_handler_of = importlib.import_module("_signal").getsignal
"""What `signal.getsignal` asks, without making an enum of each answer: ten times as fast."""

_TIMERS = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
_NO_TIMER = (0.0, 0.0)
_COPIES_FROM = 10  # copies of standard descriptors are above those that users count on


class ProcessState:
    """How the process shall be before each task."""

    def __init__(self) -> None:
        self.is_dirty = False
        self._directory = ""
        self._umask = 0o022
        self._locale = ""
        self._environ: dict[bytes, bytes] = {}
        self._stream_copies: dict[int, int] = {}
        self._limits: dict[int, int] = {}  # changed by user code: the soft limit from before
        self._handlers: dict[int, Any] = {}  # of all signals that can have one
        self._mask: set[int] = set()  # of signals that are blocked
        self._recursion_limit = 1000

    def watch(self) -> None:
        """What is now shall be so before each task from now on."""
        global _current, _is_hooked
        try:
            self._directory = str(Path.cwd())
        except FileNotFoundError:  # the client's was removed, and with it this process's
            os.chdir("/")
            self._directory = "/"
        self._umask = os.umask(0o022)
        os.umask(self._umask)
        self._locale = locale.setlocale(locale.LC_ALL)
        self._environ = dict(os.environb)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for fd in (0, 1, 2):
            with contextlib.suppress(OSError):  # it isn't open
                copy = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _COPIES_FROM)
                self._stream_copies[fd] = copy
        found = {number: _handler_of(number) for number in _SIGNALS}
        # None: set by C code, as faulthandler's are; Python can't set those again.
        self._handlers = {n: handler for n, handler in found.items() if handler is not None}
        self._mask = set(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        self._recursion_limit = sys.getrecursionlimit()
        _current = self
        if not _is_hooked:
            _is_hooked = True
            sys.addaudithook(_audit)

    def restore(self) -> None:
        """After a task that made `is_dirty` true: put directory, environment and limits back."""
        self.is_dirty = False
        try:
            os.chdir(self._directory)
        except OSError:  # it has been removed; tasks with relative paths will say so
            os.chdir("/")
        present = dict(os.environb)
        for name in present.keys() - self._environ.keys():
            del os.environb[name]
        for name, value in self._environ.items():
            if present.get(name) != value:
                os.environb[name] = value
        for which, soft in self._limits.items():
            hard = resource.getrlimit(which)[1]
            if hard != resource.RLIM_INFINITY and (soft == resource.RLIM_INFINITY or soft > hard):
                soft = hard
            resource.setrlimit(which, (soft, hard))
        self._limits.clear()
        self.is_dirty = False  # putting things back was noted as well

    def restore_streams(self) -> None:
        """After the tasks of a bundle: open again which standard streams they closed.

        Else a segment could be opened as descriptor 1, and the next `print` would write into it.
        """
        for fd, copy in self._stream_copies.items():
            try:
                os.fstat(fd)
            except OSError:
                os.dup2(copy, fd)
        if sys.stdout is None or sys.stdout.closed:
            sys.stdout = os.fdopen(1, "w", 1, closefd=False)
        if sys.stderr is None or sys.stderr.closed:
            sys.stderr = os.fdopen(2, "w", 1, closefd=False)

    def restore_rest(self) -> None:
        """After a bundle: put umask, signals, timers, locale and recursion limit back."""
        os.umask(self._umask)
        for timer in _TIMERS:
            if signal.getitimer(timer) != _NO_TIMER:
                signal.setitimer(timer, 0)
        for number, handler in self._handlers.items():
            if _handler_of(number) is not handler:
                signal.signal(number, handler)
        if signal.pthread_sigmask(signal.SIG_BLOCK, ()) != self._mask:
            signal.pthread_sigmask(signal.SIG_SETMASK, self._mask)
        if sys.getrecursionlimit() != self._recursion_limit:
            sys.setrecursionlimit(self._recursion_limit)
        if locale.setlocale(locale.LC_ALL) != self._locale:
            locale.setlocale(locale.LC_ALL, self._locale)

    def note(self, event: str, args: tuple[object, ...]) -> None:
        """An audited change; what modules do to the environment while imported stays."""
        if event == "resource.setrlimit":
            which = args[0]
            if isinstance(which, int):
                self._limits.setdefault(which, resource.getrlimit(which)[0])
        elif event in ("os.putenv", "os.unsetenv") and _is_importing(sys._getframe(2)):
            name = args[0]
            if isinstance(name, bytes):
                if event == "os.putenv" and isinstance(args[1], bytes):
                    self._environ[name] = args[1]
                else:
                    self._environ.pop(name, None)
            return
        self.is_dirty = True


_OWN_DIRECTORY = str(Path(__file__).parent)

_EVENTS = frozenset({"os.chdir", "os.putenv", "os.unsetenv", "resource.setrlimit"})


def _audit(event: str, args: tuple[object, ...]) -> None:
    if event in _EVENTS and _current is not None:
        _current.note(event, args)


def _is_importing(frame: FrameType | None) -> bool:
    """Whether some caller, up to our own code, is a module that is being imported."""
    while frame is not None and not frame.f_code.co_filename.startswith(_OWN_DIRECTORY):
        if frame.f_code.co_name == "<module>":
            return True
        frame = frame.f_back
    return False
