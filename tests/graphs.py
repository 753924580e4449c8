"""Graphs that many tests run, each with the value that it must give, and a serial evaluator.

The acceptance graphs come from the engine's ancestor (straight, cross, sort, meta, quick start);
the others are shapes that have broken schedulers: wide, deep, with many paths, many arguments,
many dependents, or none of a tree's regularity. Every builder starts from nothing, so a second
call gives the same graph again. All functions stand at the top level and can be imported.
"""

import random
from collections.abc import Callable, Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dagsched.containers import leaves, rebuild
from dagsched.delayed import Delayed, delayed
from dagsched.ref import Ref, collect

Array = NDArray[np.float64]


# What tasks do.


def f(i: int) -> int:
    """One more."""
    return i + 1


def g(i: int, j: int) -> int:
    """Sum of two."""
    return i + j


def h(i: int, j: int, k: int) -> int:
    """Third of the sum of three."""
    return (i + j + k) // 3


def ten() -> int:
    """The first values of cross."""
    return 10


def total(*values: int) -> int:
    """Sum of any number."""
    return sum(values)


def difference(i: int, j: int) -> int:
    """First less second."""
    return i - j


def gathered(*values: Any) -> list[Any]:
    """All arguments as a list; as a meta task this moves no bytes."""
    return list(values)


def pair(first: Any, second: Any) -> tuple[Any, Any]:
    """Both; as a meta task the first stays a reference and the second becomes a value."""
    return first, value_of(second)


def rand(size: int, seed: int = 0) -> Array:
    """Uniform numbers in [0, 1)."""
    return np.random.default_rng(seed).random(size)


def sorted_array(values: Array) -> Array:
    """A sorted copy."""
    return np.sort(values)


def sample(values: Array, seed: int) -> Array:
    """At most 2,000 of sorted values, in order."""
    count = min(len(values), 2000)
    places = np.random.default_rng(seed).choice(len(values), count, replace=False)
    return values[np.sort(places)]


def merge(left: Array, right: Array) -> Array:
    """Two sorted arrays as one."""
    return np.sort(np.concatenate((left, right)), kind="stable")


def concatenation(left: Array, right: Array) -> Array:
    """One array after the other."""
    return np.concatenate((left, right))


def split_part(values: Array, low: float | None, high: float | None) -> Array:
    """Sorted values above `low` and up to `high`, that one included; None: no bound."""
    first = 0 if low is None else int(np.searchsorted(values, low, side="right"))
    last = len(values) if high is None else int(np.searchsorted(values, high, side="right"))
    return values[first:last]


def sum_of_collected(references: list[Any]) -> float:
    """Sum of the values of references."""
    return float(sum(map(value_of, references)))


# Acceptance graphs.


def straight(inp: Sequence[int], functions: Sequence[Any] = (f, g, h)) -> tuple[Delayed, int]:
    """A tree of h(f, g, h) over groups of six; every value of 1 gives 1.

    Raises:
        ValueError: The number of values is no power of six above 1.
    """
    size = len(inp)
    while size > 1 and size % 6 == 0:
        size //= 6
    if size != 1 or len(inp) == 1:
        raise ValueError(f"the number of values must be a power of 6, not {len(inp)}")
    one, two, three = map(delayed, functions)
    nodes: list[Any] = list(inp)
    values = list(inp)
    while len(nodes) > 1:
        nodes = [
            three(one(a), two(b, c), three(d, e, last))
            for a, b, c, d, e, last in _groups_of(nodes, 6)
        ]
        values = [h(f(a), g(b, c), h(d, e, last)) for a, b, c, d, e, last in _groups_of(values, 6)]
    return nodes[0], values[0]


def cross(rounds: int = 6, functions: Sequence[Any] = (f, g, h, ten)) -> tuple[Delayed, int]:
    """Rounds that each use the last three values four times; six rounds give 84."""
    one, two, three, first = map(delayed, functions)

    def node3(u: Delayed, v: Delayed, w: Delayed) -> Delayed:
        a = one(u)
        b = two(a, v)
        return three(a, b, w)

    def value3(u: int, v: int, w: int) -> int:
        return h(f(u), g(f(u), v), w)

    nodes = [first() for _ in range(3)]
    values = [10, 10, 10]
    result, expected = nodes[0], values[0]
    for _ in range(rounds):
        nodes += _three(node3, nodes)
        values += _three(value3, values)
        result, expected = node3(*nodes[-3:]), value3(*values[-3:])
    return result, expected


def _three(make: Callable[..., Any], items: list[Any]) -> list[Any]:
    last = items[-3:]
    return [make(*last) for _ in range(3)]


def meta_graph(size: int = 10) -> tuple[Delayed, list[Array]]:
    """Ten arrays gathered as references."""
    arrays = [delayed(rand)(size, seed) for seed in range(10)]
    gather = delayed(gathered, meta=True)
    return gather(*arrays), [rand(size, seed) for seed in range(10)]


def quick_sum() -> tuple[Delayed, int]:
    """The first line of the manual."""
    return delayed(sum)(list(range(1, 11))), 55


def quick_means(size: int = 100) -> tuple[Delayed, float]:
    """Means of ten arrays, gathered as references and summed by a task that collects them."""
    means = [delayed(np.mean)(delayed(rand)(size, seed)) for seed in range(10)]
    references = delayed(gathered, meta=True)(*means)
    expected = float(sum(np.mean(rand(size, seed)) for seed in range(10)))
    return delayed(sum_of_collected)(references), expected


def quick_sort(size: int = 10**6) -> tuple[Delayed, Array]:
    """A shuffled range sorted in four chunks."""
    values = np.random.default_rng(0).permutation(size).astype(np.float64)
    chunks = [delayed(sorted_array)(chunk) for chunk in np.array_split(values, 4)]
    return merge_tree(chunks), np.arange(size, dtype=np.float64)


# Sample sort.


def sort_inputs(count: int, chunk_count: int = 40, seed: int = 0) -> list[Array]:
    """Uniform numbers by chunks; the last chunks may be shorter, or empty."""
    values = rand(count, seed)
    size = -(-count // chunk_count)
    return [values[index * size : (index + 1) * size] for index in range(chunk_count)]


def sort_preparation(chunks: Iterable[Array]) -> list[Delayed]:
    """For each chunk a pair: a reference to it sorted, and a sample of it."""
    pairs = []
    for index, chunk in enumerate(chunks):
        ordered = delayed(sorted_array)(chunk)
        pairs.append(delayed(pair, meta=True)(ordered, delayed(sample)(ordered, index)))
    return pairs


def sort_splitters(samples: Iterable[Array], result_count: int) -> list[float]:
    """Bounds between the result's chunks."""
    return medians(np.sort(np.concatenate(list(samples))), result_count - 1)


def sort_graph(chunks: Sequence[Any], splitters: Sequence[float] = (), batch: int = 4) -> Delayed:
    """Merges sorted chunks (values, references or tasks) into one, or one more than splitters.

    Several results are gathered as references, in a list.
    """
    results = bsm(list(chunks), [float(bound) for bound in splitters], batch)
    return results[0] if len(splitters) == 0 else delayed(gathered, meta=True)(*results)


def sort_concatenation(references: Sequence[Any]) -> Any:
    """The second graph: the results of the first, in order, as one array."""
    return _halving(list(references), delayed(concatenation))


def medians(values: Sequence[float] | Array, count: int) -> list[float]:
    """The last of each of `count` buckets, of count + 1 nearly equal ones; all if they are few."""
    return [values[place] for place in _median_places(len(values), count)]


def _median_places(size: int, count: int) -> list[int]:
    quotient, rest = divmod(size, count + 1)
    if quotient == 0:
        return list(range(size))
    ends = [quotient * index + min(index, rest) for index in range(1, count + 1)]
    return [end - 1 for end in ends]


def levels(
    splitters: list[float], chunk_count: int, batch: int
) -> tuple[list[float], list[list[float]]]:
    """Splitters for batches of chunks, and those that are left for each range between them."""
    places = _median_places(len(splitters), -(-chunk_count // batch) - 1)
    bounds = [-1, *places, len(splitters)]
    lower = [splitters[a + 1 : b] for a, b in pairwise(bounds)]
    return [splitters[place] for place in places], lower


def bsm(chunks: list[Any], splitters: list[float], batch: int) -> list[Any]:
    """Batched split and merge; depth is the logarithm of the number of chunks."""
    if batch >= len(chunks):
        return split_merge(chunks, splitters) if splitters else [merge_tree(chunks)]
    batches = [chunks[index : index + batch] for index in range(0, len(chunks), batch)]
    top, lower = levels(splitters, len(chunks), batch)
    merged = [split_merge(some, top) if top else [merge_tree(some)] for some in batches]
    results: list[Any] = []
    for place, rest in enumerate(lower):
        group = [ranges[place] for ranges in merged]
        results += bsm(group, rest, batch) if rest else [merge_tree(group)]
    return results


def split_merge(chunks: list[Any], splitters: list[float]) -> list[Any]:
    """The chunks as one more chunk than splitters, each of one range."""
    split = delayed(split_part)
    bounds = [None, *splitters, None]
    ranges = list(pairwise(bounds))
    pieces = [[split(chunk, low, high) for low, high in ranges] for chunk in chunks]
    return [merge_tree([piece[place] for piece in pieces]) for place in range(len(ranges))]


def merge_tree(chunks: list[Any]) -> Any:
    """Pairs merged, by halving."""
    return _halving(chunks, delayed(merge))


def _halving(items: list[Any], join: Callable[[Any, Any], Any]) -> Any:
    if len(items) == 1:
        return items[0]
    middle = len(items) // 2
    return join(_halving(items[:middle], join), _halving(items[middle:], join))


# Shapes.


def wide(count: int) -> tuple[list[Delayed], list[int]]:
    """Tasks that have nothing to do with each other."""
    task = delayed(f)
    return [task(i) for i in range(count)], [i + 1 for i in range(count)]


def chain(count: int) -> tuple[Delayed, int]:
    """Tasks that each need the one before."""
    task = delayed(f)
    node = task(0)
    for _ in range(count - 1):
        node = task(node)
    return node, count


def tree(leaf_count: int) -> tuple[Delayed, int]:
    """A binary tree of sums over leaves."""
    one, two = delayed(f), delayed(g)
    nodes = [one(i) for i in range(leaf_count)]
    while len(nodes) > 1:
        odd = nodes[len(nodes) // 2 * 2 :]
        nodes = [two(a, b) for a, b in _groups_of(nodes[: len(nodes) // 2 * 2], 2)] + odd
    return nodes[0], sum(range(1, leaf_count + 1))


def ladder(depth: int = 40) -> tuple[Delayed, int]:
    """Diamonds one after the other: 3 tasks each, and 2**depth paths."""
    one, two = delayed(f), delayed(g)
    node, value = one(0), 1
    for _ in range(depth):
        node, value = two(one(node), one(node)), 2 * (value + 1)
    return node, value


def fan_in(count: int) -> tuple[Delayed, int]:
    """One task with many arguments."""
    nodes, values = wide(count)
    return delayed(total)(*nodes), sum(values)


def fan_out(count: int) -> tuple[list[Delayed], list[int]]:
    """Many tasks that need the same one."""
    root, task = delayed(ten)(), delayed(g)
    return [task(root, i) for i in range(count)], [10 + i for i in range(count)]


def butterfly(size: int) -> tuple[list[Delayed], list[int]]:
    """The Walsh-Hadamard transform in the shape of a fast Fourier transform, on whole numbers.

    Args:
        size: A power of two; there are size * log2(size) tasks above the leaves.
    """
    one, plus, minus = delayed(f), delayed(g), delayed(difference)
    nodes = [one(i) for i in range(size)]
    values = [i + 1 for i in range(size)]
    step = 1
    while step < size:
        low = [index for index in range(size) if not index & step]
        next_nodes, next_values = list(nodes), list(values)
        for i in low:
            j = i + step
            next_nodes[i], next_nodes[j] = plus(nodes[i], nodes[j]), minus(nodes[i], nodes[j])
            next_values[i], next_values[j] = values[i] + values[j], values[i] - values[j]
        nodes, values, step = next_nodes, next_values, step * 2
    return nodes, values


def layered(seed: int, layer_count: int = 8, width: int = 12) -> tuple[list[Delayed], list[int]]:
    """Layers of tasks that need up to five of all before, at random; the last layer's values."""
    rng = random.Random(seed)
    add = delayed(total)
    nodes = [add(i) for i in range(width)]
    values = list(range(width))
    for layer in range(layer_count):
        for _ in range(rng.randint(1, width)):
            places = [rng.randrange(len(nodes)) for _ in range(rng.randint(0, 5))]
            nodes.append(add(layer, *(nodes[place] for place in places)))
            values.append(layer + sum(values[place] for place in places))
    return nodes[-width:], values[-width:]


def _groups_of(items: list[Any], size: int) -> list[list[Any]]:
    return [items[index : index + size] for index in range(0, len(items), size)]


# The oracle.


class FakeRef:
    """What a meta task gets from the serial evaluator."""

    def __init__(self, value: Any) -> None:
        self.value = value


def value_of(reference: Any) -> Any:
    """The value of a reference, of the engine's or of the serial evaluator's."""
    return reference.value if isinstance(reference, FakeRef) else collect(reference)


def collected(value: Any) -> Any:
    """`value` with each `FakeRef` in it replaced, as `collect` does with references."""
    return rebuild(value, lambda item: item.value, lambda item: type(item) is FakeRef)  # type: ignore[attr-defined]


def serial(dag: Any) -> Any:
    """Evaluates calls one after the other, without any of the engine but its containers.

    Each task runs once. A task that returns a `Delayed` is replaced by that one's value.
    """
    values: dict[Delayed, Any] = {}
    waiting_for: dict[Delayed, Delayed] = {}  # a task that returned a graph -> that graph
    stack: list[Delayed] = _needed_by(dag)[::-1]
    while stack:
        node = stack[-1]
        if node in values:
            stack.pop()
            continue
        arguments = (node._args, node._kwargs or {})
        missing = [item for item in _needed_by(arguments) if item not in values]
        if missing:
            stack += missing[::-1]
            continue
        if node not in waiting_for:
            result = _called(node, arguments, values)
            if type(result) is not Delayed:
                values[node] = result
                continue
            waiting_for[node] = result
        graph = waiting_for[node]
        if graph in values:
            values[node] = values[graph]
        else:
            stack.append(graph)
    return rebuild(dag, values.__getitem__, _is_delayed)  # type: ignore[arg-type]


def _called(node: Delayed, arguments: Any, values: dict[Delayed, Any]) -> Any:
    """The result of one call."""
    options = node._call._options

    def given(item: Any) -> Any:
        if type(item) is Delayed:
            return FakeRef(values[item]) if options.meta else values[item]
        return item if options.meta else value_of(item)

    args, kwargs = rebuild(arguments, given, lambda item: type(item) in (Delayed, FakeRef, Ref))
    return node._call.__wrapped__(*args, **kwargs)


def _needed_by(value: Any) -> list[Delayed]:
    return list(leaves(value, _is_delayed))  # type: ignore[arg-type]


def _is_delayed(item: object) -> bool:
    return type(item) is Delayed
