"""What a broker says that it holds of a run, checked. Pure."""

from collections.abc import Sequence

import numpy as np

from dagsched.errors import ProtocolError
from dagsched.ids import ProcessId
from dagsched.master.state import MasterRun, Told
from dagsched.protocol.messages import Frame, Holdings


def told_by(run: MasterRun, broker: ProcessId, message: Holdings, frames: Sequence[Frame]) -> Told:
    """What a `Holdings` says.

    Raises:
        ProtocolError: it doesn't fit the run.
    """

    def wrong(why: str) -> ProtocolError:
        return ProtocolError(f"broker {broker}, holdings of run {run.number}: {why}")

    if len(frames) != 6:
        raise wrong(f"{len(frames)} frames")
    try:
        firsts, counts, lacking, awaited, unfinished = (
            np.frombuffer(frames[index], "<i4") for index in (0, 1, 3, 4, 5)
        )
        sizes = np.frombuffer(frames[2], "<i8")
    except ValueError as error:
        raise wrong(str(error)) from error
    total = run.plan.task_count + len(run.plan.sources)
    if not len(firsts) == len(counts) == len(sizes) or (counts < 1).any() or (counts > total).any():
        raise wrong("objects don't fit")
    for name, positions, end in (
        ("objects", firsts, total),
        ("objects", firsts + counts - 1, total),
        ("lacking", lacking, total),
        ("awaited", awaited, run.plan.task_count),
        ("unfinished", unfinished, run.plan.task_count),
    ):
        if len(positions) and not 0 <= positions.min() <= positions.max() < end:
            raise wrong(f"{name} outside its positions")
    ends = np.cumsum([count for _, _, count in message.subtrees])
    if any(count < 0 or number < 0 for number, _, count in message.subtrees) or (
        (int(ends[-1]) if len(ends) else 0) != len(unfinished)
    ):
        raise wrong("subtrees don't fit")
    parts = np.split(unfinished, ends[:-1]) if len(ends) else []
    rows = [
        (number, attempt, part)
        for (number, attempt, _), part in zip(message.subtrees, parts, strict=True)
    ]
    return Told(firsts, counts, sizes, lacking, awaited, rows)
