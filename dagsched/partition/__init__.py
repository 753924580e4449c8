"""The cut of graphs at its two scales: subtrees for nodes, bundles for executors. Pure."""

from dagsched.partition.gangs import Gang, LaneCut, cut_gang
from dagsched.partition.graph import Cut, cut_graph
from dagsched.partition.window import cut_window

__all__ = ["Cut", "Gang", "LaneCut", "cut_gang", "cut_graph", "cut_window"]
