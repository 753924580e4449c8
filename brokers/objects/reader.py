"""Objects of this node read where they lie: private mappings, and which of them still have views.

Responsible for opening segments by name, for values whose buffers point into a private
copy-on-write mapping (zero copies, writable, harmless to others), and for telling which of those
buffers user code still keeps, so that the bytes below are not used again too early.
"""

import errno
import mmap
import os
import weakref
from collections import OrderedDict
from collections.abc import Hashable

from dagsched.brokers.objects.layout import Layout, header_bytes, read_header
from dagsched.brokers.objects.mappings import Mappings
from dagsched.brokers.objects.segments import open_segment
from dagsched.errors import InternalError, ObjectLost
from dagsched.protocol.messages import Frame, Location
from dagsched.serialize import load_value

COPY_BYTES_MAX = 128 << 10
"""Smaller objects are copied: a mapping with its page faults costs as much, and a descriptor."""

ANONYMOUS_BYTES_MIN = 1 << 20
"""From here on copies go to fresh mappings, which nobody has to fill with zeros first."""

FILES_MAX = 64

_HEADER_GUESS_BYTES = 4096

Key = Hashable


class Reader:
    """Loads objects by location; keeps the segments' descriptors and an eye on mappings."""

    def __init__(self) -> None:
        self._files: OrderedDict[str, int] = OrderedDict()
        self._mappings = Mappings(self._files)
        self._live: dict[Key, list[weakref.ref[object]]] = {}  # what lives as long as views of it
        self._held: set[Key] = set()
        self.read_bytes = 0

    def load(self, key: Key, location: Location) -> object:
        """The value of an object, its buffers in a private mapping of the object's pages.

        Args:
            key: names the object in `try_close`.
            location: where it lies.

        Raises:
            ObjectLost: its segment is gone.
        """
        self.read_bytes += location.size_bytes
        if location.size_bytes <= COPY_BYTES_MAX:
            return self._copy(location)
        fd = self._open(location.segment)
        try:
            view, lease = self._mappings.map(location, fd)
        except OSError as error:
            # Each mapping takes a descriptor; a task with thousands of inputs gets copies then.
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                return self._copy(location)
            raise
        except ValueError:
            raise _too_short(location) from None
        layout = read_header(view, location.size_bytes)
        if not layout.offsets:
            return load_value(_stream_of(view, layout), ())
        self._live.setdefault(key, []).append(lease)
        return load_value(_stream_of(view, layout), _buffers_of(view, layout))

    def copy_value(self, location: Location) -> object:
        """The value of an object, all of its bytes copied to this process's own memory.

        Raises:
            ObjectLost: its segment is gone.
        """
        self.read_bytes += location.size_bytes
        return self._copy(location)

    def try_close(self) -> tuple[list[Key], list[Key]]:
        """See which objects are still in use.

        Views end by themselves; this only looks.

        Returns:
            keys of objects now found to be in use, not told before; keys told before whose last
            view has died since. In order of loading.
        """
        held: list[Key] = []
        dropped: list[Key] = []
        for key, references in list(self._live.items()):
            alive = [reference for reference in references if reference() is not None]
            if alive:
                self._live[key] = alive
                if key not in self._held:
                    self._held.add(key)
                    held.append(key)
            else:
                del self._live[key]
                if key in self._held:
                    self._held.remove(key)
                    dropped.append(key)
        return held, dropped

    def tidy(self) -> None:
        """Let go of segments that were unlinked, and make mappings ready for their next use."""
        self._mappings.tidy()
        for name, fd in list(self._files.items()):
            if os.fstat(fd).st_nlink == 0:
                self._mappings.drop(name)
                os.close(self._files.pop(name))

    def is_live(self, key: Key) -> bool:
        """Whether a mapping of the object was alive when `try_close` last looked."""
        return key in self._live

    @property
    def live_count(self) -> int:
        """Objects of which a mapping was alive when last looked at."""
        return len(self._live)

    @property
    def file_count(self) -> int:
        """Segments that are open."""
        return len(self._files)

    def close(self) -> None:
        """Close all descriptors, and mappings but those in use, which stay with their views.

        What is loaded later is opened anew.
        """
        self._mappings.drop()
        while self._files:
            os.close(self._files.popitem()[1])

    def _open(self, name: str) -> int:
        fd = self._files.get(name)
        if fd is not None:
            self._files.move_to_end(name)
            return fd
        fd = _open_segment(name)
        self._files[name] = fd
        if len(self._files) > FILES_MAX:
            oldest, unused = self._files.popitem(last=False)
            self._mappings.drop(oldest)
            os.close(unused)
        return fd

    def _copy(self, location: Location) -> object:
        fd = self._open(location.segment)
        if location.size_bytes <= COPY_BYTES_MAX:
            whole = bytearray(location.size_bytes)
            _read_into(fd, whole, location, 0)
            view = memoryview(whole)
            layout = read_header(view, location.size_bytes)
            return load_value(_stream_of(view, layout), _buffers_of(view, layout))
        start = bytearray(min(location.size_bytes, _HEADER_GUESS_BYTES))
        _read_into(fd, start, location, 0)
        needed = header_bytes(start)
        if needed > len(start):
            if needed > location.size_bytes:
                raise InternalError(f"the header of {location} is longer than the object")
            start = bytearray(needed)
            _read_into(fd, start, location, 0)
        layout = read_header(start, location.size_bytes)
        stream = _private_buffer(layout.stream_bytes)
        _read_into(fd, stream, location, layout.stream_offset)
        buffers: list[Frame] = []
        for offset, length in zip(layout.offsets, layout.lengths, strict=True):
            buffer = _private_buffer(length)
            _read_into(fd, buffer, location, offset)
            buffers.append(memoryview(buffer)[:length])
        return load_value(memoryview(stream)[: layout.stream_bytes], buffers)


def copy_value(location: Location) -> object:
    """The value at `location`, copied to this process's own memory; nothing stays open.

    Raises:
        ObjectLost: its segment is gone.
    """
    reader = Reader()
    try:
        return reader.copy_value(location)
    finally:
        reader.close()


def _open_segment(name: str) -> int:
    try:
        return open_segment(name)
    except FileNotFoundError:
        raise ObjectLost(
            f"segment {name} is gone: the node that held it has been removed"
        ) from None


def _read_into(fd: int, target: bytearray | mmap.mmap, location: Location, offset: int) -> None:
    """Fill `target` with the object's bytes from `offset` on."""
    view = memoryview(target)
    done = 0
    while done < len(view):
        count = os.preadv(fd, [view[done:]], location.offset + offset + done)
        if count == 0:
            raise _too_short(location)
        done += count


def _private_buffer(length: int) -> bytearray | mmap.mmap:
    if length < ANONYMOUS_BYTES_MIN:
        return bytearray(length)
    return mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)


def _stream_of(view: memoryview, layout: Layout) -> memoryview:
    return view[layout.stream_offset : layout.stream_offset + layout.stream_bytes]


def _buffers_of(view: memoryview, layout: Layout) -> list[Frame]:
    return [
        view[offset : offset + length]
        for offset, length in zip(layout.offsets, layout.lengths, strict=True)
    ]


def _too_short(location: Location) -> InternalError:
    return InternalError(
        f"segment {location.segment} ends before {location.offset + location.size_bytes}"
    )
