"""Names of everything that an environment puts on its machine, and the sweep of what is dead.

Responsible for the run directory (sockets, logs, the embedded store's files), the prefix of shared
memory segments, and for removing those of owners that died without doing so. A name begins with
``dagsched-<uid>-<pid namespace>-<pid>-<start>-<token>``: with the start time of the owner's process
a number used again is not taken for its old owner, and with the namespace the owners in other
containers that share a file system with us are left alone.
"""

import contextlib
import logging
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from dagsched.errors import DagschedError
from dagsched.tenancy import claim, start_ticks

logger = logging.getLogger(__name__)

SOCKET_PATH_MAX = 100
"""The kernel takes 107 bytes; the rest is for whoever appends to a socket's name."""

ROOT_PATH_MAX = SOCKET_PATH_MAX - 56
"""A run directory's name takes up to 36 characters, a socket's in it up to 20."""

_SEGMENT_DIRECTORY = Path("/dev/shm")
_SPILL_NAME = "spill"  # as in dagsched.brokers.objects.segments, which clients needn't load
_ROOTPATH = re.compile(r"(/[A-Za-z0-9_.-]{1,64})+")
_ROOTPATH_MAX = 128
_NAME = re.compile(r"dagsched-(\d+)-([0-9a-f]+)-(\d+)-([0-9a-f]+)-([0-9a-f]{8})(?=[.-]|$)")


@dataclass(frozen=True, slots=True)
class RunNames:
    """The names of one environment."""

    token: str
    """Names the environment; random."""

    owner: str
    """Start of every name: program, user, owner process, token."""

    rootpath: str
    directory: Path
    """Of sockets, logs and the embedded store; mode 0700."""

    @property
    def segment_prefix(self) -> str:
        """Start of the names of all shared memory segments."""
        return self.owner + self.rootpath.replace("/", ".")

    @property
    def master_socket(self) -> Path:
        """The master's socket."""
        return self.directory / "master.sock"

    def broker_socket(self, broker: int, incarnation: int) -> Path:
        """A broker's data socket."""
        return self.directory / f"b{broker}.{incarnation}.sock"

    def broker_prefix(self, broker: int, incarnation: int) -> str:
        """Start of the segment names of one broker's process.

        Fixed widths, so that no broker's prefix is the start of another's.
        """
        return f"{self.segment_prefix}-{broker:08d}{incarnation:04d}"


def check_rootpath(rootpath: str) -> str:
    """`rootpath`, if it is one.

    Raises:
        TypeError: it is not a str.
        ValueError: it is not of the form ``/part/part``.
    """
    if not isinstance(rootpath, str):
        raise TypeError(f"rootpath must be a str, not {type(rootpath).__name__}")
    parts = rootpath.split("/")[1:]
    if (
        len(rootpath) > _ROOTPATH_MAX
        or not _ROOTPATH.fullmatch(rootpath)
        or any(part in {".", ".."} for part in parts)
    ):
        raise ValueError(
            f"rootpath {rootpath!r} is not valid: it begins with '/', has parts of 1 to 64 of "
            f"A-Z a-z 0-9 _ . - (none '.' or '..'), and at most {_ROOTPATH_MAX} characters"
        )
    return rootpath


def make_run_directory(rootpath: str) -> RunNames:
    """Make the directory of a new environment, and its names.

    Raises:
        DagschedError: no directory with a short enough path can be made.
    """
    token = os.urandom(4).hex()
    pid = os.getpid()
    owner = f"dagsched-{os.getuid()}-{_pid_namespace():x}-{pid}-{start_ticks(pid):x}-{token}"
    while True:
        # The directory above is the user's already, and a socket's path must be short.
        directory = runtime_root() / owner.removeprefix(_own_start())
        try:
            directory.mkdir(mode=0o700)
        except FileNotFoundError:
            continue  # the last environment of another process has just removed the one above
        return RunNames(token, owner, rootpath, directory)


def runtime_root() -> Path:
    """The directory of all run directories of this user; made if need be, mode 0700.

    Raises:
        DagschedError: none of the places for it can be used.
    """
    tried = []
    for base in _runtime_bases():
        root = _root_in(base)
        if len(os.fsencode(root)) > ROOT_PATH_MAX:
            tried.append(f"{root} (too long for the path of a socket)")
            continue
        problem = _claim_directory(root)
        if problem is None:
            return root
        tried.append(f"{root} ({problem})")
    raise DagschedError(
        f"no place for the run directory: tried {', '.join(tried)}; set XDG_RUNTIME_DIR or TMPDIR "
        "to a writable directory with a short path"
    )


def remove_run_directory(names: RunNames) -> None:
    """Remove an environment's directory and all in it, and the one above if it was the last."""
    _remove_directory(names.directory)


def remove_environment(directory: Path) -> list[str]:
    """Remove the run directory and all segments of an environment in which nobody lives.

    Returns:
        The names removed.
    """
    owner = _own_start() + directory.name
    if token_of(owner) is None:
        return []  # a directory that somebody else has made
    removed = _remove_segments(lambda name: name.startswith(owner))
    _remove_directory(directory)
    return [str(directory), *removed]


def sweep() -> list[str]:
    """Remove run directories and segments of owners that are dead, where nobody lives on.

    Returns:
        The names removed.
    """
    removed: list[str] = []
    inhabited = set()
    for path in run_directories():
        name = _own_start() + path.name
        if not _is_dead(name):
            continue
        tenancy = claim(path)
        if tenancy is None:
            inhabited.add(token_of(name))
            continue
        if not _has_living_heir(path):
            _remove_directory(path)
            removed.append(str(path))
        tenancy.close()
    removed += _remove_segments(lambda name: _is_dead(name) and token_of(name) not in inhabited)
    if removed:
        logger.info("swept %d things that dead environments left", len(removed))
    return removed


def run_directories() -> list[Path]:
    """All run directories of this user, wherever an environment may have made them."""
    found: dict[Path, None] = {}
    for base in (*_runtime_bases(), Path(f"/run/user/{os.getuid()}/dagsched")):
        root = _root_in(base)
        with contextlib.suppress(OSError):
            if root.lstat().st_uid == os.getuid():
                found |= dict.fromkeys(sorted(root.iterdir()))
    return list(found)


def find_run_directory(token: str) -> Path | None:
    """The run directory of an environment; None: there is none any more."""
    wanted = (path for path in run_directories() if token_of(_own_start() + path.name) == token)
    return next(wanted, None)


def names_of(directory: Path, rootpath: str) -> RunNames:
    """The names of the environment whose run directory this is."""
    owner = _own_start() + directory.name
    return RunNames(token_of(owner) or "", owner, rootpath, directory)


def token_of(name: str) -> str | None:
    """The token of the environment that something is named for; None: it is named otherwise."""
    match = _NAME.match(name)
    return None if match is None else match.group(5)


def _has_living_heir(path: Path) -> bool:
    """Whether somebody lives where its runs were continued: their results are still here."""
    from dagsched.envfile import read_note

    try:
        note = read_note(path)
    except DagschedError:
        return False
    for heir in note.heirs if note is not None else ():
        tenancy = claim(Path(heir))
        if tenancy is None:
            return True
        tenancy.close()
    return False


def _remove_directory(path: Path) -> None:
    spill = path / _SPILL_NAME
    if spill.is_symlink():  # else what lies in it goes with it
        owner = _own_start() + path.name
        with contextlib.suppress(OSError):
            for name in os.listdir(spill):
                if name.startswith(owner):
                    os.unlink(spill / name)
    shutil.rmtree(path, ignore_errors=True)
    with contextlib.suppress(OSError):
        path.parent.rmdir()


def _remove_segments(is_wanted: Callable[[str], bool]) -> list[str]:
    removed = []
    if _SEGMENT_DIRECTORY.is_dir():
        for name in sorted(os.listdir(_SEGMENT_DIRECTORY)):
            if name.startswith("dagsched-") and is_wanted(name):
                # Another client may sweep at the same time.
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(_SEGMENT_DIRECTORY / name)
                    removed.append(name)
    return removed


def _own_start() -> str:
    return f"dagsched-{os.getuid()}-"


def _is_dead(name: str) -> bool:
    """Whether `name` is of an environment of this user and namespace whose owner has ended."""
    match = _NAME.match(name)
    if match is None:
        return False
    uid, namespace, pid, start, _ = match.groups()
    if int(uid) != os.getuid() or int(namespace, 16) != _pid_namespace():
        return False
    try:
        return start_ticks(int(pid)) != int(start, 16)
    except ProcessLookupError:
        return True


def _pid_namespace() -> int:
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0


def _runtime_bases() -> list[Path]:
    bases = []
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        bases.append(Path(runtime) / "dagsched")
    bases.append(Path(tempfile.gettempdir()))
    bases.append(Path("/tmp"))
    return bases


def _root_in(base: Path) -> Path:
    return base if base.name == "dagsched" else base / f"dagsched-{os.getuid()}"


def _claim_directory(path: Path) -> str | None:
    """Make `path` or see that it is ours alone; what is wrong with it otherwise."""
    try:
        path.mkdir(mode=0o700, exist_ok=True)
        status = os.lstat(path)
        if not stat.S_ISDIR(status.st_mode):
            return "not a directory"
        if status.st_uid != os.getuid():
            return "belongs to another user"
        if status.st_mode & 0o077:
            path.chmod(0o700)
        if not os.access(path, os.W_OK | os.X_OK):
            return "not writable"
    except OSError as error:
        return error.strerror or str(error)
    return None
