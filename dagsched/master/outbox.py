"""Where the parts of the master core put what is to be done; the shell takes it. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from dagsched.ids import ProcessId
from dagsched.master.events import ClientEvent
from dagsched.master.journal import Record
from dagsched.protocol.messages import Frame, MasterToBroker, Parcel, Welcome


@dataclass(slots=True)
class MasterActions:
    """What the shell shall do, in this order: write down, send, cut off, tell the client."""

    to_brokers: dict[int, list[Parcel]] = field(default_factory=dict)
    events: list[ClientEvent] = field(default_factory=list)
    journal: list[Record] = field(default_factory=list)
    disconnect: list[int] = field(default_factory=list)


class Outbox:
    """Collects the actions of a turn."""

    def __init__(self) -> None:
        self._actions = MasterActions()

    def send(
        self, broker: ProcessId, message: MasterToBroker, frames: Sequence[Frame] = ()
    ) -> None:
        """A message for a broker."""
        self.send_parcel(broker, Parcel(message, frames))

    def send_parcel(self, broker: ProcessId, parcel: Parcel) -> None:
        """The same, of a message that has its frames already."""
        self._actions.to_brokers.setdefault(broker, []).append(parcel)

    def send_early(self, broker: ProcessId, message: MasterToBroker) -> None:
        """A message that comes before all others of this turn but a `Welcome`."""
        parcels = self._actions.to_brokers.setdefault(broker, [])
        has_welcome = bool(parcels) and isinstance(parcels[0].message, Welcome)
        parcels.insert(int(has_welcome), Parcel(message))

    def tell(self, event: ClientEvent) -> None:
        """An event for the client."""
        self._actions.events.append(event)

    def write(self, record: Record) -> None:
        """A record for the journal."""
        self._actions.journal.append(record)

    def disconnect(self, broker: ProcessId) -> None:
        """Take nothing more from this broker; what was to be sent to it is dropped."""
        self._actions.to_brokers.pop(broker, None)
        self._actions.disconnect.append(broker)

    def take(self) -> MasterActions:
        """All since the last call."""
        actions, self._actions = self._actions, MasterActions()
        return actions
