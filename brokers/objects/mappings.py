"""Private mappings of large objects, kept from one use to the next while their pages are there.

Responsible for mapping an object's place privately (copy-on-write), and for doing that once a
place: the page faults of a fresh mapping take longer than reading what it maps. What a use changed
is undone before the next one: pages of our own give way to those of the segment.
"""

import contextlib
import mmap
import os
import resource
import threading
import weakref
from collections import OrderedDict
from collections.abc import Container
from dataclasses import dataclass

import numpy as np

from dagsched.brokers.objects.layout import PAGE_BYTES
from dagsched.protocol.messages import Location

KEPT_BYTES_MIN = 1 << 20
"""Smaller places are mapped anew for each use: their faults cost little."""

KEPT_MAX = 32
"""Mappings kept while nobody uses them; each has a descriptor."""

KEPT_BYTES_MAX = 4 << 30
"""What they map together at most. It is no memory of its own, but keeps that of segments which
were unlinked until the process looks the next time."""

RANGES_MAX = 64
"""Changed ranges of a mapping that are undone one by one; with more of them all of it is."""

_PAGEMAP = "/proc/self/pagemap"
_IN_USE, _SHARED = 0xC0, 0x20
"""Of the top byte of a page's word there: present or swapped; of a file or shared memory."""

Place = tuple[str, int, int]


@dataclass(eq=False, slots=True)
class _Mapping:
    place: Place
    memory: mmap.mmap
    address: int = 0
    fault_count: int = 0  # of this process when its use began; then: during its use

    def close(self) -> None:
        with contextlib.suppress(BufferError):  # it ends with the last view of it then
            self.memory.close()

    def try_undo(self) -> bool:
        """Undo changes of its last use; False: the system doesn't tell what was changed."""
        if not self.fault_count:
            return True  # the first write to a page of a private mapping is a fault
        first, count = self.address // PAGE_BYTES, -(-len(self.memory) // PAGE_BYTES)
        try:
            # Opened each time: user code may have closed any descriptor, and opened another file.
            with open(_PAGEMAP, "rb", buffering=0) as pagemap:
                words = os.pread(pagemap.fileno(), 8 * count, 8 * first)
        except OSError:
            return False
        if len(words) != 8 * count:
            return False
        flags = np.frombuffer(words, np.uint8)[7::8]
        changed = ((flags & _IN_USE) != 0) & ((flags & _SHARED) == 0)
        if not changed.any():
            return True
        borders = np.flatnonzero(np.diff(changed, prepend=False, append=False)).reshape(-1, 2)
        if len(borders) > RANGES_MAX:
            borders = np.array([[0, count]])
        for start, end in (borders * PAGE_BYTES).tolist():
            self.memory.madvise(mmap.MADV_DONTNEED, start, min(end, len(self.memory)) - start)
        return True


class Mappings:
    """Maps places of segments for a `Reader`; any thread may.

    Args:
        files: segments that are open; of others no mapping is kept.
    """

    def __init__(self, files: Container[str]) -> None:
        self._files = files
        # Tasks may have threads that collect, and objects whose end does within a collection here.
        self._lock = threading.RLock()
        self._kept: OrderedDict[_Mapping, None] = OrderedDict()  # unused ones, oldest first
        self._by_place: dict[Place, list[_Mapping]] = {}  # the same
        self._kept_bytes = 0
        self._used: list[_Mapping] = []  # unused since the last look, and maybe changed
        self._can_keep = os.access(_PAGEMAP, os.R_OK)

    def map(self, location: Location, fd: int) -> tuple[memoryview, "weakref.ref[object]"]:
        """The bytes of a place, writable, and what lives as long as any view of them.

        Args:
            location: the place.
            fd: of its segment.

        Raises:
            OSError: there can be no further mapping.
            ValueError: the segment ends before the place does.
        """
        if location.size_bytes < KEPT_BYTES_MIN or not self._can_keep:
            memory = _map_privately(location, fd)
            return memoryview(memory), weakref.ref(memory)
        place = (location.segment, location.offset, location.size_bytes)
        with self._lock:
            self._tidy()
            same = self._by_place.get(place)
            mapping = self._take(same[-1]) if same else None
        if mapping is None:
            mapping = _Mapping(place, _map_privately(location, fd))
        return self._lease(mapping)

    def tidy(self) -> None:
        """Undo changes in mappings that have become unused; keep as many as may be kept."""
        with self._lock:
            self._tidy()

    def drop(self, segment: str | None = None) -> None:
        """End unused mappings of a segment; None: of all."""
        with self._lock:
            self._tidy()
            for mapping in list(self._kept):
                if segment is None or mapping.place[0] == segment:
                    self._take(mapping).close()

    def _lease(self, mapping: _Mapping) -> tuple[memoryview, "weakref.ref[object]"]:
        """A view of it all, and what views keep alive in its stead: the mapping outlives them."""
        lease = np.frombuffer(mapping.memory, np.uint8)
        mapping.address = lease.__array_interface__["data"][0]
        mapping.fault_count = _fault_count()

        def end_use(_: object) -> None:
            mapping.fault_count = _fault_count() - mapping.fault_count
            self._used.append(mapping)

        return lease.data, weakref.ref(lease, end_use)

    def _tidy(self) -> None:
        while self._used:
            mapping = self._used.pop()
            if mapping.place[0] not in self._files or not mapping.try_undo():
                mapping.close()
                continue
            self._kept[mapping] = None
            self._by_place.setdefault(mapping.place, []).append(mapping)
            self._kept_bytes += mapping.place[2]
        while self._kept and (len(self._kept) > KEPT_MAX or self._kept_bytes > KEPT_BYTES_MAX):
            self._take(next(iter(self._kept))).close()

    def _take(self, mapping: _Mapping) -> _Mapping:
        """Out of those kept."""
        del self._kept[mapping]
        same = self._by_place[mapping.place]
        same.remove(mapping)
        if not same:
            del self._by_place[mapping.place]
        self._kept_bytes -= mapping.place[2]
        return mapping


def _fault_count() -> int:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_minflt + usage.ru_majflt


def _map_privately(location: Location, fd: int) -> mmap.mmap:
    return mmap.mmap(
        fd,
        location.size_bytes,
        flags=mmap.MAP_PRIVATE,
        prot=mmap.PROT_READ | mmap.PROT_WRITE,
        offset=location.offset,
    )
