"""The picklers: the standard one where it is right, cloudpickle where it is not.

Responsible for choosing between them, and for proxies of multiprocessing's managers, which work
elsewhere only with the key of their manager. What is pickled, and what is said of errors, is
`dagsched.serialize`.
"""

import io
import pickle
import sys
import types
from collections.abc import Callable
from typing import Any

import cloudpickle

_NO_FILE = "<dynamic-code>"

_PROXY_MARK = b"RebuildProxy"
"""In each pickle with a proxy of a manager stands the name of what makes it anew."""


class CloudPickler(cloudpickle.Pickler):  # type: ignore[misc]  # cloudpickle has no types
    """cloudpickle, but an open file is refused: it would silently become a copy of its text.

    And code keeps the name of its file, which later releases of cloudpickle 3.1 replace: without
    it a traceback shows no line of what failed. A manager's proxy takes the manager's key along.
    """

    def reducer_override(self, obj: object) -> Any:
        """As of `pickle.Pickler`."""
        if isinstance(obj, types.CodeType):
            function, arguments = self.dispatch_table[types.CodeType](obj)[:2]
            return function, tuple(
                obj.co_filename if argument == _NO_FILE else argument for argument in arguments
            )
        if isinstance(obj, io.IOBase) and not isinstance(obj, io.BytesIO | io.StringIO):
            raise TypeError(f"cannot pickle an open file ({type(obj).__name__})")
        managers = sys.modules.get("multiprocessing.managers")
        if managers is not None and isinstance(obj, managers.BaseProxy):
            return _with_key(obj)
        return super().reducer_override(obj)


def _with_key(proxy: Any) -> Any:
    """What `BaseProxy.__reduce__` gives while a child is spawned: with the manager's key."""
    function, arguments, *rest = proxy.__reduce__()
    if getattr(function, "__name__", "").encode() != _PROXY_MARK:
        return (function, arguments, *rest)  # a class with an idea of its own
    kind, token, serializer, kwargs = arguments
    key = bytes(proxy._authkey)  # as its own class it refuses to be pickled
    return function, (kind, token, serializer, {**kwargs, "authkey": key})


def dumps(
    value: object,
    callback: Callable[[pickle.PickleBuffer], object] | None = None,
    found: list[pickle.PickleBuffer] | None = None,
) -> bytes:
    """Pickle with the standard pickler where that is right, otherwise with cloudpickle.

    Args:
        value: anything.
        callback: takes buffers out of band; see `pickle.Pickler`.
        found: what `callback` fills; emptied before a second try.
    """
    try:
        stream = plain_dumps(value, callback)
    except Exception:  # noqa: BLE001 - cloudpickle may know how, and its error is the one to tell
        stream = None
    if stream is not None:
        return stream
    if found is not None:
        found.clear()
    return cloud_dumps(value, callback)


def plain_dumps(
    value: object, callback: Callable[[pickle.PickleBuffer], object] | None = None
) -> bytes | None:
    """The standard pickle; None where it may name what exists in this process only.

    Names in ``__main__`` mean something else in an executor, and proxies need a key there. A false
    alarm costs time only.
    """
    stream = pickle.dumps(value, 5, buffer_callback=callback)
    if b"__main__" in stream or cloudpickle.list_registry_pickle_by_value():
        return None
    return None if _PROXY_MARK in stream else stream


def cloud_dumps(
    value: object, callback: Callable[[pickle.PickleBuffer], object] | None = None
) -> bytes:
    """The pickle that takes what only this process can import by value."""
    with io.BytesIO() as file:
        CloudPickler(file, protocol=5, buffer_callback=callback).dump(value)
        return file.getvalue()


def proxy_dumps(value: object) -> bytes | None:
    """The pickle of a value with a manager's proxy in it; None: there is none, or it can't travel.

    Copying such a value gives what the proxy stands for in its place.
    """
    if "multiprocessing.managers" not in sys.modules:
        return None
    try:
        stream = cloud_dumps(value)
    except Exception:  # noqa: BLE001 - who asks tries again, and tells
        return None
    return stream if _PROXY_MARK in stream else None


def is_picklable(value: object) -> bool:
    """Whether a value can travel."""
    try:
        dumps(value)
    except Exception:  # noqa: BLE001 - whatever it is, it is the answer
        return False
    return True
