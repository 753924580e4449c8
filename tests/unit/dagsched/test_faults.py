"""Fault points: nothing by default, each named in the source, counted and done as asked."""

import ast
import errno
import os
import signal
import subprocess
import sys
import time

import pytest

from dagsched import faults
from dagsched.faults import Fault, Faults, parse_faults
from tests.checkout import ROOT, listed_files


def points_in_the_source():
    found = []
    for name in listed_files():
        path = ROOT / name
        if path.suffix != ".py" or name.startswith("tests/") or path.is_symlink():
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            is_call = isinstance(node, ast.Call) and ast.unparse(node.func) == "fault"
            if is_call:
                (argument,) = node.args
                assert isinstance(argument, ast.Constant), f"{name}: a point's name is a literal"
                found.append(argument.value)
    return found


def test_the_list_of_points_is_that_of_the_source():
    found = points_in_the_source()
    assert sorted(found) == sorted(faults.POINTS), "each point stands in the source, and once"


def test_nothing_was_asked_for_in_this_process():
    assert faults.fault is faults._nothing
    assert [faults.fault(name) for name in faults.POINTS] == [""] * len(faults.POINTS)


def test_faults_are_read():
    text = "log.before_write:2:delay:50,,arena.reserve:1:error:ENOSPC"
    assert parse_faults(text) == [
        Fault("log.before_write", 2, "delay", "50"),
        Fault("arena.reserve", 1, "error", "ENOSPC"),
    ]


@pytest.mark.parametrize(
    "text",
    ["nowhere:1:kill", "arena.reserve:0:kill", "arena.reserve:x:kill", "arena.reserve:1:burn",
     "arena.reserve"],
)  # fmt: skip
def test_what_is_no_fault_is_refused(text):
    with pytest.raises(ValueError, match="points are arena"):
        parse_faults(text)


def test_only_the_nth_call_fails():
    points = Faults(parse_faults("arena.reserve:2:error:ENOSPC,arena.reserve:3:error:Own"), "")
    assert points.hit("arena.reserve") == ""
    assert points.hit("arena.before_seal") == ""
    with pytest.raises(OSError, match="asked for") as caught:
        points.hit("arena.reserve")
    assert caught.value.errno == errno.ENOSPC
    with pytest.raises(RuntimeError, match="Own"):
        points.hit("arena.reserve")
    assert points.hit("arena.reserve") == ""


def test_delays_and_words_for_senders():
    points = Faults(parse_faults("log.before_write:1:delay:20,log.before_write:2:drop"), "")
    started = time.monotonic()
    assert points.hit("log.before_write") == "delay"
    assert time.monotonic() - started >= 0.02
    assert points.hit("log.before_write") == "drop"


def test_calls_are_counted_across_processes(tmp_path):
    log = str(tmp_path / "log")
    one, other = (Faults(parse_faults("arena.reserve:3:dup"), log) for _ in range(2))
    assert [each.hit("arena.reserve") for each in (one, other, one, other)] == ["", "", "dup", ""]
    lines = (tmp_path / "log").read_text().splitlines()
    assert lines == [f"arena.reserve {os.getpid()}"] * 4


def test_a_process_kills_itself():
    code = "from dagsched.faults import fault; fault('arena.reserve'); fault('arena.reserve')"
    environ = {**os.environ, faults.VARIABLE: "arena.reserve:2:kill"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, check=False)
    assert done.returncode == -signal.SIGKILL
