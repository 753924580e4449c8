"""How a broker's process is started, and what it is told: the client's side and the one of both.

Imports nothing heavy: a client starts its brokers first and loads its own modules meanwhile.
"""

import contextlib
import dataclasses
import errno
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from dagsched.config import Config
from dagsched.tenancy import share

NODE_VARIABLE = "DAGSCHED_NODE"
"""Environment variable of a broker and all that descends from it; holds its `name_prefix`."""

GOODBYE = b"q"
"""Last byte on the lifeline of a broker that shall leave; its end without it is a death."""

_THREAD_VARIABLES = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "BLIS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
"""Executors fill the CPUs; threads of numeric libraries on top of that would only be in the way."""


_TYPES = {
    "int": int, "str": str, "bool": bool, "list[str]": list, "Config": Config,
    "<class 'int'>": int, "<class 'str'>": str, "<class 'bool'>": bool,
    "<class 'dagsched.config.Config'>": Config,
}  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class BrokerSettings:
    """All that a broker's process needs to know."""

    broker: int
    host: str
    env_token: str
    name_prefix: str
    """Begins the names of this broker's segments; of no other process of any broker."""

    run_directory: str
    master_socket: str
    data_socket: str
    sys_path: list[str]
    """Where executors look for modules."""

    cwd: str
    """Where tasks run."""

    nodes: int = 1
    executors: int = 1
    """Of the whole cluster, for cutting graphs that tasks return."""

    alive_fd: int = -1
    """Descriptor that says that somebody lives in the run directory; -1: there is none."""

    is_resumable: bool = False
    """Whether the journal outlives the client, so that its death need not end what runs here."""

    config: Config = dataclasses.field(default_factory=Config)
    debug: bool = False
    profile: bool = False
    """Whether broker and executors write a profile of each run, below `cwd`."""

    master_address: str = ""
    """``tcp://HOST:PORT`` of the master; empty: it listens at `master_socket`."""

    listen: str = ""
    """``tcp://HOST``, where other brokers connect; empty: they do so at `data_socket`."""

    keys: list[str] = dataclasses.field(default_factory=list, repr=False)
    """The four of `dagsched.transport.CurveKeys`, where TCP is used."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value, wanted = getattr(self, field.name), _TYPES[str(field.type)]
            items = value if isinstance(value, list) else ()
            if type(value) is not wanted or not all(isinstance(item, str) for item in items):
                raise TypeError(f"{field.name} must be {field.type}, not {type(value).__name__}")

    @property
    def log_path(self) -> Path:
        """Where the broker's own output goes."""
        return Path(self.run_directory) / f"broker-{self.broker}.log"

    def to_line(self) -> bytes:
        """One line of JSON."""
        return json.dumps(dataclasses.asdict(self)).encode() + b"\n"

    @classmethod
    def from_line(cls, line: bytes) -> "BrokerSettings":
        """The settings that `to_line` wrote.

        Raises:
            ValueError: the line is no JSON, or a value in it is not allowed.
            TypeError: it is no object, or a setting is missing, unknown, or of another type.
        """
        try:
            values = json.loads(line)
        except RecursionError as error:
            raise ValueError("it is nested too deep") from error
        if not isinstance(values, dict) or not isinstance(values.get("config"), dict):
            raise TypeError("it is no object, or has no object as its config")
        return cls(**values | {"config": Config(**values["config"])})


def package_root() -> Path:
    """The directory in which the package `dagsched` lies."""
    import dagsched

    return Path(os.path.abspath(dagsched.__file__)).parents[1]


class Lifeline:
    """Our end of a broker's standard input, whose end tells the broker that we are gone.

    It is never taken for a descriptor that has its number by now, after somebody closed it: a
    library's socket would get our word, or be closed.

    Args:
        fd: the writing end of a pipe, ours from now on.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._pipe = _file_id(fd)

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._fd < 0

    def write(self, said: bytes) -> None:
        """Tell the broker something.

        Raises:
            BrokenPipeError: it is gone.
            OSError: somebody has closed the lifeline.
        """
        rest = memoryview(said)
        while rest:
            if not self._is_ours():
                raise OSError(errno.EBADF, os.strerror(errno.EBADF))
            rest = rest[os.write(self._fd, rest) :]

    def close(self) -> None:
        """End it, if that has not been done."""
        if self._is_ours():
            os.close(self._fd)
        self._fd = -1

    def _is_ours(self) -> bool:
        try:
            return self._fd >= 0 and _file_id(self._fd) == self._pipe
        except OSError:
            return False


def _file_id(fd: int) -> tuple[int, int]:
    status = os.fstat(fd)
    return status.st_dev, status.st_ino


def launch_broker(
    settings: BrokerSettings, environ: Mapping[str, str], command_prefix: Sequence[str] = ()
) -> "tuple[subprocess.Popen[bytes], Lifeline]":
    """Start a broker in a session of its own.

    Its standard input is its lifeline: it ends as soon as our end is closed, be it by the death
    of this process. What it prints goes to ``broker-<id>.log`` in the run directory.

    Args:
        settings: sent to it.
        environ: of the new process; numeric libraries get one thread each unless it says otherwise.
        command_prefix: a program that becomes the broker where that shall be, such as in another
            network namespace.
    """
    given = environ.get("PYTHONPATH")
    root = str(package_root())
    own = {
        # The broker takes the first entry out again, so that tasks see what the user had set.
        "PYTHONPATH": f"{root}{os.pathsep}{given}" if given is not None else root,
        NODE_VARIABLE: settings.name_prefix,
    }
    threads = dict.fromkeys(_THREAD_VARIABLES, "1")
    log_flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
    with contextlib.ExitStack() as closing:
        log_fd = os.open(settings.log_path, log_flags, 0o600)
        closing.callback(os.close, log_fd)
        alive_fd = share(Path(settings.run_directory))
        inherited = (alive_fd,) if alive_fd >= 0 else ()
        for fd in inherited:
            closing.callback(os.close, fd)
        read_fd, write_fd = os.pipe()
        closing.callback(os.close, read_fd)
        lifeline = Lifeline(write_fd)
        try:
            process = subprocess.Popen(
                # -P: a user's json.py in the working directory must not become ours.
                [*command_prefix, sys.executable, "-P", "-m", "dagsched.brokers"],
                stdin=read_fd,
                stdout=log_fd,
                stderr=log_fd,
                env=threads | dict(environ) | own,
                start_new_session=True,
                pass_fds=inherited,
            )
        except BaseException:
            lifeline.close()
            raise
    settings = dataclasses.replace(settings, alive_fd=alive_fd)
    # If it has died already, whoever watches the process will see that; its log says why.
    with contextlib.suppress(BrokenPipeError):
        lifeline.write(settings.to_line())
    return process, lifeline


def restore_python_path() -> None:
    """In the broker: take back what `launch_broker` did to PYTHONPATH."""
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if entries[0] == str(package_root()):
        if entries[1:]:
            os.environ["PYTHONPATH"] = os.pathsep.join(entries[1:])
        else:
            del os.environ["PYTHONPATH"]
