"""Arrays of whole numbers in few bytes: as runs of equal steps, or as narrow steps. Pure.

A graph's arrays mostly count up, repeat, or move by little, and are most of what is written down of
a run of short tasks: a store copies each byte half a dozen times.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from dagsched.protocol.structs import Frame

RAW, RUNS = "", "runs"
NARROW = ("i1", "<i2", "<i4")

_ITEMS_MIN = 512
"""Shorter arrays are left as they are."""

_SAMPLE_ITEMS = 256
_ITEMS_MAX = 1 << 31

Whole = NDArray[np.integer[Any]]


def pack_steps(numbers: Whole) -> tuple[str, Frame]:
    """Form and bytes of an array: little-endian, contiguous, of numbers below 2**62.

    Example:
        >>> form, frame = pack_steps(np.arange(100_000))
        >>> form, len(frame)
        ('runs', 32)
        >>> unpack_steps(form, frame, "<i4")[-2:]
        array([99998, 99999], dtype=int32)
    """
    if len(numbers) < _ITEMS_MIN:
        return RAW, _bytes_of(numbers)
    steps = np.empty(len(numbers), np.int64)
    steps[0] = numbers[0]
    np.subtract(numbers[1:], numbers[:-1], out=steps[1:], dtype=np.int64)
    sample = steps[:_SAMPLE_ITEMS]
    if np.count_nonzero(sample[1:] != sample[:-1]) < _SAMPLE_ITEMS // 8:
        starts = np.concatenate(([0], np.flatnonzero(steps[1:] != steps[:-1]) + 1))
        runs = np.stack((steps[starts], np.diff(starts, append=len(steps))))
        if 2 * runs.nbytes < numbers.nbytes:
            return RUNS, _bytes_of(runs)
    least, most = int(steps.min()), int(steps.max())
    for form in NARROW:
        kind = np.dtype(form)
        if kind.itemsize < numbers.itemsize and np.iinfo(kind).min <= least <= most:
            if most <= np.iinfo(kind).max:
                return form, _bytes_of(steps.astype(kind))
    return RAW, _bytes_of(numbers)


def unpack_steps(form: str, frame: Frame, dtype: str) -> NDArray[Any]:
    """The array again, as numbers of `dtype`.

    Raises:
        ValueError: that is no form, or the bytes aren't of it.
    """
    if form == RAW:
        return np.frombuffer(frame, dtype)
    if form == RUNS:
        values, counts = np.frombuffer(frame, "<i8").reshape(2, -1)
        if len(counts) and not 0 < counts.min() <= counts.max() <= _ITEMS_MAX:
            raise ValueError("runs of impossible lengths")
        if counts.astype(np.float64).sum() > _ITEMS_MAX:
            raise ValueError("runs of impossible lengths")
        steps: Whole = np.repeat(values, counts)
    elif form in NARROW:
        steps = np.frombuffer(frame, form)
    else:
        raise ValueError(f"no form of an array: {form!r}")
    return np.cumsum(steps, dtype=np.int64).astype(dtype)


def _bytes_of(numbers: Whole) -> Frame:
    return numbers.data.cast("B") if numbers.size else b""
