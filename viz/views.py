"""The kinds of pictures: what each is written as, and what a notebook shows of it.

Responsible for suffixes and for errors of writing; what stands in the files is made elsewhere.
"""

import gzip
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import ClassVar

from dagsched.history import History
from dagsched.viz.dag_page import can_open, dag_page
from dagsched.viz.formats import dot_text, html_text, json_text
from dagsched.viz.gantt import draw_gantt
from dagsched.viz.gantt_page import gantt_page
from dagsched.viz.model import Picture
from dagsched.viz.perfetto import perfetto_pieces
from dagsched.viz.png import render_png
from dagsched.viz.report import body_report, json_report, page_report, text_report
from dagsched.viz.summary import Summary, summarize
from dagsched.viz.svg import draw_svg, svg_size
from dagsched.viz.text import counted, markup

Writers = Mapping[str, Callable[[], Iterable[bytes]]]


def suffix_of(filename: str | PathLike[str], suffixes: Sequence[str]) -> str | None:
    """That of these which the file's name ends with."""
    name = Path(filename).name.lower()
    return next((one for one in suffixes if name.endswith(one) and len(name) > len(one)), None)


def check_suffix(filename: str | PathLike[str], kind: str, suffixes: Sequence[str]) -> str:
    """The same.

    Raises:
        ValueError: a picture of this kind is not written so.
    """
    found = suffix_of(filename, suffixes)
    if found is None:
        raise ValueError(
            f"pictures of kind {kind!r} are written as {', '.join(suffixes)}; "
            f"not as {Path(filename).suffix or 'no suffix'!r}"
        )
    return found


class View(ABC):
    """A picture that `save` writes and notebooks show."""

    kind: ClassVar[str]
    suffixes: ClassVar[Sequence[str]]

    @property
    @abstractmethod
    def _writers(self) -> Writers:
        """What makes the file's content, in pieces, by suffix."""

    def save(self, filename: str | PathLike[str]) -> Path:
        """Write the picture in the format of the suffix.

        Raises:
            ValueError: the kind is not written in that format; the message names those it is.
            ImportError: .png without the package resvg_py.
            OSError: the file can't be written.
        """
        path = Path(filename)
        pieces = self._writers[check_suffix(path, self.kind, self.suffixes)]()
        try:
            with open(path, "wb") as file:
                file.writelines(pieces)
        except OSError as error:
            raise OSError(
                error.errno,
                f"the picture can't be written ({error.strerror}): name a file in a directory that "
                "is there and that you may write to",
                str(path),
            ) from error
        return path

    @abstractmethod
    def _repr_html_(self) -> str: ...


class Drawing(View):
    """The graph; after a run with where and in what order its tasks were executed.

    Args:
        picture: what is drawn.
        history: where its boxes are opened from; None: they stay closed.
    """

    kind = "dag"
    suffixes = (".svg", ".png", ".html", ".dot", ".json")

    def __init__(self, picture: Picture, history: History | None = None) -> None:
        self.picture = picture
        self.history = history

    @cached_property
    def svg(self) -> str:
        """The text of the SVG file; drawn at first use."""
        return draw_svg(self.picture)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in px."""
        return svg_size(self.svg)

    @property
    def _writers(self) -> Writers:
        return {
            ".svg": lambda: [self.svg.encode()],
            ".png": lambda: [_png(self.svg)],
            ".html": lambda: [self._page().encode()],
            ".dot": lambda: [dot_text(self.picture).encode()],
            ".json": lambda: [json_text(self.picture).encode()],
        }

    def _page(self) -> str:
        if self.history is None or not can_open(self.history, self.picture):
            return html_text(self.picture, self.svg)
        return dag_page(self.history, self.picture, self.svg)

    def _repr_svg_(self) -> str:
        return self.svg

    def _repr_html_(self) -> str:
        return f'<div style="overflow:auto;max-height:80vh">{self.svg}</div>'

    def __repr__(self) -> str:
        width, height = self.size
        return f"<Drawing of {self.picture.task_count:,} tasks, {width} x {height} px>"


class _OfRun(View):
    """What only a run can show.

    Args:
        history: of the run.
        title: stands at the top.

    Raises:
        ValueError: it is of a graph that was not run.
    """

    def __init__(self, history: History, title: str) -> None:
        if not history.has_run:
            raise ValueError(
                f"a picture of kind {self.kind!r} shows a run, and this graph was not run: hand "
                "over the Run that submit(env, dag) returns, or what dagsched.viz.load gives"
            )
        self.history = history
        self.title = title

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self.title}, {self.history.task_count:,} tasks>"


class Gantt(_OfRun):
    """The schedule: a lane an executor, time from left to right."""

    kind = "gantt"
    suffixes = (".html", ".svg", ".png")

    @cached_property
    def svg(self) -> str:
        """The text of the SVG file; drawn at first use."""
        return draw_gantt(self.history, self.title)

    @property
    def _writers(self) -> Writers:
        return {
            ".html": lambda: [gantt_page(self.history, self.title).encode()],
            ".svg": lambda: [self.svg.encode()],
            ".png": lambda: [_png(self.svg)],
        }

    def _repr_svg_(self) -> str:
        return self.svg

    def _repr_html_(self) -> str:
        return f'<div style="overflow:auto;max-height:80vh">{self.svg}</div>'


class PerfettoTrace(_OfRun):
    """The schedule for Perfetto's viewer, or Chrome's."""

    kind = "trace"
    suffixes = (".json", ".json.gz")

    @property
    def _writers(self) -> Writers:
        return {
            ".json": lambda: (piece.encode() for piece in perfetto_pieces(self.history)),
            ".json.gz": lambda: [
                gzip.compress("".join(perfetto_pieces(self.history)).encode(), 5, mtime=0)
            ],
        }

    def _repr_html_(self) -> str:
        tasks = counted(int(self.history.trace.ran.sum()), "task")
        return (
            f"<p>Trace of {markup(self.title)}, {tasks}: save('x.json'), then open it at "
            "ui.perfetto.dev or chrome://tracing</p>"
        )


class SummaryView(View):
    """What the run came to in numbers; of a graph that was not run, its shape.

    Args:
        history: of the run or graph.
        title: stands at the top.
    """

    kind = "summary"
    suffixes = (".html", ".txt", ".json")

    def __init__(self, history: History, title: str) -> None:
        self.history = history
        self.title = title or "graph"

    @cached_property
    def summary(self) -> Summary:
        """The numbers; gathered at first use."""
        return summarize(self.history)

    @property
    def text(self) -> str:
        """The report for a terminal."""
        return text_report(self.summary, self.title)

    @property
    def _writers(self) -> Writers:
        return {
            ".html": lambda: [page_report(self.summary, self.title).encode()],
            ".txt": lambda: [self.text.encode()],
            ".json": lambda: [json_report(self.summary, self.title).encode()],
        }

    def _repr_html_(self) -> str:
        return f"<h1>{markup(self.title)}</h1>{body_report(self.summary)}"

    def __repr__(self) -> str:
        return f"<SummaryView of {self.title}, {self.history.task_count:,} tasks>"

    def __str__(self) -> str:
        return self.text


def _png(svg: str) -> bytes:
    width, height = svg_size(svg)
    return render_png(svg, width=width, height=height)
