"""From the URL of a metadata store to the store, and what environments have left in one.

What a store needs is imported with it.
"""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from dagsched.config import Config
from dagsched.metastore.keys import environment_prefix

if TYPE_CHECKING:
    from dagsched.metastore.port import MetaStore

SCHEMES = ("memory://", "redis://", "rediss://", "unix://")


def check_url(url: str) -> None:
    """Whether a URL names a store; whether one answers there is seen when it is opened.

    Raises:
        ValueError: it does not.
    """
    told = re.sub(r"//[^/]*@", "//***@", url)  # without a password
    if url != SCHEMES[0] and not url.startswith(SCHEMES[1:]):
        raise ValueError(
            f"metastore {told!r} is not valid: it is None (a store of the environment's own) or "
            f"begins with one of {', '.join(SCHEMES)}"
        )
    try:
        urlsplit(url).port  # noqa: B018  # the port is only looked at when it is asked for
    except ValueError as error:
        raise ValueError(f"metastore {told!r} is not valid: {error}") from None


def open_store(
    url: str | None, *, prefix: str, run_directory: str | Path, config: Config
) -> "MetaStore":
    """The store at a URL, opened: a server of others that does not answer is an error here.

    Args:
        url: of a server, or ``memory://``; None: a server of our own, in `run_directory`.
        prefix: what all keys begin with; see `environment_prefix`.
        run_directory: where a server of our own keeps its socket and file.
        config: timeouts and expiry.

    Raises:
        ValueError: `url` is of no kind that we know.
        StoreUnavailable: no server of that kind answers within `store_timeout_s`.
    """
    store: MetaStore
    if url is not None:
        check_url(url)
    if url is None:
        from dagsched.metastore.embedded import EmbeddedStore

        store = EmbeddedStore(Path(run_directory), prefix, config)
    elif url == "memory://":
        from dagsched.metastore.memory import MemoryStore

        store = MemoryStore()
    else:
        from dagsched.metastore.redis import RedisStore

        store = RedisStore(url, prefix, config)
    store.open()
    return store


def list_environments(url: str, config: Config) -> list[str]:
    """Prefixes of the environments of this user that have something on a server.

    Each can be given to `open_store`; `dagsched.metastore.keys.prefix_parts` takes one apart.

    Raises:
        ValueError, StoreUnavailable: as `open_store`.
    """
    store = open_store(
        url, prefix=environment_prefix(os.getuid(), "/", "none"), run_directory="", config=config
    )
    try:
        return store.environments()
    finally:
        store.close()


def open_left_store(directory: str | Path, config: Config) -> "MetaStore | None":
    """The store that a dead client left in its run directory; None: nothing is left there.

    A server is started on its file. `close` ends that and leaves the file, `erase` removes it.

    Raises:
        StoreUnavailable: the file can't be read, or another process uses it.
    """
    from dagsched.metastore.embedded import DATA_NAME, EmbeddedStore

    if not (Path(directory) / DATA_NAME).is_dir():
        return None
    any_prefix = environment_prefix(os.getuid(), "/", "none")
    store = EmbeddedStore(Path(directory), any_prefix, config)
    store.open()
    try:
        prefixes = store.environments()
    except BaseException:
        store.close()
        raise
    if not prefixes:
        store.close()
        return None
    store.adopt(prefixes[0])
    return store
