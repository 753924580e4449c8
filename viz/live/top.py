"""`dagsched top`: the snapshot as text that fits a terminal. Pure but for the loop at its end."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from dagsched.errors import DagschedError
from dagsched.viz.text import plain

Snapshot = Mapping[str, Any]
Row = list[RenderableType]

_BARS = " ▁▂▃▄▅▆▇█"
_STATES = {
    "up": "green", "busy": "green", "running": "green", "done": "green", "idle": "dim",
    "starting": "yellow", "suspected": "yellow", "drained": "yellow", "lost": "red",
    "failed": "red", "cancelled": "yellow", "timed_out": "red",
}  # fmt: skip
NARROW = 90
"""Terminals with fewer columns than this get the most important ones only."""


def screen(shown: Snapshot, width: int, height: int) -> RenderableType:
    """A snapshot for a terminal of this size.

    Args:
        shown: the snapshot.
        width: columns.
        height: lines; what is longest gives way.
    """
    is_narrow = width < NARROW
    # The head, and of each of four tables its title, its names and a blank line.
    room = max(4, height - 4 - 4 * 3)
    nodes, run_room = shown["nodes"], max(1, room // 4)
    executor_count = sum(len(node["executors"]) for node in nodes)
    node_room = max(1, min(len(nodes) + executor_count, room // 2))
    parts: list[RenderableType] = [
        _head(shown, width),
        _runs(shown["runs"][:run_room], is_narrow=is_narrow),
        _nodes(nodes, shown["time_s"], node_room, is_narrow=is_narrow),
    ]
    if shown["functions"]:
        parts.append(_functions(shown["functions"][:run_room], is_narrow=is_narrow))
    if shown["failures"]:
        parts.append(_troubles(shown["failures"][:run_room], is_narrow=is_narrow))
    return Group(*parts)


def sparkline(values: Sequence[float], width: int) -> str:
    """The last `width` values as bars.

    Example:
        >>> sparkline([0, 1, 2, 4], 3)
        '▂▄█'
    """
    values = values[-width:]
    most = max(values, default=0) or 1
    return "".join(_BARS[round(value / most * (len(_BARS) - 1))] for value in values)


def _head(shown: Snapshot, width: int) -> RenderableType:
    environment, store = shown["environment"], shown["environment"]["store"]
    where = f"{environment['host']}, process {environment['pid']}"
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f"dagsched {environment['token']}", style="bold")
    text.append(f"  {where}, open for {_seconds(environment['uptime_s'])}")
    if store["state"] != "up":
        text.append(f"  store {store['state']}: {store['reason']}", style="yellow")
    rate = f"{shown['rate']:,.0f} tasks/s "
    bars = sparkline(shown["rates"], max(10, min(60, width - len(rate) - 1)))
    return Group(text, Text(rate + bars, no_wrap=True, overflow="crop"), Text(""))


def _table(title: str, *columns: str) -> Table:
    """Texts to the left, columns whose name ends with a colon to the right.

    In a narrow terminal the columns whose name ends with ".." are cut before all others.
    """
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, expand=False)
    for name in columns:
        is_right, gives_way = name.endswith(":"), name.endswith("..")
        # rich cuts those first that may be wrapped; `_cut` keeps their texts in a line.
        table.add_column(
            name.removesuffix(":").removesuffix(".."), justify="right" if is_right else "left",
            no_wrap=not gives_way, overflow="ellipsis", header_style="dim",
        )  # fmt: skip
    return table


def _runs(runs: Sequence[Snapshot], *, is_narrow: bool) -> RenderableType:
    if not runs:
        return Text("no run yet\n", style="dim")
    more = () if is_narrow else ("retries:", "tasks/s:", "since:")
    table = _table("runs", "run", "state", "done:", "tasks:", *more, "left:")
    for run in runs:
        left = "" if run["left_s"] is None else _seconds(run["left_s"])
        row: Row = [run["run_id"], _coloured(run["state"]), f"{run['done_count']:,}",
               f"{run['task_count']:,}"]  # fmt: skip
        if not is_narrow:
            row += [str(run["retry_count"]), f"{run['rate']:,.0f}", _seconds(run["duration_s"])]
        table.add_row(*row, left)
    return table


def _nodes(
    nodes: Sequence[Snapshot], now_s: float, room: int, *, is_narrow: bool
) -> RenderableType:
    more = () if is_narrow else ("tasks:", "memory:", "objects:")
    table = _table("nodes", "id", "state", "busy:", *more, "doing..")
    for node in nodes:
        if room <= 0:
            table.add_row("..", "", "", *("" for _ in more), "")
            break
        room -= 1
        row: Row = [str(node["id"]), _coloured(node["state"]), f"{node['load_share']:.0%}"]
        if not is_narrow:
            used = node["memory_used_bytes"]
            row += [f"{sum(one['task_count'] for one in node['executors']):,}",
                    "" if used is None else _bytes(used), _bytes(node["live_bytes"])]  # fmt: skip
        table.add_row(*row, _cut(node["host"]), style="bold")
        for one in node["executors"][: max(0, room)]:
            room -= 1
            table.add_row(*_executor(one, now_s, is_narrow=is_narrow))
    return table


def _executor(one: Snapshot, now_s: float, *, is_narrow: bool) -> Row:
    doing, text = one["doing"], ""
    if doing is not None:
        many = f"{doing['task_count']} tasks from {doing['function']}"
        what = doing["key"] or (many if doing["task_count"] > 1 else doing["function"])
        text = f"{what} for {_seconds(max(0.0, now_s - doing['since_s']))}"
    restarts = f" (restart {one['restart_count']})" if one["restart_count"] else ""
    row: Row = [f"  {one['id']}", _coloured(one["state"], restarts),
                                 f"{one['busy_share']:.0%}"]  # fmt: skip
    if not is_narrow:
        rss = one["rss_bytes"]
        row += [f"{one['task_count']:,}", "" if rss is None else _bytes(rss), ""]
    return [*row, _cut(text)]


def _functions(functions: Sequence[Snapshot], *, is_narrow: bool) -> RenderableType:
    more = () if is_narrow else ("tasks:", "longest:")
    table = _table("functions", "function..", "done:", "busy:", "mean:", *more)
    for one in functions:
        row: Row = [_cut(one["name"]), f"{one['done_count']:,}", _seconds(one["busy_s"]),
               _seconds(one["mean_s"])]  # fmt: skip
        if not is_narrow:
            row += [f"{one['task_count']:,}", _seconds(one["longest_s"])]
        table.add_row(*row)
    return table


def _troubles(troubles: Sequence[Snapshot], *, is_narrow: bool) -> RenderableType:
    more = () if is_narrow else ("node:", "executor:")
    table = _table("troubles", "time", "what", "task..", *more, "why..")
    for one in troubles:
        clock = time.strftime("%H:%M:%S", time.localtime(one["time_s"]))
        why = ": ".join(part for part in (one["type"], one["text"].partition("\n")[0]) if part)
        row: Row = [clock, _coloured(one["kind"]), _cut(one["key"] or one["run_id"])]
        if not is_narrow:
            row += [str(one["node"] or ""), str(one["executor"] or "")]
        table.add_row(*row, _cut(why))
    return table


def _cut(text: str) -> Text:
    """Somebody's text in one line, and without what would move the cursor."""
    return Text(" ".join(plain(text).split()), no_wrap=True, overflow="ellipsis")


def _coloured(word: str, more: str = "") -> Text:
    return Text(word, style=_STATES.get(word, "")) + Text(more)


def _seconds(seconds: float) -> str:
    """A length of time, in the unit that suits it."""
    for unit, size in (("h", 3600.0), ("min", 60.0), ("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds * 1e6:.0f} us" if seconds > 0 else "0 s"


def _bytes(count: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


# --- the loop -------------------------------------------------------------------------------------


def show_once(read: Callable[[], Snapshot], console: Console) -> None:
    """Print one snapshot; where the output is no terminal nothing is left out for want of lines."""
    _print(read(), console)


def _print(shown: Snapshot, console: Console) -> None:
    height = console.height if console.is_terminal else 10_000
    console.print(screen(shown, console.width, height))


def show_on(read: Callable[[], Snapshot], console: Console, interval_s: float) -> None:
    """Show snapshots until the environment is closed, or the user has had enough.

    Where the output is no terminal they stand one below the other.

    Raises:
        DagschedError: there was none.
    """
    first = read()
    if not console.is_terminal:
        for shown in _readings(first, read, interval_s):
            _print(shown, console)
            console.print()
        return
    with Live(
        screen(first, console.width, console.height), console=console, screen=True,
        auto_refresh=False,
    ) as live:  # fmt: skip
        for shown in _readings(first, read, interval_s):
            live.update(screen(shown, console.width, console.height), refresh=True)


def _readings(
    first: Snapshot, read: Callable[[], Snapshot], interval_s: float
) -> Iterator[Snapshot]:
    """One snapshot an interval, until the environment has been closed."""
    shown = first
    while True:
        yield shown
        time.sleep(interval_s)
        try:
            shown = read()
        except DagschedError:
            return
