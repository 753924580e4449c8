"""Installed as ``dagsched.viz``; the bare name belongs to users' own modules."""

if __name__ == "viz":
    raise ImportError("import dagsched.viz: the top-level name 'viz' is not ours to take")

from dagsched.viz.drawing import Drawing, visualize

__all__ = ["Drawing", "visualize"]
