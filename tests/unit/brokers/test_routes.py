"""The ways to other brokers."""

from dagsched.brokers.routes import DIRECT_EVERY_S, Routes


def test_directly_as_long_as_that_works():
    routes = Routes()
    assert routes.ways(3, is_unanswered=False, now=1.0) == (True, False)
    routes.heard(3, is_relayed=False)
    assert routes.ways(3, is_unanswered=False, now=1.0) == (True, False)


def test_both_ways_when_nobody_answers_but_directly_only_now_and_then():
    routes = Routes()
    assert routes.ways(3, is_unanswered=True, now=10.0) == (True, True)
    assert routes.ways(3, is_unanswered=True, now=10.1) == (False, True)
    assert routes.ways(3, is_unanswered=True, now=10.0 + DIRECT_EVERY_S) == (True, True)


def test_answers_go_the_way_on_which_was_heard():
    routes = Routes()
    routes.heard(3, is_relayed=True)
    assert routes.ways(3, is_unanswered=False, now=10.0) == (True, True)
    assert routes.ways(3, is_unanswered=False, now=10.1) == (False, True)
    assert routes.ways(4, is_unanswered=False, now=10.1) == (True, False)
    routes.heard(3, is_relayed=False)
    assert routes.ways(3, is_unanswered=False, now=10.2) == (True, False)


def test_a_new_incarnation_begins_directly():
    routes = Routes()
    routes.heard(3, is_relayed=True)
    routes.forget(3)
    assert routes.ways(3, is_unanswered=False, now=10.0) == (True, False)
