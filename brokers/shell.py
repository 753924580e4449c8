"""The broker's turn: everything around `BrokerCore` that touches the world.

Responsible for waiting, for passing on what came, and for doing what the core decided; each turn
takes in all that is there, then pulls the core's actions once. One thread, no locks. It decides
nothing about tasks.
"""

import gc
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import msgspec
import zmq

from dagsched._version import __version__
from dagsched.brokers.actions import BrokerActions
from dagsched.brokers.core import BrokerCore
from dagsched.brokers.entering import check_order, check_peer
from dagsched.brokers.launch import BrokerSettings
from dagsched.brokers.machine import look_around
from dagsched.brokers.objects.arena import Arena
from dagsched.brokers.objects.segments import SPILL_NAME, unlink_segments
from dagsched.brokers.orphanage import Orphanage
from dagsched.brokers.poller import Poller
from dagsched.brokers.pool import Pool
from dagsched.brokers.routes import Routes, peers_after
from dagsched.brokers.signals import Signals
from dagsched.brokers.spilling import Spiller
from dagsched.brokers.transfers import IncomingTransfers, OutgoingTransfers
from dagsched.brokers.zygote import Zygote
from dagsched.errors import (
    AuthenticationError,
    DagschedError,
    OutOfMemory,
    ProtocolError,
    VersionMismatch,
)
from dagsched.faults import fault
from dagsched.ids import ProcessId, RunNo, run_id_of
from dagsched.limits import raise_descriptor_limit
from dagsched.profiling import Profile
from dagsched.protocol.codec import PROTOCOL_VERSION, Decoder, encode_batch
from dagsched.protocol.links import Links
from dagsched.protocol.messages import (
    BrokerHello,
    BrokerToBroker,
    EndRun,
    ExecutorHello,
    ExecutorToBroker,
    Failure,
    Frame,
    MasterToBroker,
    ObjectInfo,
    Parcel,
    Refused,
    Relayed,
    SetPeers,
    TaskFailed,
    TransferChunk,
    TransferCredit,
    TransferStart,
    Welcome,
)
from dagsched.protocol.session import SessionFull
from dagsched.rundir import remove_environment
from dagsched.tenancy import Tenancy, wait_for_store
from dagsched.transport import BrokerEndpoint, CurveKeys, DataPort
from dagsched.transport.dialing import DialingEndpoint

logger = logging.getLogger(__name__)

EXIT_INTERNAL = 70
"""Exit code after an internal error (EX_SOFTWARE of sysexits.h)."""

EXIT_REFUSED = 77
"""Exit code of a broker that the master does not want (EX_NOPERM)."""

MASTER = 1
"""The master's process id, by which its link is known."""

GARBAGE_THRESHOLD = 50_000
"""New containers between two garbage collections: the core makes few cycles."""


class BrokerShell:
    """Runs a `BrokerCore` in this process, in the calling thread.

    Args:
        settings: of this broker.
        forked: its zygote.
        lifeline_fd: readable at its end, when whoever started the broker is gone.
    """

    def __init__(self, settings: BrokerSettings, forked: Zygote, lifeline_fd: int) -> None:
        self._settings = settings
        config = self._config = settings.config
        self._lifeline_fd = lifeline_fd
        self._core = BrokerCore(settings.broker, settings.host, settings.config)
        self._poller = Poller()
        self._pool = Pool(forked, self._poller, Path(settings.run_directory), settings.config)
        self._spill = Path(settings.run_directory) / SPILL_NAME
        prefix = settings.name_prefix
        self._arena = Arena(f"{prefix}-0-0", settings.config, self._spill, prefix)
        self._spiller = Spiller(self._spill, f"{prefix}-0-0s")
        self._core.look, self._core.accounts.look_around = self._pool.look, look_around
        self._core.accounts.stale_batches = lambda: self._peer_links.counts["stale"]
        self._outgoing = OutgoingTransfers(settings.config)
        self._incoming = IncomingTransfers(self._arena, time.monotonic)
        from_master = Decoder(MasterToBroker | Refused | Relayed, config)
        self._master_links = Links(from_master, config, time.monotonic_ns)
        self._routes = Routes()
        self._peer_links = Links(Decoder(BrokerToBroker, config), config, time.monotonic_ns)
        self._from_executor = Decoder(ExecutorToBroker, settings.config)
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._signals = Signals(self._poller, self._signal_came)
        self._epoch = 0
        self._peers: dict[int, tuple[int, str]] = {}  # epoch and address
        self._link_fds: list[int] = []
        self._master_ready = False
        self._peers_ready = False
        self._again = False  # something was pushed to the core after its actions were pulled
        self._is_over = False
        self._tenancy = Tenancy(Path(settings.run_directory), alive_fd=settings.alive_fd)
        self._orphanage = Orphanage(self._tenancy.directory, settings.config)
        self._profile = Profile(settings.cwd, "broker", settings.broker, settings.broker)
        self._is_deserted = False  # our client has died
        self._master_listens = True  # so last messages are worth waiting for

    # --- life -----------------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until told to stop, or the lifeline ends; then leave nothing behind.

        Returns:
            the exit code.
        """
        code = 0
        try:
            self._open()
            if self._settings.profile:
                self._profile.start()
            while not self._is_over:
                self._turn()
        except (AuthenticationError, VersionMismatch) as error:
            logger.error("%s: %s", type(error).__name__, error)
            code = EXIT_REFUSED
        except Exception:
            logger.exception("broker %d has failed and ends", self._settings.broker)
            code = EXIT_INTERNAL
        self._close()
        return code

    def _open(self) -> None:
        settings = self._settings
        self._tenancy.live()
        raise_descriptor_limit()  # executors, whose zygote has been forked, keep the user's
        self._pool.open()
        self._signals.open()
        self._poller.add(self._spiller.open(), lambda: None)  # each turn takes what is done
        self._poller.add(self._lifeline_fd, self._lifeline_ready)
        self._context = zmq.Context()
        keys = CurveKeys(*settings.keys) if settings.keys else None
        self._open_data(settings.broker, settings.listen or settings.data_socket, keys)
        master = settings.master_address or settings.master_socket
        self._master = BrokerEndpoint(self._context, settings.broker, master, keys)
        for fd in self._master.fds:
            self._poller.add(fd, self._set_master_ready)
        hello = BrokerHello(
            settings.broker,
            os.getpid(),
            settings.host,
            self._data.address,
            own_version(),
            token=settings.env_token,
        )
        self._send_master([Parcel(hello)])
        self._send_batches(time.monotonic())
        gc.freeze()
        gc.set_threshold(GARBAGE_THRESHOLD, 50, 100)

    def _close(self) -> None:
        """End everything that this broker began, whatever has happened to it."""
        steps: list[Callable[[], object]] = [self._pool.close, self._arena.close]
        steps.append(self._spiller.close)
        if self._context is not None:
            linger: Callable[[], object] = self._master.close
            if not self._master_listens:
                linger = lambda: self._master.close(0)  # noqa: E731
            steps += [self._data.close, linger, self._context.term]
        steps += [
            lambda: unlink_segments(self._settings.name_prefix, spill=self._spill),
            self._signals.close,
            self._poller.close,
            self._leave,
        ]
        for step in steps:
            try:
                step()
            except Exception:
                logger.exception("a step of the broker's end has failed; the others follow")

    def _leave(self) -> None:
        """Whoever is left last by a dead client removes all that is left."""
        if self._is_deserted and self._tenancy.is_last():
            wait_for_store(self._tenancy.directory)
            remove_environment(self._tenancy.directory)
        self._tenancy.close()

    def _signal_came(self) -> None:
        logger.info("broker %d was asked to end by a signal", self._settings.broker)
        self._is_over = True

    def _lifeline_ready(self) -> None:
        said = os.read(self._lifeline_fd, 4096)
        self._poller.remove(self._lifeline_fd)
        if said:  # GOODBYE
            self._master_listens = False
            self._is_over = True
        else:
            self._master_died()

    # --- without a master -----------------------------------------------------------------------

    def _master_died(self) -> None:
        """Whoever led us is dead: stay for another, if there is something to stay for."""
        now = time.monotonic()
        self._is_deserted = True
        self._master_listens = False
        self._take_master(now)  # it may have said more before its end
        if not (self._settings.is_resumable and self._orphanage.master_died(now)):
            self._is_over = True
            return
        logger.warning("the master of broker %d is gone", self._settings.broker)
        for peer in list(self._peers):
            self._lose_peer(peer, now)
        self._peers = {}
        self._close_data()
        self._peer_links.start_anew()
        self._epoch = self._peer_links.epoch = 0
        assert self._context is not None
        # Under another name and address, lest it be taken for a node that the next master has.
        self._open_data(self._orphanage.id, self._orphanage.data_path)
        self._core.become_orphan(self._orphanage.id, now)
        self._dial()

    def _dial(self) -> None:
        """Look for another master where the last one was."""
        assert self._context is not None
        self._close_master(0)
        self._master_links.start_anew()
        self._master_links.epoch = 0
        endpoint = DialingEndpoint(self._context, self._orphanage.id, self._settings.master_socket)
        self._master = endpoint
        self._poller.add(endpoint.fd, self._set_master_ready)
        self._poller.add(endpoint.monitor_fd, self._look_at_line)
        hello = self._core.orphan_hello(os.getpid(), self._data.address, own_version())
        hello = msgspec.structs.replace(hello, token=self._settings.env_token)
        self._send_master([Parcel(hello)])
        self._look_at_line()

    def _look_at_line(self) -> None:
        """A master that had taken our call is gone."""
        if isinstance(self._master, DialingEndpoint) and self._master.is_cut():
            if self._orphanage.leave_at_s is None:
                self._master_died()
            else:
                self._dial()

    def _close_master(self, linger_ms: int) -> None:
        for fd in self._master.fds:
            self._poller.remove(fd)
        if isinstance(self._master, DialingEndpoint):
            self._poller.remove(self._master.monitor_fd)
        self._master.close(linger_ms)

    def _open_data(self, broker: int, where: str, keys: CurveKeys | None = None) -> None:
        assert self._context is not None
        self._data = DataPort(self._context, broker, where, keys)
        for fd in self._data.fds:
            self._poller.add(fd, self._set_peers_ready)

    def _close_data(self) -> None:
        for fd in (*self._link_fds, *self._data.fds):
            self._poller.remove(fd)
        self._link_fds = []
        self._data.close()

    # --- a turn ---------------------------------------------------------------------------------

    def _turn(self) -> None:
        self._poller.wait(self._timeout_s())
        now = time.monotonic()
        self._again = False
        for executor, frames in self._pool.take_batches():
            self._take_executor(executor, frames, now)
        ended = self._take_exits(now)
        if self._master_ready:
            self._take_master(now)
        if self._peers_ready:
            self._take_peers(now)
        self._take_transfers(now)
        self._take_timers(now)
        actions = self._core.take_actions()
        if actions.to_executors:
            fault("broker.before_dispatch")
        self._act(actions, now)
        self._send_batches(now)
        for executor in ended:
            if executor not in actions.start:
                self._pool.remove(executor)

    def _timeout_s(self) -> float | None:
        if self._again or self._master_ready or self._peers_ready:
            return 0.0
        parts = (self._core, self._pool, self._master_links, self._peer_links, self._orphanage)
        due = min((when for part in parts if (when := part.next_timer()) is not None), default=None)
        return None if due is None else max(0.0, due - time.monotonic())

    def _take_timers(self, now: float) -> None:
        due = self._core.next_timer()
        if due is not None and due <= now:
            self._core.handle_timer(now)
        due = self._pool.next_timer()
        if due is not None and due <= now:
            self._pool.handle_timer(now)
        self._master_links.handle_timer(now)
        self._peer_links.handle_timer(now)
        if self._orphanage.is_due(now):
            logger.warning("nobody has resumed the runs of broker %d", self._settings.broker)
            self._is_over = True

    def _send_batches(self, now: float) -> None:
        for peer, frames in self._peer_links.take_batches(now):
            is_unanswered = peer in self._peers and self._peer_links.is_unanswered(peer)
            direct, relayed = self._routes.ways(peer, is_unanswered=is_unanswered, now=now)
            if direct:
                self._data.send(peer, frames)  # or it isn't known yet: `send_again` will follow
            if relayed:
                self._send_master([Parcel(Relayed(peer), frames)])
        for _, frames in self._master_links.take_batches(now):
            self._master.send(frames)
            # Sending can swallow the descriptor's word that something has come.
            self._master_ready = self._master_ready or self._master.has_input()

    # --- executors ------------------------------------------------------------------------------

    def _take_executor(self, executor: int, frames: list[Frame], now: float) -> None:
        try:
            _, parcels = self._from_executor.decode_batch(frames)
        except ProtocolError:
            logger.exception("executor %d sent nonsense and is killed", executor)
            self._pool.kill(executor)
            return
        for parcel in parcels:
            message = cast("ExecutorToBroker", parcel.message)
            if isinstance(message, ExecutorHello):
                self._pool.heard(executor)
            if self._settings.debug:
                logger.debug("from executor %d: %.500r", executor, message)
            self._core.receive_executor(executor, message, parcel.frames, now)

    def _take_exits(self, now: float) -> list[int]:
        exits = self._pool.take_exits()
        for executor, exit_info, bundle, position in exits:
            if exit_info.exit_code != 0:
                logger.warning(
                    "executor %d ended with exit code %s, signal %s, at position %d of bundle %d",
                    executor,
                    exit_info.exit_code,
                    exit_info.signal,
                    position,
                    bundle,
                )
            self._core.executor_lost(executor, exit_info, bundle, position, now)
        return [executor for executor, _, _, _ in exits]

    # --- the master -----------------------------------------------------------------------------

    def _set_master_ready(self) -> None:
        self._master_ready = True

    def _take_master(self, now: float) -> None:
        for frames in self._master.drain():
            try:
                contents = self._master_links.receive(MASTER, frames, now)
            except ProtocolError as error:
                logger.warning("dropped: the master sent what can't be read: %s", error)
                self._master_links.note_nonsense(MASTER)
                continue
            for _, parcels in contents:
                for parcel in parcels:
                    self._take_order(parcel, now)
        self._master_ready = self._master.has_input()

    def _take_order(self, parcel: Parcel, now: float) -> None:
        message = cast("MasterToBroker", parcel.message)
        if self._settings.debug:
            logger.debug("from master: %.500r", message)
        if isinstance(parcel.message, Refused):
            kind = VersionMismatch if parcel.message.kind == "version" else AuthenticationError
            raise kind(f"the master refuses this broker: {parcel.message.text}")
        if isinstance(parcel.message, Relayed):
            self._routes.heard(parcel.message.peer, is_relayed=True)
            self._take_peer_batch(parcel.message.peer, parcel.frames, now)
            return
        try:
            check_order(self._core, message, parcel.frames)
        except ProtocolError as error:
            logger.warning("dropped: the master sent what makes no sense: %s", error)
            self._master_links.note_nonsense(MASTER)
            return
        if isinstance(message, SetPeers):
            self._set_peers(message, now)
        elif isinstance(message, Welcome):
            self._join(message.epoch)
            self._orphanage.adopted()
        self._orphanage.heed(message, now)
        self._core.receive_master(message, parcel.frames, now)
        if isinstance(message, EndRun) and self._settings.profile:
            self._profile.write(run_id_of(message.run))
            self._profile.start()

    def _join(self, epoch: int) -> None:
        """This process is a node from now on, or another one than before."""
        if self._epoch not in (0, epoch):
            self._peer_links.start_anew()
        self._epoch = self._master_links.epoch = self._peer_links.epoch = epoch

    def _send_master(self, parcels: list[Parcel]) -> None:
        if self._settings.debug:
            for parcel in parcels:
                logger.debug("to master: %.500r", parcel.message)
        self._master_links.send(MASTER, parcels, time.monotonic())

    # --- other brokers --------------------------------------------------------------------------

    def _set_peers_ready(self) -> None:
        self._peers_ready = True

    def _set_peers(self, message: SetPeers, now: float) -> None:
        come = {peer: (epoch, address) for peer, epoch, address in message.peers}
        peers, known = peers_after(self._peers, message, come), self._peers
        for peer, (epoch, _) in known.items():
            if peer not in peers or peers[peer][0] != epoch:
                self._lose_peer(peer, now)
                self._peer_links.remove(peer, epoch)
        self._peers = peers
        for fd in self._link_fds:
            self._poller.remove(fd)
        self._data.set_peers({peer: address for peer, (_, address) in peers.items()})
        self._link_fds = self._data.link_fds
        for fd in self._link_fds:
            self._poller.add(fd, self._data.flush)
        # A descriptor may have been ready for the last time before it was listened to.
        self._data.flush()
        for peer in come:
            if known.get(peer) != peers[peer]:
                # It may have asked us before the master told us of it, and has been answered.
                self._peer_links.send_again(peer, now)

    def _lose_peer(self, peer: int, now: float) -> None:
        logger.info("broker %d, or its last incarnation, is gone", peer)
        self._outgoing.peer_lost(peer)
        self._incoming.peer_lost(peer)
        self._routes.forget(peer)
        self._core.peer_lost(peer, now)

    def _take_peers(self, now: float) -> None:
        for peer, frames in self._data.drain():
            self._routes.heard(peer, is_relayed=False)
            self._take_peer_batch(peer, frames, now)
        self._peers_ready = self._data.has_input()

    def _take_peer_batch(self, peer: int, frames: Sequence[Frame], now: float) -> None:
        try:
            contents = self._peer_links.receive(peer, frames, now)
        except (ProtocolError, VersionMismatch) as error:
            self._hear_nonsense(peer, error, now)
            return
        for _, parcels in contents:
            for parcel in parcels:
                try:
                    self._take_peer_parcel(peer, parcel, now)
                except ProtocolError as error:
                    self._hear_nonsense(peer, error, now)

    def _hear_nonsense(self, peer: int, error: DagschedError, now: float) -> None:
        # The master decides about that broker; we only don't listen to it for ever.
        logger.warning("dropped: broker %d sent nonsense: %s", peer, error)
        if self._peer_links.note_nonsense(peer):
            self._lose_peer(peer, now)
            self._peer_links.remove(peer, self._peer_links.epoch_of(peer))

    def _take_peer_parcel(self, peer: int, parcel: Parcel, now: float) -> None:
        message = cast("BrokerToBroker", parcel.message)
        if self._settings.debug:
            logger.debug("from broker %d: %.500r", peer, message)
        check_peer(self._core, message, parcel.frames)
        match message:
            case TransferStart():
                self._incoming.start(peer, message)
            case TransferChunk():
                self._incoming.chunk(peer, message, parcel.frames)
            case TransferCredit():
                self._outgoing.credit(peer, message)
            case _:
                self._core.receive_peer(peer, message, parcel.frames, now)

    def _send_peer(self, peer: int, parcels: list[Parcel], now: float) -> None:
        if self._settings.debug:
            for parcel in parcels:
                logger.debug("to broker %d: %.500r", peer, parcel.message)
        try:
            self._peer_links.send(peer, parcels, now)
        except SessionFull:
            logger.warning("too much waits for broker %d, which takes nothing", peer)

    def _take_transfers(self, now: float) -> None:
        for peer, run, first in self._outgoing.take_done():
            self._core.transfer_done(peer, run, first, now)
        for peer, run, info, span in self._incoming.take_stored():
            self._core.object_received(peer, run, info, span, now)
        for run, position, text in self._incoming.take_failed():
            self._fail_for_memory(run, position, text)
        for job, location in self._spiller.take_done():
            self._core.object_spilled(job, location, now)

    def _fail_for_memory(self, run: int, position: int, text: str) -> None:
        """There is no room for an object that tasks here need: the run can't go on."""
        known = self._core.runs.get(RunNo(run))
        epoch = known.epoch if known is not None else self._epoch
        failure = Failure(position, 1, "memory", text=f"broker {self._settings.broker}: {text}")
        self._send_master([Parcel(TaskFailed(run, epoch, failure))])

    # --- what the core decided ------------------------------------------------------------------

    def _act(self, actions: BrokerActions, now: float) -> None:
        # Executors first: each microsecond here is one in which a CPU may be idle.
        for executor, parcels in actions.to_executors.items():
            if self._settings.debug:
                for parcel in parcels:
                    logger.debug("to executor %d: %.500r", executor, parcel.message)
            self._pool.send(executor, encode_batch(parcels, self._epoch))
        for executor in actions.start:
            incarnation = self._core.executors[ProcessId(executor)].incarnation
            self._pool.start(executor, incarnation, now)
        for executor in actions.kill:
            self._pool.kill(executor)
        left_out = self._pool.take_back(actions.take_back)
        for pair in actions.take_back:
            self._core.ledger.taken_back(*pair, is_left_out=pair in left_out)
        self._again |= bool(left_out)
        for executor, bundle in actions.stop_bundles:
            self._pool.stop_bundle(executor, bundle)
        for peer, parcels in actions.to_peers.items():
            self._send_peer(peer, parcels, now)
        if actions.to_master:
            fault("broker.after_commit")
            self._send_master(actions.to_master)
        for location in actions.free:
            if not self._spiller.free(location):
                self._arena.free(location)
        for job, location in actions.spill:
            self._spiller.start(job, location)
        for executor, incarnation, keep in actions.reclaim:
            prefix = f"{self._settings.name_prefix}-{executor}-{incarnation}"
            unlink_segments(prefix, keep, self._spill)
        for run, position, frame in actions.store:
            self._store(run, position, frame, now)
        for peer, run, info in actions.transfers:
            self._outgoing.start(peer, run, info)
        for peer, parcel in self._incoming.take_parcels():
            self._send_peer(peer, [parcel], now)
        for peer, parcel in self._outgoing.take_parcels():
            self._send_peer(peer, [parcel], now)
        if actions.shutdown:
            self._is_over = True

    def _store(self, run: int, position: int, frame: Frame, now: float) -> None:
        size = len(frame)
        try:
            location, target = self._arena.write_raw(size)
        except OutOfMemory as error:
            self._fail_for_memory(run, position, str(error))
            return
        target[:] = frame
        target.release()
        self._core.object_stored(run, ObjectInfo(position, 1, size, location), now)
        self._again = True


def own_version() -> tuple[str, str, int]:
    """Python, dagsched and protocol of this process."""
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return (python, __version__, PROTOCOL_VERSION)
