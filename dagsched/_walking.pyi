from collections.abc import Callable
from typing import Any

from dagsched.delayed import Delayed, DelayedFunction, Options
from dagsched.entries import Entry
from dagsched.errors import CycleError

def prepare(
    delayed: type[Delayed], call: type[DelayedFunction], atomic: frozenset[type], usual: Options
) -> None: ...
def walk(
    roots: list[Delayed],
    ids: dict[Delayed, int],
    size_max: int,
    entry_of: Callable[
        [Delayed, dict[Delayed, int]], tuple[Entry, list[Delayed] | None, list[int]]
    ],
    mixed_entry: Callable[[tuple[Any, ...], list[int]], tuple[Entry, list[int]]],
    cycle_error: Callable[[Delayed, set[Delayed], dict[Delayed, int]], CycleError],
) -> tuple[
    list[Entry], bytes, bytes, list[Callable[..., Any]], bytes, bytes, list[tuple[int, Options]]
]: ...
