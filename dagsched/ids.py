"""The kinds of number that name things; all are dense small ints, on the wire and in arrays.

A *position* is a task's place in the order that the cut chose for one run: subtree k is the
positions ``starts[k]:starts[k + 1]``. Positions from ``task_count`` on are *sources*: large
constants and references that no task computes. A *block* is an object that holds the values of
consecutive positions; it is known by the first of them.
"""

from typing import NewType

RunNo = NewType("RunNo", int)  # base of its environment, and a count in that from 1
Position = NewType("Position", int)
SubtreeNo = NewType("SubtreeNo", int)
BundleNo = NewType("BundleNo", int)  # counts the bundles of one broker, from 1
ProcessId = NewType("ProcessId", int)  # of addprocs: the master is 1; brokers and executors above
Epoch = NewType("Epoch", int)  # of a node's membership; older is stale

MASTER = ProcessId(1)

RUN_COUNT_BITS = 24
"""Runs of one environment; those of graphs that tasks return are counted by themselves."""


def run_base(token: str) -> int:
    """Where the numbers of an environment's runs begin: a run keeps its own wherever it goes on.

    Example:
        >>> hex(run_base("5f0c2a91") + 7)
        '0x5f0c2a91000007'
    """
    return int(token, 16) << RUN_COUNT_BITS


def run_id_of(number: int) -> str:
    """What people call a run.

    Example:
        >>> run_id_of(run_base("5f0c2a91") + 7)
        '5f0c2a91-7'
    """
    token = number >> RUN_COUNT_BITS & 0xFFFF_FFFF
    return f"{token:08x}-{number & (1 << RUN_COUNT_BITS) - 1}"
