"""Installed as ``dagsched.metastore``; the bare name belongs to users' own modules."""

if __name__ == "metastore":
    raise ImportError(
        "import dagsched.metastore: the top-level name 'metastore' is not ours to take"
    )

from dagsched.metastore.opening import open_store

__all__ = ["open_store"]
