"""Finds and replaces values (*leaves*) inside the containers that users build from.

A container is a list, tuple, dict, set, frozenset, deque, OrderedDict or defaultdict (exactly
these types), a namedtuple or a dataclass instance. Other subclasses may hold state that we can't
rebuild, so they are taken as opaque values. Keys of dicts are never replaced. Nothing here
recurses: containers may be nested more deeply than the interpreter's stack allows, be shared, and
contain themselves.
"""

import copy
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from typing import Any

Leaf = Callable[[object], bool]
Replace = Callable[[object], object]

_LIST, _TUPLE, _DICT, _SET, _FROZENSET, _NAMED_TUPLE, _DATACLASS, _DEQUE = range(1, 9)
_KINDS: dict[type, int] = {
    list: _LIST,
    tuple: _TUPLE,
    dict: _DICT,
    set: _SET,
    frozenset: _FROZENSET,
    OrderedDict: _DICT,
    defaultdict: _DICT,
    deque: _DEQUE,
}
_OPAQUE: dict[type, int] = dict.fromkeys(
    (int, float, complex, bool, str, bytes, bytearray, type(None), type, range), 0
)
_IMMUTABLE = frozenset((_TUPLE, _FROZENSET, _NAMED_TUPLE))


def is_container(value: object) -> bool:
    """Says whether `value` is of a type that is looked into."""
    return _container_kind(type(value)) != 0


def rebuild(
    value: object,
    replace: Replace,
    is_leaf: Leaf,
    set_order: Callable[[object], Any] | None = None,
) -> Any:
    """Returns `value` with each leaf in it replaced, or `value` itself if there is none.

    Containers without a leaf stay the same objects; a container that occurs twice is rebuilt
    once, and one that contains itself becomes one that contains itself.

    Args:
        value: A leaf, a container, or anything else.
        replace: Gives what stands in for a leaf; called once for each place, in order.
        is_leaf: Says what shall be replaced; asked before looking into a container.
        set_order: Sort key for elements of sets, so that the order of calls of `replace` does
            not depend on hashes.

    Raises:
        ValueError: A tuple contains itself; it can't be built anew.

    >>> rebuild([1, {"a": (2, 3)}], lambda leaf: -leaf, lambda item: item == 3)
    [1, {'a': (2, -3)}]
    """
    if is_leaf(value):
        return replace(value)
    kind = _container_kind(type(value))
    if kind == 0:
        return value
    if kind <= _TUPLE:
        assert isinstance(value, (list, tuple))
        flat = _flat_sequence(value, replace, is_leaf)
        if flat is not None:
            return flat
    walk = _Walk(set_order)
    return walk.rebuilt() if walk.find(value, replace, is_leaf) else value


def has_leaf(value: object, is_leaf: Leaf) -> bool:
    """Says whether `value` is a leaf or has one inside."""
    return next(leaves(value, is_leaf), _NOTHING) is not _NOTHING


def leaves(value: object, is_leaf: Leaf) -> Iterator[object]:
    """Yields the leaves of `value` in order, once for each place that is reached.

    >>> list(leaves([1, (2, [3])], lambda item: type(item) is int))
    [1, 2, 3]
    """
    seen: set[int] = set()
    keep_alive = []
    stack: list[Iterator[object]] = [iter((value,))]
    while stack:
        for item in stack[-1]:
            if is_leaf(item):
                yield item
                continue
            kind = _container_kind(type(item))
            if kind and id(item) not in seen:
                seen.add(id(item))
                keep_alive.append(item)
                stack.append(iter(_children(item, kind)))
                break
        else:
            stack.pop()


_NOTHING = object()


def _container_kind(kind: type) -> int:
    """Which container a type is; 0 for none."""
    found = _KINDS.get(kind)
    if found is not None:
        return found
    if kind in _OPAQUE:
        return 0
    if issubclass(kind, tuple) and hasattr(kind, "_fields") and hasattr(kind, "_make"):
        return _NAMED_TUPLE
    if "__dataclass_fields__" in kind.__dict__ or hasattr(kind, "__dataclass_fields__"):
        # A dataclass that is also a list, dict, .. has state besides its fields.
        opaque_bases = (list, tuple, dict, set, frozenset)
        return 0 if issubclass(kind, opaque_bases) else _DATACLASS
    return 0


def _flat_sequence(
    value: "list[object] | tuple[object, ...]", replace: Replace, is_leaf: Leaf
) -> object | None:
    """The common case, a list or tuple with no container inside; None if it is another."""
    if any(map(_container_kind, set(map(type, value)))):
        return None
    result = None
    for index, item in enumerate(value):
        if is_leaf(item):
            if result is None:
                result = list(value)
            result[index] = replace(item)
    if result is None:
        return value
    return result if type(value) is list else tuple(result)


def _children(value: Any, kind: int) -> list[Any]:
    """What a container holds, in its order."""
    if kind == _DICT:
        return list(value.values())
    if kind == _DATACLASS:
        return [getattr(value, name) for name in _field_names(value)]
    return list(value)


def _field_names(value: Any) -> list[str]:
    """Fields of a dataclass instance that are set."""
    return [name for name in type(value).__dataclass_fields__ if hasattr(value, name)]


class _Walk:
    """One container with all that it holds: found first, then rebuilt from the inside out.

    Leaves are replaced as they are found, which is in order, and stored until then.
    """

    __slots__ = (
        "_children", "_dirty", "_kinds", "_order", "_parents", "_replaced_by", "_set_order",
        "_values",
    )  # fmt: skip

    def __init__(self, set_order: Callable[[object], Any] | None) -> None:
        self._set_order = set_order
        self._values: dict[int, Any] = {}  # by id; alive as long as the walk
        self._kinds: dict[int, int] = {}
        self._children: dict[int, list[Any]] = {}
        self._parents: dict[int, list[int]] = {}
        self._order: list[int] = []  # post-order
        # What stands in for leaves: by container, (index among its children, value).
        self._replaced_by: dict[int, list[tuple[int, object]]] = {}
        self._dirty: set[int] = set()  # containers that have a leaf somewhere below

    def find(self, root: object, replace: Replace, is_leaf: Leaf) -> bool:
        """Lists all containers in post-order, replaces leaves; says whether there were any."""
        stack = [self._opened(root)]
        while stack:
            parent, items = stack[-1]
            for index, item in items:
                if is_leaf(item):
                    self._replaced_by.setdefault(parent, []).append((index, replace(item)))
                elif _container_kind(type(item)):
                    self._parents.setdefault(id(item), []).append(parent)
                    if id(item) not in self._values:
                        stack.append(self._opened(item))
                        break
            else:
                self._order.append(parent)
                stack.pop()
        unmarked = list(self._replaced_by)
        while unmarked:
            key = unmarked.pop()
            if key not in self._dirty:
                self._dirty.add(key)
                unmarked.extend(self._parents.get(key, ()))
        return bool(self._dirty)

    def _opened(self, value: Any) -> tuple[int, Iterator[tuple[int, object]]]:
        key, kind = id(value), _container_kind(type(value))
        children = _children(value, kind)
        if self._set_order is not None and kind in (_SET, _FROZENSET):
            children = sorted(children, key=self._set_order)
        self._values[key] = value
        self._kinds[key] = kind
        self._children[key] = children
        return key, iter(enumerate(children))

    def rebuilt(self) -> Any:
        """Builds every container that has a leaf below it; the root's is returned."""
        built: dict[int, Any] = {}
        for key in self._order:
            if key not in self._dirty:
                continue
            children = list(self._children[key])
            for index, child in enumerate(children):
                if id(child) in self._dirty:
                    children[index] = self._built(id(child), built)
            for index, stand_in in self._replaced_by.get(key, ()):
                children[index] = stand_in
            built[key] = self._filled(key, children, built)
        return built[self._order[-1]]

    def _built(self, key: int, built: dict[int, Any]) -> object:
        if key not in built:
            # Only a container that holds this one too comes later: what is yet to be filled
            # stands in for it.
            built[key] = self._shell(key)
        return built[key]

    def _shell(self, key: int) -> object:
        kind = self._kinds[key]
        if kind in _IMMUTABLE:
            raise ValueError("a tuple that contains itself can't hold delayed values")
        if kind == _DATACLASS:
            return copy.copy(self._values[key])
        value = self._values[key]
        if type(value) is defaultdict:
            return defaultdict(value.default_factory)
        return deque(maxlen=value.maxlen) if kind == _DEQUE else type(value)()

    def _filled(self, key: int, children: list[object], built: dict[int, Any]) -> object:
        value, kind = self._values[key], self._kinds[key]
        if kind == _TUPLE:
            return tuple(children)
        if kind == _FROZENSET:
            return frozenset(children)
        if kind == _NAMED_TUPLE:
            return tuple.__new__(type(value), children)
        shell: Any = built[key] if key in built else self._shell(key)
        if kind in (_LIST, _DEQUE):
            shell.extend(children)
        elif kind == _DICT:
            shell.update(zip(value, children, strict=True))
        elif kind == _SET:
            shell.update(children)
        else:
            for name, child in zip(_field_names(value), children, strict=True):
                if child is not getattr(value, name):
                    object.__setattr__(shell, name, child)  # frozen ones too
        return shell
