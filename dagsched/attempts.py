"""Calls whose exception is a value, so that it fails nobody else in its run."""

import traceback
from collections.abc import Callable
from typing import Any

from dagsched.errors import TaskFailed
from dagsched.pickling import is_picklable


class Raised:
    """What a task gives that has raised an exception."""

    def __init__(self, error: Exception, text: str) -> None:
        self.error = error
        self.text = text


def attempted(function: Callable[..., Any], retries: int, /, *args: Any, **kwargs: Any) -> Any:
    """Calls a function, again if it raises and may; what it raises in the end is returned."""
    for left in range(retries, -1, -1):
        try:
            return function(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - of the user's code, and handed on
            if not left:
                text = traceback.format_exc()
                if not is_picklable(error):
                    error = TaskFailed(f"{type(error).__name__}: {error}")
                return Raised(error.with_traceback(None), text)
    return None
