"""dagsched: graphs of tasks, run on all cores and nodes, with nothing lost on the way.

Responsible for the public names, which load what they need on first use: importing this package
starts nothing and imports nothing heavy.

Example:
    >>> from dagsched import delayed, RunEnv, rundag
    >>> with RunEnv() as env:  # doctest: +SKIP
    ...     rundag(env, delayed(sum)([1, 2, 3]))
    6
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING

if __name__ != "dagsched":
    raise ImportError(f"the package must be imported as 'dagsched', not {__name__!r}")

if TYPE_CHECKING:
    from dagsched import errors as errors
    from dagsched._version import __version__ as __version__
    from dagsched.config import Config as Config
    from dagsched.delayed import Delayed as Delayed
    from dagsched.delayed import delayed as delayed
    from dagsched.nodes import NodeEnv as NodeEnv
    from dagsched.procs import addprocs as addprocs
    from dagsched.procs import procs as procs
    from dagsched.procs import rmprocs as rmprocs
    from dagsched.ref import Ref as Ref
    from dagsched.ref import collect as collect
    from dagsched.run import Run as Run
    from dagsched.runenv import RunEnv as RunEnv
    from dagsched.runenv import cleanup as cleanup
    from dagsched.runenv import getrunenv as getrunenv
    from dagsched.runenv import reset as reset
    from dagsched.runenv import setrunenv as setrunenv
    from dagsched.stats import print_stats as print_stats
    from dagsched.submission import resume as resume
    from dagsched.submission import rundag as rundag
    from dagsched.submission import submit as submit
    from dagsched.viz import visualize as visualize

_MODULE_BY_NAME = {
    "Config": "dagsched.config",
    "Delayed": "dagsched.delayed",
    "NodeEnv": "dagsched.nodes",
    "Ref": "dagsched.ref",
    "Run": "dagsched.run",
    "RunEnv": "dagsched.runenv",
    "__version__": "dagsched._version",
    "addprocs": "dagsched.procs",
    "cleanup": "dagsched.runenv",
    "collect": "dagsched.ref",
    "delayed": "dagsched.delayed",
    "getrunenv": "dagsched.runenv",
    "print_stats": "dagsched.stats",
    "procs": "dagsched.procs",
    "reset": "dagsched.runenv",
    "resume": "dagsched.submission",
    "rmprocs": "dagsched.procs",
    "rundag": "dagsched.submission",
    "setrunenv": "dagsched.runenv",
    "submit": "dagsched.submission",
    "visualize": "dagsched.viz",
}

__all__ = [
    "Config",
    "Delayed",
    "NodeEnv",
    "Ref",
    "Run",
    "RunEnv",
    "__version__",
    "addprocs",
    "cleanup",
    "collect",
    "delayed",
    "errors",
    "getrunenv",
    "print_stats",
    "procs",
    "reset",
    "resume",
    "rmprocs",
    "rundag",
    "setrunenv",
    "submit",
    "visualize",
]


def __getattr__(name: str) -> object:
    """Load a public name's module at its first use (PEP 562)."""
    import importlib

    if name == "errors":
        return importlib.import_module("dagsched.errors")
    module_name = _MODULE_BY_NAME.get(name)
    if module_name is None:
        raise AttributeError(f"module 'dagsched' has no attribute {name!r}")
    value: object = getattr(importlib.import_module(module_name), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))


class _Package(ModuleType):
    """This package; keeps public functions from being hidden by the modules that hold them."""

    def __setattr__(self, name: str, value: object) -> None:
        # Importing dagsched.delayed binds the module here, wherever the import stands; the public
        # name is the function.
        if not (isinstance(value, ModuleType) and _MODULE_BY_NAME.get(name)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
