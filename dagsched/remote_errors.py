"""Exceptions that travel: what an executor sends of one, and what the client makes of it.

Responsible for proving that an exception survives the journey, and for text that is bounded and
never fails to be made, whatever the user's class does.
"""

import pickle
import reprlib
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from dagsched.errors import SerializationError
from dagsched.pickling import dumps
from dagsched.protocol.messages import Frame

TEXT_CHARS_MAX = 4_000
SHORT_CHARS_MAX = 200
TRACEBACK_CHARS_MAX = 64_000
EXCEPTION_BYTES_MAX = 1 << 20

_ITEMS_MAX = 20_000
_SHOWN_ARGS_MAX = 10
_CHAIN_MAX = 50
_OWN_DIRECTORY = str(Path(__file__).parent)


class DumpedException(NamedTuple):
    """An exception as an executor sends it; `data` is empty where it can't travel as itself."""

    data: bytes
    type_name: str
    text: str
    traceback_text: str


def dump_exception(error: BaseException, limit_bytes: int = EXCEPTION_BYTES_MAX) -> DumpedException:
    """All that can be told of an exception; its pickle has been proven to load again.

    Args:
        error: of any type; its methods may fail.
        limit_bytes: a larger pickle is not sent.
    """
    is_small = _is_small(error, limit_bytes)
    name = type_name(error)
    text = _text_of(error, is_small)
    # One that can't be printed would fail wherever it is shown, and hide what it was.
    data = _proven(error, limit_bytes) if is_small and text is not None else b""
    text = f"<{type(error).__name__} that can't be printed>" if text is None else text
    return DumpedException(data, name, text, _traceback_of(error, name, text, limit_bytes))


def exception_in_short(error: BaseException) -> str:
    """Type and text of an exception on one line; its methods may fail."""
    text = _text_of(error, _is_small(error, EXCEPTION_BYTES_MAX)) or ""
    return f"{type_name(error)}: {text.partition(chr(10))[0]}"[:SHORT_CHARS_MAX]


def load_exception(data: Frame) -> BaseException:
    """The exception that `dump_exception` pickled, as it is here.

    Raises:
        SerializationError: it can't be loaded in this process.
    """
    try:
        error = pickle.loads(data)
    except Exception as failure:
        raise SerializationError(
            f"an exception can't be loaded here ({type(failure).__name__}); its module may be "
            "missing in this process"
        ) from failure
    if not isinstance(error, BaseException):
        raise SerializationError(f"what came as an exception is a {type_name(error)}")
    return error


def type_name(value: object) -> str:
    """Name of a value's type, with its module unless that is builtins."""
    kind = type(value)
    module = str(getattr(kind, "__module__", ""))
    name = str(getattr(kind, "__qualname__", kind.__name__))
    return name if module in ("builtins", "") else f"{module}.{name}"


def _proven(error: BaseException, limit_bytes: int) -> bytes:
    """The pickle of the exception, or nothing if it would not come out as what it is."""
    try:
        data = dumps(error)
        if len(data) > limit_bytes:
            return b""
        loaded = pickle.loads(data)
        return data if type(loaded) is type(error) else b""
    except Exception:  # noqa: BLE001 - its class can't be pickled, in one of countless ways: text must do
        return b""


def _is_small(held: object, limit_bytes: int) -> bool:
    """Whether a value, or what an exception holds, is of bounded size, as a short look can tell.

    What is held twice counts twice, as it does in text.
    """
    content = held.args if isinstance(held, BaseException) else held
    stack: list[object] = [content, getattr(held, "__dict__", None)]
    size = count = 0
    while stack:
        value = stack.pop()
        count += 1
        try:
            size += max(sys.getsizeof(value), int(getattr(value, "nbytes", 0)))
        except Exception:  # noqa: BLE001 - a __sizeof__ or nbytes of the user's own
            return False
        if size > limit_bytes or count > _ITEMS_MAX:
            return False
        if isinstance(value, dict):
            stack.extend(list(value.values())[: _ITEMS_MAX + 1])
        elif isinstance(value, list | tuple | set | frozenset):
            stack.extend(list(value)[: _ITEMS_MAX + 1])
    return True


def _text_of(error: BaseException, is_small: bool) -> str | None:
    """The exception's text, cut off; None: its own methods can't give one."""
    try:
        text = str(error) if is_small else ", ".join(map(_shown, error.args[:_SHOWN_ARGS_MAX]))
        return str(text)[:TEXT_CHARS_MAX]
    except Exception:  # noqa: BLE001 - its __str__ or __repr__ fails
        return None


def _shown(value: object) -> str:
    """A value in a few words; a large one isn't printed, not even to throw most of it away."""
    if _is_small(value, TEXT_CHARS_MAX):
        return reprlib.repr(value)
    return f"<a large {type_name(value)}>"


def _traceback_of(error: BaseException, name: str, text: str, limit_bytes: int) -> str:
    """The traceback as Python prints it, from the first frame that is not ours."""
    start = _skip_own(error.__traceback__)
    try:
        if all(_is_small(link, limit_bytes) for link in _chain(error)):
            lines = traceback.TracebackException(type(error), error, start).format()
            whole = "".join(lines)
        else:
            whole = "".join(traceback.format_tb(start)) + f"{name}: {text}\n"
    except Exception:  # noqa: BLE001 - some __str__ in the chain failed
        whole = "".join(traceback.format_tb(start)) + f"{name}: {text}\n"
    if len(whole) > TRACEBACK_CHARS_MAX:
        half = TRACEBACK_CHARS_MAX // 2
        whole = f"{whole[:half]}\n[...]\n{whole[-half:]}"
    return whole


def _chain(error: BaseException) -> list[BaseException]:
    """The exception, its causes and contexts; each once, and not too many."""
    found: list[BaseException] = []
    stack: list[BaseException | None] = [error]
    seen: set[int] = set()
    while stack and len(found) < _CHAIN_MAX:
        link = stack.pop()
        if link is None or id(link) in seen:
            continue
        seen.add(id(link))
        found.append(link)
        stack.extend((link.__cause__, link.__context__))
    return found


def _skip_own(start: TracebackType | None) -> TracebackType | None:
    while start is not None and start.tb_frame.f_code.co_filename.startswith(_OWN_DIRECTORY):
        start = start.tb_next
    return start
