"""The log of every decision that ``RunEnv(debug=True)`` asks for.

Responsible for turning on the package's debug messages while environments want them, on standard
error where the program has set up no logging of its own.
"""

import logging
import threading

_lock = threading.Lock()
_user_count = 0
_level_before = logging.NOTSET
_handler: logging.Handler | None = None


def start_debug_log() -> None:
    """One environment more wants the log."""
    global _user_count, _level_before, _handler
    package = logging.getLogger("dagsched")
    with _lock:
        _user_count += 1
        if _user_count > 1:
            return
        _level_before = package.level
        package.setLevel(logging.DEBUG)
        if not package.hasHandlers():
            _handler = logging.StreamHandler()
            _handler.setFormatter(
                logging.Formatter("%(asctime)s %(process)d %(name)s %(levelname)s %(message)s")
            )
            package.addHandler(_handler)


def stop_debug_log() -> None:
    """One environment less wants it; the last one puts everything back."""
    global _user_count, _handler
    package = logging.getLogger("dagsched")
    with _lock:
        _user_count -= 1
        if _user_count:
            return
        package.setLevel(_level_before)
        if _handler is not None:
            package.removeHandler(_handler)
            _handler = None
