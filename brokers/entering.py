"""What a broker checks of a message before its core sees it. Pure.

`dagsched.protocol.checks` knows what a message says of itself; here it is held against the runs
that this node has.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dagsched.errors import ProtocolError
from dagsched.ids import RunNo
from dagsched.protocol.checks import check_parcel
from dagsched.protocol.messages import BrokerToBroker, Frame, MasterToBroker, PlaceSubtree

if TYPE_CHECKING:
    from dagsched.brokers.core import BrokerCore


def check_order(core: "BrokerCore", message: MasterToBroker, frames: Sequence[Frame]) -> None:
    """Return if a message of the master makes sense to this node.

    Raises:
        ProtocolError: it doesn't.
    """
    if isinstance(message, PlaceSubtree):
        run = core.runs.get(RunNo(message.run))
        if run is not None and run.epoch < message.epoch:
            run = None  # it begins anew
        check_parcel(message, frames, lambda _: None if run is None else run.total_tasks)
        known = {} if run is None else run.functions
        for function, has_pickle in message.functions:
            if not has_pickle and function.index not in known:
                raise ProtocolError(f"function {function.index} of run {message.run} has not come")
    else:
        check_parcel(message, frames, lambda number: _total(core, number))


def check_peer(core: "BrokerCore", message: BrokerToBroker, frames: Sequence[Frame]) -> None:
    """Return if a message of another broker makes sense to this node.

    Raises:
        ProtocolError: it doesn't.
    """
    check_parcel(message, frames, lambda number: _total(core, number))


def _total(core: "BrokerCore", number: int) -> int | None:
    run = core.runs.get(RunNo(number))
    return None if run is None else run.total_tasks
