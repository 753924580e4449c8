"""Strategies for what no honest peer sends: noise, damage, and well-typed messages at random."""

import types
import typing

import msgspec
from hypothesis import strategies as st

from dagsched.protocol.codec import encode_batch
from dagsched.protocol.messages import BrokerToBroker, BrokerToMaster, MasterToBroker, Parcel

EDGES = [
    0,
    1,
    2,
    3,
    63,
    64,
    65,
    1000,
    2**31 - 1,
    2**31,
    2**63 - 1,
    2**64 - 1,
    -1,
    -(2**31),
    -(2**63),
]

ints = st.one_of(st.integers(0, 5), st.sampled_from(EDGES))
floats = st.one_of(st.sampled_from([0.0, 1.0, -1.0, 1e300]), st.floats(allow_nan=True))
texts = st.one_of(
    st.sampled_from(["", "raised", "lost", "ipc://x", "tcp://127.0.0.1:1", "/etc/passwd", "a/b"]),
    st.text(max_size=8),
)
arrays = st.lists(st.integers(-1, 5), max_size=6).map(
    lambda values: b"".join(value.to_bytes(4, "little", signed=True) for value in values)
)
frames = st.lists(
    st.one_of(arrays, st.sampled_from([b"", bytes(8), bytes(16)]), st.binary(max_size=9)),
    max_size=10,
)

CORPUS = [
    b"", b"\x00", b"\xc1", b"\xff" * 64, b"\x98", b"\x98\x02", b"\x98\x02" + bytes(6) + b"\x90",
    b"\x98\x02" + bytes(6) + b"\xdd\xff\xff\xff\xff", b"\x91" * 10_000, b"\x81" * 10_000,
    b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff", b"\xdb\xff\xff\xff\xff", b"\x93\x01\x00\x90",
    b"\x98\x02" + b"\xcf" + b"\xff" * 8 + bytes(5) + b"\x90",
    b"\x98\x02" + bytes(6) + b"\x91\x92\x00" + b"\x92" * 5_000,
    b"\x98\x02" + bytes(6) + b"\x91\x92\xce\xff\xff\xff\xff\x91\xa4stop",
    b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94",  # a pickle
    b"GET / HTTP/1.1\r\n\r\n", b"{}", b"[[[[", b"\xef\xbb\xbf{",
]  # fmt: skip
"""Short stand-ins for each kind of harm: empty, cut, deep, long, of another version or program."""


def values_of(kind):
    """A strategy for a field's type: right in type, anything in value."""
    simple = {
        int: ints,
        float: floats,
        str: texts,
        bytes: st.binary(max_size=16),
        bool: st.booleans(),
    }
    if kind in simple:
        return simple[kind]
    if kind is type(None):
        return st.none()
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (types.UnionType, typing.Union):
        return st.one_of(*map(values_of, args))
    if origin is tuple:
        return st.tuples(*map(values_of, args))
    if origin is not None:  # a Sequence
        return st.lists(values_of(args[0]), max_size=3)
    return messages_of(kind)


def messages_of(kind):
    """A strategy for a struct."""
    hints = typing.get_type_hints(kind)
    names = [field.name for field in msgspec.structs.fields(kind)]
    return st.builds(kind, **{name: values_of(hints[name]) for name in names})


def parcels_of(union):
    """A strategy for parcels of any message of a union."""
    kinds = [messages_of(kind) for kind in typing.get_args(union)]
    return st.builds(Parcel, st.one_of(*kinds), frames)


UNIONS = [MasterToBroker, BrokerToMaster, BrokerToBroker]

batches = st.one_of(
    *(st.lists(parcels_of(union), max_size=2).map(lambda p: encode_batch(p, 1)) for union in UNIONS)
)
"""Encoded, to be damaged."""


@st.composite
def damaged(draw):
    """A batch of which some bytes are others, missing, or too many."""
    header, *rest = draw(batches)
    header = bytearray(header)
    for _ in range(draw(st.integers(0, 4))):
        if header:
            header[draw(st.integers(0, len(header) - 1))] = draw(st.integers(0, 255))
    end = draw(st.one_of(st.just(len(header)), st.integers(0, len(header))))
    extra = draw(st.one_of(st.just(b""), st.binary(max_size=8), st.sampled_from(CORPUS)))
    return [bytes(header[:end]) + extra, *rest[: draw(st.integers(0, 12))]]
