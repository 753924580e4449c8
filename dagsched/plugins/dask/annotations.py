"""What Dask's annotations ask for, as options of the engine's tasks.

Of `dask.annotate`'s keywords ``retries``, ``priority`` and ``resources`` are options here too
(``resources`` has no effect on placement yet). ``workers`` and ``allow_other_workers`` name
processes of a Dask cluster, which there are not, and are left out, as is any other.
"""

from collections.abc import Mapping
from typing import Any

from dagsched.delayed import Options, delayed

HONOURED = ("retries", "priority", "resources")


def options_by_key(graph: Any) -> dict[Any, Options]:
    """The options of a graph's tasks, by key, of those that have any.

    Args:
        graph: what Dask gives a scheduler: an expression, layers, or a mapping.

    Raises:
        TypeError, ValueError: an annotation isn't what the option of that name may be.
    """
    asked: dict[Any, dict[str, Any]] = {}
    for name, values in _annotations(graph).items():
        if name in HONOURED:
            for key, value in values.items():
                asked.setdefault(key, {})[name] = value
    made: dict[str, Options] = {}
    found = {}
    for key, given in asked.items():
        text = repr(sorted(given.items()))
        if text not in made:
            made[text] = delayed(abs, **given)._options
        found[key] = made[text]
    return found


def _annotations(graph: Any) -> Mapping[str, Mapping[Any, Any]]:
    """Values by key, by the annotation's name."""
    ask = getattr(graph, "__dask_annotations__", None)
    if ask is not None:
        found_by_name: Mapping[str, Mapping[Any, Any]] = ask()
        return found_by_name
    found: dict[str, dict[Any, Any]] = {}
    for layer in getattr(graph, "layers", {}).values():
        for name, value in (layer.annotations or {}).items():
            if name in HONOURED:
                found.setdefault(name, {}).update(
                    {key: value(key) if callable(value) else value for key in layer}
                )
    return found
