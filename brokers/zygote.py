"""The zygote: a process with everything loaded, which forks executors on demand in a millisecond.

The broker forks it while it still has one thread and no sockets, so that executors inherit
neither. An executor is forked twice, so that it becomes the broker's child (the broker is a
subreaper) and the broker can wait for it. The zygote waits for the process in between; by then the
executor has its final parent, and only then does the zygote let it go on.

When the broker is gone, for whatever reason, the control socket ends: the zygote then kills all
that descends from that broker, which the executors' own death signals would not reach, and leaves.
"""

import array
import faulthandler
import gc
import io
import mmap
import os
import signal
import socket
import struct
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from dagsched.brokers import processes
from dagsched.brokers.handover import Handover, SlotSockets, open_slots
from dagsched.brokers.launch import NODE_VARIABLE
from dagsched.faults import fault

STATUS_WORDS = 8
"""int64 words of an executor's slot: see `dagsched.brokers.executor`."""

SLOTS_MAX = 1_024

START, FORGET = 1, 2  # kinds of request
REQUEST = struct.Struct("<4q")  # kind, executor or pid, incarnation, slot
REPLY = struct.Struct("<4q")  # executor, incarnation, pid (0: could not fork), errno

EXIT_ORPHAN = 75
"""Exit code of an executor that found its broker gone before it began."""

ExecutorMain = Callable[[int, int, socket.socket, memoryview, Any, int, Any], object]
"""Executor, incarnation, socket, status words, settings, slot, handover: see `executor_main`."""


@dataclass(frozen=True, slots=True)
class Zygote:
    """The broker's view of its zygote."""

    pid: int
    control: socket.socket  # of sequenced packets, not blocking
    status: memoryview  # of int64, STATUS_WORDS for each slot; shared with all executors


def fork_zygote(
    main: ExecutorMain,
    settings: object,
    node: str,
    private_fds: Sequence[int] = (),
    slot_count: int = 0,
) -> Zygote:
    """Fork the zygote off this process, which must have one thread only.

    Args:
        main: run in each executor.
        settings: the last argument of `main`.
        node: value of the environment variable DAGSCHED_NODE in this process, by which whatever
            descends from it is found after its death.
        private_fds: descriptors that are this process's alone.
        slot_count: executors that shall be able to hand values over to each other.
    """
    shared = memoryview(mmap.mmap(-1, SLOTS_MAX * STATUS_WORDS * 8)).cast("q")
    control, own_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    broker_pid = os.getpid()
    # Collections in the children would write to, and so copy, all pages they share with us.
    gc.freeze()
    pid = os.fork()
    if pid == 0:
        control.close()
        for fd in private_fds:
            os.close(fd)
        _run_zygote(own_control, shared, broker_pid, main, settings, node, slot_count)
    own_control.close()
    control.setblocking(False)
    return Zygote(pid, control, shared)


def _run_zygote(
    control: socket.socket,
    status: memoryview,
    broker_pid: int,
    main: ExecutorMain,
    settings: object,
    node: str,
    slot_count: int,
) -> NoReturn:
    """Serve requests until the broker is gone."""
    code = 1
    groups: set[int] = set()
    try:
        # Its own group: who kills the broker's group shall not kill the one who cleans up.
        os.setsid()
        signal.signal(signal.SIGTERM, _leave)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # In case somebody else holds the other end of the control socket.
        processes.set_death_signal(signal.SIGTERM)
        _close_stdin()
        if os.getppid() == broker_pid:
            _serve(control, status, broker_pid, main, settings, groups, open_slots(slot_count))
        # The death signal follows the end of the socket: it must not end the cleaning up.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        code = 0
    except SystemExit:
        code = 0  # see _leave
    except BaseException:  # noqa: BLE001 - there is nobody above; the text goes to the broker's log
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        traceback.print_exc()
    finally:
        fault("zygote.before_sweep")
        for group in sorted(groups):
            processes.kill_group(group)
        if node:
            _kill_descendants(node, broker_pid)
        os._exit(code)


def _leave(number: int, frame: object) -> NoReturn:  # noqa: ARG001 - the form of a handler
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # once is enough
    raise SystemExit(0)


def _close_stdin() -> None:
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)


def _kill_descendants(node: str, broker_pid: int) -> None:
    """Kill what tasks have left behind: processes that carry the node's name."""
    own = (os.getpid(), broker_pid)
    for pid in processes.all_processes():
        if pid not in own and processes.has_variable(pid, NODE_VARIABLE, node):
            processes.kill_process(pid)


def _serve(
    control: socket.socket,
    status: memoryview,
    broker_pid: int,
    main: ExecutorMain,
    settings: object,
    groups: set[int],
    slots: SlotSockets,
) -> None:
    while True:
        data, fds, _, _ = socket.recv_fds(control, REQUEST.size, 2)
        if not data:
            return
        kind, number, incarnation, slot = REQUEST.unpack(data)
        if kind == FORGET:
            groups.discard(number)
            continue
        words = status[slot * STATUS_WORDS : (slot + 1) * STATUS_WORDS]
        start = _Start(
            number, incarnation, words, fds[0], fds[1], broker_pid, main, settings, slot, slots
        )
        try:
            fault("zygote.before_fork")
            pid, problem = _fork_twice(start, control), 0
            groups.add(pid)
        except OSError as error:
            pid, problem = 0, error.errno or 0
        finally:
            for fd in fds:
                os.close(fd)
        try:
            control.send(REPLY.pack(number, incarnation, pid, problem))
        except (BrokenPipeError, ConnectionResetError):
            return


@dataclass(frozen=True, slots=True)
class _Start:
    """What it takes to become an executor."""

    executor: int
    incarnation: int
    words: memoryview
    sock_fd: int
    log_fd: int
    broker_pid: int
    main: ExecutorMain
    settings: object
    slot: int
    slots: SlotSockets


def _fork_twice(start: _Start, control: socket.socket) -> int:
    """Fork an executor that is the broker's child.

    Returns:
        its pid.

    Raises:
        OSError: there can be no further process.
    """
    told_fd, tell_fd = os.pipe()  # the executor tells its pid
    wait_fd, go_fd = os.pipe()  # and waits until it has its final parent
    try:
        middle = os.fork()
        if middle == 0:
            _run_middle(start, control, tell_fd, wait_fd, (told_fd, go_fd))
        _, code = os.waitpid(middle, 0)
        # The executor has been adopted: a parent's death is told only after its children moved.
        problem = os.waitstatus_to_exitcode(code)
        if problem:
            raise OSError(problem, os.strerror(problem))
        (pid,) = struct.unpack("<q", os.read(told_fd, 8))
        os.write(go_fd, b"g")
        return int(pid)
    finally:
        for fd in (told_fd, tell_fd, wait_fd, go_fd):
            os.close(fd)


def _run_middle(
    start: _Start,
    control: socket.socket,
    tell_fd: int,
    wait_fd: int,
    unused: tuple[int, int],
) -> NoReturn:
    """Fork once more and vanish; its exit code is the error number, if there is one."""
    problem = 1
    try:
        if os.fork() == 0:
            for fd in unused:
                os.close(fd)
            control.close()
            os.write(tell_fd, struct.pack("<q", os.getpid()))
            if os.read(wait_fd, 1) != b"g":
                os._exit(EXIT_ORPHAN)
            _become_executor(start)
        problem = 0
    except OSError as error:
        problem = error.errno or 1
    finally:
        os._exit(problem)


def _become_executor(start: _Start) -> NoReturn:
    """Cut all ties to zygote and broker but one socket and a pipe, then run."""
    code = 1
    try:
        processes.set_death_signal(signal.SIGKILL)
        if os.getppid() != start.broker_pid:
            os._exit(EXIT_ORPHAN)
        os.setsid()
        # Orphans of a task come to its executor and, when that ends, to the broker: so orphans
        # that come to the broker are those of dead executors, and can be killed.
        processes.become_subreaper()
        processes.raise_oom_score()
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, signal.SIG_DFL)
        sock = _take_descriptors(start)
        _reseed()
        faulthandler.enable()
        handover = None
        if start.slot < len(start.slots.readers):
            handover = Handover(start.slots.readers[start.slot], start.slots.writers)
        start.main(
            start.executor, start.incarnation, sock, start.words, start.settings, start.slot,
            handover,
        )  # fmt: skip
        code = 0
    except BaseException:  # noqa: BLE001 - it is the last thing that this process says
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except (OSError, ValueError):
                continue  # its pipe is closed, or it is
        os._exit(code)


def _take_descriptors(start: _Start) -> socket.socket:
    """Keep the socket, those that lead to others and three standard streams, close the rest."""
    os.dup2(start.log_fd, 1)
    os.dup2(start.log_fd, 2)
    sock_fd = start.sock_fd
    os.set_inheritable(sock_fd, False)  # what comes over a socket is; programs of tasks need it not
    kept = [sock_fd, *(writer.fileno() for writer in start.slots.writers)]
    kept += [reader.fileno() for reader in start.slots.readers[start.slot :][:1]]
    last = 2
    for fd in sorted(kept):
        os.closerange(last + 1, fd)
        last = fd
    os.closerange(last + 1, os.sysconf("SC_OPEN_MAX"))
    # Line by line, so that a crash doesn't take the last ones with it; nothing can't be printed.
    sys.stdout, sys.stderr = _text_stream(1), _text_stream(2)
    return socket.socket(fileno=sock_fd)


def _text_stream(fd: int) -> io.TextIOWrapper:
    raw = io.FileIO(fd, "w", closefd=False)
    return io.TextIOWrapper(
        io.BufferedWriter(raw), "utf-8", "backslashreplace", line_buffering=True
    )


def _reseed() -> None:
    """Executors must not all draw the same numbers; `random` sees to that itself at a fork."""
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def send_request(
    control: socket.socket, request: tuple[int, int, int, int], fds: tuple[int, ...] = ()
) -> None:
    """Ask the zygote for something; the descriptors are copied.

    Raises:
        OSError: the zygote is gone.
    """
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
    control.sendmsg([REQUEST.pack(*request)], rights)
