"""What an executor of futures does once in each process before its first call there.

Responsible for doing it once, and for having the functions that are called see what it left in the
globals of its module: functions of a program's ``__main__`` travel by value, each with globals of
its own.
"""

import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

from dagsched.calls import Results, Spent, run_calls
from dagsched.delayed import function_name


class InitializerFailed(Exception):
    """The initializer of an executor has raised, in one of its processes."""


_globals_by_token: dict[bytes, dict[str, Any]] = {}
"""Of those that were done in this process: what each has set."""


class Setup(NamedTuple):
    """An initializer, its arguments, and what names it among others."""

    token: bytes
    initializer: Callable[..., object]
    initargs: tuple[Any, ...]

    def prepare(self, functions: list[Callable[..., Any]]) -> None:
        """Do it, unless it was, and show `functions` what it has set.

        Raises:
            InitializerFailed: it has raised.
        """
        module = getattr(self.initializer, "__module__", None)
        names = getattr(self.initializer, "__globals__", {})
        if self.token not in _globals_by_token:
            before = dict(names)
            try:
                self.initializer(*self.initargs)
            except BaseException as error:
                raise InitializerFailed(f"{type(error).__name__}: {error}") from error
            _globals_by_token[self.token] = {
                name: value
                for name, value in names.items()
                if name not in before or before[name] is not value
            }
        for function in functions:
            if getattr(function, "__module__", None) == module:
                getattr(function, "__globals__", {}).update(_globals_by_token[self.token])


class Prepared:
    """A function that is called in a process that has been set up."""

    def __init__(self, setup: Setup, function: Callable[..., Any]) -> None:
        self._setup = setup
        self._function = function
        self.__name__ = function_name(function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it."""
        self._setup.prepare([self._function])
        return self._function(*args, **kwargs)


class PreparedCalls:
    """`run_calls` in a process that has been set up."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup

    def __call__(self, data: bytes) -> tuple[Results, list[Spent]]:
        """As of `run_packed_calls`."""
        functions, calls = pickle.loads(data)
        self._setup.prepare(functions)
        return run_calls(functions, calls)
