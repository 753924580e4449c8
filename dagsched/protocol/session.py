"""One end of a link: numbers what goes out, and makes of what comes the batches sent, once each.

Below a session batches may be lost, repeated and reordered (a connection that breaks, a queue that
runs over); above it none of that is seen, as long as both ends live. Pure: batches are pushed and
pulled, time is given.

- Each batch has a sequence number from 1; 0 is a *bare* one, which only acknowledges.
- What was sent is kept, by reference, until it is acknowledged. Acknowledgements are cumulative and
  ride on whatever goes out; a bare batch brings them after `ack_delay_s`, or at once when something
  is missing, came again, or `ack_batches` have come.
- What isn't acknowledged in time is sent again: first the oldest batch alone, for the peer may only
  be busy; then, as its acknowledgements show that more was lost, twice as many each time.
- Only `link_window_batches` are under way at once, so that a receiver can keep what comes early;
  further ones wait in order, up to `link_batches_max`.

An end has a number. Each batch says from which end it is, and which end of the peer it has heard. A
higher number of the peer is a new incarnation of it: then both directions start anew, and what the
last one did not take is dropped. But a peer that has heard this end already can have all of it, if
none was taken before; then only what comes starts anew (or two ends that learn of each other at
the same time would restart each other, and drop, for ever). Batches of a lower number, or for
another incarnation of this side, are stale: counted and dropped; the latter are answered by a bare
batch of an end that has heard nobody, upon which their sender starts anew.

Costs: about 1.5 us a batch and side beyond encoding (`benchmarks/session.py`).
"""

from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Generic, NamedTuple, TypeVar

from dagsched.config import Config
from dagsched.errors import DagschedError, ProtocolError

Content = TypeVar("Content")
"""What is sent, and what comes."""

Batch = TypeVar("Batch")
"""What travels: a content with its stamp, encoded."""

BURST_MAX = 64
"""Most batches that are sent again at once."""

BACKOFF_MAX = 1 << 20
"""Timeouts stop growing at `resend_max_s` anyway; this only bounds the factor."""

UNANSWERED_BACKOFF = 4
"""After two timeouts without an answer, the second twice as long, something is wrong."""

_ROUND_TRIPS = 4
"""A batch is taken for lost after so many mean round trips without an acknowledgement."""


class SessionFull(DagschedError):
    """More waits for one peer than may; it does not read, or credit is broken."""


class Stamp(NamedTuple):
    """What a session adds to a batch."""

    session: int  # the sender's end
    sequence: int  # 0: the batch is bare
    heard: int = 0  # the receiver's end as the sender knows it; 0: it has heard none
    ack: int = 0  # all batches of `heard` up to this one have come
    missing: int = 0  # so many after it have not, though a later one has


class _Sent(Generic[Content]):
    """What has been sent and is not yet acknowledged."""

    __slots__ = ("content", "is_repeated", "sent_s")

    def __init__(self, content: Content, sent_s: float) -> None:
        self.content = content
        self.sent_s = sent_s
        self.is_repeated = False


class Session(Generic[Content, Batch]):
    """One end of a link to one peer.

    Args:
        number: of this end, above 0 and well above that of any earlier end on the same side of the
            link, such as the nanoseconds of its machine's monotonic clock.
        encode: makes a batch of a stamp and a content (None for a bare one); again, with another
            stamp, where one is sent again.
        config: gives the limits.

    Example:
        >>> from dagsched.config import Config
        >>> a = Session(1000, lambda stamp, content: (stamp, content), Config())
        >>> b = Session(2000, lambda stamp, content: (stamp, content), Config())
        >>> a.send("hello", now=0.0)
        >>> [(stamp, content)] = a.take_batches(now=0.0)
        >>> b.receive(stamp, content, now=0.1)
        ['hello']
        >>> b.receive(stamp, content, now=0.2)
        []
        >>> [(stamp, content)] = b.take_batches(now=0.2)
        >>> content is None, a.receive(stamp, content, now=0.3), a.unacknowledged_count
        (True, [], 0)
    """

    def __init__(
        self, number: int, encode: Callable[[Stamp, Content | None], Batch], config: Config
    ) -> None:
        self.number = number
        self.peer = 0  # the peer's end, once heard
        self.restart_count = 0  # new incarnations of the peer
        self.stale_count = 0
        self.repeated_count = 0
        self.resent_count = 0
        self._first_number = number
        self._encode = encode
        self._config = config
        # Going out.
        self._waiting: deque[Content] = deque()
        self._sent: deque[_Sent[Content]] = deque()
        self._sent_sequence = 0
        self._ready: list[Batch] = []
        self._introduce = False  # somebody speaks to an end that isn't here any more
        self._resend_at_s: float | None = None
        self._backoff = 1
        self._round_trip_s = 0.0
        self._recovering_to = 0  # up to this sequence number all may be lost,
        self._recovering_since_s = 0.0  # unless sent again since then
        self._burst = 1
        # Coming in.
        self._delivered = 0
        self._early: dict[int, Content] = {}
        self._unsaid_count = 0  # delivered and not yet acknowledged
        self._ack_at_s: float | None = None
        self._ack_now = False

    # --- going out --------------------------------------------------------------------------------

    @property
    def unacknowledged_count(self) -> int:
        """Batches that the peer may not have, those that wait included."""
        return len(self._sent) + len(self._waiting)

    @property
    def is_unanswered(self) -> bool:
        """The peer has not answered for so long that there may be no way to it."""
        return self._backoff >= UNANSWERED_BACKOFF

    def send(self, content: Content, now: float) -> None:
        """Have a content delivered; `take_batches` gives the batch.

        Raises:
            SessionFull: too much waits already.
        """
        if self._waiting or len(self._sent) >= self._config.link_window_batches:
            if self.unacknowledged_count >= self._config.link_batches_max:
                raise SessionFull(f"{self.unacknowledged_count} batches wait for one peer")
            self._waiting.append(content)
        else:
            self._send_now(content, now)

    def take_batches(self, now: float) -> list[Batch]:
        """What is to be handed to the transport now, in order."""
        if self._ack_now and not self._ready:
            self._ready.append(self._encode(self._stamp(0), None))
        if self._introduce:
            self._introduce = False
            self._ready.append(self._encode(Stamp(self.number, 0), None))
        if not self._ready:
            return []
        ready, self._ready = self._ready, []
        if self._sent and self._resend_at_s is None:
            self._resend_at_s = now + self._timeout_s()
        return ready

    def send_again(self, now: float) -> None:
        """The way to the peer has only now been opened: send all that is under way once more."""
        self._resend(len(self._sent), now)

    def _send_now(self, content: Content, now: float) -> None:
        self._sent_sequence += 1
        self._sent.append(_Sent(content, now))
        self._ready.append(self._encode(self._stamp(self._sent_sequence), content))

    def _stamp(self, sequence: int) -> Stamp:
        """A stamp says all that is to be acknowledged, so nothing more is due after it."""
        self._ack_now = False
        self._ack_at_s = None
        self._unsaid_count = 0
        missing = min(self._early) - self._delivered - 1 if self._early else 0
        return Stamp(self.number, sequence, self.peer, self._delivered, missing)

    def _acknowledged(self, ack: int, missing: int, now: float) -> None:
        first = self._sent_sequence - len(self._sent) + 1
        if ack > self._sent_sequence:
            raise ProtocolError(f"batch {ack} is acknowledged, but {self._sent_sequence} were sent")
        if ack >= first:
            for _ in range(first, ack):
                self._sent.popleft()
            newest = self._sent.popleft()
            if not newest.is_repeated:
                measured_s = now - newest.sent_s
                self._round_trip_s += (measured_s - self._round_trip_s) / 8
            self._backoff = 1
            self._resend_at_s = now + self._timeout_s() if self._sent else None
            if ack < self._recovering_to:
                self._burst = min(2 * self._burst, BURST_MAX)
                self._resend(min(self._burst, self._recovering_to - ack), now)
            while self._waiting and len(self._sent) < self._config.link_window_batches:
                self._send_now(self._waiting.popleft(), now)
        elif ack < first - 1:
            return  # overtaken by a later one
        if missing:
            # Whatever was sent again since is on its way; the peer will complain once more.
            self._recovering_since_s = max(
                self._recovering_since_s, now - max(self._round_trip_s, self._config.ack_delay_s)
            )
            self._resend(min(missing, BURST_MAX), now)

    def _resend(self, count: int, now: float) -> None:
        """Send the oldest batches once more, but not what was sent again a moment ago."""
        first = self._sent_sequence - len(self._sent) + 1
        for sequence, sent in enumerate(islice(self._sent, count), first):
            if sent.is_repeated and sent.sent_s >= self._recovering_since_s:
                continue
            sent.is_repeated = True
            sent.sent_s = now
            self.resent_count += 1
            # With a new stamp: the old one may speak to an earlier incarnation of the peer.
            self._ready.append(self._encode(self._stamp(sequence), sent.content))

    def _timeout_s(self) -> float:
        config = self._config
        least_s = max(config.resend_s, _ROUND_TRIPS * self._round_trip_s)
        return min(least_s * self._backoff, max(config.resend_max_s, least_s))

    # --- coming in --------------------------------------------------------------------------------

    def receive(self, stamp: Stamp, content: Content | None, now: float) -> list[Content]:
        """Take a batch; returns the contents that come next in order, often one, maybe none.

        Raises:
            ProtocolError: it acknowledges what was never sent.
        """
        if stamp.session != self.peer and not self._adopt(stamp):
            self.stale_count += 1
            return []
        if stamp.heard != self.number:
            if stamp.heard and not self._first_number <= stamp.heard < self.number:
                self.stale_count += 1  # meant for an earlier incarnation of this side
                self._ack_now = True  # so that the peer hears of this one
                return []
        else:
            self._acknowledged(stamp.ack, stamp.missing, now)
        if stamp.sequence == 0 or content is None:
            return []
        if stamp.sequence == self._delivered + 1:
            return self._deliver(content, now)
        self._ack_now = True
        if stamp.sequence <= self._delivered or stamp.sequence in self._early:
            self.repeated_count += 1
        elif stamp.sequence <= self._delivered + self._config.link_window_batches:
            self._early[stamp.sequence] = content
        return []

    def _deliver(self, content: Content, now: float) -> list[Content]:
        self._delivered += 1
        self._unsaid_count += 1
        contents = [content]
        if self._early:
            self._ack_now = True  # the peer need not send again what it was about to
            while (early := self._early.pop(self._delivered + 1, None)) is not None:
                self._delivered += 1
                contents.append(early)
        if self._unsaid_count >= self._config.ack_batches:
            self._ack_now = True
        elif self._ack_at_s is None:
            self._ack_at_s = now + self._config.ack_delay_s
        return contents

    def _adopt(self, stamp: Stamp) -> bool:
        """Whether this is the peer from now on; False: it was, or it means somebody else."""
        number = stamp.session
        is_for_us = stamp.heard == 0 or self._first_number <= stamp.heard <= self.number
        if not is_for_us or number < self.peer:
            # It waits for an end that is no more; unless it is itself an old one, let it know.
            self._introduce |= number > self.peer
            return False
        if self.peer:
            self.restart_count += 1
            self._delivered = 0
            self._early.clear()
            self._ack_at_s = None
            self._ack_now = False
            self._unsaid_count = 0
            taken_count = self._sent_sequence - len(self._sent)
            if stamp.heard == 0 or (stamp.heard != self.number and taken_count):
                self._start_anew()
        self.peer = number
        return True

    def _start_anew(self) -> None:
        self.number += 1
        self._waiting.clear()
        self._sent.clear()
        self._ready.clear()
        self._sent_sequence = 0
        self._recovering_to = 0
        self._resend_at_s = None
        self._backoff = 1

    # --- time -------------------------------------------------------------------------------------

    def next_timer(self) -> float | None:
        """When `handle_timer` has something to do, if ever."""
        if self._ack_at_s is None:
            return self._resend_at_s
        if self._resend_at_s is None:
            return self._ack_at_s
        return min(self._ack_at_s, self._resend_at_s)

    def handle_timer(self, now: float) -> None:
        """Do what has come due; `take_batches` gives it."""
        if self._ack_at_s is not None and now >= self._ack_at_s:
            self._ack_at_s = None
            self._ack_now = True
        if self._resend_at_s is not None and now >= self._resend_at_s:
            self._recovering_to = self._sent_sequence
            self._recovering_since_s = now
            self._burst = 1
            self._resend(1, now)
            self._backoff = min(2 * self._backoff, BACKOFF_MAX)
            self._resend_at_s = now + self._timeout_s()
