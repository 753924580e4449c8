"""Where in a value lies what can't be pickled, and what its owner can do about it.

Pure: how one tests a value is passed in. The search is iterative and its effort bounded; it never
calls `repr` or `str` of what is not a builtin.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from types import ModuleType
from typing import NamedTuple

TRIES_MAX = 2_000
DEPTH_MAX = 50
CHILDREN_MAX = 500
KEY_CHARS_MAX = 40

_ADVICE = (
    (("generator", "async_generator", "coroutine"), "return a list instead"),
    (
        ("TextIOWrapper", "BufferedReader", "BufferedWriter", "BufferedRandom", "FileIO"),
        "pass its path and open it inside the task",
    ),
    (("lock", "RLock", "Condition", "Event", "Semaphore"), "create it inside the task"),
    (("socket", "SSLSocket"), "pass its address and connect inside the task"),
    (("module",), "import it inside the task"),
)
_DEFAULT_ADVICE = "leave it out, create it inside the task, or give its class a __reduce__ method"


class Culprit(NamedTuple):
    """What can't be pickled."""

    path: str
    value: object


def find_culprit(
    roots: Sequence[tuple[str, object]], is_picklable: Callable[[object], bool]
) -> Culprit:
    """The innermost part of one of `roots` that can't be pickled.

    Args:
        roots: names and values; one of them can't be pickled.
        is_picklable: the test.

    Example:
        >>> find_culprit([("args", [1, {"x": 2.0}])], lambda v: type(v) in (int, str))
        Culprit(path="args[1]['x']", value=2.0)
    """
    tries = 0
    found = Culprit(*roots[0])
    candidates: Iterable[tuple[str, object]] = roots
    seen: set[int] = set()
    for _ in range(DEPTH_MAX):
        for path, value in islice(candidates, CHILDREN_MAX):
            tries += 1
            if tries > TRIES_MAX:
                return found
            if id(value) not in seen and not is_picklable(value):
                found = Culprit(path, value)
                seen.add(id(value))
                break
        else:
            return found
        candidates = _children(found.path, found.value)
    return found


def describe(culprit: Culprit, error: BaseException) -> str:
    """What to tell the user: the type and path of the culprit, the reason, what to do."""
    kind = type(culprit.value).__name__
    advice = next((text for names, text in _ADVICE if kind in names), _DEFAULT_ADVICE)
    try:
        reason = str(error)[:500]
    except Exception:  # noqa: BLE001 - the error is the user's own, and may fail to say what it is
        reason = "(its error can't be printed)"
    return (
        f"{culprit.path} (a {kind}) can't travel to another process: "
        f"{type(error).__name__}: {reason}; {advice}"
    )


def _children(path: str, value: object) -> Iterator[tuple[str, object]]:
    """The parts of a value that pickling would visit, with their paths."""
    if isinstance(value, Mapping):
        for key, item in _items(value):
            yield f"{path}[{_short(key)}]", item
            yield f"{path} key {_short(key)}", key
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield f"{path}[{index}]", item
    elif isinstance(value, set | frozenset):
        for item in value:
            yield f"{path}{{{_short(item)}}}", item
    yield from _attributes(path, value)


def _items(value: Mapping[object, object]) -> Iterable[tuple[object, object]]:
    try:
        return list(islice(value.items(), CHILDREN_MAX))
    except Exception:  # noqa: BLE001 - a mapping of the user's own may do anything
        return ()


def _attributes(path: str, value: object) -> Iterator[tuple[str, object]]:
    code = getattr(value, "__code__", None)
    closure = getattr(value, "__closure__", None)
    if code is not None:
        for name, cell in zip(code.co_freevars, closure or (), strict=False):
            try:
                yield f"{path}.{name}", cell.cell_contents
            except ValueError:  # an empty cell
                continue
        names = getattr(value, "__globals__", {})
        for name in code.co_names:
            if name in names:
                yield f"{path}.{name}", names[name]
        for index, default in enumerate(getattr(value, "__defaults__", None) or ()):
            yield f"{path} default {index}", default
    owner = getattr(value, "__self__", None)
    if owner is not None and not isinstance(owner, ModuleType):
        yield f"{path}.__self__", owner
    if hasattr(value, "func") and hasattr(value, "keywords"):  # functools.partial
        for name in ("func", "args", "keywords"):
            yield f"{path}.{name}", getattr(value, name)
    held = getattr(value, "__dict__", None)
    if isinstance(held, dict):
        for name, item in list(held.items()):
            yield f"{path}.{name}", item
    for base in type(value).__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else tuple(slots):
            if not name.startswith("__") and hasattr(value, name):
                yield f"{path}.{name}", getattr(value, name)


def _short(key: object) -> str:
    """A key as text; `repr` only of builtins, and bounded."""
    if type(key) in (int, bool, float, type(None)):
        return repr(key)[:KEY_CHARS_MAX]
    if type(key) in (str, bytes):
        return repr(key[:KEY_CHARS_MAX])  # type: ignore[index]
    return f"<{type(key).__name__}>"
