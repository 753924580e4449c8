"""Sessions: what goes out when, and what comes of loss, repeats, reordering and restarts."""

import pytest

from dagsched.config import Config
from dagsched.errors import ProtocolError
from dagsched.protocol.session import BURST_MAX, Session, SessionFull, Stamp

CONFIG = Config(
    link_window_batches=8,
    link_batches_max=20,
    ack_batches=4,
    ack_delay_s=0.05,
    resend_s=0.5,
    resend_max_s=3.0,
)


def session(number, config=CONFIG):
    return Session(number, lambda stamp, content: (stamp, content), config)


@pytest.fixture
def a():
    return session(100)


@pytest.fixture
def b():
    return session(200)


def sent(end, now, *contents):
    """Contents sent by an end: the batches that come of it."""
    for content in contents:
        end.send(content, now)
    return end.take_batches(now)


def received(end, now, batches):
    return [content for batch in batches for content in end.receive(*batch, now)]


def contents(batches):
    return [(stamp.sequence, content) for stamp, content in batches]


def expire(end):
    """Let the end's next timer come; the time, and what it sends."""
    now = end.next_timer()
    end.handle_timer(now)
    return now, end.take_batches(now)


def test_in_order(a, b):
    batches = sent(a, 1.0, "x", "y")
    assert batches == [(Stamp(100, 1), "x"), (Stamp(100, 2), "y")]
    assert received(b, 1.0, batches) == ["x", "y"]
    assert (b.peer, b.next_timer()) == (100, 1.05)


def test_an_answer_acknowledges(a, b):
    received(b, 1.0, sent(a, 1.0, "x", "y"))
    [answer] = sent(b, 1.01, "answer")
    assert answer == (Stamp(200, 1, 100, 2), "answer")
    assert b.next_timer() == 1.51  # for its own batch only
    assert received(a, 1.02, [answer]) == ["answer"]
    assert a.unacknowledged_count == 0
    assert a.next_timer() == 1.07


def test_a_bare_batch_acknowledges_after_a_delay(a, b):
    received(b, 1.0, sent(a, 1.0, "x"))
    assert b.take_batches(1.0) == []
    now, batches = expire(b)
    assert (now, batches) == (1.05, [(Stamp(200, 0, 100, 1), None)])
    assert b.next_timer() is None
    assert received(a, 1.06, batches) == []
    assert (a.unacknowledged_count, a.next_timer()) == (0, None)


def test_many_are_acknowledged_at_once(a, b):
    received(b, 1.0, sent(a, 1.0, *"xyz"))
    assert b.take_batches(1.0) == []
    received(b, 1.0, sent(a, 1.0, "4"))
    assert b.take_batches(1.0) == [(Stamp(200, 0, 100, 4), None)]


def test_a_gap_is_told_and_filled_at_once(a, b):
    _, *rest = sent(a, 1.0, *"vwx")
    assert received(b, 1.0, rest) == []
    [complaint] = b.take_batches(1.0)
    assert complaint == (Stamp(200, 0, 100, 0, 1), None)
    received(a, 1.01, [complaint])
    again = a.take_batches(1.01)
    assert contents(again) == [(1, "v")]
    assert received(b, 1.02, again) == ["v", "w", "x"]
    assert b.take_batches(1.02) == [(Stamp(200, 0, 100, 3), None)]
    assert a.resent_count == 1


def test_a_gap_told_twice_is_filled_once(a, b):
    _, second, third = sent(a, 1.0, *"vwx")
    received(b, 1.0, [second])
    first_complaint = b.take_batches(1.0)
    received(b, 1.001, [third])
    second_complaint = b.take_batches(1.001)
    received(a, 1.01, first_complaint)
    assert contents(a.take_batches(1.01)) == [(1, "v")]
    received(a, 1.011, second_complaint)
    assert a.take_batches(1.011) == []
    received(a, 1.2, second_complaint)
    assert contents(a.take_batches(1.2)) == [(1, "v")]


def test_timeouts_grow_up_to_a_limit_and_start_over(a, b):
    [first, _] = sent(a, 1.0, "x", "y")
    times = []
    for _ in range(5):
        now, batches = expire(a)
        assert batches == [first]
        times.append(now)
    assert times == [1.5, 2.5, 4.5, 7.5, 10.5]
    received(b, 11.0, [first])
    received(a, 11.0, expire(b)[1])
    assert contents(a.take_batches(11.0)) == [(2, "y")]  # it was lost as well, it seems
    assert a.next_timer() == 11.5


def test_timeouts_follow_the_round_trip(a, b):
    for now in range(100):
        received(b, now, sent(a, now, now))
        received(a, now + 1.0, expire(b)[1])
    sent(a, 200.0, "x")
    assert a.next_timer() == pytest.approx(204.0, abs=0.1)


def test_recovery_of_a_burst_doubles(b):
    config = Config(link_window_batches=1000, ack_batches=1)
    a, b = session(100, config), session(200, config)
    count = 600
    lost = sent(a, 1.0, *range(count))
    rounds, arrived = [], []
    now, batches = expire(a)
    while batches:
        rounds.append(len(batches))
        arrived += received(b, now, batches)
        received(a, now, b.take_batches(now))
        batches = a.take_batches(now)
    assert rounds[:4] == [1, 2, 4, 8]
    assert max(rounds) == BURST_MAX
    assert sum(rounds) == len(lost)
    assert arrived == list(range(count))


def test_a_busy_peer_gets_one_batch_twice(a, b):
    batches = sent(a, 1.0, *"vwxyz")
    _, again = expire(a)
    assert received(b, 1.6, batches + again) == list("vwxyz")
    received(a, 1.6, b.take_batches(1.6))
    assert a.take_batches(1.6) == []
    assert (b.repeated_count, a.resent_count, a.unacknowledged_count) == (1, 1, 0)


def test_a_repeat_is_answered_for_its_acknowledgement_was_lost(a, b):
    batches = sent(a, 1.0, "x")
    received(b, 1.0, batches)
    expire(b)
    assert received(b, 1.6, batches) == []
    assert b.take_batches(1.6) == [(Stamp(200, 0, 100, 1), None)]


def test_the_window_holds_back_and_opens(a, b):
    batches = sent(a, 1.0, *range(12))
    assert len(batches) == 8
    assert a.unacknowledged_count == 12
    received(b, 1.0, batches)
    received(a, 1.0, b.take_batches(1.0))
    more = a.take_batches(1.0)
    assert [content for _, content in more] == [8, 9, 10, 11]
    assert received(b, 1.0, more) == [8, 9, 10, 11]


def test_too_much_is_an_error(a):
    sent(a, 1.0, *range(20))
    with pytest.raises(SessionFull, match="20 batches"):
        a.send(20, 1.0)


def test_batches_beyond_the_window_are_dropped(a, b):
    assert received(b, 1.0, [(Stamp(100, 9), "far"), (Stamp(100, 8), "near")]) == []
    assert len(b._early) == 1


def test_send_again_when_the_way_is_open(a, b):
    batches = sent(a, 1.0, "x", "y")
    a.send_again(2.0)
    assert a.take_batches(2.0) == batches


def test_a_new_incarnation_of_the_peer(a, b):
    received(b, 1.0, sent(a, 1.0, "x", "y"))
    received(a, 1.0, sent(b, 1.0, "for the first"))
    sent(b, 1.0, "lost with the first")
    second = session(300)
    assert received(b, 2.0, sent(second, 2.0, "hello")) == ["hello"]
    assert (b.peer, b.number, b.restart_count, b.unacknowledged_count) == (300, 201, 1, 0)
    answer = sent(b, 2.0, "welcome")
    assert answer == [(Stamp(201, 1, 300, 1), "welcome")]
    assert received(second, 2.0, answer) == ["welcome"]
    assert second.unacknowledged_count == 0
    # What is still on its way from the first, and to it.
    assert received(b, 2.0, sent(a, 1.0, "late")) == []
    assert received(second, 2.0, [(Stamp(200, 2, 100, 2), "late")]) == []
    assert (b.stale_count, second.stale_count) == (1, 1)


def test_two_new_ends_do_not_restart_each_other(a, b):
    """B has heard a delayed batch of A's last incarnation before the new one."""
    received(b, 1.0, [(Stamp(50, 1), "delayed")])
    to_a = sent(b, 1.0, "one")  # for end 50, it says
    to_b = sent(a, 1.0, "two")
    assert received(a, 1.0, to_a) == []
    assert received(b, 1.0, to_b) == ["two"]
    assert b.number == 201
    to_a, to_b = sent(b, 1.0, "three"), sent(a, 1.0, "four")
    assert received(a, 1.0, to_a) == ["three"]
    assert received(b, 1.0, to_b) == ["four"]
    assert (a.number, b.number) == (100, 201)


def test_a_peer_that_restarted_its_numbers_because_of_this_end_keeps_them(a, b):
    received(a, 1.0, [(Stamp(150, 1), "of b's last incarnation")])
    mine = sent(b, 1.0, "x")
    assert received(a, 1.0, mine) == ["x"]
    assert a.number == 101
    # An old batch of A comes late, so B takes its end 100 for the peer, then 101.
    received(b, 1.0, [(Stamp(100, 1), "late")])
    kept = sent(b, 1.0, "y")
    assert received(b, 1.0, sent(a, 1.0, "new")) == ["new"]
    assert (b.number, b.unacknowledged_count) == (200, 1)
    assert received(a, 1.0, kept) == ["y"]


@pytest.mark.parametrize("stamp", [Stamp(200, 0, 100, 1), Stamp(200, 1, 100, 1 << 40)])
def test_an_acknowledgement_of_nothing_is_refused(a, stamp):
    with pytest.raises(ProtocolError, match="were sent"):
        a.receive(stamp, None, 1.0)


def test_an_old_acknowledgement_says_nothing(a, b):
    for text in "xy":
        received(b, 1.0, sent(a, 1.0, text))
    late = expire(b)[1]
    received(b, 1.1, sent(a, 1.1, "z"))
    received(a, 1.2, expire(b)[1])
    assert a.unacknowledged_count == 0
    received(a, 1.3, late)
    assert (a.unacknowledged_count, a.take_batches(1.3)) == (0, [])
