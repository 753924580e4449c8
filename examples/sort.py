"""Distributed sort of 10 million floats: sorted chunks, splitters from samples, merged ranges.

The chunks are made and stay on the nodes; only samples come to this process. A range of the result
is a task that merges one piece of every chunk. After DeWitt, Naughton and Schneider, "Parallel
sorting on a shared-nothing architecture using probabilistic splitting" (1991).

    python examples/sort.py
    python examples/sort.py --small
"""
# ruff: noqa: INP001, T201 - an example is no package, and prints

import argparse
import itertools
import time

import numpy as np

from dagsched import RunEnv, collect, delayed, rundag

SAMPLES = 2_000


def make_chunk(seed, count):
    """Uniform random numbers; the same seed gives the same ones."""
    return np.random.default_rng(seed).random(count)


def sort_chunk(seed, count):
    """A sorted chunk and, in order, some of its values."""
    chunk = np.sort(make_chunk(seed, count))
    places = np.random.default_rng(seed + 1).choice(count, min(count, SAMPLES), replace=False)
    return chunk, chunk[np.sort(places)]


def splitters(samples, ranges):
    """Values that cut all samples into ranges of about equal size."""
    merged = np.sort(np.concatenate(samples))
    return merged[np.linspace(0, len(merged), ranges + 1).astype(int)[1:-1]]


def piece(chunk, low, high):
    """The part of a sorted chunk with low < value <= high; None is no limit."""
    first = 0 if low is None else np.searchsorted(chunk, low, side="right")
    last = len(chunk) if high is None else np.searchsorted(chunk, high, side="right")
    return chunk[first:last]


def merge(*pieces):
    """One sorted array of several."""
    return np.sort(np.concatenate(pieces))


def as_list(*refs):
    """References to the inputs; as a meta task it never sees their values."""
    return list(refs)


def distributed_sort(env, total, chunks, ranges):
    """The sorted numbers, as the pieces of the result in order."""
    sizes = [total // chunks + (k < total % chunks) for k in range(chunks)]
    parts = [delayed(sort_chunk, nout=2)(2 * k, size) for k, size in enumerate(sizes)]
    kept = delayed(as_list, meta=True)(*[chunk for chunk, _ in parts])
    refs, samples = rundag(env, (kept, [sample for _, sample in parts]))

    bounds = [None, *splitters(samples, ranges), None]
    merged = [
        delayed(merge)(*[delayed(piece)(ref, low, high) for ref in refs])
        for low, high in itertools.pairwise(bounds)
    ]
    return collect(rundag(env, merged))


def main():
    """Run, check against numpy, print the seconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--total", type=int, default=10_000_000, help="how many numbers")
    parser.add_argument("--chunks", type=int, default=16)
    parser.add_argument("--ranges", type=int, default=8)
    parser.add_argument("--small", action="store_true", help="100,000 numbers")
    options = parser.parse_args()
    total = 100_000 if options.small else options.total

    with RunEnv() as env:
        rundag(env, delayed(sum)([]))  # the executors are up from here on
        before = time.perf_counter()
        result = distributed_sort(env, total, options.chunks, options.ranges)
        seconds = time.perf_counter() - before

    sizes = [total // options.chunks + (k < total % options.chunks) for k in range(options.chunks)]
    before = time.perf_counter()
    numbers = np.concatenate([make_chunk(2 * k, size) for k, size in enumerate(sizes)])
    expected = np.sort(numbers)
    serial = time.perf_counter() - before

    if not np.array_equal(np.concatenate(result), expected):
        raise SystemExit("the result is WRONG")
    print(f"{total:,} floats made and sorted: {seconds:.3f} s; numpy alone: {serial:.3f} s")
    print(f"the result equals numpy.sort; sizes {[len(part) for part in result]}")


main()
