"""Locks on a run directory: who lives there, who rules, who leaves last; and its note."""

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dagsched import rundir
from dagsched.envfile import NOTE_NAME, NOTE_VERSION, EnvironmentNote, read_note, write_note
from dagsched.errors import DagschedError, VersionMismatch
from dagsched.nodes import NodeEnv
from dagsched.rundir import (
    find_run_directory,
    make_run_directory,
    names_of,
    remove_run_directory,
    sweep,
)
from dagsched.tenancy import Tenancy, claim, master_pid

TENANT = """
import sys
from pathlib import Path
from dagsched.tenancy import Tenancy
tenancy = Tenancy(Path(sys.argv[1]), is_new=True)
assert tenancy.live()
assert "rule" not in sys.argv or tenancy.rule()
print("in", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def other(tmp_path: Path) -> "Iterator[subprocess.Popen[str]]":
    """Another process that lives and rules in `tmp_path`."""
    command = [sys.executable, "-c", TENANT, str(tmp_path), "rule"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "in\n"
        yield process
        process.kill()


def test_one_rules_and_many_live(tmp_path: Path, other: "subprocess.Popen[str]") -> None:
    tenancy = Tenancy(tmp_path)
    assert tenancy.live()
    assert not tenancy.rule()
    assert master_pid(tmp_path) == other.pid
    assert claim(tmp_path) is None
    other.kill()
    other.wait()
    assert master_pid(tmp_path) is None
    assert tenancy.rule()
    assert master_pid(tmp_path) == os.getpid()
    tenancy.close()
    assert master_pid(tmp_path) is None


def test_the_last_to_leave_knows_it(tmp_path: Path, other: "subprocess.Popen[str]") -> None:
    first, second = Tenancy(tmp_path), Tenancy(tmp_path)
    assert first.live()
    assert second.live()
    assert not first.is_last()
    first.close()
    other.kill()
    other.wait()
    assert second.is_last()
    assert claim(tmp_path) is None  # nobody else may think the same before it has left
    second.close()
    vacant = claim(tmp_path)
    assert vacant is not None
    vacant.close()


def test_nobody_lives_in_a_directory_that_is_gone(tmp_path: Path) -> None:
    assert not Tenancy(tmp_path).live()  # there is no lock, so it is just being removed
    assert list(tmp_path.iterdir()) == []
    tenancy = Tenancy(tmp_path / "gone", is_new=True)
    assert not tenancy.live()
    assert not tenancy.rule()
    assert not tenancy.is_last()
    tenancy.close()


def test_a_forked_child_has_no_part_in_the_locks(tmp_path: Path) -> None:
    tenancy = Tenancy(tmp_path, is_new=True)
    assert tenancy.live()
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        tenancy.forget_after_fork()
        theirs.send(b"forgotten")
        theirs.recv(1)
        os._exit(0)
    theirs.close()
    try:
        assert ours.recv(9) == b"forgotten"
        tenancy.close()
        vacant = claim(tmp_path)
    finally:
        ours.close()
        os.waitpid(child, 0)
    assert vacant is not None
    vacant.close()


def test_the_sweep_spares_what_brokers_of_a_dead_client_live_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    segments = tmp_path / "shm"
    segments.mkdir()
    monkeypatch.setattr(rundir, "_SEGMENT_DIRECTORY", segments)
    root = tmp_path / "dagsched"
    monkeypatch.setattr(
        rundir, "run_directories", lambda: sorted(root.iterdir()) if root.exists() else []
    )
    # As if the owner had begun at another time than the process that has its number now.
    names = make_run_directory("/D")
    request.addfinalizer(lambda: remove_run_directory(names))
    owner = names.owner.rsplit("-", 2)[0] + "-1-0badc0de"
    orphanage = root / owner.split("-", 2)[2]
    orphanage.mkdir(parents=True)
    (segments / f"{owner}.D-1").write_text("x")
    tenancy = Tenancy(orphanage, is_new=True)
    assert tenancy.live()
    assert sweep() == []
    assert find_run_directory("0badc0de") == orphanage
    tenancy.close()
    assert sweep() == [str(orphanage), f"{owner}.D-1"]
    assert find_run_directory("0badc0de") is None


def test_a_note_comes_back_as_it_was(tmp_path: Path) -> None:
    names = names_of(tmp_path / "1-2-3-00c0ffee", "/D")
    note = EnvironmentNote.of(names, "redis://:secret@host/0")
    note = note.with_nodes([NodeEnv(2, "127.0.0.1", [3, 4])], [(os.getpid(), "a"), (1 << 30, "b")])
    write_note(tmp_path, note.with_heir(tmp_path))
    assert stat.S_IMODE((tmp_path / NOTE_NAME).stat().st_mode) == 0o600
    read = read_note(tmp_path)
    assert read is not None
    assert read.metastore == "redis://:secret@host/0"
    assert read.living_brokers() == {os.getpid(): "a"}
    assert list(read.heirs) == [str(tmp_path)]
    assert [list(node) for node in read.nodes] == [[2, "127.0.0.1", [3, 4]]]


def test_a_note_of_a_newer_version_is_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / NOTE_NAME).write_text(f'{{"version": {NOTE_VERSION + 1}, "dagsched": "99.0"}}')
    with pytest.raises(VersionMismatch, match=r"opened by dagsched 99\.0"):
        read_note(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", '{"version": 1}', "\x00"])
def test_what_is_no_note_is_an_error_that_names_it(tmp_path: Path, text: str) -> None:
    assert read_note(tmp_path) is None
    (tmp_path / NOTE_NAME).write_text(text)
    with pytest.raises(DagschedError, match=r"env\.json is no note"):
        read_note(tmp_path)
