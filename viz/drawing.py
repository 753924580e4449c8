"""`visualize`: pictures of graphs and of runs, in files and in notebooks."""

from collections.abc import Callable
from functools import cached_property
from os import PathLike
from pathlib import Path

from dagsched.viz.formats import dot_text, html_text, json_text
from dagsched.viz.model import Picture
from dagsched.viz.png import render_png
from dagsched.viz.source import picture_of
from dagsched.viz.svg import draw_svg, svg_size

KINDS = ("dag", "gantt", "trace")


class Drawing:
    """A picture that notebooks show and `save` writes.

    Args:
        picture: what is drawn.
    """

    def __init__(self, picture: Picture) -> None:
        self.picture = picture

    @cached_property
    def svg(self) -> str:
        """The text of the SVG file; drawn at first use."""
        return draw_svg(self.picture)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in px."""
        return svg_size(self.svg)

    def save(self, filename: str | PathLike[str]) -> Path:
        """Write the picture in the format of the suffix: .svg .png .html .dot .json.

        Raises:
            ValueError: another suffix.
            ImportError: .png without the package resvg_py.
        """
        path = Path(filename)
        path.write_bytes(self._writer(path.suffix)())
        return path

    def _writer(self, suffix: str) -> Callable[[], bytes]:
        writers: dict[str, Callable[[], bytes]] = {
            ".svg": self.svg.encode,
            ".png": lambda: render_png(self.svg, width=self.size[0], height=self.size[1]),
            ".html": lambda: html_text(self.picture, self.svg).encode(),
            ".dot": lambda: dot_text(self.picture).encode(),
            ".json": lambda: json_text(self.picture).encode(),
        }
        if suffix.lower() not in writers:
            raise ValueError(
                f"pictures are written as {', '.join(writers)}; not as {suffix or 'no suffix'!r}"
            )
        return writers[suffix.lower()]

    def _repr_svg_(self) -> str:
        return self.svg

    def _repr_html_(self) -> str:
        return f'<div style="overflow:auto;max-height:80vh">{self.svg}</div>'

    def __repr__(self) -> str:
        width, height = self.size
        return f"<Drawing of {self.picture.task_count:,} tasks, {width} x {height} px>"


def visualize(
    dag_or_run: object,
    filename: str | PathLike[str] | None = None,
    kind: str = "dag",
    *,
    title: str | None = None,
) -> Drawing:
    """Draw a graph, or a run's graph with where and in what order its tasks were executed.

    The border's colour is the node; the fill is the darker the earlier the task started; dashed is
    not run, crossed out failed, doubled tried again. Point at a task in the .svg or .html for its
    duration, executor and attempts. Graphs of more than 5,000 tasks are drawn as boxes of many.

    Args:
        dag_or_run: a `Delayed`, containers of them, a networkx.DiGraph, or a `Run`.
        filename: where to write; .svg .png .html .dot or .json. None: only return the drawing.
        kind: "dag".
        title: stands at the top; None: the run's id.

    Returns:
        A drawing that notebooks show; `save(filename)` writes it once more.

    Raises:
        ValueError: an unknown suffix or kind; "gantt" and "trace" are not there yet.
        TypeError: `dag_or_run` is none of these.

    Example:
        >>> from dagsched import delayed
        >>> total = delayed(sum)([delayed(abs)(-1), delayed(abs)(2)])
        >>> visualize(total).picture.edges
        [(0, 2), (1, 2)]
    """
    if kind not in KINDS:
        raise ValueError(f"kind is one of {', '.join(KINDS)}, not {kind!r}")
    if kind != "dag":
        raise ValueError(f"pictures of kind {kind!r} are not there yet; kind='dag' is")
    drawing = Drawing(picture_of(dag_or_run, title))
    if filename is not None:
        drawing.save(filename)
    return drawing
