"""Processes reserved for environments: small ids, each on a host.

Responsible for handing out ids and for knowing which are there. A reservation starts nothing: an
environment starts the processes that its nodes name. The master is process 1.
"""

import threading
from collections.abc import Iterable

from dagsched.ids import MASTER

_lock = threading.Lock()
_host_by_id: dict[int, str] = {}
_next_id = int(MASTER) + 1


def addprocs(n: int, *, host: str = "127.0.0.1") -> list[int]:
    """Reserve processes for environments made, or reset, from now on.

    Args:
        n: how many.
        host: name or address of the machine on which they are to run.

    Returns:
        Their ids, rising; never used twice in one client.

    Raises:
        TypeError: `n` is not an int, or `host` not a str.
        ValueError: `n` is not positive, or `host` is empty.

    Example:
        >>> ids = addprocs(3)
        >>> len(ids)
        3
        >>> rmprocs(ids)
    """
    if isinstance(n, bool) or not isinstance(n, int):
        raise TypeError(f"addprocs needs a number of processes as int, not {type(n).__name__}")
    if n < 1:
        raise ValueError(f"addprocs needs at least one process, not {n}")
    if not isinstance(host, str):
        raise TypeError(f"host must be a str, not {type(host).__name__}")
    if not host.strip():
        raise ValueError("host must not be empty")
    with _lock:
        ids = _take_ids(n)
        _host_by_id.update(dict.fromkeys(ids, host))
    return ids


def rmprocs(ids: int | Iterable[int]) -> None:
    """Give reserved processes back; environments that use them do so until they are reset.

    Args:
        ids: of the processes.

    Raises:
        ValueError: an id is not that of a reserved process; nothing is removed then.
    """
    wanted = [ids] if isinstance(ids, int) else list(ids)
    with _lock:
        unknown = [number for number in wanted if number not in _host_by_id]
        if unknown:
            why = " (1 is the master and stays)" if MASTER in unknown else ""
            raise ValueError(
                f"no process with id {unknown[0]!r} to remove{why}; there are {_listed()}"
            )
        for number in wanted:
            _host_by_id.pop(number, None)


def procs() -> list[int]:
    """Ids of all processes, rising: 1, the master, first."""
    with _lock:
        return _listed()


def process_hosts() -> dict[int, str]:
    """Host of each reserved process by its id, in rising order of id."""
    with _lock:
        return {number: _host_by_id[number] for number in sorted(_host_by_id)}


def reserve_private(n: int) -> list[int]:
    """Ids for one environment's own use; `procs` does not list them."""
    with _lock:
        return _take_ids(n)


def _take_ids(n: int) -> list[int]:
    global _next_id
    first = _next_id
    _next_id += n
    return list(range(first, first + n))


def _listed() -> list[int]:
    return [int(MASTER), *sorted(_host_by_id)]
