"""The public names: all there, lazily, and cheap to import."""

import subprocess
import sys

import pytest

import dagsched

NAMES = """
    delayed RunEnv rundag Delayed NodeEnv Ref Run setrunenv getrunenv addprocs rmprocs procs submit
    resume collect reset cleanup print_stats visualize errors
""".split()  # noqa: SIM905 - as they stand in the documentation


def run_python(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.strip()


@pytest.mark.parametrize("name", NAMES)
def test_each_name_is_there(name: str) -> None:
    assert name in dagsched.__all__
    assert name in dir(dagsched)
    assert getattr(dagsched, name) is not None


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'dagsched' has no attribute 'nonsense'"):
        dagsched.nonsense  # type: ignore[attr-defined]


def test_functions_are_not_hidden_by_modules_of_their_name() -> None:
    code = (
        "import dagsched.procs, dagsched.delayed, dagsched\n"
        "from dagsched import procs, delayed\n"
        "print(procs(), dagsched.procs(), delayed(len)([]).key.split('-')[0])"
    )
    assert run_python(code) == "[1] [1] len"


def test_importing_loads_nothing_heavy() -> None:
    code = (
        "import sys, dagsched\n"
        "from dagsched import delayed, NodeEnv, RunEnv, rundag, addprocs, Ref, Run, collect\n"
        "heavy = {'numpy', 'zmq', 'redis', 'msgspec', 'msgpack', 'cloudpickle', 'networkx',\n"
        "         'rich', 'posix_ipc', 'asyncio', 'psutil'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    assert run_python(code) == "[]"


def test_importing_starts_nothing() -> None:
    code = (
        "import os, threading, dagsched\n"
        "from dagsched import RunEnv, rundag, delayed\n"
        "children = open(f'/proc/self/task/{os.getpid()}/children').read().split()\n"
        "print(children, threading.active_count())"
    )
    assert run_python(code) == "[] 1"
