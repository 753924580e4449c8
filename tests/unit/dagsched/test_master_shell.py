"""The master's shell without its thread: whom it hears, refuses, closes, and relays for."""

import time

import pytest

from dagsched.config import Config
from dagsched.master.core import MasterCore
from dagsched.master.shell import MasterShell
from dagsched.protocol.codec import Decoder, encode_batch
from dagsched.protocol.links import Links
from dagsched.protocol.messages import (
    BrokerHello,
    ExecutorChanged,
    MasterToBroker,
    ObjectsMissing,
    Parcel,
    Pong,
    Refused,
    Relayed,
    SubtreeDone,
    Welcome,
)
from dagsched.protocol.session import Stamp

VERSION = ("3.11", "0.1", 2)


class Listener:
    """Notes which brokers were ended."""

    def __init__(self):
        self.ended = []

    def end_broker(self, broker):
        self.ended.append(broker)

    def take_event(self, event):
        pass


class Endpoint:
    """Keeps what is sent."""

    refused_count = 0

    def __init__(self):
        self.sent = []

    def send(self, broker, frames):
        self.sent.append((broker, frames))
        return True


class Broker:
    """The other end of a link."""

    def __init__(self, master, number):
        self.master = master
        self.number = number
        decoder = Decoder(MasterToBroker | Refused | Relayed)
        self.links = Links(decoder, Config(), time.monotonic_ns)
        self.heard = []

    def say(self, *messages, frames=()):
        self.links.send(1, [Parcel(message, frames) for message in messages], self.master.now)
        self.flush()

    def flush(self):
        for _, batch in self.links.take_batches(self.master.now):
            self.master.take(self.number, batch)

    def hear(self, batch):
        for _, parcels in self.links.receive(1, batch, self.master.now):
            self.heard += [parcel.message for parcel in parcels]
            for message in self.heard:
                if isinstance(message, Welcome):
                    self.links.epoch = message.epoch

    def hello(self, **changes):
        values = {"broker": self.number, "pid": 9, "host": "h", "address": "ipc://x"}
        self.say(BrokerHello(**values | {"version": VERSION} | changes))


class Master:
    """A shell whose turns are made by hand."""

    def __init__(self, **settings):
        self.now = 1.0
        self.listener = Listener()
        self.endpoint = Endpoint()
        self.core = MasterCore(Config(**settings), version=VERSION)
        self.core.set_nodes([(2, "h", (3,)), (4, "h", (5,))], 0.0)
        self.shell = MasterShell(
            self.core, self.endpoint, Config(**settings), self.listener, tokens=["own"]
        )
        self.shell._endpoint = self.endpoint
        self.brokers = {number: Broker(self, number) for number in (2, 4, 6)}

    def take(self, broker, batch):
        self.shell._receive(broker, batch, self.now)
        self.turn()

    def turn(self):
        self.shell._act(self.core.take_actions(), self.now)
        for broker, frames in self.shell._links.take_batches(self.now):
            self.endpoint.send(broker, frames)
        sent, self.endpoint.sent = self.endpoint.sent, []
        for broker, frames in sent:
            self.brokers[broker].hear(frames)

    @property
    def counts(self):
        return self.shell.link_counts


@pytest.fixture
def master():
    made = Master()
    made.brokers[2].hello()
    made.brokers[4].hello(token="own")
    assert [made.core.epoch_of(number) for number in (2, 4, 6)] == [1, 2, None]
    return made


def test_members_are_heard(master):
    master.brokers[2].say(ExecutorChanged(3, 77, 0))
    assert (master.counts["stale"], master.core.stale_count) == (0, 0)
    assert isinstance(master.brokers[2].heard[0], Welcome)


def test_an_older_epoch_is_not(master):
    broker = master.brokers[2]
    broker.links.epoch = 0  # as it was before its welcome
    broker.say(ExecutorChanged(3, 77, 0))
    assert master.counts["stale"] == 1
    assert master.core.epoch_of(2) == 1


def test_who_never_said_hello_is_not(master):
    master.brokers[6].say(Pong(1))
    assert master.counts["stale"] == 1
    assert master.shell._links.peers == [2, 4]


def test_a_zombie_is_not(master):
    master.core.peer_lost(2, "it was silent", master.now)
    master.turn()
    assert master.listener.ended == [2]
    master.brokers[2].say(Pong(1))
    assert master.counts["stale"] == 1
    assert master.core.epoch_of(2) is None


def test_a_process_that_is_started_anew_is_another_member(master):
    master.brokers[2] = Broker(master, 2)
    master.brokers[2].hello()
    assert master.core.epoch_of(2) == 3
    # The last one is gone by itself; the process that has that id now is the new one.
    assert master.listener.ended == []
    assert master.brokers[2].heard[0] == Welcome(2, 3)


def test_what_cannot_be_read_is_dropped_up_to_a_limit(master):
    limit = Config().nonsense_max
    for count in range(limit):
        assert master.listener.ended == []
        assert master.counts["nonsense"] == count
        master.take(2, [b"nonsense"])
    assert set(master.listener.ended) == {2}
    assert master.core.epoch_of(2) is None
    assert master.core.epoch_of(4) == 2


def test_what_makes_no_sense_ends_its_sender_at_once(master):
    master.brokers[2].say(SubtreeDone(1, 1, 0, 1, ()), frames=[b"odd"])
    assert set(master.listener.ended) == {2}
    assert master.counts["nonsense"] == 1
    assert master.core.epoch_of(4) == 2


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"token": "another"}, "authentication"),
        ({"broker": 4}, "authentication"),
        ({"version": ("3.12", "0.1", 2)}, "version"),
    ],
)
def test_a_stranger_is_told_why_it_is_refused(master, changes, kind):
    stranger = master.brokers[6]
    stranger.hello(**changes)
    assert [message.kind for message in stranger.heard] == [kind]
    assert master.counts["refused"] == 1
    assert [master.core.epoch_of(number) for number in (2, 4)] == [1, 2]


def test_nobody_takes_a_nodes_place_by_a_wrong_hello(master):
    impostor = Broker(master, 2)
    master.brokers[2], real = impostor, master.brokers[2]
    impostor.hello(version=("2.7", "0.1", 2))
    assert impostor.heard[0].text.startswith("broker 2 has Python 2.7")
    assert master.core.epoch_of(2) == 1
    master.brokers[2] = real
    assert (master.counts["refused"], master.counts["stale"]) == (1, 1)
    real.say(ExecutorChanged(3, 77, 0))
    assert (master.counts["stale"], master.core.stale_count) == (1, 0)


def test_batches_of_nodes_apart_are_passed_on(master):
    batch = encode_batch([Parcel(ObjectsMissing(1), [b"data"])], 1, Stamp(5, 1))
    master.brokers[2].say(Relayed(4), frames=batch)
    assert master.brokers[4].heard[-1] == Relayed(2)
    assert master.counts["relayed"] == 1
    master.brokers[2].say(Relayed(6), frames=batch)
    master.brokers[2].say(Relayed(2), frames=batch)
    assert (master.counts["relayed"], master.counts["stale"]) == (1, 2)


def test_who_takes_nothing_is_given_up():
    master = Master(link_batches_max=5, link_window_batches=1)
    master.brokers[2].hello()
    master.brokers[2].hear = lambda batch: None
    for _ in range(10):
        master.shell._send(2, [Parcel(Welcome(2, 1))], master.now)
    while master.shell._commands:
        master.shell._commands.popleft()(master.core, master.now)
    assert set(master.listener.ended) == {2}
    assert master.core.epoch_of(2) is None
