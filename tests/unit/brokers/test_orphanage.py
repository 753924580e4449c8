"""How long a broker stays whose master has died."""

from pathlib import Path

import pytest

from dagsched.brokers.orphanage import Orphanage
from dagsched.config import Config
from dagsched.protocol.messages import EndRun, PlaceSubtree
from dagsched.tenancy import mark_used

CONFIG = Config(master_grace_s=30, master_grace_max_s=3600)


def place(run: int) -> PlaceSubtree:
    return PlaceSubtree(run, 1, 0, 1, 0, 1, 1, 0, (), ())


def test_a_broker_without_a_run_has_nothing_to_stay_for(tmp_path: Path) -> None:
    orphanage = Orphanage(tmp_path, CONFIG)
    assert not orphanage.master_died(100.0)
    assert orphanage.leave_at_s is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("age_s", "grace_s"), [(0, 30), (29, 30), (31, 31), (3000, 3000), (10_000, 3600)]
)
def test_it_stays_as_long_as_its_oldest_run_has_lasted(
    tmp_path: Path, age_s: float, grace_s: float
) -> None:
    orphanage = Orphanage(tmp_path, CONFIG)
    orphanage.heed(place(1), 1000.0)
    orphanage.heed(place(2), 1000.0 + age_s)
    orphanage.heed(place(1), 1000.0 + age_s)
    assert orphanage.master_died(1000.0 + age_s)
    assert orphanage.leave_at_s == 1000.0 + age_s + grace_s
    assert not orphanage.is_due(1000.0 + age_s + grace_s - 0.001)
    assert orphanage.is_due(1000.0 + age_s + grace_s)


def test_a_run_may_have_been_submitted_that_no_broker_knows(tmp_path: Path) -> None:
    orphanage = Orphanage(tmp_path, CONFIG)
    mark_used(tmp_path)
    assert orphanage.master_died(5.0)
    assert orphanage.leave_at_s == 35.0


def test_runs_that_have_ended_do_not_count(tmp_path: Path) -> None:
    orphanage = Orphanage(tmp_path, CONFIG)
    orphanage.heed(place(1), 0.0)
    orphanage.heed(EndRun(1, ()), 5000.0)
    assert orphanage.master_died(5000.0)  # values of it may be wanted
    assert orphanage.leave_at_s == 5030.0


def test_each_time_it_has_another_address(tmp_path: Path) -> None:
    orphanage = Orphanage(tmp_path, CONFIG)
    orphanage.heed(place(1), 0.0)
    assert orphanage.master_died(1.0)
    first = orphanage.data_path
    assert [path.suffix for path in tmp_path.iterdir()] == [".until"]
    orphanage.adopted()
    assert orphanage.leave_at_s is None
    assert not orphanage.is_due(1e9)
    assert list(tmp_path.iterdir()) == []
    assert orphanage.master_died(2.0)
    assert orphanage.data_path != first
