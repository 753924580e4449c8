"""The executors' processes as the broker has them: start, talk, watch, kill, reap.

Responsible for processes, their sockets, status words and output. Which executors there shall be,
and what they do, the core decides. What happened is lined up for the shell, which takes it with
`take_batches` and `take_exits` once a turn; the pool never waits, but for `close`.
"""

import functools
import logging
import os
import select
import signal
import socket
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dagsched.brokers import processes, zygote
from dagsched.brokers.answers import Look
from dagsched.brokers.channel import ChannelFull, Receiver, Sender
from dagsched.brokers.logs import BackgroundWriter, ExecutorLog
from dagsched.brokers.poller import READ, WRITE, Poller
from dagsched.brokers.status import (
    IDLE_POSITION,
    LATEST,
    POSITION,
    RUNNING,
    STARTED,
    STOP,
    TAKEN_BACK,
)
from dagsched.brokers.zygote import STATUS_WORDS, Zygote
from dagsched.config import Config
from dagsched.errors import DagschedError, InternalError, ProtocolError
from dagsched.protocol.messages import ExitInfo, Frame

logger = logging.getLogger(__name__)

QUICK_DEATHS_FREE = 2
"""Deaths in a row before the first message that don't delay the next start."""

QUICK_DEATHS_MAX = 8
"""If every executor of the node has died this often in a row, the node is of no use."""

BACKOFF_FIRST_S = 0.1
BACKOFF_MAX_S = 30.0

LAST_READS_MAX = 10_000
"""Pieces read from a dead executor's socket: more than it holds, in case a stray still writes."""

REAP_TIMEOUT_S = 2.0
"""How long killed processes may take to go when the pool is closed."""


class NodeUnusable(DagschedError):
    """No executor of this node lives long enough to say so."""


@dataclass(slots=True, eq=False)
class Process:
    """One incarnation of an executor."""

    executor: int
    incarnation: int
    sock: socket.socket
    sender: Sender
    receiver: Receiver
    pid: int = 0  # 0: the zygote has not answered yet
    pidfd: int = -1
    has_spoken: bool = False
    is_killed: bool = False
    is_hung_up: bool = False  # its socket has ended and isn't listened to any more
    fault: str = ""  # why it was ended, if it gave a reason


@dataclass(slots=True, eq=False)
class Slot:
    """What stays of an executor from one incarnation to the next."""

    number: int
    log: ExecutorLog
    quick_death_count: int = 0
    last_words: str = ""


class Pool:
    """All executor processes of a node.

    Args:
        forked: the zygote, forked early by `fork_zygote`.
        poller: where the pool registers its descriptors.
        directory: for ``executor-<id>.log``.
        config: limits.
    """

    def __init__(self, forked: Zygote, poller: Poller, directory: Path, config: Config) -> None:
        self._zygote = forked
        self._poller = poller
        self._directory = directory
        self._config = config
        self._processes: dict[int, Process] = {}
        self._slots: dict[int, Slot] = {}
        self._free_slots: list[int] = []
        self._delayed: dict[int, tuple[float, int]] = {}  # executor: when to start, incarnation
        self._starting_count = 0
        self._batches: list[tuple[int, list[Frame]]] = []
        self._exits: list[tuple[int, ExitInfo, int, int]] = []
        self._strays: dict[int, int] = {}  # pidfd by pid
        self._writer = BackgroundWriter()
        self._fence = threading.Lock()  # to take it orders what is written before and read after
        self._oom_kills = -1  # of this machine, as last looked at

    def open(self) -> None:
        """Become the reaper of all that descends from here, and listen to the zygote."""
        processes.become_subreaper()
        self._oom_kills = processes.oom_kill_count()
        self._poller.add(self._zygote.control.fileno(), self._zygote_ready)

    # --- commands -------------------------------------------------------------------------------

    def start(self, executor: int, incarnation: int, now: float) -> None:
        """Start an executor, later if it has just died several times before it said a word.

        Raises:
            InternalError: it runs already, or there are too many.
            NodeUnusable: all executors of the node die at start.
        """
        if executor in self._processes:
            raise InternalError(f"executor {executor} was to be started while it runs")
        slot = self._slot(executor)
        count = slot.quick_death_count
        if count <= QUICK_DEATHS_FREE:
            self._start_now(executor, incarnation)
            return
        self._refuse_hopeless(slot)
        delay_s = min(BACKOFF_MAX_S, BACKOFF_FIRST_S * 2.0 ** (count - QUICK_DEATHS_FREE - 1))
        logger.warning(
            "executor %d died %d times at start and is started again in %.1f s; it said: %s",
            executor,
            count,
            delay_s,
            slot.last_words.strip() or "nothing",
        )
        self._delayed[executor] = (now + delay_s, incarnation)

    def kill(self, executor: int) -> None:
        """End an executor and its process group at once; its exit is reported as any other."""
        process = self._processes.get(executor)
        if process is not None:
            process.is_killed = True
            _kill(process)

    def remove(self, executor: int) -> None:
        """Forget an executor that has ended and won't come back."""
        self._delayed.pop(executor, None)
        slot = self._slots.pop(executor, None)
        if slot is not None:
            slot.log.close()
            self._free_slots.append(slot.number)

    def send(self, executor: int, frames: Sequence[Frame]) -> None:
        """Send a batch; nothing happens if the executor is on its way out."""
        process = self._processes.get(executor)
        if process is None or process.is_hung_up:
            return
        try:
            if not process.sender.send_batch(frames):
                self._poller.change(process.sock.fileno(), READ | WRITE)
        except ChannelFull:
            logger.exception("executor %d has stopped reading and is killed", executor)
            self.kill(executor)
        except OSError:
            # Its end of the socket is closed: it is dead or dying, and its pidfd will say so.
            logger.debug("executor %d takes no more messages", executor, exc_info=True)

    def stop_bundle(self, executor: int, bundle: int) -> None:
        """Have an executor defer the tasks of a bundle that it has not begun."""
        slot = self._slots.get(executor)
        if slot is not None:
            self._words(slot)[STOP] = bundle

    def take_back(self, wanted: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Have executors leave out bundles that they were sent, if they haven't begun them.

        Args:
            wanted: executor and number of bundle, in the order in which they were sent.

        Returns:
            Those that are left out.
        """
        taken: list[tuple[int, int]] = []
        begun: set[int] = set()
        for executor, bundle in reversed(wanted):
            if executor not in begun and self._take_back(executor, bundle):
                taken.append((executor, bundle))
            else:
                begun.add(executor)  # then also what it was sent before
        return taken

    def _take_back(self, executor: int, bundle: int) -> bool:
        slot = self._slots.get(executor)
        if slot is None:
            return False
        words = self._words(slot)
        for index in TAKEN_BACK:
            if not words[index]:
                words[index] = bundle
                # It says first what it begins, and looks then: so one of us sees the other.
                with self._fence:
                    pass
                if words[LATEST] != bundle:
                    return True
                words[index] = 0
                return False
        return False

    # --- what happened --------------------------------------------------------------------------

    def take_batches(self) -> list[tuple[int, list[Frame]]]:
        """Batches that executors have sent, in the order of their coming."""
        batches, self._batches = self._batches, []
        return batches

    def take_exits(self) -> list[tuple[int, ExitInfo, int, int]]:
        """Executors that have ended: how, and the bundle and position that they were at."""
        exits, self._exits = self._exits, []
        return exits

    def heard(self, executor: int) -> None:
        """An executor's first message has come."""
        process = self._processes.get(executor)
        if process is not None:
            process.has_spoken = True
            self._slots[executor].quick_death_count = 0

    def pid_of(self, executor: int) -> int:
        """Process id of a running executor; 0: there is none (yet)."""
        process = self._processes.get(executor)
        return process.pid if process is not None else 0

    def look(self, executor: int) -> Look | None:
        """What a running executor does at this moment; None: there is none (yet)."""
        process = self._processes.get(executor)
        if process is None or not process.pid:
            return None
        words = self._words(self._slots[executor])
        is_stopped = processes.is_stopped(process.pid)
        if not words[RUNNING]:
            return Look(IDLE_POSITION, 0.0, is_stopped)
        return Look(words[POSITION], words[STARTED] / 1e9, is_stopped)

    def next_timer(self) -> float | None:
        """When `handle_timer` should be called."""
        return min((when for when, _ in self._delayed.values()), default=None)

    def handle_timer(self, now: float) -> None:
        """Start the executors whose delay is over."""
        due = [executor for executor, (when, _) in self._delayed.items() if when <= now]
        for executor in due:
            _, incarnation = self._delayed.pop(executor)
            self._start_now(executor, incarnation)

    # --- starting -------------------------------------------------------------------------------

    def _slot(self, executor: int) -> Slot:
        slot = self._slots.get(executor)
        if slot is None:
            number = self._free_slots.pop() if self._free_slots else len(self._slots)
            if number >= zygote.SLOTS_MAX:
                raise InternalError(f"a node has at most {zygote.SLOTS_MAX} executors")
            path = self._directory / f"executor-{executor}.log"
            slot = self._slots[executor] = Slot(
                number, ExecutorLog(path, self._config, self._writer)
            )
        return slot

    def _words(self, slot: Slot) -> memoryview:
        begin = slot.number * STATUS_WORDS
        return self._zygote.status[begin : begin + STATUS_WORDS]

    def _refuse_hopeless(self, slot: Slot) -> None:
        counts = [other.quick_death_count for other in self._slots.values()]
        if min(counts) >= QUICK_DEATHS_MAX:
            raise NodeUnusable(
                f"each of the node's {len(counts)} executors died {QUICK_DEATHS_MAX} times in a "
                "row before it was ready; the last one said: "
                f"{slot.last_words.strip() or 'nothing'}"
            )

    def _start_now(self, executor: int, incarnation: int) -> None:
        slot = self._slots[executor]
        words = self._words(slot)
        for index in range(STATUS_WORDS):
            words[index] = 0
        words[POSITION] = IDLE_POSITION
        ours, theirs = socket.socketpair()
        log_fd = slot.log.open_pipe()
        try:
            request = (zygote.START, executor, incarnation, slot.number)
            zygote.send_request(self._zygote.control, request, (theirs.fileno(), log_fd))
        finally:
            theirs.close()
            os.close(log_fd)
        ours.setblocking(False)
        process = Process(executor, incarnation, ours, Sender(ours), Receiver(ours))
        self._processes[executor] = process
        self._starting_count += 1
        self._poller.add(ours.fileno(), lambda: self._socket_ready(process))
        self._poller.add(slot.log.pipe_fd, lambda: self._log_ready(slot))

    def _zygote_ready(self) -> None:
        while True:
            try:
                reply = self._zygote.control.recv(zygote.REPLY.size)
            except BlockingIOError:
                break
            if not reply:
                raise InternalError("the zygote is gone; executors can't be started any more")
            executor, incarnation, pid, problem = zygote.REPLY.unpack(reply)
            self._starting_count -= 1
            process = self._processes.get(executor)
            if process is None or process.incarnation != incarnation:
                raise InternalError(f"the zygote speaks of an unknown executor {executor}")
            if pid:
                self._begin_watch(process, pid)
            else:
                text = f"no process could be forked: {os.strerror(problem)}"
                self._end(process, ExitInfo(log_tail=text))
        if not self._starting_count:
            self._kill_strays()

    def _begin_watch(self, process: Process, pid: int) -> None:
        process.pid = pid
        process.pidfd = os.pidfd_open(pid)
        self._poller.add(process.pidfd, lambda: self._process_ended(process))
        if process.is_killed or process.is_hung_up:
            _kill(process)

    # --- sockets and output ---------------------------------------------------------------------

    def _socket_ready(self, process: Process) -> None:
        if process.is_hung_up:
            return
        if process.sender.pending_bytes:
            try:
                if process.sender.flush():
                    self._poller.change(process.sock.fileno(), READ)
            except OSError:
                self._hang_up(process)
                return
        self._read(process)

    def _read(self, process: Process) -> None:
        try:
            for frames in process.receiver.receive():
                self._batches.append((process.executor, frames))
        except ProtocolError:
            logger.exception("executor %d sent nonsense and is killed", process.executor)
            process.fault = "after it had sent what is no message"
            self._hang_up(process)
            return
        if process.receiver.is_closed:
            self._hang_up(process)

    def _hang_up(self, process: Process) -> None:
        """End an executor that has no socket any more; one that exits already isn't disturbed."""
        process.is_hung_up = True
        self._poller.remove(process.sock.fileno())
        if not process.fault and process.pid and not processes.is_exiting(process.pid):
            process.fault = "after it had closed its connection to the broker"
        _kill(process)

    def _log_ready(self, slot: Slot) -> None:
        fd = slot.log.pipe_fd
        if fd >= 0 and not slot.log.drain(before_close=self._poller.remove):
            logger.debug("the output of slot %d has ended", slot.number)

    # --- ends -----------------------------------------------------------------------------------

    def _process_ended(self, process: Process) -> None:
        if process.pidfd < 0 or self._processes.get(process.executor) is not process:
            return
        # Until it is reaped, its number names it and its group, and nobody else's.
        processes.kill_group(process.pid)
        pid, status, usage = os.wait4(process.pid, os.WNOHANG)
        if pid == 0:
            return
        zygote.send_request(self._zygote.control, (zygote.FORGET, pid, 0, 0))
        self._read_last(process)
        code = os.waitstatus_to_exitcode(status)
        slot = self._slots[process.executor]
        self._finish_log(slot)
        cause, is_oom = self._cause_of(process, code)
        exit_info = ExitInfo(
            exit_code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            rss_bytes=usage.ru_maxrss * 1024,
            log_tail=slot.log.tail(),
            cause=cause,
            is_oom=is_oom,
        )
        self._end(process, exit_info)
        if not self._starting_count:
            self._kill_strays()

    def _cause_of(self, process: Process, code: int) -> tuple[str, bool]:
        """What is known of a death by SIGKILL that we have no part in; if it was for memory."""
        if code != -signal.SIGKILL or process.is_killed or process.fault:
            return process.fault, False
        before, self._oom_kills = self._oom_kills, processes.oom_kill_count()
        if 0 <= before < self._oom_kills:
            return "by the kernel, which was out of memory", True
        return "from outside: neither by dagsched nor by the kernel for want of memory", False

    def _read_last(self, process: Process) -> None:
        """Take what the dead one still managed to send; strays may hold its end open."""
        if process.is_hung_up:
            return
        readable = select.poll()
        readable.register(process.sock.fileno(), select.POLLIN)
        for _ in range(LAST_READS_MAX):
            if process.is_hung_up or not readable.poll(0):
                return
            self._read(process)

    def _finish_log(self, slot: Slot) -> None:
        slot.log.finish(before_close=self._poller.remove)

    def _end(self, process: Process, exit_info: ExitInfo) -> None:
        """Let go of all that belonged to an incarnation, and report its end."""
        slot = self._slots[process.executor]
        words = self._words(slot)
        if not process.is_hung_up:
            self._poller.remove(process.sock.fileno())
        process.is_hung_up = True
        process.sock.close()
        if process.pidfd >= 0:
            self._poller.remove(process.pidfd)
            os.close(process.pidfd)
            process.pidfd = -1
        self._finish_log(slot)
        del self._processes[process.executor]
        if not process.has_spoken and not process.is_killed:
            slot.quick_death_count += 1
        slot.last_words = exit_info.log_tail
        bundle = words[RUNNING]
        position = words[POSITION] if bundle else IDLE_POSITION
        self._exits.append((process.executor, exit_info, bundle, position))

    # --- strays ---------------------------------------------------------------------------------

    def _kill_strays(self) -> None:
        """Kill children that are no executors: what tasks of dead executors have left behind.

        Only while no executor is being forked, which would look the same.
        """
        known = {process.pid for process in self._processes.values()} | {self._zygote.pid}
        for pid in processes.children():
            if pid in known or pid in self._strays:
                continue
            processes.kill_process(pid)
            pidfd = os.pidfd_open(pid)
            self._strays[pid] = pidfd
            self._poller.add(pidfd, functools.partial(self._stray_ended, pid))

    def _stray_ended(self, pid: int) -> None:
        pidfd = self._strays.get(pid)
        if pidfd is None:
            return
        found, _ = os.waitpid(pid, os.WNOHANG)
        if found:
            self._poller.remove(pidfd)
            os.close(pidfd)
            del self._strays[pid]
            if not self._starting_count:
                self._kill_strays()  # its own children are ours now

    # --- the end of it all ----------------------------------------------------------------------

    def close(self) -> None:
        """Kill every executor and stray, end the zygote, and wait until all are gone."""
        deadline = time.monotonic() + REAP_TIMEOUT_S
        for executor in list(self._processes):
            self.kill(executor)
        self._poller.remove(self._zygote.control.fileno())
        # The zygote reads its end, and kills what it may have forked in this moment.
        self._zygote.control.close()
        while self._wait_for_any(deadline):
            for pid in processes.children():
                if pid != self._zygote.pid:
                    processes.kill_process(pid)
        for process in self._processes.values():
            process.sock.close()
            if process.pidfd >= 0:
                os.close(process.pidfd)
        for pidfd in self._strays.values():
            os.close(pidfd)
        for slot in self._slots.values():
            slot.log.finish()
            slot.log.close()
        self._writer.close(max(0.0, deadline - time.monotonic()))
        if processes.parent_of(self._zygote.pid) == os.getpid():
            processes.kill_process(self._zygote.pid)
        self._processes.clear()
        self._strays.clear()
        self._slots.clear()

    def _wait_for_any(self, deadline: float) -> bool:
        """Reap one child; False: there is none left, or the time is over."""
        left = processes.children()
        if not left:
            return False
        poll = select.poll()
        pidfds = []
        try:
            for pid in left:
                pidfds.append(os.pidfd_open(pid))
                poll.register(pidfds[-1], select.POLLIN)
            ready = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
        finally:
            for pidfd in pidfds:
                os.close(pidfd)
        if not ready:
            logger.warning("processes %s do not go, though killed", left)
            return False
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                continue
        except ChildProcessError:
            return False
        return True


def _kill(process: Process) -> None:
    """SIGKILL to an executor that isn't reaped yet, and to its group, if its pid is known."""
    if process.pid:
        processes.kill_group(process.pid)
        # It may not lead a group of its own yet.
        processes.kill_process(process.pid)
