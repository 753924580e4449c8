"""From the URL of a metadata store to the store. What a store needs is imported with it."""

from pathlib import Path
from typing import TYPE_CHECKING

from dagsched.config import Config

if TYPE_CHECKING:
    from dagsched.metastore.port import MetaStore

SCHEMES = ("memory://", "redis://", "rediss://", "unix://")


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
    if url is None:
        from dagsched.metastore.embedded import EmbeddedStore

        store = EmbeddedStore(Path(run_directory), prefix, config)
    elif url == "memory://":
        from dagsched.metastore.memory import MemoryStore

        store = MemoryStore()
    elif url.startswith(SCHEMES[1:]):
        from dagsched.metastore.redis import RedisStore

        store = RedisStore(url, prefix, config)
    else:
        raise ValueError(
            f"metastore {url!r} is not valid: it is None (a store of the environment's own) or "
            f"begins with one of {', '.join(SCHEMES)}"
        )
    store.open()
    return store
