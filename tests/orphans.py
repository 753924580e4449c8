"""Clients that die: programs that open an environment, begin a run, and end as they are told.

Used by tests of `resume`, which see executions of tasks across processes, whoever led them.
"""

import os
import struct
import subprocess
import sys
import textwrap
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from dagsched import Delayed, delayed
from tests.checkout import ROOT

PRIME = 2_147_483_647

_RECORD = struct.Struct("<qqd")  # task, process, monotonic seconds
_files: dict[str, int] = {}


class Execution(NamedTuple):
    """One execution of a task."""

    task: int
    pid: int
    at_s: float  # of the monotonic clock, which all processes of a machine share


def note(directory: str, task: int) -> None:
    """In a task: it runs now. Appended, so that it stays whatever becomes of the process."""
    fd = _files.get(directory)
    if fd is None:
        path = f"{directory}/{os.getpid()}"
        fd = _files[directory] = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        )
    os.write(fd, _RECORD.pack(task, os.getpid(), time.monotonic()))


def executions(directory: Path) -> list[Execution]:
    """All executions so far, in order."""
    found = []
    for path in directory.iterdir():
        data = path.read_bytes()
        data = data[: len(data) // _RECORD.size * _RECORD.size]
        found += [Execution(*record) for record in _RECORD.iter_unpack(data)]
    return sorted(found, key=lambda execution: execution.at_s)


def counts(directory: Path) -> Counter[int]:
    """How often each task was executed."""
    return Counter(execution.task for execution in executions(directory))


def spin(seconds: float) -> None:
    """Compute for so long."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


def leaf(directory: str, task: int, seconds: float) -> int:
    """A task without dependencies."""
    note(directory, task)
    spin(seconds)
    return leaf_value(task)


def join(directory: str, task: int, seconds: float, *values: int) -> int:
    """A task that needs others."""
    note(directory, task)
    spin(seconds)
    return join_value(task, values)


def leaf_value(task: int) -> int:
    """What `leaf` gives."""
    return (task * 2_654_435_761 + 12_345) % PRIME


def join_value(task: int, values: Sequence[int]) -> int:
    """What `join` gives."""
    result = task
    for value in values:
        result = (result * 31 + value) % PRIME
    return result


def tree(directory: str, leaf_count: int, seconds: float, width: int = 2) -> Delayed:
    """A reduction of leaves, `width` at a time: some `leaf_count * width / (width - 1)` tasks."""
    make_leaf, make_join = delayed(leaf), delayed(join)
    level = [make_leaf(directory, task, seconds) for task in range(leaf_count)]
    task = leaf_count
    while len(level) > 1:
        above = []
        for start in range(0, len(level), width):
            above.append(make_join(directory, task, seconds, *level[start : start + width]))
            task += 1
        level = above
    return level[0]


def tree_value(leaf_count: int, width: int = 2) -> tuple[int, int]:
    """The value of `tree`, computed here, and how many tasks it has."""
    level = [leaf_value(task) for task in range(leaf_count)]
    task = leaf_count
    while len(level) > 1:
        above = []
        for start in range(0, len(level), width):
            above.append(join_value(task, level[start : start + width]))
            task += 1
        level = above
    return level[0], task


PREAMBLE = """
import os, signal, sys, time
from dagsched import *
from dagsched import Config
from tests import orphans

def die_at(run, count):
    while run.progress()[0] < count:
        time.sleep(0.0005)
    os.kill(os.getpid(), signal.SIGKILL)

def two_nodes():
    ids = addprocs(6)
    return [NodeEnv(ids[0], "127.0.0.1", ids[1:3]), NodeEnv(ids[3], "127.0.0.1", ids[4:6])]
"""


def start_client(code: str, *args: object) -> "subprocess.Popen[str]":
    """Run a program that prints what tests want to know."""
    return subprocess.Popen(
        [sys.executable, "-c", PREAMBLE + textwrap.dedent(code), *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def dead_client(code: str, *args: object) -> list[str]:
    """The lines that a program has printed which then kills itself."""
    with start_client(code, *args) as client:
        said, _ = client.communicate(timeout=90)
    assert client.returncode == -9, f"the client was to die by SIGKILL, not {client.returncode}"
    return said.split()
