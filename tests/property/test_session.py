"""Whatever is lost, repeated or reordered below a session, all comes once and in order above it."""

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
)

from dagsched.config import Config
from dagsched.protocol.session import Session

CONFIG = Config(
    link_window_batches=5,
    link_batches_max=1000,
    ack_batches=3,
    ack_delay_s=0.05,
    resend_s=0.5,
    resend_max_s=2.0,
)


class End:
    """A session, and how many contents it was given and got, by the number of the sending end."""

    def __init__(self, number):
        self.session = Session(number, lambda stamp, content: (stamp, content), CONFIG)
        self.sent_counts = {}
        self.came_counts = {}

    def send(self, now):
        number = self.session.number
        count = self.sent_counts.get(number, 0)
        self.session.send((number, count), now)
        self.sent_counts[number] = count + 1

    def take(self, batch, now):
        for number, index in self.session.receive(*batch, now):
            assert number == self.session.peer
            assert index == self.came_counts.get(number, 0)
            self.came_counts[number] = index + 1


class Link(RuleBasedStateMachine):
    """Two ends and the batches between them, in any order, some of them for ever."""

    def __init__(self):
        super().__init__()
        self.now = 0.0
        self.ends = [End(1000), End(2000)]
        self.under_way = [[], []]  # to end 0, to end 1

    def pump(self, index):
        self.under_way[1 - index] += self.ends[index].session.take_batches(self.now)

    def deliver(self, index, batch):
        self.ends[index].take(batch, self.now)
        self.pump(index)

    @rule(index=st.integers(0, 1), count=st.integers(1, 12))
    def send(self, index, count):
        for _ in range(count):
            self.ends[index].send(self.now)
        self.pump(index)

    @rule(index=st.integers(0, 1), which=st.integers(0, 1000), is_repeated=st.booleans())
    def arrive(self, index, which, is_repeated):
        batches = self.under_way[index]
        if batches:
            place = which % len(batches)
            batch = batches[place] if is_repeated else batches.pop(place)
            self.deliver(index, batch)

    @rule(index=st.integers(0, 1), which=st.integers(0, 1000), count=st.integers(1, 5))
    def lose(self, index, which, count):
        batches = self.under_way[index]
        if batches:
            place = which % len(batches)
            del batches[place : place + count]

    @rule(seconds=st.sampled_from([0.01, 0.06, 0.6, 5.0]))
    def wait(self, seconds):
        self.now += seconds
        for index, end in enumerate(self.ends):
            due = end.session.next_timer()
            if due is not None and due <= self.now:
                end.session.handle_timer(self.now)
            self.pump(index)

    @rule(index=st.integers(0, 1))
    def restart(self, index):
        """The end's process dies, and another one takes its place."""
        number = 1000 + max(end.session.number for end in self.ends)
        self.ends[index] = End(number)

    @invariant()
    def bounded(self):
        for end in self.ends:
            assert len(end.session._early) <= CONFIG.link_window_batches
            assert len(end.session._sent) <= CONFIG.link_window_batches

    def teardown(self):
        """With a network that works, ends that have heard each other lose nothing more."""
        for _ in range(2):
            before = [dict(end.sent_counts) for end in self.ends]
            for index in (0, 1):
                self.ends[index].send(self.now)
                self.pump(index)
            self.work_until_silent()
        for end, other, sent in zip(self.ends, self.ends[::-1], before[::-1], strict=True):
            number = other.session.number
            assert end.session.unacknowledged_count == 0
            assert end.session.peer == number
            assert end.came_counts[number] == other.sent_counts[number]
            assert other.sent_counts[number] == sent.get(number, 0) + 1

    def work_until_silent(self):
        for _ in range(400):
            for index in (0, 1):
                batches, self.under_way[index] = self.under_way[index], []
                for batch in batches:
                    self.deliver(index, batch)
            if any(self.under_way):
                continue
            due = [when for end in self.ends if (when := end.session.next_timer()) is not None]
            if not due:
                return
            self.wait(max(0.0, min(due) - self.now))
        raise AssertionError("it never ends")


TestLink = Link.TestCase


@given(st.lists(st.booleans(), max_size=300))
def test_each_first_sending_lost_or_not(losses):
    """A pattern of loss, over a window of batches and more."""
    a, b = End(1000), End(2000)
    for _ in losses:
        a.send(0.0)
    pattern, now = iter(losses), 0.0
    for _ in range(1000):
        for batch in a.session.take_batches(now):
            if not next(pattern, False):
                b.take(batch, now)
        for batch in b.session.take_batches(now):
            a.session.receive(*batch, now)
        if not a.session.unacknowledged_count:
            break
        timers = (a.session.next_timer(), b.session.next_timer())
        now = min((when for when in timers if when is not None), default=now)
        for end in (a, b):
            end.session.handle_timer(now)
    assert b.came_counts.get(1000, 0) == len(losses)
