"""The shared memory of a simulated node: bytes by place, with every misuse an error."""

from dagsched.errors import InternalError
from dagsched.protocol.messages import Location

NODE_BYTES = 1 << 40
"""Offsets of one node lie in a range of its own, so that no other's bytes are taken for its."""


class SimMemory:
    """Segments are named ``executor-incarnation-number``; the broker's own begin with ``0-0``.

    Args:
        number: of the node; no other has it.
        limit_bytes: what has no room below it lies in files, as in `Arena`; None: all has room.
    """

    def __init__(self, number: int = 0, limit_bytes: int | None = None) -> None:
        self._number = number
        self._limit_bytes = limit_bytes
        self._segments: dict[str, dict[int, bytearray]] = {}
        self._used_bytes = number * NODE_BYTES
        self._own_count = 0
        self.shared_bytes = 0  # in all segments that are no files
        self.shared_peak_bytes = 0

    def write(self, segment: str, data: bytes) -> Location:
        """Put bytes into a segment."""
        limit = self._limit_bytes
        if limit is not None and self.shared_bytes + len(data) > limit:
            segment = f"/{segment.removeprefix('/')}"
        offset = self._used_bytes
        self._used_bytes += len(data)  # no place is used twice, so that late reads are noticed
        self._segments.setdefault(segment, {})[offset] = bytearray(data)
        location = Location(segment, offset, len(data))
        if not location.is_spilled:
            self.shared_bytes += len(data)
            self.shared_peak_bytes = max(self.shared_peak_bytes, self.shared_bytes)
        return location

    def spill(self, job: int, location: Location) -> Location:
        """Copy an object to a file."""
        return self.write(f"/spill-{job}", self.read(location))

    def write_raw(self, size_bytes: int) -> tuple[Location, memoryview]:
        """Space in the broker's own arena, to be filled; as `Arena.write_raw`."""
        self._own_count += 1
        location = self.write(f"0-0-{self._own_count // 3}", b"\0" * size_bytes)
        return location, memoryview(self._segments[location.segment][location.offset])

    def is_here(self, location: Location) -> bool:
        """Whether this node wrote there, ever."""
        return location.offset // NODE_BYTES == self._number

    def read(self, location: Location) -> bytes:
        """The bytes there.

        Raises:
            InternalError: they were freed.
        """
        data = self._segments.get(location.segment, {}).get(location.offset)
        if data is None or len(data) != location.size_bytes:
            raise InternalError(f"{location} was read after it had been freed")
        return bytes(data)

    def view(self, location: Location) -> memoryview:
        """The same where they lie, for a transfer: freed too early, what is sent is wrong."""
        self.read(location)
        return memoryview(self._segments[location.segment][location.offset])

    def free(self, location: Location, owner: tuple[int, int] = (0, 0)) -> None:
        """Give bytes back to their owner's arena; by default the broker's.

        Raises:
            InternalError: they aren't its own, or were freed before.
        """
        self.read(location)
        prefixes = (f"{owner[0]}-{owner[1]}-", f"/{owner[0]}-{owner[1]}-", "/spill-")
        if not location.segment.startswith(prefixes):
            raise InternalError(f"{location} is not of executor {owner}")
        data = self._segments[location.segment].pop(location.offset)
        data[:] = b"\xff" * len(data)  # whoever still looks sees it
        self.shared_bytes -= 0 if location.is_spilled else len(data)
        if not self._segments[location.segment]:
            del self._segments[location.segment]

    def reclaim(self, executor: int, incarnation: int, keep: frozenset[str]) -> None:
        """Unlink a dead executor's segments but these."""
        prefixes = (f"{executor}-{incarnation}-", f"/{executor}-{incarnation}-")
        for segment in [s for s in self._segments if s.startswith(prefixes) and s not in keep]:
            size = sum(map(len, self._segments.pop(segment).values()))
            self.shared_bytes -= 0 if segment.startswith("/") else size

    def left(self) -> list[str]:
        """Segments that still hold something."""
        return sorted(self._segments)
