"""Plans as frames, for the journal and for tasks that return graphs. Pure.

A header in MessagePack says how many frames of each kind follow; arrays are raw and
little-endian. Decoding checks every number that scheduling later relies upon, so that a broken
plan is refused here and never indexes out of range elsewhere. Pickles stay opaque.
"""

from collections.abc import Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from dagsched.errors import ProtocolError
from dagsched.plan import ConstantSource, RefSource, RunPlan
from dagsched.protocol.messages import CHUNK_TASKS, Frame, FunctionInfo, TaskOptions
from dagsched.protocol.steps import RAW, pack_steps, unpack_steps
from dagsched.protocol.structs import Struct

VERSION = 2
"""Changes with the meaning of the frames."""

_ARRAYS = ("subtree_starts", "indptr", "deps", "function_of", "flags", "level_starts", "outputs")
_DTYPES = {"subtree_starts": "<i8", "indptr": "<i8", "flags": "u1"}  # of the others: <i4


class _Header(Struct, frozen=True, tag="plan"):
    """First frame. `refs`: (run, position, bytes) of a reference, None for a constant's frame.

    `forms`: of each array, see `steps`; none: they are as they are.
    """

    version: int
    interlocked: bool
    chunk_count: int
    functions: Sequence[FunctionInfo]
    options: Sequence[TaskOptions]
    refs: Sequence[tuple[int, int, int] | None]
    forms: Sequence[str] = ()


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Header)


def encode_plan(plan: RunPlan) -> list[Frame]:
    """Returns the frames of a plan: header, arrays, functions, chunks, constants."""
    frames: list[Frame] = []
    for name in _ARRAYS:
        array = _plain(plan, name)
        # A view: a plan is never changed, and its arrays are what a large graph mostly is.
        frames.append(array.data.cast("B") if array.size else b"")
    return _with_header(plan, frames, ())


def pack_plan(plan: RunPlan) -> list[Frame]:
    """The same in few bytes, for `unpack_plan`."""
    packed = [pack_steps(_plain(plan, name)) for name in _ARRAYS]
    return _with_header(plan, [frame for _, frame in packed], [form for form, _ in packed])


def _plain(plan: RunPlan, name: str) -> NDArray[np.signedinteger]:
    return np.ascontiguousarray(getattr(plan, name), _DTYPES.get(name, "<i4"))


def _with_header(plan: RunPlan, arrays: Sequence[Frame], forms: Sequence[str]) -> list[Frame]:
    refs = [
        (source.run, source.position, source.size_bytes) if type(source) is RefSource else None
        for source in plan.sources
    ]
    header = _Header(
        VERSION,
        plan.interlocked,
        len(plan.chunks),
        plan.functions,
        list(plan.options.values()),
        refs,
        forms,
    )
    frames: list[Frame] = [_encoder.encode(header), *arrays]
    frames.extend(plan.function_pickles)
    frames.extend(plan.chunks)
    frames.extend(source.data for source in plan.sources if isinstance(source, ConstantSource))
    return frames


def decode_plan(frames: Sequence[Frame]) -> RunPlan:
    """Returns the plan that frames hold; large ones are not copied.

    Raises:
        ProtocolError: They are not those of a plan, or its parts don't fit together.
    """
    header = _decoded_header(frames)
    if header.forms:
        raise ProtocolError("a plan is packed where none may be")
    return _decoded(header, frames)


def unpack_plan(frames: Sequence[Frame]) -> RunPlan:
    """Returns the plan that frames of `pack_plan` hold.

    Only for what this user has written: some bytes can stand for gigabytes.

    Raises:
        ProtocolError: They are not those of a plan, or its parts don't fit together.
    """
    header = _decoded_header(frames)
    if len(header.forms) != len(_ARRAYS):
        raise ProtocolError(f"a plan of {len(_ARRAYS)} arrays has {len(header.forms)} forms")
    return _decoded(header, frames)


def _decoded(header: _Header, frames: Sequence[Frame]) -> RunPlan:
    functions_from = 1 + len(_ARRAYS)
    chunks_from = functions_from + len(header.functions)
    constants_from = chunks_from + header.chunk_count
    expected = constants_from + list(header.refs).count(None)
    if len(frames) != expected:
        raise ProtocolError(f"a plan of {expected} frames came in {len(frames)}")
    forms = header.forms or (RAW,) * len(_ARRAYS)
    arrays = {
        name: _array(name, form, frame)
        for name, form, frame in zip(_ARRAYS, forms, frames[1:functions_from], strict=True)
    }
    _check_arrays(header, arrays)
    constants = iter(frames[constants_from:])
    return RunPlan(
        subtree_starts=arrays["subtree_starts"],
        interlocked=header.interlocked,
        indptr=arrays["indptr"],
        deps=arrays["deps"],
        function_of=arrays["function_of"],
        flags=arrays["flags"].view(np.uint8),
        level_starts=arrays["level_starts"],
        functions=header.functions,
        function_pickles=list(map(bytes, frames[functions_from:chunks_from])),
        chunks=list(map(bytes, frames[chunks_from:constants_from])),
        options={task.position: task for task in header.options},
        outputs=arrays["outputs"],
        sources=[
            ConstantSource(next(constants)) if ref is None else RefSource(*ref)
            for ref in header.refs
        ],
    )


def _decoded_header(frames: Sequence[Frame]) -> _Header:
    if not frames:
        raise ProtocolError("a plan came without frames")
    try:
        header = _decoder.decode(frames[0])
    except msgspec.MsgspecError as error:
        raise ProtocolError(f"a plan's header can't be read: {error}") from error
    if header.version != VERSION:
        raise ProtocolError(f"a plan is of version {header.version}; this side reads {VERSION}")
    if header.chunk_count < 0:
        raise ProtocolError(f"a plan can't have {header.chunk_count} chunks")
    return header


def _array(name: str, form: str, frame: Frame) -> NDArray[np.signedinteger]:
    try:
        return unpack_steps(form, frame, _DTYPES.get(name, "<i4"))
    except ValueError as error:
        raise ProtocolError(f"{name} of a plan is cut short: {error}") from error


def _check_arrays(header: _Header, arrays: dict[str, NDArray[np.signedinteger]]) -> None:
    """Raises ProtocolError where lengths or numbers don't fit together."""
    count = len(arrays["function_of"])
    total = count + len(header.refs)
    indptr, deps, starts = arrays["indptr"], arrays["deps"], arrays["subtree_starts"]
    checks = {
        "indptr": len(indptr) == count + 1 and _is_split(indptr, len(deps)),
        "deps": _is_within(deps, total),
        "function_of": _is_within(arrays["function_of"], len(header.functions)),
        "flags": len(arrays["flags"]) == total,
        "subtree_starts": _is_split(starts, count),
        "level_starts": _is_within(arrays["level_starts"], count),
        "outputs": _is_within(arrays["outputs"], total),
        "chunks": header.chunk_count == -(-count // CHUNK_TASKS),
        "options": all(0 <= task.position < count for task in header.options),
        "functions": all(info.index == at for at, info in enumerate(header.functions)),
    }
    wrong = [name for name, is_right in checks.items() if not is_right]
    if wrong:
        raise ProtocolError(f"a plan of {count} tasks has wrong {', '.join(wrong)}")


def _is_split(bounds: NDArray[np.signedinteger], total: int) -> bool:
    """Says whether `bounds` rise from 0 to `total`."""
    if len(bounds) == 0 or bounds[0] != 0 or bounds[-1] != total:
        return False
    return bool(np.all(bounds[1:] >= bounds[:-1]))


def _is_within(numbers: NDArray[np.signedinteger], end: int) -> bool:
    return len(numbers) == 0 or bool(numbers.min() >= 0 and numbers.max() < end)
