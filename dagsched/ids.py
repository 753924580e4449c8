"""The kinds of number that name things; all are dense small ints, on the wire and in arrays.

A *position* is a task's place in the order that the cut chose for one run: subtree k is the
positions ``starts[k]:starts[k + 1]``. Positions from ``task_count`` on are *sources*: large
constants and references that no task computes. A *block* is an object that holds the values of
consecutive positions; it is known by the first of them.
"""

from typing import NewType

RunNo = NewType("RunNo", int)  # counts the runs of one environment, from 1
Position = NewType("Position", int)
SubtreeNo = NewType("SubtreeNo", int)
BundleNo = NewType("BundleNo", int)  # counts the bundles of one broker, from 1
ProcessId = NewType("ProcessId", int)  # of addprocs: the master is 1; brokers and executors above
Epoch = NewType("Epoch", int)  # of a node's membership; older is stale

MASTER = ProcessId(1)
