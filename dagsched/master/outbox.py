"""Where the parts of the master core put what is to be done; the shell takes it. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dagsched.ids import ProcessId
from dagsched.master.events import ClientEvent, HappeningKind, OutputsArrived, RunHappened
from dagsched.master.journal import Record
from dagsched.protocol.messages import Frame, MasterToBroker, Parcel, Welcome

if TYPE_CHECKING:
    from dagsched.master.state import MasterRun


@dataclass(slots=True)
class MasterActions:
    """What the shell shall do, in this order: write down, send, cut off, tell the client."""

    to_brokers: dict[int, list[Parcel]] = field(default_factory=dict)
    events: list[ClientEvent] = field(default_factory=list)
    journal: list[Record] = field(default_factory=list)
    disconnect: list[int] = field(default_factory=list)


class Outbox:
    """Collects the actions of a turn.

    Args:
        story_events_max: what the client is told for the story of one run.
    """

    def __init__(self, story_events_max: int = 10_000) -> None:
        self.now = 0.0  # of the turn
        self._actions = MasterActions()
        self._story_events_max = story_events_max

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

    def tell_outputs(self, run: "MasterRun", *, is_asked: bool = False) -> None:
        """Outputs that came since, if the client has asked, or does now, for them one by one."""
        if is_asked:
            run.streamed = run.streamed or 0
        if run.streamed is not None and run.parent is None and run.streamed < len(run.objects):
            new, run.streamed = run.objects[run.streamed :], len(run.objects)
            self.tell(OutputsArrived(run.number, new))

    def happened(
        self, root: "MasterRun", kind: HappeningKind, *, count: int = 1, **data: Any
    ) -> None:
        """Something for the story of a run of the client, within its bound; all is counted.

        Args:
            root: the run.
            kind: see `RunHappened`, as for the rest.
            count: what it counts for.
            data: further fields of the event.
        """
        root.moved_s = self.now
        root.tally[kind] = root.tally.get(kind, 0) + count
        before = root.told_count
        root.told_count += len(data.get("placements", ())) or 1
        if root.told_count <= self._story_events_max:
            self.tell(RunHappened(root.number, self.now, kind, **data))
        elif before <= self._story_events_max:
            self.tell(RunHappened(root.number, self.now, "cut"))

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
