"""Columns of integers as few bytes, for files and pages. Pure.

The smallest type that holds all of them; then the lowest byte of all items, the next of all, and so
on, which packs better; then zlib.
"""

import zlib

import numpy as np
from numpy.typing import NDArray

KINDS = ("u1", "u2", "u4", "i1", "i2", "i4", "i8")

Integers = NDArray[np.integer]


def pack(values: Integers, level: int = 1) -> tuple[str, bytes]:
    """The kind of the items, one of `KINDS`, and the packed bytes.

    Example:
        >>> kind, packed = pack(np.array([7, 700]))
        >>> kind, unpack(kind, 2, packed).tolist()
        ('u2', [7, 700])
    """
    kind = _narrowest(values)
    items = np.ascontiguousarray(values, f"<{kind}")
    planes = items.view(np.uint8).reshape(len(items), items.itemsize).T
    return kind, zlib.compress(planes.tobytes(), level)


def unpack(kind: str, count: int, packed: bytes) -> Integers:
    """The items again.

    Raises:
        ValueError: there are more or fewer than `count`; no more than these are unpacked.
    """
    width = int(kind[1])
    data = inflate(packed, count * width)
    planes = np.frombuffer(data, np.uint8).reshape(width, count).T
    items: Integers = np.ascontiguousarray(planes).view(f"<{kind}").reshape(count)
    return items


def inflate(packed: bytes, size_bytes: int) -> bytes:
    """Unpack what must be of this size.

    Raises:
        ValueError: it is of another, or no such data.
    """
    stream = zlib.decompressobj()
    try:
        # One byte more than it may have, so that what is longer is seen and not made.
        data = stream.decompress(packed, size_bytes + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    if len(data) != size_bytes or not stream.eof or stream.unused_data:
        raise ValueError(f"{len(packed)} packed bytes are not {size_bytes}")
    return data


def _narrowest(values: Integers) -> str:
    """The smallest type that holds all of them."""
    low, high = (int(values.min()), int(values.max())) if len(values) else (0, 0)
    return next(kind for kind in KINDS if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max)
