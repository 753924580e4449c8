"""Where segments lie: in shared memory, or as files of the node where that has no room.

A segment in shared memory has a plain name; one that is a file is named by its absolute path, so
whoever reads a `Location` needs to know nothing else.
"""

import contextlib
import errno
import logging
import os
from collections.abc import Collection
from pathlib import Path

import posix_ipc

from dagsched.errors import ProtocolError

logger = logging.getLogger(__name__)

SHM_DIRECTORY = Path("/dev/shm")

CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")

SPILL_NAME = "spill"
"""In the run directory: the directory of segments that are files, or a link to it."""


def create_segment(name: str) -> int:
    """A new segment, empty; its descriptor.

    Raises:
        OSError: it can't be; `errno` says why.
        ProtocolError: this is no segment's name.
    """
    if _is_file(name):
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW
        return os.open(name, flags, 0o600)
    try:
        return int(posix_ipc.SharedMemory(f"/{name}", posix_ipc.O_CREX, mode=0o600).fd)
    except posix_ipc.PermissionsError:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), name) from None
    except posix_ipc.ExistentialError:
        # Its errors keep no number; if there is no such name, there is no place for names.
        number = errno.EEXIST if (SHM_DIRECTORY / name).exists() else errno.ENOENT
        raise OSError(number, os.strerror(number), name) from None


def open_segment(name: str) -> int:
    """A descriptor for reading a segment.

    Raises:
        FileNotFoundError: the segment is gone.
        ProtocolError: this is no segment's name.
    """
    if _is_file(name):
        return os.open(name, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return int(posix_ipc.SharedMemory(f"/{name}", read_only=True).fd)
    except posix_ipc.ExistentialError:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), name) from None


def base_name(name: str) -> str:
    """A segment's name without the directory that it lies in."""
    return name.rpartition("/")[2]


def unlink_segment(name: str) -> None:
    """Remove a segment's name; who has it mapped can still read it."""
    if _is_file(name):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name)
        return
    # Without /dev/shm, or with one that isn't ours to write, there is nothing of ours in it.
    with contextlib.suppress(posix_ipc.ExistentialError, posix_ipc.PermissionsError):
        posix_ipc.unlink_shared_memory(f"/{name}")


def unlink_segments(
    prefix: str, keep: Collection[str] = frozenset(), spill: Path | None = None
) -> list[str]:
    """Remove the names of all segments that begin with `prefix`, but those in `keep`.

    For arenas whose owner is gone. A prefix counts only up to a "-": ``n-1`` is not of ``n-10``.

    Args:
        prefix: begins the names, without a directory.
        keep: names as in a `Location`.
        spill: where segments that are files would lie; None: there are none.

    Returns:
        the names removed, sorted.
    """
    whole = prefix if prefix.endswith("-") else prefix + "-"
    found = [name for name in _listed(SHM_DIRECTORY) if name.startswith(whole)]
    if spill is not None:
        found += [f"{spill}/{name}" for name in _listed(spill) if name.startswith(whole)]
    removed = sorted(name for name in found if name not in keep)
    for name in removed:
        unlink_segment(name)
    return removed


def shared_bytes(prefix: str) -> int:
    """Bytes of shared memory that the segments take whose names begin with `prefix` and a "-".

    Segments whose owner has died count as well: whoever asks the system misses none.
    """
    total = 0
    with contextlib.suppress(OSError), os.scandir(SHM_DIRECTORY) as entries:
        for entry in entries:
            if entry.name.startswith(f"{prefix}-"):
                with contextlib.suppress(FileNotFoundError):
                    total += entry.stat().st_size
    return total


def default_store_bytes() -> int | None:
    """What the objects of a node may take where nobody says: see `Config.store_bytes_max`."""
    try:
        stats = os.statvfs(SHM_DIRECTORY)
    except OSError:
        return None
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    with contextlib.suppress(OSError, ValueError):
        memory = min(memory, int(CGROUP_LIMIT.read_text()))  # "max" where there is none
    return max(1, min(memory // 2, stats.f_blocks * stats.f_frsize // 5 * 4))


def free_bytes(directory: Path) -> int:
    """Room that a file system has for this user."""
    try:
        stats = os.statvfs(directory)
    except OSError:
        return 0
    return stats.f_bavail * stats.f_frsize


def prepare_spill(run_directory: Path, wanted: str | None) -> Path:
    """Make the directory of segments that are files, once for all processes of a node.

    Args:
        run_directory: of the environment.
        wanted: where they shall lie; None: there. Files of several environments may meet in it:
            their names tell them apart, and the link in the run directory leads whoever cleans up.
    """
    spill = run_directory / SPILL_NAME
    if wanted is not None:
        try:
            Path(wanted).mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            # Whoever will need it gets an error of its own, which names the place.
            logger.warning("the directory for what has no room in memory can't be made: %s", error)
    with contextlib.suppress(FileExistsError):
        if wanted is None:
            spill.mkdir(mode=0o700)
        else:
            spill.symlink_to(os.path.abspath(wanted))
    return spill


def _is_file(name: str) -> bool:
    if name.startswith("/"):
        return True
    if "/" in name or name in ("", ".", ".."):
        raise ProtocolError(f"{name!r} is no segment's name")
    return False


def _listed(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)
    except (FileNotFoundError, PermissionError):
        return []
