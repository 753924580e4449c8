"""Shared memory that one process owns and writes: segments, grown when needed, reused while warm.

Responsible for creating, filling and unlinking segments. Where shared memory has no room, or there
is none, segments are files of the node, mapped in the same way: slower, but what runs goes on. Who
may free what, and when, is decided by the broker; other processes read by
`dagsched.brokers.objects.reader`.
"""

import contextlib
import errno
import logging
import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from dagsched.brokers.objects.layout import (
    PAGE_ALIGNED_MIN,
    PAGE_BYTES,
    ExtentMap,
    plan_layout,
    write_header,
)
from dagsched.brokers.objects.segments import (
    SHM_DIRECTORY,
    base_name,
    create_segment,
    free_bytes,
    shared_bytes,
    unlink_segment,
)
from dagsched.config import Config
from dagsched.errors import InternalError, OutOfMemory
from dagsched.faults import fault
from dagsched.protocol.messages import Frame, Location

logger = logging.getLogger(__name__)

FIRST_SEGMENT_BYTES = 4 << 20
"""Arenas start small and double up to ``segment_bytes``: most executors seal little."""

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.ENOMEM})
NO_PLACE = frozenset({errno.ENOENT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR})
"""Errors that say that segments must lie elsewhere; any other is raised."""

STORE_SEGMENTS = 32
"""Segments of the usual size that a bounded store has room for, at least."""

WARM_LARGE_SEGMENTS_MAX = 2
"""Empty segments of a single large object that are kept: fresh pages cost 3x a copy."""


class Arena:
    """Segments ``<name_prefix>-<k>`` in which this process seals objects.

    Args:
        name_prefix: begins the names of all segments; no slash in it.
        config: sizes and limits.
        spill: directory of segments that are files; None: there are none.
        node_prefix: begins the names of all segments of the node, which ``store_bytes_max`` bounds
            together; None: of this arena alone.
    """

    def __init__(
        self,
        name_prefix: str,
        config: Config,
        spill: Path | None = None,
        node_prefix: str | None = None,
    ) -> None:
        self._prefix = name_prefix
        self._spill = spill
        self._node_prefix = node_prefix if node_prefix is not None else name_prefix
        self._segment_bytes = config.segment_bytes
        if config.store_bytes_max is not None:
            share = config.store_bytes_max // STORE_SEGMENTS & -PAGE_BYTES
            self._segment_bytes = min(config.segment_bytes, max(PAGE_BYTES, share))
        self._names: dict[int, str] = {}
        self._spilled: set[int] = set()  # segments that are files
        self._is_spilling = False
        self._config = config
        self._extents = ExtentMap()
        self._views: dict[int, memoryview] = {}
        self._maps: dict[int, mmap.mmap] = {}
        self._next = 0
        self._fresh_fd = -1  # of the segment that was just made
        self.written_bytes = 0
        self.spare: Callable[[], None] | None = None
        """Frees what is kept here for later; called when room is needed."""

    @property
    def used_bytes(self) -> int:
        """Bytes in use, in whole pages."""
        return self._extents.used_bytes

    @property
    def total_bytes(self) -> int:
        """Bytes of memory and of files that the arena takes."""
        return self._extents.total_bytes

    @property
    def spilled_bytes(self) -> int:
        """Of these the bytes of files."""
        sizes = self._extents.segments
        return sum(sizes[segment] for segment in self._spilled)

    def write(self, stream: Frame, buffers: Sequence[Frame]) -> Location:
        """Seal a pickle and its out-of-band buffers; each byte is copied once.

        Args:
            stream: the pickle.
            buffers: contiguous, of any item type, in the pickle's order.

        Raises:
            OutOfMemory: neither shared memory nor the disk has room.
        """
        views = [memoryview(buffer).cast("B") for buffer in buffers]
        layout = plan_layout(len(stream), [len(view) for view in views])
        try:
            location, target = self._allocate(layout.size_bytes)
            fault("arena.before_seal")
            write_header(target, layout)
            start = layout.stream_offset
            target[start : start + len(stream)] = stream
            for offset, view in zip(layout.offsets, views, strict=True):
                if self._fresh_fd >= 0 and len(view) >= PAGE_ALIGNED_MIN:
                    # Pages that aren't mapped yet are filled sooner by the kernel than mapped.
                    _write_all(self._fresh_fd, view, location.offset + offset)
                else:
                    target[offset : offset + len(view)] = view
        finally:
            self._close_fresh()
        return location

    def write_raw(self, size_bytes: int) -> tuple[Location, memoryview]:
        """Room for the bytes of an object, to be filled by the caller.

        Raises:
            OutOfMemory: neither shared memory nor the disk has room.
        """
        try:
            return self._allocate(size_bytes)
        finally:
            self._close_fresh()

    def _allocate(self, size_bytes: int) -> tuple[Location, memoryview]:
        """See `write_raw`; in a new segment, `_fresh_fd` is open afterwards."""
        extent = self._extents.allocate(size_bytes)
        if extent is None and self.spare is not None and not self._has_room(size_bytes):
            self.spare()
            extent = self._extents.allocate(size_bytes)
        if extent is None:
            self._grow(size_bytes)
            extent = self._extents.allocate(size_bytes)
            if extent is None:
                raise InternalError(f"a new segment has no room for {size_bytes} bytes")
        fault("arena.in_allocator")
        self.written_bytes += size_bytes
        view = self._views[extent.segment][extent.offset : extent.offset + size_bytes]
        return Location(self._names[extent.segment], extent.offset, size_bytes), view

    def try_reserve(self, size_bytes: int) -> tuple[Location, memoryview] | None:
        """Room for what may become an object, in shared memory that's there; None: there's none."""
        extent = self._extents.allocate(size_bytes)
        if extent is None:
            return None
        if extent.segment in self._spilled:
            self._extents.free(extent.segment, extent.offset)
            return None
        location = Location(self._names[extent.segment], extent.offset, size_bytes)
        return location, self._views[extent.segment][extent.offset : extent.offset + size_bytes]

    def free(self, location: Location) -> None:
        """Use an object's bytes again; nobody reads them any more.

        Raises:
            InternalError: the arena has no such object.
        """
        prefix, _, number = base_name(location.segment).rpartition("-")
        if prefix != self._prefix or not number.isdecimal():
            raise InternalError(f"segment {location.segment} is not of arena {self._prefix}")
        segment = int(number)
        self._extents.free(segment, location.offset)
        if self._extents.is_empty(segment):
            self._drop_cold()

    def is_node_full(self) -> bool:
        """Whether others of the node may soon want what is kept here for being warm."""
        limit = self._config.store_bytes_max
        return limit is not None and shared_bytes(self._node_prefix) > limit // 2

    def close(self) -> None:
        """Unmap all segments; they stay for others to read until they are unlinked."""
        for view in self._views.values():
            view.release()
        for mapping in self._maps.values():
            # A slice given out by write_raw may still live; the mapping then goes with it.
            with contextlib.suppress(BufferError):
                mapping.close()
        self._views.clear()
        self._maps.clear()

    def unlink_all(self) -> None:
        """Remove the names of all segments; who has them mapped can still read them."""
        for segment in self._extents.segments:
            unlink_segment(self._names[segment])

    def check(self) -> None:
        """Raise InternalError if the books are wrong."""
        self._extents.check()
        if not set(self._maps) == set(self._names) == set(self._extents.segments):
            raise InternalError("mapped segments are not those of the extent map")

    def _grow(self, size_bytes: int) -> None:
        """Add a segment with room for `size_bytes`; a small one if a usual one does not fit."""
        needed = (max(1, size_bytes) + PAGE_BYTES - 1) & -PAGE_BYTES
        total = self._extents.total_bytes
        usual = min(self._segment_bytes, max(FIRST_SEGMENT_BYTES, total))
        usual = (usual + PAGE_BYTES - 1) & -PAGE_BYTES
        if not self._has_room(max(usual, needed)):
            self.drop_empty()
        sizes = list(dict.fromkeys((max(usual, needed), needed)))
        if any(self._has_room(size) and self._try_add(size) for size in sizes):
            if self._is_spilling:
                logger.warning("there is room in %s again, and new objects go there", SHM_DIRECTORY)
                self._is_spilling = False
            return
        # Files stay small, so that objects go to memory again soon after it has room.
        files = list(dict.fromkeys((max(FIRST_SEGMENT_BYTES, needed), needed)))
        if self._spill is None or not any(self._try_add(size, self._spill) for size in files):
            raise self._out_of_memory(needed)
        if not self._is_spilling:
            logger.warning("%s; new objects go to files in %s, which is slower",
                           self._fullness(needed), self._spill)  # fmt: skip
            self._is_spilling = True

    def _has_room(self, size: int) -> bool:
        limit = self._config.memory_limit_bytes
        if limit is not None and self._extents.total_bytes - self.spilled_bytes + size > limit:
            return False
        limit = self._config.store_bytes_max
        # Two that grow at once may not see each other: one segment a process beyond, at most.
        return limit is None or shared_bytes(self._node_prefix) + size <= limit

    def _close_fresh(self) -> None:
        if self._fresh_fd >= 0:
            os.close(self._fresh_fd)
            self._fresh_fd = -1

    def _try_add(self, size: int, directory: Path | None = None) -> bool:
        """Create, reserve and map a segment; False, and nothing left of it, if there's no room.

        Args:
            size: of the segment.
            directory: of the file that it shall be; None: it shall be shared memory.
        """
        segment = self._next
        name = f"{self._prefix}-{segment}"
        if directory is not None:
            name = f"{directory}/{name}"
        try:
            fd = create_segment(name)
        except OSError as error:
            if error.errno in NO_ROOM | NO_PLACE:
                return False
            raise
        self._next += 1
        try:
            _reserve(fd, size)
            mapping = mmap.mmap(fd, size, flags=mmap.MAP_SHARED)
        except BaseException as error:
            os.close(fd)
            unlink_segment(name)
            if isinstance(error, OSError) and error.errno in NO_ROOM:
                return False
            raise
        self._fresh_fd = fd
        if directory is not None:
            self._spilled.add(segment)
        self._names[segment] = name
        self._maps[segment] = mapping
        self._views[segment] = memoryview(mapping)
        self._extents.add_segment(segment, size)
        return True

    def _drop_cold(self) -> None:
        """Unlink empty segments: files, and of those of single large objects all but the latest.

        Of the others the latest stay, as many as have room in one of the usual size: every process
        of a node has an arena, and each would keep its own peak for good.
        """
        usual = self._segment_bytes
        sizes = self._extents.segments
        empty = [segment for segment in sizes if self._extents.is_empty(segment)]
        cold = [segment for segment in empty if segment in self._spilled]
        empty = [segment for segment in empty if segment not in self._spilled]
        large = [segment for segment in empty if sizes[segment] > usual]
        room, keep = usual, WARM_LARGE_SEGMENTS_MAX
        if self.is_node_full():
            room = keep = 0
        cold += large[: max(0, len(large) - keep)]
        for segment in reversed(empty):
            if sizes[segment] <= usual:
                room -= sizes[segment]
                if room < 0:
                    cold.append(segment)
        for segment in cold:
            self._drop(segment)

    def drop_empty(self) -> None:
        """Unlink all empty segments: room is needed elsewhere, or nothing is done here any more."""
        for segment in self._extents.segments:
            if self._extents.is_empty(segment):
                self._drop(segment)

    def _drop(self, segment: int) -> None:
        self._extents.remove_segment(segment)
        self._views.pop(segment).release()
        mapping = self._maps.pop(segment)
        with contextlib.suppress(BufferError):
            mapping.close()
        self._spilled.discard(segment)
        unlink_segment(self._names.pop(segment))

    def _fullness(self, needed: int) -> str:
        limit = self._config.memory_limit_bytes
        own = f"this process's arena holds {self._extents.total_bytes - self.spilled_bytes:,} bytes"
        if limit is not None:
            own += f" of at most {limit:,} (memory_limit_bytes)"
        if self._config.store_bytes_max is not None:
            node, most = shared_bytes(self._node_prefix), self._config.store_bytes_max
            own += f", its node {node:,} of at most {most:,} (store_bytes_max)"
        return (
            f"no shared memory for {needed:,} more bytes: {own}, and {SHM_DIRECTORY} has "
            f"{free_bytes(SHM_DIRECTORY):,} bytes free"
        )

    def _out_of_memory(self, needed: int) -> OutOfMemory:
        disk = ""
        if self._spill is not None:
            disk = (
                f"; nor is there room for a file: {self.spilled_bytes:,} bytes of this arena are "
                f"in {self._spill}, which has {free_bytes(self._spill):,} bytes free"
            )
        return OutOfMemory(
            f"{self._fullness(needed)}{disk}; make {SHM_DIRECTORY} larger, raise the limit, name a "
            "larger Config.spill_directory, or keep fewer and smaller results alive at once"
        )


def _reserve(fd: int, size: int) -> None:
    """Give the file `size` bytes that are really there, so that writing never means SIGBUS."""
    fault("arena.reserve")
    while True:
        try:
            os.posix_fallocate(fd, 0, size)
            return
        except InterruptedError:
            continue


def _write_all(fd: int, view: memoryview, offset: int) -> None:
    while len(view):
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
