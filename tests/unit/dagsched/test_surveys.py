"""What the master says of nodes and subtrees to those who watch."""

from dagsched.master.surveys import STATES
from tests.unit.dagsched.test_master_core import alone, ready


def test_subtrees_stand_as_they_do():
    driver = ready({2: 1}, placed_subtrees_max=1)
    driver.submit(1, alone(8, 4))
    driver.take()
    found = driver.core.surveys.standing(1)
    assert found is not None
    words = [STATES[index].name for index in found.state.tolist()]
    assert words.count("PLACED") >= 1
    assert set(words) <= {"PLACED", "READY"}
    assert set(found.home.tolist()) == {2}
    assert found.task_count.tolist() == (found.hi - found.lo).tolist() == [2, 2, 2, 2]
    assert found.producer_of is None
    driver.done(2, 1, 0)
    found = driver.core.surveys.standing(1)
    assert found is not None
    assert STATES[found.state[0]].name == "DONE"


def test_a_run_that_the_master_has_not_stands_nowhere():
    assert ready({2: 1}).core.surveys.standing(77) is None


def test_silences_of_nodes():
    driver = ready({2: 1, 3: 1})
    heard = {
        broker: silence for broker, (silence, _) in driver.core.surveys.silences(100.0).items()
    }
    assert set(heard) == {2, 3}
    later = driver.core.surveys.silences(101.5)
    assert {broker: later[broker][0] - heard[broker] for broker in heard} == {2: 1.5, 3: 1.5}
    assert not any(is_leaving for _, is_leaving in later.values())
