"""From the command line to the page of an environment that another process of this user has open.

Responsible for finding environments, for asking one of them to open its page, and for reading from
it.
"""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, Request, build_opener

from dagsched.dashboard import BELL_NAME
from dagsched.envfile import read_note
from dagsched.errors import DagschedError
from dagsched.rundir import run_directories
from dagsched.tenancy import master_pid

OPEN_TIMEOUT_S = 15.0
READ_TIMEOUT_S = 10.0
_ANSWER_BYTES_MAX = 65_536

# This machine's own address is never behind a proxy.
_open = build_opener(ProxyHandler({})).open


class LivingEnvironment(NamedTuple):
    """An environment whose process lives."""

    token: str
    pid: int
    rootpath: str
    created_wall_s: float
    node_count: int
    directory: Path


def living_environments() -> list[LivingEnvironment]:
    """All open environments of this user on this machine, oldest first."""
    found = []
    for directory in run_directories():
        pid = master_pid(directory)
        if pid is None or not (directory / BELL_NAME).exists():
            continue
        try:
            note = read_note(directory)
        except DagschedError:
            continue  # of a newer dagsched, whose page its own command opens
        if note is not None:
            row = (note.token, pid, note.rootpath, note.created_wall_s, len(note.nodes), directory)
            found.append(LivingEnvironment(*row))
    return sorted(found, key=lambda one: one.created_wall_s)


def find_environment(name: str | None) -> LivingEnvironment:
    """The environment with a token (or the beginning of one) or a pid; None: the only one.

    Raises:
        DagschedError: there is none, or several; says which.
    """
    known = living_environments()
    if not known:
        raise DagschedError(
            "no environment of yours is open on this machine: a program has one while its RunEnv "
            "is, under the same user and the same TMPDIR"
        )
    fits = [
        one for one in known if name is None or one.token.startswith(name) or str(one.pid) == name
    ]
    if len(fits) == 1:
        return fits[0]
    lines = "".join(
        f"\n  {one.token}  process {one.pid}, {one.rootpath}, "
        f"{one.node_count} node{'s' if one.node_count != 1 else ''}, opened "
        f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(one.created_wall_s))}"
        for one in fits or known
    )
    if fits:
        raise DagschedError(f"several environments are open; say which (token or process):{lines}")
    raise DagschedError(f"no open environment is called {name}; there are:{lines}")


def page_url(environment: LivingEnvironment) -> str:
    """Have an environment open its page, if it isn't yet; where it is, with the token.

    Raises:
        DagschedError: it can't, or doesn't answer.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as caller:
            caller.settimeout(OPEN_TIMEOUT_S)
            caller.connect(str(environment.directory / BELL_NAME))
            answer = json.loads(b"".join(_until_end(caller)))
    except (OSError, ValueError) as error:
        raise DagschedError(
            f"process {environment.pid}, which has environment {environment.token} open, does not "
            f"answer: {error}"
        ) from error
    if "url" not in answer:
        raise DagschedError(f"process {environment.pid} can't open its page: {answer.get('error')}")
    return str(answer["url"])


def _until_end(caller: socket.socket) -> Iterator[bytes]:
    left = _ANSWER_BYTES_MAX
    while left and (piece := caller.recv(left)):
        left -= len(piece)
        yield piece


class Reader:
    """Reads from a page.

    Args:
        url: of the page, with its token.
    """

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        self._base = f"{parts.scheme}://{parts.netloc}"
        self._token = parts.query.partition("token=")[2]

    def text(self, path: str) -> str:
        """What is at a path.

        Raises:
            DagschedError: nothing answers there, or it refuses.
        """
        request = Request(self._base + path, headers={"Authorization": f"Bearer {self._token}"})
        try:
            with _open(request, timeout=READ_TIMEOUT_S) as response:
                return str(response.read().decode())
        except (URLError, OSError) as error:
            raise DagschedError(f"the environment's page is gone: {error}") from error

    def snapshot(self) -> dict[str, Any]:
        """The snapshot, whole."""
        found: dict[str, Any] = json.loads(self.text("/api/snapshot"))
        return found
