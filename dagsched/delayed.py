"""Calls written down instead of made: `delayed`, and the `Delayed` values that it gives.

Writing a call down costs well under a microsecond: nothing is looked into, checked or hashed.
`dagsched.graph` makes a graph of it. Nothing heavy is imported, so a script imports this for free.
"""

import functools
import itertools
import math
import operator
import os
import types
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypedDict, Unpack, overload

from dagsched.containers import leaves, rebuild

_next_serial = itertools.count(1).__next__


@dataclass(frozen=True, slots=True)
class Options:
    """What a task asks for; each field is an argument of `delayed`."""

    name: str | None = None
    meta: bool = False
    nout: int | None = None
    retries: int = 0
    crash_limit: int | None = None
    timeout_s: float | None = None
    priority: int = 0
    resources: Mapping[str, float] = field(default_factory=dict)
    labels: tuple[str, ...] = ()
    persist: bool = False


DEFAULTS = Options()


class OptionsGiven(TypedDict, total=False):
    """The keyword arguments of `delayed` and of `options`."""

    name: str | None
    meta: bool
    nout: int | None
    retries: int
    crash_limit: int | None
    timeout: float | None
    priority: int
    resources: Mapping[str, float] | None
    labels: str | Iterable[str] | None
    persist: bool


class DelayedFunction:
    """A function whose calls are written down instead of made."""

    __slots__ = ("__weakref__", "__wrapped__", "_options")

    def __init__(self, function: Callable[..., Any], options: Options = DEFAULTS) -> None:
        self.__wrapped__ = function
        self._options = options

    def __call__(self, /, *args: Any, **kwargs: Any) -> "Delayed":
        """Writes a call down."""
        return Delayed(self, args, kwargs or None, _next_serial())

    def options(self, **changes: Unpack[OptionsGiven]) -> "DelayedFunction":
        """Returns a copy whose calls have these options changed; see `delayed`."""
        return DelayedFunction(self.__wrapped__, _changed(self._options, changes))

    def __get__(self, instance: object, owner: type | None = None) -> "DelayedFunction":
        return self if instance is None else _DelayedMethod(self, instance)

    @property
    def __name__(self) -> str:
        return self._options.name or function_name(self.__wrapped__)

    @property
    def __doc__(self) -> str | None:  # type: ignore[override]  # the function's, not the class's
        return self.__wrapped__.__doc__

    def __getattr__(self, name: str) -> Any:
        if name in DelayedFunction.__slots__:  # a half-made copy: don't look for it in itself
            raise AttributeError(name)
        return getattr(self.__wrapped__, name)

    def __reduce__(self) -> tuple[Any, ...]:
        return (DelayedFunction, (self.__wrapped__, self._options))

    def __repr__(self) -> str:
        return f"delayed({self.__name__})"


class _DelayedMethod(DelayedFunction):
    """A delayed function looked up on an instance, which becomes the first argument."""

    __slots__ = ("_function", "_instance")

    def __init__(self, function: DelayedFunction, instance: object) -> None:
        super().__init__(function.__wrapped__, function._options)
        self._function = function
        self._instance = instance

    def __call__(self, /, *args: Any, **kwargs: Any) -> "Delayed":
        return Delayed(self._function, (self._instance, *args), kwargs or None, _next_serial())

    def options(self, **changes: Unpack[OptionsGiven]) -> "DelayedFunction":
        return _DelayedMethod(self._function.options(**changes), self._instance)

    def __reduce__(self) -> tuple[Any, ...]:
        return (_DelayedMethod, (self._function, self._instance))


@overload
def delayed(func: None = None, **options: Unpack[OptionsGiven]) -> Callable[..., Any]: ...
@overload
def delayed(func: "Delayed", **options: Unpack[OptionsGiven]) -> "Delayed": ...
@overload
def delayed(  # type: ignore[overload-overlap]  # what can be called is never taken as a value
    func: Callable[..., Any], **options: Unpack[OptionsGiven]
) -> DelayedFunction: ...
@overload
def delayed(func: object, **options: Unpack[OptionsGiven]) -> "Delayed": ...
def delayed(
    func: Any = None,
    *,
    name: str | None = None,
    meta: bool = False,
    nout: int | None = None,
    retries: int = 0,
    crash_limit: int | None = None,
    timeout: float | None = None,
    priority: int = 0,
    resources: Mapping[str, float] | None = None,
    labels: str | Iterable[str] | None = None,
    persist: bool = False,
) -> Any:
    """Makes a function's calls written down instead of made, or wraps a value.

    Args:
        func: A callable: its calls give `Delayed`s. None: returns a decorator. A `Delayed` is
            returned as it is. Any other value, which may be a container with `Delayed`s in it,
            becomes a task that returns it.
        name: Shown instead of the function's own name.
        meta: The function gets a `Ref` for each input instead of its value.
        nout: The result can be unpacked into so many `Delayed`s.
        retries: How often a call that raised is made again.
        crash_limit: Executors that a call may take down before it fails; None: as the environment's
            `Config` says. Calls with a limit of 1 share nothing with others' crashes, so with
            ``retries=0`` as well they are made once, unless their node is lost.
        timeout: Seconds after which a call is killed.
        priority: Calls with higher numbers go first.
        resources: What a call needs while it runs, as numbers by name.
        labels: Only nodes that have all these labels run it.
        persist: The environment keeps the value after the run.

    Raises:
        TypeError: An option is of the wrong type.
        ValueError: An option is out of range.

    >>> add = delayed(lambda x, y: x + y, name="add")
    >>> total = add(add(1, 2), 3)
    """
    if (
        name is None
        and timeout is None
        and crash_limit is None
        and nout is None
        and resources is None
        and labels is None
        and meta is False
        and persist is False
        and retries == 0
        and priority == 0
        and type(retries) is int
        and type(priority) is int
    ):
        options = DEFAULTS
    else:
        given = OptionsGiven(
            name=name, meta=meta, nout=nout, retries=retries, crash_limit=crash_limit,
            timeout=timeout, priority=priority, resources=resources, labels=labels, persist=persist,
        )  # fmt: skip
        options = _changed(DEFAULTS, given)
    kind = type(func)
    if kind is types.FunctionType:
        return DelayedFunction(func, options)
    if func is None:
        return functools.partial(_decorated, options)
    return _decorated(options, func)


def _decorated(options: Options, func: Any) -> "DelayedFunction | Delayed":
    """What `delayed` makes of anything but None."""
    if isinstance(func, (Delayed, DelayedFunction)):
        if options is DEFAULTS:
            return func
        changes = {
            "timeout" if name == "timeout_s" else name: getattr(options, name)
            for name in Options.__slots__
            if getattr(options, name) != getattr(DEFAULTS, name)
        }
        return func.options(**changes)
    if callable(func):
        return DelayedFunction(func, options)
    call = _IDENTITY if options is DEFAULTS else DelayedFunction(identity, options)
    return Delayed(call, (func,), None, _next_serial())


def _binary(
    function: Callable[..., Any], nout: int | None = None
) -> Callable[["Delayed", Any], "Delayed"]:
    call = DelayedFunction(function, DEFAULTS if nout is None else Options(nout=nout))

    def method(self: "Delayed", other: Any) -> "Delayed":
        return Delayed(call, (self, other), None, _next_serial())

    return method


def _reflected(
    function: Callable[..., Any], nout: int | None = None
) -> Callable[["Delayed", Any], "Delayed"]:
    call = DelayedFunction(function, DEFAULTS if nout is None else Options(nout=nout))

    def method(self: "Delayed", other: Any) -> "Delayed":
        return Delayed(call, (other, self), None, _next_serial())

    return method


def _unary(function: Callable[..., Any]) -> Callable[..., "Delayed"]:
    call = DelayedFunction(function)

    def method(self: "Delayed", *args: Any) -> "Delayed":
        return Delayed(call, (self, *args), None, _next_serial())

    return method


class Delayed:
    """A call that is written down. It never changes; running it leaves no trace in it.

    Operators, indexing, attributes and method calls give further `Delayed`s, except ``==``,
    ``!=`` and `hash`, which are about the object itself.
    """

    __slots__ = ("__weakref__", "_args", "_call", "_kwargs", "_serial")

    # Without this an array on the left would take us for a scalar and loop over its elements.
    __array_ufunc__ = None

    def __init__(
        self,
        call: DelayedFunction,
        args: tuple[Any, ...],
        kwargs: dict[str, Any] | None,
        serial: int,
    ) -> None:
        self._call = call
        self._args = args
        self._kwargs = kwargs
        self._serial = serial

    @property
    def key(self) -> str:
        """A name that no other `Delayed` of this process has."""
        return f"{self._call.__name__}-{self._serial}"

    def options(self, **changes: Unpack[OptionsGiven]) -> "Delayed":
        """Returns the same call with these options changed; see `delayed`."""
        call = self._call.options(**changes)
        return Delayed(call, self._args, self._kwargs, _next_serial())

    def compute(self, env: Any = None) -> Any:
        """Runs it and returns its value.

        Args:
            env: A `RunEnv`; None: the one set by `setrunenv`, or else a local one that is made
                when it is first needed.
        """
        from dagsched import rundag  # the engine is loaded by its first use
        from dagsched.runenv import default_env, getrunenv

        if env is None:
            env = getrunenv()
        if env is None:
            env = default_env()
        return rundag(env, self)

    def __repr__(self) -> str:
        return f"Delayed({self.key})"

    def _repr_html_(self) -> str:
        from dagsched.notebook import delayed_html

        return delayed_html(self)

    def _repr_mimebundle_(self, **_: object) -> dict[str, str]:
        from dagsched.notebook import bundle

        return bundle(self, self._repr_html_())

    def __copy__(self) -> "Delayed":
        return self

    def __deepcopy__(self, memo: object) -> "Delayed":
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (_restored, _flattened(self))

    # Further calls.

    def __call__(self, /, *args: Any, **kwargs: Any) -> "Delayed":
        """Writes down a call of the value, or of the value's method in ``value.method(..)``."""
        if self._call is _GETATTR:
            # A method call is one task: bound methods never travel.
            return Delayed(_CALL_METHOD, self._args + args, kwargs or None, _next_serial())
        return Delayed(_APPLY, (self, *args), kwargs or None, _next_serial())

    def __getattr__(self, name: str) -> "Delayed":
        # Protocols of Python, pickle, numpy and notebooks must not find what isn't there.
        if name.startswith(("__", "_repr_", "_ipython_")):
            raise AttributeError(f"a Delayed has no {name!r}; its value isn't known yet")
        return Delayed(_GETATTR, (self, name), None, _next_serial())

    def __getitem__(self, item: Any) -> "Delayed":
        count = self._call._options.nout
        if count is not None and type(item) is int and not -count <= item < count:
            raise IndexError(f"{self.key} was given nout={count}, so it has no item {item}")
        if type(item) is slice and any(
            isinstance(part, Delayed) for part in (item.start, item.stop, item.step)
        ):
            item = Delayed(_SLICE, (item.start, item.stop, item.step), None, _next_serial())
        return Delayed(_GETITEM, (self, item), None, _next_serial())

    def __iter__(self) -> Iterator["Delayed"]:
        return iter([self[index] for index in range(len(self))])

    def __len__(self) -> int:
        count = self._call._options.nout
        if count is None:
            raise TypeError(
                f"the length of {self.key} isn't known before it has run; to unpack it or to "
                "loop over it say how many values it gives: delayed(..., nout=k)"
            )
        return count

    # Values that only a run can know.

    def _unknown(self, *_: Any) -> NoReturn:
        raise TypeError(
            f"the value of {self.key} isn't known before it has run, so it can't be a condition, "
            "a loop bound, an index or a number here; move that code into a delayed function, or "
            "compute() it first"
        )

    __bool__ = __int__ = __float__ = __complex__ = __index__ = __contains__ = _unknown

    __add__, __radd__ = _binary(operator.add), _reflected(operator.add)
    __sub__, __rsub__ = _binary(operator.sub), _reflected(operator.sub)
    __mul__, __rmul__ = _binary(operator.mul), _reflected(operator.mul)
    __matmul__, __rmatmul__ = _binary(operator.matmul), _reflected(operator.matmul)
    __truediv__, __rtruediv__ = _binary(operator.truediv), _reflected(operator.truediv)
    __floordiv__, __rfloordiv__ = _binary(operator.floordiv), _reflected(operator.floordiv)
    __mod__, __rmod__ = _binary(operator.mod), _reflected(operator.mod)
    __divmod__, __rdivmod__ = _binary(divmod, nout=2), _reflected(divmod, nout=2)
    __pow__, __rpow__ = _unary(pow), _reflected(pow)  # pow may have a third argument
    __lshift__, __rlshift__ = _binary(operator.lshift), _reflected(operator.lshift)
    __rshift__, __rrshift__ = _binary(operator.rshift), _reflected(operator.rshift)
    __and__, __rand__ = _binary(operator.and_), _reflected(operator.and_)
    __or__, __ror__ = _binary(operator.or_), _reflected(operator.or_)
    __xor__, __rxor__ = _binary(operator.xor), _reflected(operator.xor)
    __lt__, __le__ = _binary(operator.lt), _binary(operator.le)
    __gt__, __ge__ = _binary(operator.gt), _binary(operator.ge)
    __neg__, __pos__ = _unary(operator.neg), _unary(operator.pos)
    __abs__, __invert__ = _unary(operator.abs), _unary(operator.invert)
    __round__, __trunc__ = _unary(round), _unary(math.trunc)
    __floor__, __ceil__ = _unary(math.floor), _unary(math.ceil)


def identity(value: Any) -> Any:
    """Returns its argument: the function of ``delayed(value)``."""
    return value


def apply(function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Calls a function that another task computed."""
    return function(*args, **kwargs)


def call_method(instance: Any, name: str, /, *args: Any, **kwargs: Any) -> Any:
    """Calls a method of a value that another task computed."""
    return getattr(instance, name)(*args, **kwargs)


_IDENTITY = DelayedFunction(identity)
_APPLY = DelayedFunction(apply)
_CALL_METHOD = DelayedFunction(call_method)
_GETATTR = DelayedFunction(getattr)
_GETITEM = DelayedFunction(operator.getitem)
_SLICE = DelayedFunction(slice)


def function_name(function: Callable[..., Any]) -> str:
    """A short name for a callable: its own, or that of what it wraps, or of its class."""
    while isinstance(function, functools.partial):
        function = function.func
    name = getattr(function, "__name__", None)
    return name if isinstance(name, str) and name else type(function).__name__


# Options.


def _changed(options: Options, given: OptionsGiven) -> Options:
    """Options with those given in place of their own, checked."""
    values: dict[str, Any] = {name: getattr(options, name) for name in Options.__slots__}
    for name, value in given.items():
        check = _CHECKS.get(name)
        if check is None:
            raise TypeError(f"there is no option {name!r}; options are {', '.join(_CHECKS)}")
        values["timeout_s" if name == "timeout" else name] = check(name, value)
    changed = Options(**values)
    return DEFAULTS if changed == DEFAULTS else changed


def _text_or_none(option: str, value: Any) -> str | None:
    if value is not None and not isinstance(value, str):
        raise TypeError(f"{option} must be a str, not {type(value).__name__}")
    if value == "":
        raise ValueError(f"{option} must not be empty")
    return value


def _truth(option: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{option} must be True or False, not {value!r}")
    return value


def _integer(option: str, value: Any) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or isinstance(value, Delayed):
        raise TypeError(f"{option} must be an int, not {type(value).__name__}")
    return operator.index(value)


def _count(option: str, value: Any) -> int:
    count = _integer(option, value)
    if count < 0:
        raise ValueError(f"{option} must not be negative, not {count}")
    return count


def _count_or_none(option: str, value: Any) -> int | None:
    return None if value is None else _count(option, value)


def _limit_or_none(option: str, value: Any) -> int | None:
    if value is not None and _integer(option, value) < 1:
        raise ValueError(f"{option} must be 1 or more, not {value!r}")
    return value if value is None else int(value)


def _number(option: str, value: Any) -> float:
    if isinstance(value, (bool, str, Delayed)) or not hasattr(value, "__float__"):
        raise TypeError(f"{option} must be a number, not {type(value).__name__}")
    return float(value)


def _seconds_or_none(option: str, value: Any) -> float | None:
    if value is None:
        return None
    seconds = _number(option, value)
    if not seconds > 0:
        raise ValueError(f"{option} must be a number of seconds above 0, not {value!r}")
    return None if math.isinf(seconds) else seconds


def _amounts(option: str, value: Any) -> dict[str, float]:
    if value is None:
        return {}
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise TypeError(f"{option} must be a dict of numbers by name, not {value!r}")
    amounts = {name: _number(f"{option}[{name!r}]", amount) for name, amount in value.items()}
    for name, amount in amounts.items():
        if not 0 <= amount < math.inf:
            raise ValueError(f"{option}[{name!r}] must be 0 or more, not {amount!r}")
    return amounts


def _names(option: str, value: Any) -> tuple[str, ...]:
    if value is None:
        return ()
    if not isinstance(value, Iterable):
        raise TypeError(f"{option} must be a str or several, not {type(value).__name__}")
    names = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(name, str) for name in names):
        raise TypeError(f"{option} must be a str or several, not {value!r}")
    return names


_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "name": _text_or_none,
    "meta": _truth,
    "nout": _count_or_none,
    "retries": _count,
    "crash_limit": _limit_or_none,
    "timeout": _seconds_or_none,
    "priority": _integer,
    "resources": _amounts,
    "labels": _names,
    "persist": _truth,
}

# Pickling. A graph may be deeper than the interpreter's stack, so nodes travel as one flat list.


class _Place:
    """Stands for the node at `index` of the list."""

    __slots__ = ("index",)

    def __init__(self, index: int) -> None:
        self.index = index

    def __reduce__(self) -> tuple[Any, ...]:
        return (_Place, (self.index,))


Node = tuple[tuple[int, bytes, int], DelayedFunction, Any, Any]

_nodes_by_origin: "weakref.WeakValueDictionary[tuple[int, bytes, int], Delayed]"
_nodes_by_origin = weakref.WeakValueDictionary()


@functools.cache
def _process_token() -> bytes:
    """Tells this process, and its children by fork, from others that had the same id."""
    return os.urandom(8)


def is_delayed(item: object) -> bool:
    """Whether this is a call written down; no operator of one can say so."""
    return type(item) is Delayed


def _flattened(root: Delayed) -> tuple[list[Node]]:
    """All nodes that `root` needs, each after those it needs itself."""
    indexes: dict[Delayed, int] = {}
    opened: set[Delayed] = set()
    nodes: list[Node] = []
    stack = [root]
    while stack:
        node = stack[-1]
        if node not in indexes and node not in opened:
            opened.add(node)
            needed = list(leaves((node._args, node._kwargs), is_delayed))
            stack.extend(item for item in reversed(needed) if item not in indexes)  # type: ignore[misc]  # leaves are Delayeds
            continue
        stack.pop()
        if node not in indexes:
            indexes[node] = len(nodes)
            args, kwargs = rebuild(
                (node._args, node._kwargs),
                lambda item: _Place(indexes[item]),  # type: ignore[index]  # leaves are Delayeds
                is_delayed,
                lambda item: item._serial if type(item) is Delayed else 0,
            )
            nodes.append((_origin(node), node._call, args, kwargs))
    return (nodes,)


def _origin(node: Delayed) -> tuple[int, bytes, int]:
    """The same for a node wherever it travels, so that it comes back as what it was."""
    origin = (os.getpid(), _process_token(), node._serial)
    if _nodes_by_origin.setdefault(origin, node) is not node:
        raise AssertionError("two nodes of one process have the same serial number")
    return origin


def _restored(nodes: list[Node]) -> Delayed:
    """The last of flattened nodes; nodes that this process has already stay one."""
    made: list[Delayed] = []
    for origin, call, flat_args, flat_kwargs in nodes:
        node = _nodes_by_origin.get(origin)
        if node is None:
            args, kwargs = rebuild(
                (flat_args, flat_kwargs),
                lambda item: made[item.index],  # type: ignore[attr-defined]  # leaves are Places
                lambda item: type(item) is _Place,
            )
            node = Delayed(call, args, kwargs, _next_serial())
            _nodes_by_origin[origin] = node
        made.append(node)
    return made[-1]
