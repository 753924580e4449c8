"""The master's thread: everything around `MasterCore` that touches the world.

Responsible for waiting on sockets, on commands of the client's threads, on the ends of broker
processes and on timers; each turn it pushes all that came to the core, takes the core's actions
once, and does them. It decides nothing, and knows nothing of graphs or values.
"""

import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from dagsched.errors import ClosedError, InternalError, ProtocolError, VersionMismatch
from dagsched.master.events import ClientEvent
from dagsched.master.journal import Ended
from dagsched.protocol.checks import check_parcel
from dagsched.protocol.codec import Arrival, Decoder, encode_batch
from dagsched.protocol.links import Links
from dagsched.protocol.messages import BrokerHello, BrokerToMaster, Frame, Parcel, Refused, Relayed
from dagsched.protocol.session import SessionFull, Stamp

if TYPE_CHECKING:
    from dagsched.config import Config
    from dagsched.master.core import MasterCore
    from dagsched.master.journal import Record
    from dagsched.master.outbox import MasterActions
    from dagsched.transport import MasterEndpoint

logger = logging.getLogger(__name__)

Command = Callable[["MasterCore", float], None]
"""Called in the master's thread with the core and the time."""

_POLL_MAX_S = 3600.0


class BrokerProcess(Protocol):
    """A process that is watched: a child of ours, or one that we took over."""

    @property
    def pid(self) -> int:
        """Its number."""

    def wait(self) -> int:
        """Its return code, once it has ended."""


class ShellListener(Protocol):
    """Who is told what happens; called in the master's thread, so it must be quick."""

    def take_start(self) -> None:
        """The master's thread has begun."""

    def take_event(self, event: ClientEvent) -> None:
        """The core says something of a run, a value or a node."""

    def take_crash(self, error: BaseException) -> None:
        """The master's thread has ended by an error; nothing will follow."""

    def take_exit(self, broker: int, return_code: int) -> str:
        """A broker's process has ended: clean up after it, and say in words why."""

    def end_broker(self, broker: int) -> None:
        """The core has given a broker up: end its process."""


class RecordSink(Protocol):
    """Where the journal's records go."""

    def put(self, run: int, record: "Record") -> None:
        """Take a record; never waits."""

    def finish(self, run: int, records: "Sequence[Record]", *, is_whole: bool) -> None:
        """Keep these records of a run that is over; none: drop all. Never waits."""


class MasterShell:
    """Runs a `MasterCore` in a thread of its own.

    Args:
        core: the state machine; after `start` only the thread touches it.
        where: where brokers connect: the path of a Unix socket, or an endpoint that is open
            already, and from now on the shell's.
        config: limits.
        listener: is told all events.
        tokens: of the environments whose brokers may come; those that tell none may as well.
        debug: log every message.
    """

    def __init__(
        self,
        core: "MasterCore",
        where: "Path | MasterEndpoint",
        config: "Config",
        listener: ShellListener,
        *,
        tokens: Sequence[str] = (),
        debug: bool = False,
    ) -> None:
        self._core = core
        self._where = where
        self._config = config
        self._listener = listener
        self._tokens = list(tokens)
        self._debug = debug
        self._journal: RecordSink | None = None
        self._commands: deque[Command] = deque()
        # No nodes, but told something: until when we care, and the process that it went to.
        self._now = 0.0  # of the batch that is being taken
        self._leaving: dict[int, tuple[float, BrokerProcess | None]] = {}
        self._process_by_broker: dict[int, BrokerProcess] = {}
        self._broker_by_pidfd: dict[int, tuple[int, BrokerProcess]] = {}
        self._links = Links(
            Decoder(BrokerToMaster | Relayed, config),
            config,
            time.monotonic_ns,
            opens=self._may_begin,
        )
        self._endpoint: MasterEndpoint | None = None
        self._epoll: select.epoll | None = None
        self._wake_fd = -1
        self._wake_lock = threading.RLock()
        self._thread: threading.Thread | None = None
        self._ready_by_fd: dict[int, Callable[[], None]] = {}
        self._stopping = False
        self._crash: BaseException | None = None

    # --- called by the client's threads ---------------------------------------------------------

    def start(self) -> None:
        """Bind the socket and start the thread."""
        from dagsched.transport import MasterEndpoint

        where = self._where
        self._endpoint = MasterEndpoint(where) if isinstance(where, Path) else where
        self._wake_fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._epoll = select.epoll()
        self._epoll.register(self._wake_fd, select.EPOLLIN)
        for fd in self._endpoint.fds:
            self._epoll.register(fd, select.EPOLLIN)
        self._thread = threading.Thread(target=self._run, name="dagsched-master", daemon=True)
        self._thread.start()

    def call(self, command: Command) -> None:
        """Have `command` called in the master's thread, soon; commands keep their order.

        Raises:
            ClosedError: the thread has been stopped.
            InternalError: the thread has ended by an error.
        """
        if self._crash is not None:
            raise InternalError(f"the master has failed: {self._crash!r}") from self._crash
        if self._stopping:
            raise ClosedError("the environment has been closed")
        self._commands.append(command)
        self._wake()

    def watch(self, broker: int, process: BrokerProcess) -> None:
        """Tell the core when a broker's process ends."""
        self.call(lambda _core, _now: self._watch(broker, process))

    def admit(self, token: str, path: Path) -> None:
        """Listen for the brokers of another environment as well, where they look for a master."""

        def begin(_core: "MasterCore", _now: float) -> None:
            assert self._endpoint is not None
            assert self._epoll is not None
            self._tokens.append(token)
            known = set(self._endpoint.fds)
            self._endpoint.also_bind(path)
            for fd in set(self._endpoint.fds) - known:
                self._epoll.register(fd, select.EPOLLIN)

        self.call(begin)

    def call_when_ready(self, fd: int, ready: Callable[[], None]) -> None:
        """Have `ready`, which must not wait, called in the thread when a descriptor is readable."""

        def begin(_core: "MasterCore", _now: float) -> None:
            assert self._epoll is not None
            self._ready_by_fd[fd] = ready
            self._epoll.register(fd, select.EPOLLIN)

        self.call(begin)

    def keep_journal(self, journal: RecordSink) -> None:
        """Give the journal's records to `journal` from now on."""

        def set_journal(_core: "MasterCore", _now: float) -> None:
            self._journal = journal

        self.call(set_journal)

    def stop(self, timeout_s: float) -> None:
        """End the thread and close its socket."""
        if self._thread is None:
            return
        self._stopping = True
        self._wake()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout_s)

    def forget_after_fork(self) -> None:
        """In a forked child: the thread isn't there, and its descriptors belong to the parent."""
        self._stopping = True
        self._thread = None

    @property
    def link_counts(self) -> dict[str, int]:
        """Batches that were stale, nonsense, repeated, sent again; and refused connections."""
        refused_count = self._endpoint.refused_count if self._endpoint is not None else 0
        refused_count += self._links.counts["refused"]
        counts = self._links.counts
        return self._links.summary() | {"refused": refused_count, "relayed": counts["relayed"]}

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    # --- the thread -----------------------------------------------------------------------------

    def _wake(self) -> None:
        # The number of a closed descriptor may be another's by now, so it must not be written to.
        # Reentrant, for the garbage collector may let a reference end, and call, in any place.
        with self._wake_lock:
            if self._wake_fd >= 0:
                os.eventfd_write(self._wake_fd, 1)

    def _run(self) -> None:
        try:
            self._listener.take_start()
            while not self._stopping:
                self._turn()
        except BaseException as error:  # whatever it is, nobody may wait for ever
            self._crash = error
            logger.exception("the master's thread has failed")
            self._listener.take_crash(error)
        finally:
            self._close_all()

    def _close_all(self) -> None:
        assert self._endpoint is not None
        assert self._epoll is not None
        self._endpoint.close()
        self._epoll.close()
        with self._wake_lock:
            os.close(self._wake_fd)
            self._wake_fd = -1
        for pidfd in self._broker_by_pidfd:
            os.close(pidfd)
        self._broker_by_pidfd.clear()

    def _turn(self) -> None:
        """Take in all that is there, or wait for something; then act once."""
        assert self._endpoint is not None
        arrived = self._endpoint.drain()
        if not arrived and not self._commands:
            # Nothing was sent since the socket was drained, so its descriptor will tell.
            self._wait()
            arrived = self._endpoint.drain()
        now = time.monotonic()
        # Commands first: one may say that the broker whose hello has arrived is wanted.
        commands = self._commands
        while commands:
            commands.popleft()(self._core, now)
        for broker, frames in arrived:
            self._receive(broker, frames, now)
        due = self._core.next_timer()
        if due is not None and due <= now:
            self._core.handle_timer(now)
        self._links.handle_timer(now)
        if self._leaving:
            self._forget_leavers(now)
        self._act(self._core.take_actions(), now)
        for broker, frames in self._links.take_batches(now):
            self._endpoint.send(broker, frames)

    def _forget_leavers(self, now: float) -> None:
        """Whoever was told to leave and hasn't taken that by now never will."""
        for broker, (until_s, _) in list(self._leaving.items()):
            if self._core.epoch_of(broker) is not None:
                del self._leaving[broker]
            elif now >= until_s:
                process = self._leaving.pop(broker)[1]
                self._links.forget(broker)
                if process is not None and self._process_by_broker.get(broker) is process:
                    self._listener.end_broker(broker)  # it will not hear that it is to go

    def _wait(self) -> None:
        assert self._epoll is not None
        dues = (self._core.next_timer(), self._links.next_timer())
        due = min((when for when in dues if when is not None), default=None)
        timeout_s = _POLL_MAX_S
        if due is not None:
            timeout_s = min(max(due - time.monotonic(), 0.0), _POLL_MAX_S)
        for fd, _ in self._epoll.poll(timeout_s):
            if fd == self._wake_fd:
                os.eventfd_read(fd)
            elif fd in self._broker_by_pidfd:
                self._take_exit(fd)
            elif fd in self._ready_by_fd:
                self._ready_by_fd[fd]()

    def _receive(self, broker: int, frames: "list[Frame]", now: float) -> None:
        self._now = now
        try:
            contents = self._links.receive(broker, frames, now)
        except (ProtocolError, VersionMismatch) as error:
            if isinstance(error, VersionMismatch) and self._core.epoch_of(broker) is None:
                version = ("?", "?", error.protocol)
                self._is_welcome(broker, BrokerHello(broker, 0, "", "", version))
                return
            # It isn't acknowledged, so it comes again; a broken peer goes on like that.
            logger.warning("broker %s sent what can't be read: %s", broker, error)
            if self._links.note_nonsense(broker):
                self._close_peer(broker, f"it kept sending what can't be read: {error}", now)
            return
        for epoch, parcels in contents:
            if not self._take_parcels(broker, epoch, parcels, now):
                return

    def _take_parcels(
        self, broker: int, epoch: int, parcels: "Sequence[Parcel]", now: float
    ) -> bool:
        """Whether the broker is to be heard further."""
        for message, frames in parcels:
            if self._debug:
                logger.debug("from %s: %.500r", broker, message)
            if isinstance(message, BrokerHello):
                if self._is_welcome(broker, message):
                    self._core.receive(broker, message, frames, now)
                continue
            if epoch != self._core.epoch_of(broker):
                self._links.counts["stale"] += 1
                continue
            if isinstance(message, Relayed):
                self._relay(broker, message.peer, frames, now)
                continue
            try:
                check_parcel(message, frames, self._core.total_of)
                self._core.receive(broker, cast("BrokerToMaster", message), frames, now)
            except ProtocolError as error:
                # What it meant will never be known, so nothing more of it can be relied upon.
                logger.warning("broker %s sent what makes no sense: %s", broker, error)
                self._links.note_nonsense(broker)
                self._close_peer(broker, f"it sent what makes no sense: {error}", now)
                return False
        return True

    def _relay(self, sender: int, receiver: int, frames: "Sequence[Frame]", now: float) -> None:
        """Pass on what a broker can't bring to another one itself; their session does the rest."""
        if self._core.epoch_of(receiver) is None or receiver == sender:
            self._links.counts["stale"] += 1
            return
        if not self._links.counts["relayed"]:
            logger.warning("broker %s can't reach broker %s: through the master", sender, receiver)
        self._links.counts["relayed"] += 1
        self._send(receiver, [Parcel(Relayed(sender), frames)], now)

    def _may_begin(self, broker: int, arrival: Arrival) -> bool:
        """Whether a batch may begin a link: with a broker that presents itself, and may."""
        first = arrival.parcels[0].message if arrival.parcels else None
        return isinstance(first, BrokerHello) and self._is_welcome(broker, first)

    def _is_welcome(self, broker: int, message: BrokerHello) -> bool:
        """Whether a broker can belong to us; it is told if it can't."""
        if message.broker != broker or message.token not in ("", *self._tokens):
            self._refuse(broker, "authentication", "it was started for another environment")
            return False
        if message.version != self._core.version:
            mine, theirs = (
                f"Python {version[0]}, dagsched {version[1]}, protocol {version[2]}"
                for version in (self._core.version, message.version)
            )
            text = f"broker {broker} has {theirs}, the master has {mine}"
            self._refuse(broker, "version", f"{text}; install the same versions on both")
            if self._core.epoch_of(broker) is None:
                # The node that we wait for will not come; a node that is there is none the worse.
                self._core.receive(broker, message, (), self._now)
            return False
        return True

    def _refuse(self, broker: int, kind: str, text: str) -> None:
        assert self._endpoint is not None
        logger.warning("broker %s is refused: %s", broker, text)
        self._links.counts["refused"] += 1
        # Not by a link, for there is none with it; who does not hear this asks again.
        stamp = Stamp(time.monotonic_ns(), 1)
        self._endpoint.send(broker, encode_batch([Parcel(Refused(kind, text))], 0, stamp))
        if self._core.epoch_of(broker) is None:
            self._links.forget(broker)

    def _close_peer(self, broker: int, reason: str, now: float) -> None:
        self._core.peer_lost(broker, reason, now)
        self._links.forget(broker)
        self._listener.end_broker(broker)

    def _act(self, actions: "MasterActions", now: float) -> None:
        if actions.journal and self._journal is not None:
            for record in actions.journal:
                if isinstance(record, Ended):
                    # Nobody resumes it, and a store must not grow with each run.
                    rest = [*record.rest, record] if record.rest else []
                    self._journal.finish(record.run, rest, is_whole=record.is_whole)
                else:
                    self._journal.put(record.run, record)
        for broker in actions.disconnect:
            if self._core.epoch_of(broker) is None:  # else it has been started anew already
                self._links.forget(broker)
                self._listener.end_broker(broker)
        for broker, parcels in actions.to_brokers.items():
            self._send(broker, parcels, now)
            if self._core.epoch_of(broker) is None:
                process = self._process_by_broker.get(broker)
                self._leaving[broker] = (now + self._config.lease_s, process)
        for event in actions.events:
            if self._debug:
                logger.debug("event: %.500r", event)
            self._listener.take_event(event)

    def _send(self, broker: int, parcels: list[Parcel], now: float) -> None:
        if self._debug:
            for parcel in parcels:
                logger.debug("to %s: %.500r", broker, parcel.message)
        try:
            self._links.send(broker, parcels, now)
        except SessionFull as error:
            # The core learns of it, and takes the node's work elsewhere, in the next turn.
            reason = f"it takes nothing: {error}"
            self._commands.append(lambda _core, now: self._close_peer(broker, reason, now))

    # --- broker processes -----------------------------------------------------------------------

    def _watch(self, broker: int, process: BrokerProcess) -> None:
        assert self._epoll is not None
        self._process_by_broker[broker] = process
        try:
            pidfd = os.pidfd_open(process.pid)
        except ProcessLookupError:
            # Dead and reaped already.
            self._core.peer_lost(broker, self._exit_reason(broker, process), time.monotonic())
            return
        self._broker_by_pidfd[pidfd] = (broker, process)
        self._epoll.register(pidfd, select.EPOLLIN)

    def _take_exit(self, pidfd: int) -> None:
        assert self._epoll is not None
        broker, process = self._broker_by_pidfd.pop(pidfd)
        self._epoll.unregister(pidfd)
        os.close(pidfd)
        reason = self._exit_reason(broker, process)
        if self._process_by_broker.get(broker) is process:
            del self._process_by_broker[broker]
            self._core.peer_lost(broker, reason, time.monotonic())
            self._links.forget(broker)

    def _exit_reason(self, broker: int, process: BrokerProcess) -> str:
        return self._listener.take_exit(broker, process.wait())
