"""What a test may leave behind: nothing. Processes, threads, descriptors, segments, files, keys."""

import gc
import os
import re
import secrets
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import psutil

SHARED_MEMORY = Path("/dev/shm")
COOKIE_NAME = "DAGSCHED_TEST_COOKIE"
COOKIE = secrets.token_hex(8)
"""In the environment of this process from its tests on, and so of all that it starts."""

OUR_PREFIXES = ("dagsched", "sem.dagsched")
GRACE_S = 5.0
"""What was told to end has this long to be gone; a leak is what stays."""

_LOOK_S = 0.01


@dataclass(frozen=True)
class Traces:
    """All that this process and its like have in the system at one moment."""

    processes: frozenset[tuple[int, str]]
    threads: frozenset[str]
    descriptors: frozenset[tuple[str, str]]
    segments: frozenset[str]
    run_files: frozenset[str]
    store_keys: frozenset[str]

    def left_since(self, before: "Traces") -> list[str]:
        """What is there and was not before, in words."""
        return [
            f"{kind}: {sorted(getattr(self, kind) - getattr(before, kind))}"
            for kind in self.__dataclass_fields__
            if getattr(self, kind) - getattr(before, kind)
        ]


def runtime_directories() -> list[Path]:
    """Where environments of this user keep their run directories."""
    bases = [Path(os.environ.get("TMPDIR", "/tmp")), Path(f"/run/user/{os.getuid()}")]
    xdg = os.environ.get("XDG_RUNTIME_DIR")
    if xdg:
        bases.append(Path(xdg))
    return [base / name for base in bases for name in (f"dagsched-{os.getuid()}", "dagsched")]


def look(redis_url: str | None = None) -> Traces:
    """The traces now."""
    gc.collect()
    return Traces(
        processes=_processes(),
        threads=frozenset(
            f"{thread.name} {thread.ident}"
            for thread in threading.enumerate()
            if not thread.name.startswith("pytest_timeout")  # the clock of the test that runs
        ),
        descriptors=_descriptors(),
        segments=frozenset(
            entry.name
            for entry in SHARED_MEMORY.iterdir()
            if entry.name.startswith(OUR_PREFIXES) and not _is_of_a_stranger(entry.name)
        ),
        run_files=frozenset(
            str(path)
            for root in runtime_directories()
            if root.is_dir()
            for path in root.iterdir()
            if not _is_of_a_stranger(path.name)
        ),
        store_keys=_store_keys(redis_url),
    )


def left_behind(before: Traces, redis_url: str | None = None) -> list[str]:
    """What is still there after a grace time and was not before; empty: all is clean."""
    deadline = time.monotonic() + GRACE_S
    while True:
        left = look(redis_url).left_since(before)
        if not left or time.monotonic() > deadline:
            return left
        # The kernel tells nobody that a process which is not our child has gone.
        time.sleep(_LOOK_S)


def _is_of_a_stranger(name: str) -> bool:
    """Whether a living process that is neither this one nor below it owns what is named so."""
    match = re.search(r"-(\d+)-[0-9a-f]+-[0-9a-f]{8}|handmaster-(\d+)-", "-" + name)
    if match is None:
        return False
    try:
        owner = psutil.Process(int(match[1] or match[2]))
        return os.getpid() not in {owner.pid, *(parent.pid for parent in owner.parents())}
    except psutil.NoSuchProcess:
        return False


def _processes() -> frozenset[tuple[int, str]]:
    """Descendants, and whoever has our cookie in its environment, though its parent has died."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        try:
            found.add((process.pid, " ".join(process.cmdline())[:200] or process.name()))
        except psutil.Error:
            continue
    for process in psutil.process_iter():
        try:
            command = " ".join(process.cmdline())
            # A store's server writes its title over its environment; its directory is in the title.
            is_ours = COOKIE in command or process.environ().get(COOKIE_NAME) == COOKIE
            if is_ours and process.pid != os.getpid():
                found.add((process.pid, command[:200] or process.name()))
        except (psutil.Error, OSError):
            continue  # it has gone meanwhile, or is another user's
    return frozenset(found)


def _descriptors() -> frozenset[tuple[str, str]]:
    found = set()
    for name in os.listdir("/proc/self/fd"):
        try:
            found.add((name, str(Path(f"/proc/self/fd/{name}").readlink())))
        except FileNotFoundError:
            continue  # that of this very listing
    return frozenset(found)


def _store_keys(redis_url: str | None) -> frozenset[str]:
    if redis_url is None:
        return frozenset()
    import redis

    with redis.Redis.from_url(redis_url) as client:
        return frozenset(key.decode() for key in client.scan_iter("*"))
