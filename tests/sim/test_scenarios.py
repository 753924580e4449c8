"""Histories as text files."""

from pathlib import Path

import pytest

from dagsched.errors import GraphError
from dagsched.testing.scenario import Scenario, ScenarioError

FILES = sorted((Path(__file__).parent / "scenarios").glob("*.txt"))


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_history(path: Path):
    cluster = Scenario.from_file(path).play()
    assert all(outcome.is_over for outcome in cluster.outcomes.values())


def test_an_expectation_that_fails_names_its_line():
    text = "nodes 2:1\ngraph a chain 3\ntask a 1 fails\nsubmit a\nwait a\nexpect a done"
    with pytest.raises(ScenarioError, match=r"line 6: expect a done: failed, .*ValueError"):
        Scenario(text).play()
    with pytest.raises(ScenarioError, match=r"line 5: .* were sent"):
        Scenario(
            "nodes 2:1\ngraph a chain 3\nsubmit a\nwait a\nexpect messages BundleDone <= 0"
        ).play()


def test_an_unknown_command_is_refused():
    with pytest.raises(GraphError, match="line 1: 'frobnicate'"):
        Scenario("frobnicate 1").play()
