"""A share of Dask's own tests passes on our scheduler; all of them when asked for slow tests."""

import re

import pytest

from tests.frontends import own


@pytest.mark.timeout(600)
def test_a_share_of_dasks_own_tests() -> None:
    done = own.run(own.SHARE)
    assert own.unexplained(done.stdout) == [], done.stdout[-5000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed is not None, done.stdout[-5000:] + done.stderr[-5000:]
    assert int(passed[1]) > 350


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("module", own.MODULES)
def test_all_of_dasks_own_tests(module: str) -> None:
    done = own.run([module])
    assert own.unexplained(done.stdout) == [], done.stdout[-5000:]
    assert " passed" in done.stdout, done.stdout[-5000:] + done.stderr[-5000:]


def test_failures_are_told_apart() -> None:
    output = "FAILED a/test_bag.py::test_reductions_are_lazy - no\nERROR b.py::test_x[1]\n1 passed"
    assert own.failures(output) == ["a/test_bag.py::test_reductions_are_lazy", "b.py::test_x[1]"]
    assert own.unexplained(output) == ["b.py::test_x[1]"]
