"""Packages that only some front ends need."""

import importlib
from types import ModuleType


def require(package: str, extra: str) -> ModuleType:
    """An optional package.

    Args:
        package: its name.
        extra: of dagsched, which brings it.

    Raises:
        ImportError: it isn't installed; the message says what to install.
    """
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"{package} can't be imported ({error}); install it: pip install 'dagsched[{extra}]'",
            name=package,
        ) from error
