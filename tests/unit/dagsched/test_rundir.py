"""Names on the machine: root paths, the run directory, and the sweep of the dead."""

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from dagsched import rundir
from dagsched.errors import DagschedError
from dagsched.rundir import (
    ROOT_PATH_MAX,
    SOCKET_PATH_MAX,
    check_rootpath,
    make_run_directory,
    remove_run_directory,
    runtime_root,
    sweep,
)


@pytest.fixture(autouse=True)
def own_runtime_directory(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Path:
    import tempfile

    short = Path(tempfile.mkdtemp(prefix="d"))
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short))
    monkeypatch.setattr(rundir, "_SEGMENT_DIRECTORY", short / "shm")
    (short / "shm").mkdir()
    yield short  # type: ignore[misc]
    import shutil

    shutil.rmtree(short)


@pytest.mark.parametrize("path", ["/D", "/a/b/c", "/A-b_c.9", "/" + "x" * 64, "/..x", "/-"])
def test_good_rootpaths(path: str) -> None:
    assert check_rootpath(path) == path


@pytest.mark.parametrize(
    "path",
    ["", "D", "/", "/a/", "//a", "/a b", "/ü", "/.", "/a/..", "/" + "x" * 65, "/a" * 65, "/a\n"],
)
def test_bad_rootpaths(path: str) -> None:
    with pytest.raises(ValueError, match="rootpath"):
        check_rootpath(path)


def test_a_rootpath_that_is_no_str() -> None:
    with pytest.raises(TypeError, match="must be a str, not int"):
        check_rootpath(5)  # type: ignore[arg-type]


def test_the_directory_is_private_and_goes_away() -> None:
    names = make_run_directory("/D")
    assert stat.S_IMODE(names.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(runtime_root().stat().st_mode) == 0o700
    (names.directory / "x.log").write_text("x")
    remove_run_directory(names)
    assert not names.directory.exists()
    remove_run_directory(names)


def test_names_of_two_environments_differ_in_all() -> None:
    first, second = make_run_directory("/D"), make_run_directory("/D")
    assert first.token != second.token
    assert first.directory != second.directory
    assert not first.segment_prefix.startswith(second.segment_prefix)
    assert first.segment_prefix.startswith(f"dagsched-{os.getuid()}-")
    assert f"-{os.getpid()}-" in first.segment_prefix
    assert first.segment_prefix.endswith(".D")


def test_no_brokers_prefix_is_the_start_of_anothers() -> None:
    names = make_run_directory("/a/b")
    prefixes = [names.broker_prefix(*pair) for pair in ((2, 1), (2, 11), (21, 1), (20, 1), (1, 1))]
    for one in prefixes:
        assert one.startswith(names.segment_prefix)
        assert [other for other in prefixes if other.startswith(one)] == [one]


def test_socket_paths_are_short_enough() -> None:
    names = make_run_directory("/" + "x" * 60)
    assert len(str(names.broker_socket(1_000_000, 99))) < SOCKET_PATH_MAX
    assert len(str(names.master_socket)) < SOCKET_PATH_MAX


def test_a_runtime_directory_with_a_long_path_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = tmp_path / ("x" * 90)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    assert len(str(runtime_root())) <= ROOT_PATH_MAX


def test_a_directory_of_another_user_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    monkeypatch.setattr(rundir, "_runtime_bases", lambda: [Path(os.environ["XDG_RUNTIME_DIR"])])
    with pytest.raises(DagschedError, match="belongs to another user"):
        runtime_root()


DEAD_OWNER = """
from dagsched.rundir import make_run_directory
names = make_run_directory("/D")
(names.directory / "broker-2.log").write_text("x")
print(names.segment_prefix, names.directory)
"""


def test_the_sweep_takes_what_dead_owners_left_and_nothing_else() -> None:
    said = subprocess.run(
        [sys.executable, "-c", DEAD_OWNER], capture_output=True, text=True, check=True
    )
    prefix, directory = said.stdout.split()
    segments = rundir._SEGMENT_DIRECTORY
    alive = make_run_directory("/D")
    for name in (f"{prefix}-x-1-1-0", f"{alive.segment_prefix}-x-1-1-0", "dagsched-else", "other"):
        (segments / name).write_text("x")
    removed = sweep()
    assert removed == [directory, f"{prefix}-x-1-1-0"]
    assert not Path(directory).exists()
    assert alive.directory.exists()
    left = sorted(path.name for path in segments.iterdir())
    assert left == sorted([f"{alive.segment_prefix}-x-1-1-0", "dagsched-else", "other"])


def test_a_number_used_again_is_not_taken_for_its_old_owner() -> None:
    alive = make_run_directory("/D")
    _, uid, namespace, pid, start, token = alive.owner.split("-")
    older = f"dagsched-{uid}-{namespace}-{pid}-{int(start, 16) - 1:x}-{token}.D-1"
    elsewhere = (
        f"dagsched-{uid}-{int(namespace, 16) + 1:x}-{pid}-{int(start, 16) - 1:x}-{token}.D-1"
    )
    for name in (older, elsewhere):
        (rundir._SEGMENT_DIRECTORY / name).write_text("x")
    assert sweep() == [older]
