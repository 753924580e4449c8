"""Executor processes: how they start, what becomes of them, and that nothing of them stays.

Each scenario runs in a process of its own, forked here: a pool takes all children of its process
for its own, and kills what it doesn't know.
"""

import errno
import os
import select
import signal
import struct
import tempfile
import time
import traceback
from pathlib import Path

import pytest

from dagsched.brokers import processes, zygote
from dagsched.brokers.channel import Receiver, Sender
from dagsched.brokers.poller import Poller
from dagsched.brokers.pool import QUICK_DEATHS_MAX, NodeUnusable, Pool
from dagsched.brokers.status import LATEST, RUNNING, TAKEN_BACK
from dagsched.brokers.zygote import STATUS_WORDS, fork_zygote
from dagsched.config import Config
from dagsched.errors import InternalError

WAIT_S = 20.0


# --- what executors do in these tests -------------------------------------------------------------


def obey(executor, incarnation, sock, words, settings, slot, handover):
    """Say hello, then do what each batch's first frame says."""
    sender, receiver = Sender(sock), Receiver(sock)
    sender.send_batch([b"hello", b"%d %d" % (executor, incarnation)])
    while True:
        for frames in receiver.receive_batch():
            _do(sender, words, [bytes(frame) for frame in frames])
        if receiver.is_closed:
            return


def _do(sender, words, frames):
    command, *arguments = frames
    match command:
        case b"state":
            sender.send_batch([repr(_state()).encode()])
        case b"words":
            words[0], words[1] = int(arguments[0]), int(arguments[1])
            sender.send_batch([b"stop %d" % words[2]])
        case b"exit":
            print("about to leave")
            sender.send_batch([b"last words"])
            os._exit(int(arguments[0]))
        case b"raise":
            raise ValueError("as told")
        case b"signal":
            print("about to die")
            os.kill(os.getpid(), int(arguments[0]))
        case b"close":
            os.closerange(0, 64)
            signal.pause()
        case b"family":
            sender.send_batch([struct.pack("<3q", os.getpid(), *_family())])
        case b"echo":
            sender.send_batch(arguments)


def _state():
    with open("/proc/self/oom_score_adj") as score:
        adjusted = int(score.read())
    return {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "group": os.getpgrp(),
        "session": os.getsid(0),
        "stdin": str(Path("/proc/self/fd/0").readlink()),
        "fds": sorted(set(map(int, os.listdir("/proc/self/fd"))) & set(range(64)))[:4],
        "fd_count": len(os.listdir("/proc/self/fd")) - 1,  # the listing's own
        "score": adjusted,
        "interrupt": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
    }


def _family():
    """A child in this group, and a daemon that has left it and its parent; both never end."""
    child = os.fork()
    if child == 0:
        _pause_for_ever()
    told, tell = os.pipe()
    middle = os.fork()
    if middle == 0:
        if os.fork() == 0:
            os.setsid()
            os.write(tell, struct.pack("<q", os.getpid()))
            _pause_for_ever()
        os._exit(0)
    os.waitpid(middle, 0)
    (daemon,) = struct.unpack("<q", os.read(told, 8))
    return child, daemon


def _pause_for_ever():
    while True:
        signal.pause()


def die_at_once(executor, incarnation, sock, words, settings, slot, handover):
    print("no such module")
    os._exit(1)


# --- how scenarios run ----------------------------------------------------------------------------


def run_forked(scenario, *arguments):
    """Run a scenario in a forked process; its exception, if any, fails the test."""
    read_fd, write_fd = os.pipe()
    pid = os.fork()
    if pid == 0:
        text = ""
        try:
            os.close(read_fd)
            with tempfile.TemporaryDirectory() as directory:
                scenario(Path(directory), *arguments)
        except BaseException:  # noqa: BLE001 - whatever it is, the test shows it
            text = traceback.format_exc()
        finally:
            os.write(write_fd, text.encode())
            os._exit(0)
    os.close(write_fd)
    with os.fdopen(read_fd, "rb") as told:
        text = told.read().decode()
    os.waitpid(pid, 0)
    if text:
        pytest.fail(text)


class Node:
    """A pool, and what it has said so far."""

    def __init__(self, directory, main=obey, config=None):
        self.poller = Poller()
        forked = fork_zygote(main, None, "")
        self.zygote = forked
        self.pool = Pool(forked, self.poller, directory, config or Config())
        self.pool.open()
        self.batches = []
        self.exits = []

    def turn(self):
        self.poller.wait(WAIT_S)
        batches = self.pool.take_batches()
        for executor, frames in batches:
            if bytes(frames[0]) == b"hello":
                self.pool.heard(executor)
        self.batches += [(executor, [bytes(f) for f in frames]) for executor, frames in batches]
        self.exits += self.pool.take_exits()

    def until(self, condition):
        deadline = time.monotonic() + WAIT_S
        while not condition():
            assert time.monotonic() < deadline, (self.batches, self.exits)
            self.turn()

    def start(self, executor, incarnation=1):
        self.pool.start(executor, incarnation, time.monotonic())
        hello = (executor, [b"hello", b"%d %d" % (executor, incarnation)])
        self.until(lambda: hello in self.batches and self.pool.pid_of(executor))
        self.batches.remove(hello)

    def ask(self, executor, *frames):
        self.pool.send(executor, frames)
        self.until(lambda: self.batches)
        return self.batches.pop(0)

    def exit_of(self, executor):
        self.until(lambda: self.exits)
        found, *rest = self.exits.pop(0)
        assert found == executor
        return rest

    def close(self):
        self.pool.close()
        assert processes.children() == []


def wait_gone(pids):
    """Wait until all these processes have ended."""
    for pid in pids:
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        poll = select.poll()
        poll.register(pidfd, select.POLLIN)
        assert poll.poll(WAIT_S * 1000), f"process {pid} lives on"
        os.close(pidfd)


# --- scenarios ------------------------------------------------------------------------------------


def test_start_makes_a_clean_child_of_the_broker():
    def scenario(directory):
        node = Node(directory)
        node.start(7)
        sender, [text] = node.ask(7, b"state")
        assert sender == 7
        state = eval(text)
        pid = state["pid"]
        assert pid == node.pool.pid_of(7)
        assert state["parent"] == os.getpid()
        assert state["group"] == state["session"] == pid
        assert state["stdin"] == os.devnull
        assert state["fd_count"] == 4
        assert state["fds"][:3] == [0, 1, 2]
        assert state["score"] == processes.EXECUTOR_OOM_SCORE
        assert state["interrupt"]
        assert sorted(processes.children()) == sorted([pid, node.zygote.pid])
        node.close()

    run_forked(scenario)


@pytest.mark.parametrize(
    ("command", "code", "number", "said"),
    [
        ((b"exit", b"0"), 0, None, "about to leave\n"),
        ((b"exit", b"3"), 3, None, "about to leave\n"),
        ((b"raise",), 1, None, "ValueError: as told\n"),
        ((b"signal", b"9"), None, 9, "about to die\n"),
        ((b"signal", b"11"), None, 11, "Fatal Python error: Segmentation fault"),
        ((b"close",), None, 9, ""),
    ],
)
def test_exit_is_told_exactly(command, code, number, said):
    def scenario(directory):
        node = Node(directory)
        node.start(3)
        node.start(4)
        assert node.ask(3, b"words", b"12", b"345") == (3, [b"stop 0"])
        node.pool.send(3, command)
        exit_info, bundle, position = node.exit_of(3)
        assert (exit_info.exit_code, exit_info.signal) == (code, number)
        assert (bundle, position) == (12, 345)
        assert said in exit_info.log_tail
        assert exit_info.rss_bytes > 1 << 20
        assert node.pool.pid_of(3) == 0
        node.batches.clear()
        assert node.ask(4, b"echo", b"unharmed") == (4, [b"unharmed"])
        node.close()

    run_forked(scenario)


def test_an_idle_executor_has_no_position():
    def scenario(directory):
        node = Node(directory)
        node.start(3)
        node.ask(3, b"words", b"0", b"345")
        node.pool.kill(3)
        _, bundle, position = node.exit_of(3)
        assert (bundle, position) == (0, -1)
        node.close()

    run_forked(scenario)


def test_what_it_sent_before_it_died_arrives():
    def scenario(directory):
        node = Node(directory)
        for incarnation in range(1, 21):
            node.start(3, incarnation)
            node.pool.send(3, [b"exit", b"0"])
            node.exit_of(3)
            assert node.batches == [(3, [b"last words"])]
            node.batches.clear()
        node.close()

    run_forked(scenario)


def test_next_incarnation_has_the_same_slot_with_fresh_words():
    def scenario(directory):
        node = Node(directory)
        node.start(3)
        node.pool.stop_bundle(3, 99)
        assert node.ask(3, b"words", b"1", b"2") == (3, [b"stop 99"])
        node.pool.kill(3)
        node.exit_of(3)
        node.start(3, 2)
        assert list(node.zygote.status[:STATUS_WORDS]) == [0, -1, 0, 0, 0, 0, 0, 0]
        node.start(4)
        assert node.ask(4, b"words", b"5", b"6") == (4, [b"stop 0"])
        second = node.zygote.status[STATUS_WORDS : 2 * STATUS_WORDS]
        assert list(second[:2]) == [5, 6]
        with pytest.raises(InternalError, match="executor 3 was to be started while it runs"):
            node.pool.start(3, 3, 0.0)
        node.close()

    run_forked(scenario)


def test_a_removed_executors_slot_is_used_again():
    def scenario(directory):
        node = Node(directory)
        node.start(3)
        node.start(4)
        node.pool.kill(3)
        node.exit_of(3)
        node.pool.remove(3)
        node.start(5)
        node.ask(5, b"words", b"8", b"9")
        assert list(node.zygote.status[:2]) == [8, 9]
        node.close()

    run_forked(scenario)


def test_family_of_a_dead_executor_is_killed():
    def scenario(directory):
        node = Node(directory)
        node.start(3)
        node.start(4)
        _, [packed] = node.ask(3, b"family")
        _, [other] = node.ask(4, b"family")
        family, others = struct.unpack("<3q", packed), struct.unpack("<3q", other)
        node.pool.send(3, [b"exit", b"0"])
        node.exit_of(3)
        node.until(lambda: not any(map(processes.parent_of, family)))
        assert all(map(processes.parent_of, others))  # a living executor's family is its own
        node.close()
        assert not any(map(processes.parent_of, others))

    run_forked(scenario)


def test_all_die_with_the_broker():
    read_fd, write_fd = os.pipe()
    broker = os.fork()
    if broker == 0:
        try:
            with tempfile.TemporaryDirectory() as directory:
                node = Node(Path(directory))
                node.start(3)
                node.start(4)
                _, [packed] = node.ask(3, b"family")
                executor, child, daemon = struct.unpack("<3q", packed)
                pids = (executor, child, node.pool.pid_of(4), node.zygote.pid, daemon)
                os.write(write_fd, struct.pack("<5q", *pids))
                _pause_for_ever()
        finally:
            os._exit(1)
    os.close(write_fd)
    *pids, daemon = struct.unpack("<5q", os.read(read_fd, 40))
    os.close(read_fd)
    os.kill(broker, signal.SIGKILL)
    os.waitpid(broker, 0)
    wait_gone(pids)
    # Daemons are known by the environment that a real broker is started with; here there is none.
    os.kill(daemon, signal.SIGKILL)
    wait_gone([daemon])


def test_deaths_at_start_delay_the_next_one():
    def scenario(directory):
        node = Node(directory, die_at_once)
        now = 1000.0
        due = []
        for incarnation in range(1, QUICK_DEATHS_MAX + 1):
            node.pool.start(3, incarnation, now)
            when = node.pool.next_timer()
            if when is not None:
                due.append(round(when - now, 3))
                node.pool.handle_timer(when - 0.001)
                assert node.pool.next_timer() == when
                node.pool.handle_timer(when)
                assert node.pool.next_timer() is None
            exit_info, _, _ = node.exit_of(3)
            assert exit_info.exit_code == 1
        assert due == [0.1, 0.2, 0.4, 0.8, 1.6]
        with pytest.raises(NodeUnusable, match=r"died 8 times in a row.*: no such module"):
            node.pool.start(3, QUICK_DEATHS_MAX + 1, now)
        node.close()

    run_forked(scenario)


def test_killed_ones_do_not_count_as_deaths_at_start():
    def scenario(directory):
        node = Node(directory)
        for incarnation in range(1, 6):
            node.pool.start(3, incarnation, 0.0)
            assert node.pool.next_timer() is None
            node.pool.kill(3)
            exit_info, _, _ = node.exit_of(3)
            assert exit_info.signal == signal.SIGKILL
        node.close()

    run_forked(scenario)


def test_no_more_processes_is_told_as_an_exit():
    def scenario(directory):
        broker, fork = os.getpid(), os.fork

        def refuse():
            if os.getpid() == broker:
                return fork()
            raise OSError(errno.EAGAIN, "no more processes")

        zygote.os.fork = refuse
        node = Node(directory)
        node.pool.start(3, 1, 0.0)
        exit_info, bundle, position = node.exit_of(3)
        assert (exit_info.exit_code, exit_info.signal, bundle, position) == (None, None, 0, -1)
        assert exit_info.log_tail.startswith("no process could be forked: Resource temporarily")
        node.close()

    run_forked(scenario)


def test_close_in_the_middle_of_starts_leaves_nobody():
    def scenario(directory):
        for _ in range(5):
            node = Node(directory)
            for executor in range(3, 8):
                node.pool.start(executor, 1, 0.0)
            node.close()

    run_forked(scenario)


def test_loss_of_the_zygote_is_an_error():
    def scenario(directory):
        node = Node(directory)
        node.start(3)
        os.kill(node.zygote.pid, signal.SIGKILL)
        with pytest.raises(InternalError, match="the zygote is gone"):
            node.until(lambda: False)
        node.close()

    run_forked(scenario)


def test_batches_larger_than_the_sockets_buffers():
    def scenario(directory):
        node = Node(directory)
        node.start(3)
        payload = os.urandom(1 << 20) * 8
        assert node.ask(3, b"echo", payload, b"end") == (3, [payload, b"end"])
        node.close()

    run_forked(scenario)


def test_what_executors_print_is_in_their_logs():
    def scenario(directory):
        node = Node(directory)
        node.start(3)
        node.pool.send(3, [b"exit", b"0"])
        node.exit_of(3)
        node.close()  # what waits for the disk is written by then
        assert (directory / "executor-3.log").read_text() == "about to leave\n"

    run_forked(scenario)


def test_a_bundle_is_taken_back_unless_it_is_the_latest_that_was_begun():
    def scenario(directory):
        node = Node(directory)
        node.start(3)
        words = node.pool._words(node.pool._slots[3])
        assert node.pool.take_back([(3, 11), (3, 12)]) == [(3, 12), (3, 11)]
        assert [words[index] for index in TAKEN_BACK] == [12, 11, 0]
        for index in TAKEN_BACK:
            words[index] = 0
        # It has ended 12, of which the broker has yet to hear, so it has had 11 as well.
        words[RUNNING], words[LATEST] = 0, 12
        assert node.pool.take_back([(3, 11), (3, 12)]) == []
        assert [words[index] for index in TAKEN_BACK] == [0, 0, 0]
        assert node.pool.take_back([(4, 13)]) == []
        node.close()

    run_forked(scenario)
