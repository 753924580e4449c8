"""Whole clusters in one process: the real cores under a simulated clock and network, by seed."""

from dagsched.testing.clock import SimClock
from dagsched.testing.cluster import SimCluster, SimOutcome
from dagsched.testing.executor import SimExecutor
from dagsched.testing.graphs import SimGraph, serial_values
from dagsched.testing.network import SimNetwork

__all__ = [
    "SimClock",
    "SimCluster",
    "SimExecutor",
    "SimGraph",
    "SimNetwork",
    "SimOutcome",
    "serial_values",
]
