"""`visualize`: pictures of graphs and of runs, in files and in notebooks."""

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Literal, overload

from dagsched.history import History
from dagsched.historyfile import load_history
from dagsched.viz.picture import as_done
from dagsched.viz.source import history_of, picture_of, title_of
from dagsched.viz.views import (
    Drawing,
    Gantt,
    PerfettoTrace,
    SummaryView,
    View,
    check_suffix,
    suffix_of,
)

VIEWS: Mapping[str, type[View]] = {
    view.kind: view for view in (Drawing, Gantt, PerfettoTrace, SummaryView)
}


def load(path: str | PathLike[str]) -> History:
    """What `Run.save` wrote: hand it to `visualize`, or take its ``trace.table()``.

    Nothing of the file is executed, and it takes no more memory than its columns need.

    Raises:
        FileNotFoundError: there is none.
        VersionMismatch: a later dagsched wrote it.
        DagschedError: it is no such file, or damaged.
    """
    return load_history(path)


def kind_of(filename: str | PathLike[str]) -> str:
    """The first kind that is written with the file's suffix.

    Raises:
        ValueError: none is; the message names those that are.

    Example:
        >>> kind_of("a.svg"), kind_of("a.json.gz"), kind_of("a.txt")
        ('dag', 'trace', 'summary')
    """
    for view in VIEWS.values():
        if suffix_of(filename, view.suffixes) is not None:
            return view.kind
    known = ", ".join(dict.fromkeys(suffix for view in VIEWS.values() for suffix in view.suffixes))
    raise ValueError(
        f"pictures are written as {known}; not as {Path(filename).suffix or 'no suffix'!r}"
    )


@overload
def visualize(
    dag_or_run: object,
    filename: str | PathLike[str] | None = None,
    kind: Literal["dag"] = "dag",
    *,
    title: str | None = None,
) -> Drawing: ...
@overload
def visualize(
    dag_or_run: object,
    filename: str | PathLike[str] | None = None,
    kind: Literal["summary"] = ...,
    *,
    title: str | None = None,
) -> SummaryView: ...
@overload
def visualize(
    dag_or_run: object,
    filename: str | PathLike[str] | None = None,
    kind: str = "dag",
    *,
    title: str | None = None,
) -> View: ...
def visualize(
    dag_or_run: object,
    filename: str | PathLike[str] | None = None,
    kind: str = "dag",
    *,
    title: str | None = None,
) -> View:
    """Draw a graph, or a run.

    ============ ==================== ==============================================================
    kind         written as           shows
    ============ ==================== ==============================================================
    ``dag``      .svg .png .html .dot the graph. After a run the border's colour is the node, the
                 .json                fill is the darker the earlier the task started; dashed is
                                      not run, crossed out failed, doubled tried again. Above
                                      2,000 tasks boxes of many, which open in the .html
    ``gantt``    .html .svg .png      a lane an executor, by node; the .html zooms to any task
    ``trace``    .json .json.gz       the same for ui.perfetto.dev and chrome://tracing
    ``summary``  .html .txt .json     critical path, parallelism, time by function, idle by cause,
                                      bytes and memory by node
    ============ ==================== ==============================================================

    Args:
        dag_or_run: a `Delayed`, containers of them, a networkx.DiGraph, a `Run` (over or not), a
            `RunEnv` (its last run whose handle is held), or what `load` gave.
        filename: where to write; None: only return the view.
        kind: of picture; all but "dag" and "summary" need a run.
        title: stands at the top; None: the run's id.

    Returns:
        A view that notebooks show; `save(filename)` writes it once more.

    Raises:
        ValueError: an unknown kind, a suffix that the kind is not written as, or no run.
        TypeError: `dag_or_run` is none of these, or `title` no text.
        OSError: the file can't be written.

    Example:
        >>> from dagsched import delayed
        >>> total = delayed(sum)([delayed(abs)(-1), delayed(abs)(2)])
        >>> visualize(total).picture.edges
        [(0, 2), (1, 2)]
    """
    if kind not in tuple(VIEWS):
        raise ValueError(f"kind is one of {', '.join(VIEWS)}, not {kind!r}")
    if not isinstance(title, str | None):
        raise TypeError(f"title is a text, not {title!r}")
    if filename is not None:
        check_suffix(filename, kind, VIEWS[kind].suffixes)  # before the work is done
    history = history_of(dag_or_run)
    words = title_of(history) if title is None else title
    view: View
    match kind:
        case "dag":
            picture = picture_of(history, title)
            view = Drawing(as_done(picture) if history.state == "done" else picture, history)
        case "gantt":
            view = Gantt(history, words)
        case "trace":
            view = PerfettoTrace(history, words)
        case _:
            view = SummaryView(history, words)
    if filename is not None:
        view.save(filename)
    return view
