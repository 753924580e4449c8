"""Installed as ``dagsched.viz``; the bare name belongs to users' own modules."""

if __name__ == "viz":
    raise ImportError("import dagsched.viz: the top-level name 'viz' is not ours to take")

from dagsched.viz.drawing import load, visualize
from dagsched.viz.views import Drawing, View

__all__ = ["Drawing", "View", "load", "visualize"]
