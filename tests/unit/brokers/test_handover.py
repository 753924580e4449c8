"""Messages between executors: their order, what is refused, kept, and waited for."""

import os
import time
from collections.abc import Iterator

import pytest

from dagsched.brokers.handover import (
    EARLY_MAX,
    MESSAGE_BYTES_MAX,
    WAIT_S,
    Handover,
    Key,
    open_slots,
)

KEY = Key(1, 7, 1)
QUEUE_MAX = 600
"""More messages than any system keeps for a reader (net.unix.max_dgram_qlen)."""

Ends = tuple[Handover, Handover, Handover]


@pytest.fixture
def ends() -> Iterator[Ends]:
    """Three executors, which are one process here."""
    sockets = open_slots(3)
    yield tuple(Handover(reader, sockets.writers) for reader in sockets.readers)  # type: ignore[misc]
    for end in (*sockets.readers, *sockets.writers):
        end.close()


def received(handover: Handover, key: Key = KEY) -> list[bytes]:
    """All that is there, as it comes; ``broken`` for what says so."""
    found = []
    while (message := handover.receive(key, wait=False)) is not None:
        is_broken, data = message
        found.append(b"broken" if is_broken else bytes(data))
    return found


def never() -> bool:
    return False


def test_in_order_to_whom_it_was_sent(ends: Ends) -> None:
    one, two, three = ends
    assert one.send(1, KEY, b"a")
    assert three.send(1, KEY, b"b")
    assert one.send(2, KEY, b"c")
    one.send_broken(1, KEY)
    assert received(two) == [b"a", b"b", b"broken"]
    assert received(three) == [b"c"]
    assert received(one) == []


def test_what_is_too_large_is_refused(ends: Ends) -> None:
    one, two, _ = ends
    assert not one.send(1, KEY, bytes(MESSAGE_BYTES_MAX + 1))
    largest = os.urandom(MESSAGE_BYTES_MAX)
    assert one.send(1, KEY, largest)
    assert received(two) == [largest]


def test_more_than_is_kept_for_a_reader_waits_and_keeps_its_order(ends: Ends) -> None:
    one, two, three = ends
    for number in range(QUEUE_MAX):
        assert one.send(1, KEY, b"%d" % number)
    assert one.send(2, KEY, b"x")  # who reads isn't kept waiting for who does not
    assert received(three) == [b"x"]
    found: list[bytes] = []
    while len(found) < QUEUE_MAX:
        more = received(two)
        assert more
        found += more
        one.flush(lambda: True)  # tries once
    assert found == [b"%d" % number for number in range(QUEUE_MAX)]
    assert one.flush(never)


def test_all_is_sent_while_its_sender_waits_for_something_itself(ends: Ends) -> None:
    one, two, _ = ends
    for number in range(QUEUE_MAX):
        one.send(1, KEY, b"%d" % number)
    found = received(two)
    while len(found) < QUEUE_MAX:
        assert one.receive(KEY, wait=True) is None
        more = received(two)
        assert more
        found += more
    assert found == [b"%d" % number for number in range(QUEUE_MAX)]


def test_a_flush_ends_when_it_is_told_to(ends: Ends) -> None:
    one, _, _ = ends
    for _ in range(QUEUE_MAX):
        one.send(1, KEY, b"x")
    looks = iter([False, False, True])
    assert not one.flush(lambda: next(looks))
    one.begin()  # of another lane: nothing is left of the one before
    assert one.flush(never)


def test_large_messages_that_fill_the_buffer_wait_too(ends: Ends) -> None:
    one, two, _ = ends
    sent = [bytes([number]) * MESSAGE_BYTES_MAX for number in range(20)]
    for data in sent:
        assert one.send(1, KEY, data)
    found: list[bytes] = []
    while len(found) < len(sent):
        one.flush(lambda: True)
        found += received(two)
    assert found == sent


def test_messages_of_another_gang_are_kept_for_it(ends: Ends) -> None:
    one, two, three = ends
    later = KEY._replace(bundle=9)
    one.send(1, later, b"early")
    one.send(1, KEY, b"now")
    one.send_broken(1, later)
    three.send(1, KEY._replace(run=2), b"other run")
    assert received(two) == [b"now"]
    assert received(two, later) == [b"early", b"broken"]
    assert received(two, KEY._replace(run=2)) == [b"other run"]
    assert received(two, later) == []


def test_another_attempt_is_another_gang(ends: Ends) -> None:
    one, two, _ = ends
    one.send(1, KEY, b"first attempt")
    one.send(1, KEY._replace(attempt=2), b"second")
    assert received(two, KEY._replace(attempt=2)) == [b"second"]


def test_of_what_is_early_the_latest_are_kept(ends: Ends) -> None:
    one, two, _ = ends
    later = KEY._replace(bundle=9)
    for number in range(EARLY_MAX + 3):
        one.send(1, later, b"%d" % number)
        assert received(two) == []
    assert received(two, later) == [b"%d" % number for number in range(3, EARLY_MAX + 3)]


def test_what_was_early_for_a_run_goes_with_it(ends: Ends) -> None:
    one, two, _ = ends
    other = Key(2, 7, 1)
    for key in (KEY, other):
        one.send(1, key, b"early")
    assert received(two, Key(3, 7, 1)) == []
    two.forget(1)
    assert received(two) == []
    assert received(two, other) == [b"early"]


def test_waiting_is_bounded_and_ends_with_a_message(ends: Ends) -> None:
    one, two, _ = ends
    begun_s = time.monotonic()
    assert two.receive(KEY, wait=True) is None
    assert time.monotonic() - begun_s >= 0.5 * WAIT_S
    pid = os.fork()
    if pid == 0:
        one.send(1, KEY, b"from a process")
        os._exit(0)
    message = None
    while message is None:
        assert time.monotonic() - begun_s < 10
        message = two.receive(KEY, wait=True)
    assert bytes(message[1]) == b"from a process"
    os.waitpid(pid, 0)


def test_executors_with_no_reader_any_more_cost_a_sender_nothing(ends: Ends) -> None:
    one, two, _ = ends
    two.reader.close()
    assert one.send(1, KEY, b"x")
    assert not one.flush(lambda: True)
