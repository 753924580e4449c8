"""Links: who is heard, whose batches are stale, and what a restart or a removal does."""

import itertools

import pytest

from dagsched.config import Config
from dagsched.errors import ProtocolError
from dagsched.protocol.codec import Decoder, encode_batch
from dagsched.protocol.links import Links
from dagsched.protocol.messages import BrokerHello, BrokerToBroker, ObjectsMissing, Parcel
from dagsched.protocol.session import SessionFull, Stamp

CONFIG = Config(link_window_batches=8, link_batches_max=20, ack_batches=4, nonsense_max=3)


def links(first_number, epoch, **options):
    numbers = itertools.count(first_number, 1000)
    made = Links(Decoder(BrokerToBroker), CONFIG, lambda: next(numbers), **options)
    made.epoch = epoch
    return made


def said(run):
    return [Parcel(ObjectsMissing(run), [b"frame"])]


def sent(side, peer, now, *runs):
    for run in runs:
        side.send(peer, said(run), now)
    return [frames for to, frames in side.take_batches(now) if to == peer]


def received(side, peer, now, batches):
    return [
        (epoch, parcel.message.run)
        for frames in batches
        for epoch, parcels in side.receive(peer, frames, now)
        for parcel in parcels
    ]


def test_both_ways_and_acknowledged():
    a, b = links(10_000, epoch=1), links(20_000, epoch=2)
    assert received(b, 2, 1.0, sent(a, 3, 1.0, 7, 8)) == [(1, 7), (1, 8)]
    assert received(a, 3, 1.0, sent(b, 2, 1.0, 9)) == [(2, 9)]
    assert a.take_batches(1.0) == []
    due = a.next_timer()
    assert due == pytest.approx(1.05)
    a.handle_timer(due)
    [(peer, frames)] = a.take_batches(due)
    assert (peer, received(b, 2, due, [frames])) == (3, [])
    for side in (a, b):
        side.handle_timer(due + 10)
        assert side.take_batches(due + 10) == []
        assert side.next_timer() is None


def test_frames_are_not_copied_and_lost_batches_come_again():
    a, b = links(10_000, epoch=1), links(20_000, epoch=2)
    frame = memoryview(bytes(100_000))
    a.send(3, [Parcel(ObjectsMissing(7), [frame])], 1.0)
    [(_, [_, first])] = a.take_batches(1.0)
    a.handle_timer(1.5)
    [(_, [header, again])] = a.take_batches(1.5)
    assert first is again is frame
    [(_, [parcel])] = b.receive(2, [header, again], 1.5)
    assert parcel.frames == [frame]
    assert a.summary()["resent"] == 1


def test_an_older_epoch_is_stale():
    a, b = links(10_000, epoch=5), links(20_000, epoch=2)
    received(b, 2, 1.0, sent(a, 3, 1.0, 7))
    old = encode_batch(said(8), 4, Stamp(10_000, 2))
    assert received(b, 2, 1.0, [old]) == []
    assert b.summary()["stale"] == 1
    assert received(b, 2, 1.0, sent(a, 3, 1.0, 9)) == [(5, 9)]


def test_a_newer_epoch_is_a_new_peer_whatever_its_clock_says():
    a, b = links(10_000, epoch=5), links(20_000, epoch=2)
    received(b, 2, 1.0, sent(a, 3, 1.0, 7))
    second = links(100, epoch=6)  # on a machine that was started later
    assert received(b, 2, 1.0, sent(second, 3, 1.0, 8)) == [(6, 8)]
    assert received(second, 3, 1.0, sent(b, 2, 1.0, 9)) == [(2, 9)]
    assert received(b, 2, 1.0, sent(a, 3, 1.0, 7)) == []
    assert b.summary()["stale"] == 1


def test_a_removed_peer_is_not_heard_until_it_is_a_newer_one():
    a, b = links(10_000, epoch=5), links(20_000, epoch=2)
    received(b, 2, 1.0, sent(a, 3, 1.0, 7))
    b.remove(2, 5)
    assert received(b, 2, 1.0, sent(a, 3, 1.0, 8)) == []
    assert (b.peers, b.summary()["stale"]) == ([], 1)
    a.start_anew()
    a.epoch = 6
    assert received(b, 2, 1.0, sent(a, 3, 1.0, 9)) == [(6, 9)]


def test_a_peer_heard_before_it_was_told_of_keeps_its_link_when_the_last_one_is_removed():
    """The next incarnation may ask before the master has told of it, and of the last one's end."""
    b = links(20_000, epoch=2)
    received(b, 2, 1.0, sent(links(10_000, epoch=5), 3, 1.0, 7))
    second = links(30_000, epoch=6)
    assert received(b, 2, 1.0, sent(second, 3, 1.0, 8)) == [(6, 8)]
    b.remove(2, 5)
    assert received(b, 2, 1.0, sent(second, 3, 1.0, 9)) == [(6, 9)]
    assert b.epoch_of(2) == 6


def test_what_could_not_go_is_sent_when_the_way_is_open():
    a, b = links(10_000, epoch=1), links(20_000, epoch=2)
    sent(a, 3, 1.0, 7, 8)
    a.send_again(3, 1.1)
    batches = [frames for _, frames in a.take_batches(1.1)]
    assert received(b, 2, 1.1, batches) == [(1, 7), (1, 8)]


def test_only_some_batches_open_a_link():
    a = links(10_000, epoch=1)
    master = links(20_000, epoch=0, opens=lambda _, arrival: arrival.epoch == 1)
    stranger = links(30_000, epoch=9)
    assert received(master, 2, 1.0, sent(a, 1, 1.0, 7)) == [(1, 7)]
    assert received(master, 3, 1.0, sent(stranger, 1, 1.0, 7)) == []
    assert (master.peers, master.summary()["stale"]) == ([2], 1)


def test_a_member_before_and_after_its_welcome():
    """It has no epoch at first; a new process has none again."""
    broker = links(10_000, epoch=0)
    master = links(20_000, epoch=0)
    assert received(master, 2, 1.0, sent(broker, 1, 1.0, 1)) == [(0, 1)]
    received(broker, 1, 1.0, sent(master, 2, 1.0, 2))
    broker.epoch = 4
    assert received(master, 2, 1.0, sent(broker, 1, 1.0, 3)) == [(4, 3)]
    second = links(30_000, epoch=0)
    assert received(master, 2, 2.0, sent(second, 1, 2.0, 4)) == [(0, 4)]
    assert received(master, 2, 2.0, sent(broker, 1, 2.0, 5)) == []
    assert received(second, 1, 2.0, sent(master, 2, 2.0, 6)) == [(0, 6)]


def test_nonsense_is_refused_and_counted_up_to_a_limit():
    a, b = links(10_000, epoch=1), links(20_000, epoch=2)
    for frames in ([b"nonsense"], encode_batch(said(1), 1), sent(a, 3, 1.0, 1)[0][:1]):
        with pytest.raises(ProtocolError):
            b.receive(2, frames, 1.0)
    assert [b.note_nonsense(2) for _ in range(3)] == [False, False, True]
    assert b.summary()["nonsense"] == 3


def test_other_messages_are_refused():
    stranger = links(10_000, epoch=1)
    stranger.send(3, [Parcel(BrokerHello(2, 3, "h", "a", ("3", "0", 2)))], 1.0)
    [(_, frames)] = stranger.take_batches(1.0)
    with pytest.raises(ProtocolError):
        links(20_000, epoch=2).receive(2, frames, 1.0)


def test_a_peer_that_takes_nothing_is_told():
    a = links(10_000, epoch=1)
    sent(a, 3, 1.0, *range(20))
    with pytest.raises(SessionFull):
        a.send(3, said(20), 1.0)
    a.forget(3)
    assert len(sent(a, 3, 1.0, 21)) == 1
