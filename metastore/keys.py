"""Names of the store's keys. Pure.

All keys of an environment begin with one prefix that names the user, the environment's root path
and a token of its own, so that environments share a server without meeting, and so that everything
of one environment can be found and dropped.

    dagsched:1000/D:5f0c2a91:runs      set of the runs that have a journal
    dagsched:1000/D:5f0c2a91:run:7     stream: the journal of run 7
    dagsched:1000/D:5f0c2a91:run:0     stream: the journal of the environment itself
    dagsched:1000/D:5f0c2a91:results   hash: what is left of finished runs, by run
    dagsched:1000:environments         set: the user's environments: /D:5f0c2a91
"""

ENVIRONMENT_RUN = 0
"""Journal of what belongs to no run: the environment's opening, its nodes. Runs count from 1."""


def environment_prefix(user: int, rootpath: str, token: str) -> str:
    """What all keys of one environment begin with.

    Args:
        user: number of the user who owns the environment.
        rootpath: as given to `RunEnv`; begins with a slash.
        token: tells environments of one user and root path apart.

    Raises:
        ValueError: a part would make two environments' keys overlap.

    Example:
        >>> environment_prefix(1000, "/D", "5f0c2a91")
        'dagsched:1000/D:5f0c2a91'
    """
    if not rootpath.startswith("/") or ":" in rootpath:
        raise ValueError(f"rootpath must begin with a slash and have no colon, not {rootpath!r}")
    if not token or ":" in token:
        raise ValueError(f"token must be a word without colons, not {token!r}")
    return f"dagsched:{user}{rootpath}:{token}"


def runs_key(prefix: str) -> str:
    """The set of runs that have a journal."""
    return f"{prefix}:runs"


def run_key(prefix: str, run: int) -> str:
    """The stream that is the journal of one run."""
    return f"{prefix}:run:{run}"


def results_key(prefix: str) -> str:
    """The hash of what is left of finished runs."""
    return f"{prefix}:results"


def environments_key(prefix: str) -> str:
    """The set of the environments of the same user as the one with this prefix.

    Example:
        >>> environments_key("dagsched:1000/D:5f0c2a91")
        'dagsched:1000:environments'
    """
    return f"{prefix.partition('/')[0]}:environments"


def environment_member(prefix: str) -> str:
    """What stands for an environment in that set: its root path and token."""
    user, slash, rest = prefix.partition("/")
    return slash + rest if slash else user


def member_prefix(prefix: str, member: str) -> str:
    """The prefix of another environment of the same user as the one with `prefix`."""
    return prefix.partition("/")[0] + member if member.startswith("/") else member


def prefix_parts(prefix: str) -> tuple[str, str]:
    """Root path and token of the environment with this prefix.

    Example:
        >>> prefix_parts("dagsched:1000/D/x:5f0c2a91")
        ('/D/x', '5f0c2a91')
    """
    _, slash, rest = prefix.partition("/")
    rootpath, _, token = rest.rpartition(":")
    return slash + rootpath, token
