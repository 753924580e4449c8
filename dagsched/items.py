"""Results of which each dependent takes one item, as the pieces of a shuffle are.

Whole, such a result would be loaded with all its items by each dependent. Kept apart, each item is
pickled for itself, and only the one that is taken is loaded.
"""

import pickle
from typing import Any

from dagsched.pickling import dumps


class Items:
    """The items of a dict, list or tuple, each pickled.

    >>> take_item(kept_apart({"a": [1], "b": [2]}), "b")
    [2]
    """

    __slots__ = ("_data_by_key",)

    def __init__(self, data_by_key: dict[Any, Any]) -> None:
        self._data_by_key = data_by_key

    def take(self, key: Any) -> Any:
        """One item, loaded anew each time."""
        return pickle.loads(self._data_by_key[key])

    def __reduce__(self) -> tuple[Any, ...]:
        buffers = {key: pickle.PickleBuffer(data) for key, data in self._data_by_key.items()}
        return (Items, (buffers,))


def kept_apart(value: Any) -> Any:
    """What a task returns whose items are taken one by one; anything else as it is.

    Of what is derived from dict, list or tuple, too, unless it has its own way to find an item.
    """
    find = getattr(type(value), "__getitem__", None)
    if find is dict.__getitem__ and not hasattr(value, "__missing__"):
        return Items({key: dumps(item) for key, item in value.items()})
    if find is list.__getitem__ or find is tuple.__getitem__:
        count = len(value)
        data = [dumps(item) for item in value]
        return Items(dict(enumerate(data)) | {i - count: data[i] for i in range(count)})
    return value


def take_item(value: Any, key: Any) -> Any:
    """``value[key]``, also of what was kept apart."""
    return value.take(key) if type(value) is Items else value[key]
