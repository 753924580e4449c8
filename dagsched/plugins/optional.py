"""Packages that only some front ends need: found, or named in a clear error."""

import importlib
from types import ModuleType


def require(package: str, extra: str) -> ModuleType:
    """An optional package.

    Args:
        package: its name.
        extra: of dagsched, which brings it.

    Raises:
        ImportError: it isn't installed; the message says what to install.

    >>> require("math", "none").sqrt(4)
    2.0
    """
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != package.partition(".")[0]:
            raise
        raise ImportError(
            f"{package} isn't installed; this front end needs it: pip install 'dagsched[{extra}]'",
            name=package,
        ) from error
