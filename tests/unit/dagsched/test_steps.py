"""Arrays in few bytes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagsched.protocol.steps import pack_steps, unpack_steps

COUNT = 10_000


@pytest.mark.parametrize(
    ("numbers", "form", "most_bytes"),
    [
        (np.arange(COUNT, dtype=np.int32), "runs", 32),
        (np.full(COUNT, 7, np.int32), "runs", 32),
        (np.zeros(COUNT, np.uint8), "runs", 32),
        (np.array([0] * COUNT + [COUNT], np.int64), "runs", 48),
        (np.arange(COUNT, dtype=np.int64) // 3, "i1", COUNT),
        (np.arange(COUNT, dtype=np.int32) ** 2 % 30_000, "<i2", 2 * COUNT),
        (np.random.default_rng(1).integers(0, 1 << 31, COUNT), "<i4", 4 * COUNT),
        (np.random.default_rng(1).integers(0, 1 << 31, COUNT).astype(np.int32), "", 4 * COUNT),
        (np.random.default_rng(1).integers(0, 1 << 50, COUNT), "", 8 * COUNT),
        (np.random.default_rng(1).integers(0, 255, COUNT, np.uint8), "", COUNT),
        (np.arange(100, dtype=np.int32), "", 400),
        (np.zeros(0, np.int32), "", 0),
    ],
    ids=lambda value: "" if isinstance(value, np.ndarray) else None,
)
def test_forms(numbers: np.ndarray, form: str, most_bytes: int) -> None:
    found, frame = pack_steps(numbers)
    assert found == form
    assert len(frame) <= most_bytes
    back = unpack_steps(found, bytes(frame), numbers.dtype.str)
    assert back.dtype == numbers.dtype
    assert np.array_equal(back, numbers)


@given(
    st.lists(st.tuples(st.integers(-(2**30), 2**30), st.integers(1, 400)), max_size=12),
    st.sampled_from([np.int32, np.int64]),
)
@settings(max_examples=100, deadline=None)
def test_round_trip(runs: list[tuple[int, int]], kind: type) -> None:
    steps = np.repeat([step for step, _ in runs], [count for _, count in runs])
    numbers = (np.cumsum(steps) % 2**31).astype(kind)
    form, frame = pack_steps(numbers)
    assert np.array_equal(unpack_steps(form, frame, numbers.dtype.str), numbers)


@pytest.mark.parametrize(
    ("form", "frame"),
    [
        ("f8", bytes(8)),
        ("runs", bytes(15)),
        ("runs", np.array([1, 0], np.int64).tobytes()),
        ("runs", np.array([1, -5], np.int64).tobytes()),
        ("runs", np.array([1, 1 << 40], np.int64).tobytes()),
        ("runs", np.array([1, 1, 1 << 31, 1 << 31], np.int64).tobytes()),
        ("<i2", bytes(3)),
    ],
)
def test_what_is_no_array(form: str, frame: bytes) -> None:
    with pytest.raises(ValueError, match=r"form|lengths|size|reshape"):
        unpack_steps(form, frame, "<i4")
