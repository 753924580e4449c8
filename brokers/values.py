"""The values of one bundle while it runs: who gets which copy, and when it is let go.

Responsible for the rule that no task can harm another by changing its input in place: a value with
one use is handed over; an immutable one is shared; any other is sealed once, and each use gets a
copy of its own (a private mapping of shared memory where it is large). Also for values that come
from outside (imports).
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from dagsched.brokers.code import ArgumentError
from dagsched.brokers.objects.arena import Arena
from dagsched.brokers.objects.nursery import Nursery
from dagsched.brokers.objects.reader import Key, Reader
from dagsched.errors import InternalError, ObjectLost
from dagsched.protocol.messages import Frame, Location, ObjectInfo
from dagsched.ref import collecting_refs
from dagsched.remote_errors import type_name
from dagsched.serialize import (
    ATOMIC_TYPES,
    dump_inline,
    dump_value,
    load_value,
    numpy_array_type,
)

SHORT_TUPLE_MAX = 16
"""Longer tuples are not looked through for being immutable all the way down."""

_NOTHING = object()


class Prepared(NamedTuple):
    """A sealed value: a pickle, or (with a location) bytes in shared memory."""

    stream: bytes
    location: Location | None
    type_name: str
    refs: Sequence[tuple[int, int]]


class ItemUsers(Protocol):
    """Knows which tasks take just one item of a tuple or list."""

    def item_users(self, position: int) -> Sequence[tuple[int, int]]:
        """(task, item) for each use of the position; empty if some use takes more than an item."""

    def give_item(self, task: int, function: Callable[[], object]) -> None:
        """The task shall call `function` instead of its own."""


class _Kept:
    """An immutable value too large to be kept for longer than its last use."""

    __slots__ = ("remaining", "value")

    def __init__(self, value: object, uses: int) -> None:
        self.value = value
        self.remaining = uses

    def take(self, _position: int) -> object:
        value = self.value
        self.remaining -= 1
        if not self.remaining:
            self.value = None
        return value

    def copy(self, _position: int) -> object:
        return self.value


class _Pickled:
    """A small sealed value: each use loads a copy, the last gets the original."""

    __slots__ = ("original", "remaining", "stream")

    def __init__(self, stream: bytes, original: object, uses: int) -> None:
        self.stream = stream
        self.original = original
        self.remaining = uses

    def take(self, _position: int) -> object:
        self.remaining -= 1
        if self.remaining:
            return load_value(self.stream)
        original, self.original = self.original, None
        return original

    def copy(self, _position: int) -> object:
        return load_value(self.stream)


class _Mapped:
    """A large sealed value of this bundle: each use maps it privately."""

    __slots__ = ("key", "location", "original", "reader", "remaining")

    def __init__(
        self, reader: Reader, key: Key, location: Location, original: object, uses: int
    ) -> None:
        self.reader = reader
        self.key = key
        self.location = location
        self.original = original  # kept only if it has a single use here
        self.remaining = uses

    def take(self, _position: int) -> object:
        self.remaining -= 1
        if self.original is not _NOTHING:
            original, self.original = self.original, _NOTHING
            return original
        return self.reader.load(self.key, self.location)

    def copy(self, _position: int) -> object:
        return self.reader.load(self.key, self.location)


class _MappedImport:
    """A large value from outside: each use maps it privately."""

    __slots__ = ("info", "key", "reader", "remaining")

    def __init__(self, reader: Reader, key: Key, info: ObjectInfo) -> None:
        self.reader = reader
        self.key = key
        self.info = info
        self.remaining = -1  # as many as there are

    def take(self, _position: int) -> object:
        location = self.info.location
        if location is None:
            raise InternalError(f"the import of {self.info.first} has no location")
        try:
            return self.reader.load(self.key, location)
        except ObjectLost:
            raise
        except Exception as error:
            raise ArgumentError from error

    copy = take


class _InlineImport:
    """A block of small values from outside, loaded as often as its most used value is used."""

    __slots__ = ("count", "first", "frame", "lists", "many", "remaining", "uses")

    def __init__(self, info: ObjectInfo, frame: Frame, many: dict[int, Any]) -> None:
        self.first = info.first
        self.count = info.count
        self.frame = frame
        self.many = many
        self.lists: list[list[Any]] = []
        self.uses: dict[int, int] = {}
        self.remaining = -1

    def take(self, position: int) -> object:
        use = self.uses.get(position, 0)
        self.uses[position] = use + 1
        while len(self.lists) <= use:
            values = self._load()
            if not self.lists:
                if ATOMIC_TYPES.issuperset(map(type, values)):
                    self.many.update(enumerate(values, self.first))
                else:
                    for place, value in enumerate(values, self.first):
                        if type(value) in ATOMIC_TYPES:
                            self.many[place] = value
            self.lists.append(values)
        values, place = self.lists[use], position - self.first
        value, values[place] = values[place], None
        return value

    def copy(self, position: int) -> object:
        return self._load()[position - self.first]

    def _load(self) -> list[Any]:
        try:
            loaded = load_value(self.frame)
        except Exception as error:
            raise ArgumentError from error
        if self.count == 1:
            return [loaded]
        if not isinstance(loaded, list) or len(loaded) != self.count:
            raise InternalError(f"the block from {self.first} on has not {self.count} values")
        return loaded


class Values:
    """The values of one bundle.

    `once` has values with a single use, `many` small immutable ones; the hot loop uses both
    directly, and `take` for everything else.

    Args:
        run: the run.
        reader: maps what lies in shared memory.
        arena: where large values are sealed.
        nursery: where large arrays may lie already.
        inline_bytes_max: larger values count as large.
        referenced: exports that are described by type and contained references.
    """

    def __init__(
        self,
        run: int,
        reader: Reader,
        arena: Arena,
        nursery: Nursery,
        inline_bytes_max: int,
        referenced: frozenset[int],
    ) -> None:
        self.run = run
        self.reader = reader
        self.arena = arena
        self._nursery = nursery
        self.inline_bytes_max = inline_bytes_max
        self.referenced = referenced
        self.once: dict[int, Any] = {}
        self.many: dict[int, Any] = {}
        self.raw: dict[int, Any] = {}  # exports, to be pickled when the bundle ends
        self.prepared: dict[int, Prepared] = {}  # exports that are sealed already
        self.temporary: list[tuple[Key, Location]] = []  # sealed for uses in this bundle only
        self._sources: dict[int, Any] = {}
        self._split: dict[int, tuple[type, list[list[Any]]]] = {}
        self._array_type = numpy_array_type()

    def add_imports(self, infos: Iterable[ObjectInfo], frames: Iterable[Frame]) -> None:
        """Values from outside; `frames` are those of the inline ones, in order."""
        inline = iter(frames)
        for info in infos:
            source: _MappedImport | _InlineImport
            if info.location is not None:
                source = _MappedImport(self.reader, (self.run, info.first), info)
            else:
                source = _InlineImport(info, next(inline), self.many)
            if info.count == 1:
                self._sources[info.first] = source
            else:
                positions = range(info.first, info.first + info.count)
                self._sources.update(dict.fromkeys(positions, source))

    def take(self, position: int) -> object:
        """The value of a dependency for one use.

        Raises:
            ArgumentError: it can't be unpickled.
            ObjectLost: its bytes are gone.
        """
        if position in self.once:
            return self.once.pop(position)
        if position in self.many:
            return self.many[position]
        source = self._sources.get(position)
        if source is None:
            raise InternalError(f"position {position} of run {self.run} has no value here")
        value: object = source.take(position)
        if not source.remaining:
            del self._sources[position]
        return value

    def take_all(self, positions: Sequence[int]) -> list[object]:
        """The values of a task's dependencies; of a reduction's thousands mostly from `many`."""
        once, many, take = self.once, self.many, self.take
        if once:
            return list(map(take, positions))
        return [many[p] if p in many else take(p) for p in positions]

    def copy(self, position: int) -> object:
        """A copy of a dependency's value, which counts as no use."""
        if position in self.many:
            return self.many[position]
        if position in self.once:
            return load_value(dump_inline(self.once[position]))
        source = self._sources.get(position)
        if source is None:
            raise InternalError(f"position {position} of run {self.run} has no value here")
        copied: object = source.copy(position)
        return copied

    def keep(
        self,
        position: int,
        given: list[object],
        uses: int,
        is_exported: bool,
        items: ItemUsers,
    ) -> None:
        """Keep a result that is exported, or used more than once.

        Args:
            position: whose value it is.
            given: holds the result, and nothing else of ours does; an array is taken out of it
                where it can become an object without being copied.
            uses: tasks of this bundle that take it.
            is_exported: whether it becomes an object.
            items: finds uses that take one item only, and hands them theirs.

        Raises:
            SerializationError: it can't be pickled.
            OutOfMemory: no shared memory is left for it.
        """
        if self._is_array(given[0]) and self._is_large(given[0]):
            name = type_name(given[0]) if position in self.referenced else ""
            location = self._nursery.seal(given)
            if location is not None:
                sealed = Prepared(b"", location, name, ())
                self._keep_sealed(position, sealed, _NOTHING, uses, is_exported)
                return
        value = given[0]
        if self._is_immutable(value):
            is_small = type(value) not in (str, bytes) or (
                len(value) <= self.inline_bytes_max  # type: ignore[arg-type]
            )
            if is_exported and is_small:
                self.raw[position] = value
            elif is_exported:
                self.prepared[position] = self.seal(position, value)
            if uses and is_small:
                self.many[position] = value
            elif uses:
                self._sources[position] = _Kept(value, uses)
            return
        if not uses:
            if self._is_large(value):
                self.prepared[position] = self.seal(position, value)
            else:
                self.raw[position] = value
            return
        if uses > 1 and type(value) in (tuple, list):
            users = items.item_users(position)
            if users and self._hand_out(position, value, users, items, is_exported):
                return
        sealed = self.seal(position, value)
        original = value if uses == 1 or sealed.location is None else _NOTHING
        self._keep_sealed(position, sealed, original, uses, is_exported)

    def _keep_sealed(
        self, position: int, sealed: Prepared, original: object, uses: int, is_exported: bool
    ) -> None:
        if is_exported:
            self.prepared[position] = sealed
        if not uses:
            return
        if sealed.location is None:
            self._sources[position] = _Pickled(sealed.stream, original, uses)
            return
        key: Key = (self.run, position)
        if not is_exported:
            key = ("local", self.run, position, id(self))
            self.temporary.append((key, sealed.location))
        self._sources[position] = _Mapped(self.reader, key, sealed.location, original, uses)

    def seal(self, position: int, value: object) -> Prepared:
        """Pickle a value; a large one into shared memory.

        Raises:
            SerializationError: it can't be pickled.
            OutOfMemory: no shared memory is left for it.
        """
        # Whoever gets the value, the client above all, must know of references in it.
        with collecting_refs() as refs:
            sealed = self._seal(value)
        if position in self.referenced:
            return sealed._replace(type_name=type_name(value), refs=list(dict.fromkeys(refs)))
        return sealed._replace(refs=list(dict.fromkeys(refs))) if refs else sealed

    def needed_elsewhere(self, position: int) -> object:
        """The value of a finished task, for one that did not run and will need it elsewhere."""
        split = self._split.get(position)
        if split is not None:
            kind, holders = split
            return kind(holder[0] if holder else None for holder in holders)
        if position in self.once:
            return self.once[position]
        return self.copy(position)

    def clear(self) -> None:
        """Let go of everything."""
        for held in (self.once, self.many, self.raw, self.prepared, self._sources, self._split):
            held.clear()

    def _seal(self, value: object) -> Prepared:
        dumped = dump_value(value)
        if dumped.size_bytes > self.inline_bytes_max:
            return Prepared(b"", self.arena.write(dumped.stream, dumped.buffers), "", ())
        stream = dump_inline(value) if dumped.buffers else dumped.stream
        return Prepared(stream, None, "", ())

    def _hand_out(
        self,
        position: int,
        value: Any,
        users: Sequence[tuple[int, int]],
        items: ItemUsers,
        is_exported: bool,
    ) -> bool:
        """Give each item of a tuple or list to the one task that takes it, without a copy.

        Only where no two tasks can get at the same memory that way: each item is used at most
        once, and all of them are immutable or arrays that own their memory.
        """
        indexes = [index for _, index in users]
        if not all(-len(value) <= index < len(value) for index in indexes):
            return False
        places = [index % len(value) for index in indexes]
        if len(set(places)) < len(places) or not self._are_apart(value):
            return False
        if is_exported:
            self.prepared[position] = self.seal(position, value)
        holders = [[item] for item in value]
        self._split[position] = (type(value), holders)
        for (task, _), place in zip(users, places, strict=True):
            items.give_item(task, holders[place].pop)
        taken = set(places)
        for place, holder in enumerate(holders):
            if place not in taken:
                holder.clear()
        return True

    def _are_apart(self, items: Sequence[Any]) -> bool:
        """Whether no memory that can be changed belongs to two of the items."""
        seen: set[int] = set()
        item: Any
        for item in items:
            if self._is_immutable(item):
                continue
            if not self._is_array(item) or id(item) in seen:
                return False
            if not item.flags.owndata or item.dtype.hasobject:
                return False
            seen.add(id(item))
        return True

    def _is_array(self, value: object) -> bool:
        return type(value) is self._array_type

    @staticmethod
    def _is_immutable(value: object) -> bool:
        kind = type(value)
        if kind in ATOMIC_TYPES:
            return True
        if kind is tuple or kind is frozenset:
            return len(value) <= SHORT_TUPLE_MAX and (  # type: ignore[arg-type]
                ATOMIC_TYPES.issuperset(map(type, value))  # type: ignore[call-overload]
            )
        return False

    def _is_large(self, value: Any) -> bool:
        """Whether a value is known to be large at a glance; it is sealed at once then."""
        kind = type(value)
        if self._is_array(value):
            return bool(value.nbytes > self.inline_bytes_max)
        if kind is bytearray:
            return len(value) > self.inline_bytes_max
        return False
