"""Reserving processes: ids, hosts, and what is refused."""

from collections.abc import Iterator

import pytest

from dagsched.procs import addprocs, process_hosts, procs, reserve_private, rmprocs


@pytest.fixture(autouse=True)
def no_processes() -> Iterator[None]:
    rmprocs(procs()[1:])
    yield
    rmprocs(procs()[1:])


def test_the_master_is_always_there() -> None:
    assert procs() == [1]


def test_ids_rise_without_gaps_and_are_listed_after_the_master() -> None:
    first = addprocs(2)
    second = addprocs(3, host="far")
    start = first[0]
    assert first == [start, start + 1]
    assert second == [start + 2, start + 3, start + 4]
    assert procs() == [1, *first, *second]
    assert process_hosts() == {
        start: "127.0.0.1",
        start + 1: "127.0.0.1",
        start + 2: "far",
        start + 3: "far",
        start + 4: "far",
    }


def test_ids_are_never_used_again() -> None:
    ids = addprocs(2)
    rmprocs(ids)
    assert procs() == [1]
    assert addprocs(1) == [ids[-1] + 1]


def test_one_id_can_be_removed_by_itself() -> None:
    first, second = addprocs(2)
    rmprocs(first)
    assert procs() == [1, second]


def test_private_ids_are_not_listed_and_not_given_again() -> None:
    private = reserve_private(2)
    assert procs() == [1]
    assert addprocs(1) == [private[-1] + 1]


def test_removing_an_unknown_process_removes_nothing() -> None:
    ids = addprocs(2)
    with pytest.raises(ValueError, match=rf"no process with id 999999 .*there are \[1, {ids[0]}"):
        rmprocs([ids[0], 999_999])
    assert procs() == [1, *ids]


def test_the_master_can_not_be_removed() -> None:
    with pytest.raises(ValueError, match="1 is the master and stays"):
        rmprocs([1])
    assert procs() == [1]


@pytest.mark.parametrize("count", [0, -1])
def test_a_number_that_is_not_positive_is_refused(count: int) -> None:
    with pytest.raises(ValueError, match=f"at least one process, not {count}"):
        addprocs(count)


@pytest.mark.parametrize("count", ["2", 2.0, True, None])
def test_what_is_no_int_is_refused(count: object) -> None:
    with pytest.raises(TypeError, match="number of processes as int"):
        addprocs(count)  # type: ignore[arg-type]


def test_an_empty_host_is_refused() -> None:
    with pytest.raises(ValueError, match="host must not be empty"):
        addprocs(1, host=" ")
