"""Large arrays from task to task: each is written once to shared memory and read without a copy.

Blocks of 100 MB are made, combined with their neighbours and reduced. Prints how many bytes the
tasks read and wrote a second, and checks the result against numpy in this process.

    python examples/arrays.py
    python examples/arrays.py --small
"""
# ruff: noqa: INP001, T201 - an example is no package, and prints

import argparse
import itertools
import time

import numpy as np

from dagsched import RunEnv, delayed, rundag


def make_block(number, count):
    """A block of numbers that are simple to check."""
    return np.arange(number, number + count, dtype=np.int64)


def combine(left, right):
    """The sum of two blocks; reads both where they lie, writes one."""
    return left + right


def total(block):
    """Sum of a block, exact in whole numbers; reads it where it lies."""
    return int(block.sum())


def is_borrowed(block):
    """Whether the array's memory is not its own: it was mapped, not copied."""
    return not block.flags.owndata


def main():
    """Run, check against numpy, print the seconds."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--megabytes", type=float, default=100.0, help="size of a block")
    parser.add_argument("--small", action="store_true", help="blocks of 1 MB")
    options = parser.parse_args()
    count = int((1.0 if options.small else options.megabytes) * 1e6 / 8)

    blocks = [delayed(make_block)(number, count) for number in range(options.blocks)]
    pairs = [delayed(combine)(left, right) for left, right in itertools.pairwise(blocks)]
    totals = [delayed(total)(pair) for pair in pairs]
    borrowed = [delayed(is_borrowed)(pair) for pair in pairs]

    seconds = []
    with RunEnv() as env:
        rundag(env, delayed(sum)([]))  # the executors are up from here on
        for _ in range(2):
            before = time.perf_counter()
            result, shared = rundag(env, (totals, borrowed))
            seconds.append(time.perf_counter() - before)

    before = time.perf_counter()
    own = [make_block(number, count) for number in range(options.blocks)]
    expected = [total(combine(left, right)) for left, right in itertools.pairwise(own)]
    serial = time.perf_counter() - before

    if result != expected:
        raise SystemExit("the result is WRONG")
    written = len(blocks) + len(pairs)
    read = 2 * len(pairs) + len(totals)
    moved = (written + read) * count * 8 / 1e9
    print(f"{written} blocks of {count * 8 / 1e6:.0f} MB written, {read} read")
    for took, which in zip(seconds, ("in fresh memory", "in the same memory again"), strict=True):
        print(f"{moved:.2f} GB in {took:.3f} s: {moved / took:.2f} GB/s, {which}")
    print(f"serial, all in one process: {serial:.3f} s")
    print(f"{sum(shared)} of {len(shared)} inputs mapped from shared memory, none copied")


main()
