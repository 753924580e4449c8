"""What leaves a bundle: values pickled into objects, alone or in blocks.

Responsible for turning the groups that the broker asked for into objects and their inline frames;
a value that can't be pickled, or has no room, becomes a failure of its task.
"""

from collections.abc import Callable, Sequence

from dagsched.brokers.status import IDLE_POSITION, POSITION
from dagsched.brokers.values import Prepared, Values
from dagsched.errors import InternalError
from dagsched.pickling import dumps
from dagsched.protocol.messages import ObjectInfo
from dagsched.ref import collecting_refs
from dagsched.serialize import dump_inline, load_value

PICKLE_OVERHEAD_BYTES = 32
"""What a list of pickles costs beyond its items, at most."""


class Exports:
    """Collects the objects of one bundle.

    Args:
        values: where the values are.
        fail: told of a position whose value can't be exported, and why.
        status: words shared with the broker, where POSITION says whose value is being pickled: user
            code runs then, and may end the process.
    """

    def __init__(
        self, values: Values, fail: Callable[[int, Exception], None], status: memoryview
    ) -> None:
        self._values = values
        self._fail = fail
        self._status = status
        self.infos: list[ObjectInfo] = []
        self.frames: list[bytes] = []

    def add_group(self, first: int, count: int) -> None:
        """Export what there is of positions ``first : first + count``."""
        values = self._values
        if count == 1:
            if first in values.prepared or first in values.raw:
                self.add_single(first)
            return
        positions = range(first, first + count)
        if not values.prepared and not values.referenced:
            plain = [values.raw[position] for position in positions if position in values.raw]
            if len(plain) == count:
                self._add_block(first, plain)
                return
        block: list[object] = []
        for position in positions:
            prepared = values.prepared.get(position)
            is_alone = position in values.referenced or (
                prepared is not None and prepared.location is not None
            )
            if not is_alone and (prepared is not None or position in values.raw):
                block.append(self._value(position))
                continue
            self._add_block(position - len(block), block)
            block = []
            if is_alone and (prepared is not None or position in values.raw):
                self.add_single(position)
        self._add_block(first + count - len(block), block)

    def add_single(self, position: int) -> None:
        """Export one value as an object of its own."""
        self._status[POSITION] = position
        sealed = self._values.prepared.get(position)
        if sealed is None:
            try:
                sealed = self._values.seal(position, self._values.raw[position])
            except Exception as error:  # noqa: BLE001 - reported as the task's failure
                self._fail(position, error)
                return
        self._emit(position, sealed)

    def add_extra(self, position: int) -> None:
        """Export a value that tasks will need which did not run here after all."""
        self._status[POSITION] = position
        try:
            value = self._values.needed_elsewhere(position)
            sealed = self._values.seal(position, value)
        except Exception as error:  # noqa: BLE001 - reported as the task's failure
            self._fail(position, error)
            return
        self._emit(position, sealed)

    def _emit(self, position: int, sealed: Prepared) -> None:
        location = sealed.location
        size = len(sealed.stream) if location is None else location.size_bytes
        self.infos.append(ObjectInfo(position, 1, size, location, sealed.type_name, sealed.refs))
        if location is None:
            self.frames.append(sealed.stream)

    def _add_block(self, first: int, items: list[object]) -> None:
        """Export consecutive values as one inline object, or as several where it is large."""
        count = len(items)
        if count <= 1:
            for position in range(first, first + count):
                self.add_single(position)
            return
        self._status[POSITION] = IDLE_POSITION  # it may be any of them
        try:
            with collecting_refs() as refs:
                data = dumps(items)
        except Exception:  # noqa: BLE001 - one of them can't be pickled; piece by piece shows which
            data = None
        limit = self._values.inline_bytes_max
        if data is not None and len(data) <= limit:
            distinct = list(dict.fromkeys(refs))
            self.infos.append(ObjectInfo(first, count, len(data), refs=distinct))
            self.frames.append(data)
            return
        parts = count if data is None else -(-len(data) // limit)
        if parts >= count:
            self._add_pieces(range(first, first + count))
            return
        step = -(-count // parts)
        for start in range(0, count, step):
            self._add_block(first + start, items[start : start + step])

    def _value(self, position: int) -> object:
        prepared = self._values.prepared.get(position)
        if prepared is None:
            return self._values.raw[position]
        return load_value(prepared.stream)

    def _add_pieces(self, block: Sequence[int]) -> None:
        """Cut a block where its pickle would get too large; large values go alone."""
        limit = self._values.inline_bytes_max - PICKLE_OVERHEAD_BYTES
        piece: list[int] = []
        size = 0
        for position in block:
            sealed = self._values.prepared.get(position)
            self._status[POSITION] = position
            if sealed is None:
                try:
                    sealed = self._values.seal(position, self._values.raw[position])
                except Exception as error:  # noqa: BLE001 - reported as the task's failure
                    self._add_piece(piece)
                    piece, size = [], 0
                    self._fail(position, error)
                    continue
                self._values.prepared[position] = sealed
            if sealed.location is not None or size + len(sealed.stream) > limit:
                self._add_piece(piece)
                piece, size = [], 0
            if sealed.location is not None:
                self._emit(position, sealed)
                continue
            piece.append(position)
            size += len(sealed.stream)
        self._add_piece(piece)

    def _add_piece(self, piece: Sequence[int]) -> None:
        if len(piece) == 1:
            self._emit(piece[0], self._values.prepared[piece[0]])
        elif piece:
            if piece[-1] - piece[0] != len(piece) - 1:
                raise InternalError(f"a block from {piece[0]} on has gaps")
            data = dump_inline([load_value(self._values.prepared[p].stream) for p in piece])
            self.infos.append(ObjectInfo(piece[0], len(piece), len(data)))
            self.frames.append(data)
