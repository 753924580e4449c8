"""What executors print: kept whole where it fits, its end where not, and cheaply."""

import errno
import os
import threading
import time
from contextlib import suppress

import pytest

from dagsched.brokers import logs
from dagsched.brokers.logs import READ_BYTES, BackgroundWriter, ExecutorLog, LogFile
from dagsched.config import Config


@pytest.fixture
def log(tmp_path):
    found = ExecutorLog(tmp_path / "executor-3.log", Config(log_bytes_max=1000, log_tail_bytes=100))
    yield found
    found.close()


def _kept(tmp_path):
    old = tmp_path / "executor-3.log.old"
    return (old.read_bytes() if old.exists() else b"") + (tmp_path / "executor-3.log").read_bytes()


def _write(log, write_fd, data):
    """Write all, while the log reads whenever the pipe is full."""
    os.set_blocking(write_fd, False)
    view = memoryview(data)
    while view:
        try:
            view = view[os.write(write_fd, view) :]
        except BlockingIOError:
            log.drain()


def test_short_output(log, tmp_path):
    write_fd = log.open_pipe()
    os.write(write_fd, b"one\n")
    assert log.drain()
    os.write(write_fd, b"two")
    assert log.drain()
    assert log.tail() == "one\ntwo"
    assert _kept(tmp_path) == b"one\ntwo"
    assert log.drain()  # nothing new, and nothing waited for
    os.close(write_fd)
    assert not log.drain()
    assert log.pipe_fd == -1
    assert log.total_bytes == 7


def test_nothing_printed_leaves_no_file(log, tmp_path):
    os.close(log.open_pipe())
    assert not log.drain()
    assert log.tail() == ""
    assert list(tmp_path.iterdir()) == []


def test_only_the_newest_is_kept(log, tmp_path):
    write_fd = log.open_pipe()
    text = b"".join(b"%06d\n" % i for i in range(1000))
    for begin in range(0, len(text), 70):
        os.write(write_fd, text[begin : begin + 70])
        log.drain()
    assert log.tail().encode() == text[-100:]
    kept = _kept(tmp_path)
    assert 500 <= len(kept) <= 1000
    assert text.endswith(kept)
    os.close(write_fd)


@pytest.mark.parametrize("size", [499, 500, 501, 999, 1000, 1001, 5000])
def test_a_piece_at_once_is_bounded(log, tmp_path, size):
    write_fd = log.open_pipe()
    data = os.urandom(size)
    os.write(write_fd, data)
    log.drain()
    kept = _kept(tmp_path)
    assert len(kept) <= 1000
    assert data.endswith(kept) or size > 1000
    assert data.endswith((tmp_path / "executor-3.log").read_bytes())
    os.close(write_fd)


def test_binary_output_has_a_readable_tail(log):
    write_fd = log.open_pipe()
    os.write(write_fd, b"\xff\x00\xfe caf\xc3\xa9")
    log.drain()
    assert log.tail() == "\ufffd\x00\ufffd café"
    os.close(write_fd)


def test_next_incarnation_has_a_tail_of_its_own(log, tmp_path):
    first = log.open_pipe()
    os.write(first, b"first")
    os.close(first)
    log.finish()
    second = log.open_pipe()
    os.write(second, b"second")
    os.close(second)
    log.finish()
    assert log.tail() == "second"
    assert _kept(tmp_path) == b"firstsecond"


def test_finish_does_not_wait_for_strays(log):
    write_fd = log.open_pipe()
    os.write(write_fd, b"from a stray")
    closed = []
    pipe_fd = log.pipe_fd
    log.finish(closed.append)
    assert closed == [pipe_fd]
    assert log.pipe_fd == -1
    assert log.tail() == "from a stray"
    os.close(write_fd)


def test_finish_takes_a_full_pipe(log):
    write_fd = log.open_pipe()
    os.set_blocking(write_fd, False)
    written = 0
    with suppress(BlockingIOError):
        while True:
            written += os.write(write_fd, b"x" * 4096)
    log.finish()
    assert log.total_bytes == written > 4096
    os.close(write_fd)


def test_one_turn_reads_a_bounded_amount(log):
    write_fd = log.open_pipe()
    _write(log, write_fd, b"x" * 10 * READ_BYTES)
    before = log.total_bytes
    log.drain()
    assert log.total_bytes - before <= logs.READS_A_TURN * READ_BYTES
    os.close(write_fd)


def test_fifty_megabytes_in_one_line(log, tmp_path):
    write_fd = log.open_pipe()
    data = os.urandom(1 << 20)
    began = time.process_time()
    for _ in range(50):
        _write(log, write_fd, data)
    os.close(write_fd)
    log.finish()
    assert log.total_bytes == 50 << 20
    assert log.tail().encode("utf-8", "replace")
    assert _kept(tmp_path)[-500:] == data[-500:]
    assert time.process_time() - began < 5.0  # usually 0.1 s, with the writing


def test_full_disk_is_survived(log, tmp_path, monkeypatch, caplog):
    write_fd = log.open_pipe()
    os.write(write_fd, b"kept")
    log.drain()

    def no_room(fd, data):
        raise OSError(errno.ENOSPC, "no space left")

    os.write(write_fd, b" and lost")
    monkeypatch.setattr(logs.os, "write", no_room)
    log.drain()
    monkeypatch.undo()
    assert log.lost_bytes == 9
    assert log.tail() == "kept and lost"
    assert _kept(tmp_path) == b"kept"
    assert "no room on disk" in caplog.text
    os.close(write_fd)


class SlowFile(LogFile):
    """A disk that takes its time."""

    def __init__(self, path, bytes_max):
        super().__init__(path, bytes_max)
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def write(self, data):
        self.begun.set()
        assert self.go_on.wait(20)
        super().write(data)


def test_a_slow_disk_holds_up_nobody_and_what_waits_is_bounded(tmp_path):
    file, other = SlowFile(tmp_path / "slow", 1 << 30), LogFile(tmp_path / "other", 1 << 30)
    writer = BackgroundWriter()
    piece = bytes(logs.WAITING_BYTES_MAX // 4)
    for _ in range(6):
        writer.write(file, piece)
    assert file.lost_bytes == 2 * len(piece)
    assert file.begun.wait(20)
    file.go_on.set()
    writer.end(file)
    writer.close(20)
    assert (tmp_path / "slow").stat().st_size == 4 * len(piece)
    assert file._fd == -1
    assert not (tmp_path / "other").exists()
    writer.end(other)


def test_pieces_keep_their_order_and_a_broken_file_harms_no_other(tmp_path):
    writer = BackgroundWriter()
    good, bad = LogFile(tmp_path / "good", 1000), LogFile(tmp_path / "missing" / "bad", 1000)
    for number in range(5):
        writer.write(good, b"%d" % number)
        writer.write(bad, b"x")
    writer.end(good)
    writer.close(20)
    assert (tmp_path / "good").read_bytes() == b"01234"


def test_a_writer_that_had_nothing_to_do_has_no_thread(tmp_path):
    before = threading.active_count()
    writer = BackgroundWriter()
    writer.end(LogFile(tmp_path / "none", 10))
    writer.close(0)
    assert threading.active_count() == before
