"""Which functions are short: mean times of calls, by function.

Responsible for saying whether calls may be gathered. Kept by a function's code, never with what is
bound to it or captured by it, so that no value stays alive.
"""

import functools
import types
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

SHORT_S = 0.002
"""Calls that take longer on the average are never gathered."""

LONG_S = 0.05
"""One call that takes longer in a chunk makes its function a long one, until measured again."""

SHARE = 0.3
FUNCTIONS_MAX = 256


class Shortness:
    """Mean seconds of a call, of the functions that were used last."""

    def __init__(self) -> None:
        self._seconds: OrderedDict[object, float] = OrderedDict()

    def of(self, function: Callable[..., Any]) -> float | None:
        """Mean seconds of a call, if that is short; None: it is long, or isn't known."""
        seconds = self._seconds.get(_key(function))
        return seconds if seconds is not None and seconds <= SHORT_S else None

    def note(
        self, function: Callable[..., Any], count: int, seconds: float, longest_s: float = 0.0
    ) -> None:
        """So many calls took so long, in all."""
        key, mean = _key(function), seconds / count
        if longest_s > LONG_S:
            mean = known = longest_s
        else:
            known = self._seconds.get(key, mean)
        self._seconds[key] = known + SHARE * (mean - known)
        self._seconds.move_to_end(key)
        if len(self._seconds) > FUNCTIONS_MAX:
            self._seconds.popitem(last=False)


def _key(function: Any) -> object:
    """What stands for a function: its code, a builtin itself, or else a callable's type."""
    while isinstance(function, functools.partial):
        function = function.func
    function = getattr(function, "__func__", function)
    if isinstance(function, types.FunctionType):
        return function.__code__
    return function if isinstance(function, types.BuiltinFunctionType | type) else type(function)
