"""A summary in words: as text for terminals, as a page for browsers. Pure."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from dagsched.history import History
from dagsched.tables import COLUMNS
from dagsched.trace import TraceEvent
from dagsched.viz.gantt import ran_words, ticks
from dagsched.viz.moves import FileLine, Route
from dagsched.viz.pages import fill_page
from dagsched.viz.palette import shortened
from dagsched.viz.summary import Course, Summary
from dagsched.viz.text import counted, duration, markup, plain, size

ROWS_MAX = 30
PATH_MAX = 20

_COUNTS = {
    "retry_count": "attempts that came to nothing and were followed by another",
    "exception_retry_count": "of these, after an exception",
    "crash_retry_count": "of these, after a crash",
    "timeout_retry_count": "of these, after a timeout",
    "node_loss_count": "nodes lost",
    "recovery_count": "recoveries",
    "recomputed_count": "tasks placed anew, for balance or after a loss",
    "moved_count": "values moved off nodes that were to leave",
    "stall_count": "times that nothing moved",
}
_EVENTS = {
    "node_lost": "node lost",
    "recomputed": "placed anew",
    "retried": "to be tried again",
    "expanded": "returned a graph",
    "cut": "more than is kept",
}
_BARS = "\N{LOWER ONE EIGHTH BLOCK}\u2582\u2583\u2584\u2585\u2586\u2587\N{FULL BLOCK}"


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the report."""

    title: str
    lines: Sequence[str] = ()
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    figure: str = ""  # SVG
    sketch: str = ""  # the same for terminals


def sections_of(summary: Summary) -> list[Section]:
    """All that there is to tell, the most important first."""
    course = summary.course
    if course is None:
        return [_shape(summary), _functions(summary)]
    return [
        _outcome(summary, course),
        _parallelism(course),
        _critical(summary, course),
        _idle(course),
        _functions(summary),
        _nodes(summary, course),
        *_slowest(summary, course),
        _executors(summary, course),
        *_troubles(summary),
        _shape(summary),
    ]


def text_report(summary: Summary, title: str) -> str:
    """For terminals."""
    lines = [plain(title), "=" * len(title)]
    for section in sections_of(summary):
        lines += ["", section.title, "-" * len(section.title)]
        lines += map(plain, section.lines)
        if section.sketch:
            lines += ["", section.sketch]
        if section.rows:
            lines += ["", *_text_table(section)]
    return "\n".join(lines) + "\n"


def page_report(summary: Summary, title: str) -> str:
    """For browsers; refers to nothing outside."""
    return fill_page("report.html", title=markup(title), body=body_report(summary))


def body_report(summary: Summary) -> str:
    """The inside of the page."""
    parts = []
    for section in sections_of(summary):
        parts.append(f"<h2>{markup(section.title)}</h2>")
        parts += [f"<p>{markup(line)}</p>" for line in section.lines]
        if section.figure:
            parts.append(f'<div class="wide">{section.figure}</div>')
        if section.rows:
            parts.append(_page_table(section))
    return "\n".join(parts)


def json_report(summary: Summary, title: str) -> str:
    """For other programs: times in ns."""
    course, shape = summary.course, summary.shape
    told: dict[str, Any] = {
        "title": title,
        "task_count": summary.history.task_count,
        "edge_count": len(summary.history.deps),
        "shape": {name: getattr(shape, name) for name in shape.__slots__},
        "functions": [line._asdict() for line in summary.functions],
    }
    if course is not None:
        told |= {
            "run_id": summary.history.run_id,
            "state": summary.history.state,
            "length_ns": course.length_ns,
            "busy_ns": course.busy_ns,
            "critical_ns": course.critical_ns,
            "critical_keys": [summary.history.names.key(task) for task in course.critical[:1000]],
            "parallelism": [round(value, 4) for value in course.parallelism.tolist()],
            "idle": course.idle._asdict(),
            "executors": [line._asdict() for line in course.executors],
            "moved_values": [list(route) for route in course.moved],
            "transfers": [route._asdict() for route in course.routes],
            "files": [line._asdict() for line in course.files],
            "kept": {name: getattr(summary.history.trace, name).every for name in COLUMNS},
            "stats": summary.history.stats,
        }
    return json.dumps(told, indent=1)


def _text_table(section: Section) -> list[str]:
    rows = [list(section.header), *([_one_line(cell) for cell in row] for row in section.rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _one_line(cell: str) -> str:
    return " ".join(plain(cell).split())


def _page_table(section: Section) -> str:
    head = "".join(f"<th>{markup(cell)}</th>" for cell in section.header)
    rows = [
        "<tr>" + "".join(f"<td>{markup(cell)}</td>" for cell in row) + "</tr>"
        for row in section.rows
    ]
    return f'<div class="wide"><table><tr>{head}</tr>{"".join(rows)}</table></div>'


# --- sections -------------------------------------------------------------------------------------


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.1%}" if whole else "-"


def _outcome(summary: Summary, course: Course) -> Section:
    history = summary.history
    executors = len(course.executors)
    nodes = counted(len({line.node for line in course.executors}), "node")
    place = f"{counted(executors, 'executor')} of {nodes}"
    busy = _share(course.busy_ns, course.length_ns * executors)
    lines = [
        f"{history.state}: {ran_words(history)} in {duration(course.length_ns)} on {place}",
        f"executors were busy for {busy} of the time; {duration(course.busy_ns)} of work in all",
    ]
    returned = sum(event.kind == "expanded" for event in history.trace.events)
    if returned:
        lines.append(
            f"{counted(returned, 'task')} returned a graph: what ran in it is in no number here "
            "but those of nodes, and its time counts as idle"
        )
    if history.ended_ns < 0:
        lines.append("the run had not ended when this was gathered")
    failed = [history.names.key(task) for task in history.trace.failed]
    lines += [f"failed for good: {_short(key)}" for key in failed]
    return Section("Outcome", lines)


def _parallelism(course: Course) -> Section:
    mean = course.busy_ns / max(1, course.length_ns)
    allowed = course.busy_ns / max(1, course.critical_ns)
    words = (
        f"on average {mean:.2f} tasks ran at a time, {course.parallelism_max} at most; the graph "
        f"allows {allowed:,.1f} on average with enough executors"
    )
    highest = max(1.0, float(course.parallelism.max(initial=0)))
    steps = course.parallelism.reshape(-1, len(course.parallelism) // 100).mean(axis=1)
    sketch = "".join(
        " " if value <= 0 else _BARS[min(7, int(8 * value / highest))] for value in steps.tolist()
    )
    return Section(
        "Parallelism over time",
        [words],
        figure=_curve(course, len(course.executors)),
        sketch=f"{sketch}  0 .. {duration(course.length_ns)}, top {highest:.1f}",
    )


def _curve(course: Course, executor_count: int) -> str:
    """Tasks that ran at a time, as a small chart."""
    width, height, left, bottom = 900, 160, 44, 22
    top = max(executor_count, course.parallelism_max, 1)
    values = course.parallelism.tolist()
    step = (width - left) / len(values)
    points = [f"M{left} {height}"]
    for place, value in enumerate(values):
        y = height - value / top * (height - 10)
        points.append(f"L{left + place * step:.1f} {y:.1f}L{left + (place + 1) * step:.1f} {y:.1f}")
    points.append(f"L{width} {height}z")
    line_y = height - executor_count / top * (height - 10)
    size_text = f'width="{width + 30}" height="{height + bottom}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size_text} font-size="11">',
        f'<path d="{"".join(points)}" fill="#56b4e9"/>',
        f'<path d="M{left} {line_y:.1f}H{width}" stroke="#d55e00" stroke-dasharray="5 3"/>',
        f'<text x="{left - 6}" y="{line_y + 4:.1f}" text-anchor="end">{executor_count}</text>',
        f'<path d="M{left} {height}H{width}" stroke="#333"/>',
    ]
    for tick in ticks(course.length_ns):
        x = left + (width - left) * tick / max(1, course.length_ns)
        parts.append(
            f'<text x="{x:.1f}" y="{height + 15}" text-anchor="middle">'
            f"{duration(tick) if tick else '0'}</text>"
        )
    return "".join([*parts, "</svg>"])


def _critical(summary: Summary, course: Course) -> Section:
    names, trace = summary.history.names, summary.history.trace
    path = course.critical
    took = f"{duration(course.critical_ns)}: {_share(course.critical_ns, course.length_ns)}"
    chain = (
        "a task that waits for none"
        if len(path) == 1
        else f"{len(path):,} tasks that wait for each other"
    )
    words = (
        f"{chain} took {took} of the run's time; no number of executors makes it faster than that"
    )
    lines = [words]
    durations = trace.duration_ns.clip(0)
    by_function: Counter[str] = Counter()
    for task in path:
        by_function[names.function(task)] += int(durations[task])
    lines.append(
        "of it "
        + ", ".join(
            f"{_short(name)} {_share(time, course.critical_ns)}"
            for name, time in by_function.most_common(5)
        )
    )
    longest = sorted(path, key=lambda task: -int(durations[task]))[:PATH_MAX]
    kept = sorted(longest, key=path.index) if len(path) < 10_000 else longest
    rows = [
        [_short(names.key(task)), duration(int(durations[task])), str(trace.node[task]),
         str(trace.executor[task])]
        for task in kept
    ]  # fmt: skip
    if len(path) > PATH_MAX:
        lines.append(f"the {PATH_MAX} longest of its tasks:")
    return Section("Critical path", lines, ["task", "took", "node", "executor"], rows)


def _idle(course: Course) -> Section:
    idle = course.idle
    whole = course.length_ns * len(course.executors)
    causes = [
        ("before the first task: the graph was read, cut and sent", idle.before_ns),
        ("no task was ready: those left waited for others", idle.starved_ns),
        ("a task was ready but for inputs that were on their way to its node", idle.moving_ns),
        ("a task was ready: on its way, or behind others elsewhere", idle.waiting_ns),
        ("after the last task: results were gathered, the end was told", idle.after_ns),
    ]
    if idle.lost_ns:
        causes.append(("their node was lost", idle.lost_ns))
    return Section(
        "Idle time by cause",
        [f"executors were idle for {_share(sum(idle), whole)} of their time"],
        ["while", "executor time", "share"],
        [[words, duration(time), _share(time, whole)] for words, time in causes],
    )


def _functions(summary: Summary) -> Section:
    lines = summary.functions[:ROWS_MAX]
    total = sum(line.total_ns for line in summary.functions)
    more = len(summary.functions) - len(lines)
    words = [f"and {more} more functions"] if more else []
    if summary.course is None:
        return Section(
            "Functions",
            words,
            ["function", "tasks"],
            [[_short(line.name), f"{line.task_count:,}"] for line in lines],
        )
    rows = [
        [_short(line.name), f"{line.ran_count:,}", duration(line.total_ns),
         _share(line.total_ns, total), duration(line.total_ns // max(1, line.ran_count)),
         duration(line.longest_ns)]
        for line in lines
    ]  # fmt: skip
    header = ["function", "tasks run", "time", "share", "mean", "longest"]
    return Section("Time by function", words, header, rows)


def _short(name: str) -> str:
    return shortened(name, 10, 400)


def _nodes(summary: Summary, course: Course) -> Section:
    history = summary.history
    trace = history.trace
    words = [rows.words(name) for name in COLUMNS if (rows := getattr(trace, name)).every > 1]
    words += [
        f"{counted(route.value_count, 'value')}, {size(route.size_bytes)}, came from node "
        f"{route.source} to node {route.target} in {_objects(route)}"
        for route in course.routes[:ROWS_MAX]
    ]
    if not course.routes:
        words += [
            f"{counted(count, 'value')} of node {source} needed on node {target}"
            for source, target, count in course.moved[:ROWS_MAX]
        ]
    words += [_file_words(line) for line in course.files[:ROWS_MAX]]
    known = trace.size_bytes[trace.size_bytes >= 0]
    if len(known):
        total = size(int(known.sum()))
        words.append(f"results of which the size is known: {len(known):,}, {total}")
    brokers = history.stats.get("brokers", ())
    if not brokers:
        words.append("bytes and memory are known once the run has ended")
    rows = [
        [f"node {row['id']} on {row['host']}", size(row["in_bytes"]), size(row["out_bytes"]),
         size(row["peak_bytes"]), size(row["spilled_bytes"]), f"{row['spill_count']:,}",
         f"{row['withheld_count']:,}"]
        for row in brokers[:ROWS_MAX]
    ]  # fmt: skip
    header = ["node", "in", "out", "objects at most", "spilled", "spills", "bundles held back"]
    return Section("Between nodes, and memory", words, header, rows)


def _objects(route: Route) -> str:
    """How many came, and how long each took; of what nobody had asked for that isn't known."""
    objects = counted(route.object_count, "object")
    if not route.took_ns:
        return objects
    each = duration(route.took_ns // route.object_count)
    return f"{objects}, each {each} after it was wanted and there on average"


def _file_words(line: FileLine) -> str:
    """What went to files of a node, or was read there."""
    objects = f"node {line.node}: {counted(line.object_count, 'object')}, {size(line.size_bytes)}, "
    return (
        objects
        + {
            "moved": f"moved to files in {duration(line.took_ns)}: its memory was above its mark",
            "made": "made in files, for its memory had no room",
            "read": "read from files",
        }[line.kind]
    )


def _slowest(summary: Summary, course: Course) -> list[Section]:
    """The transfers that took longest; no section if none was measured."""
    moves, names = course.moves, summary.history.names
    rows = []
    for index in course.slowest:
        task, size_bytes = int(moves.task[index]), int(moves.size_bytes[index])
        took = int(moves.took_ns()[index])
        if not took:
            continue
        rate = f"{size(size_bytes * 1_000_000_000 // took)}/s"
        rows.append(
            [_short(names.key(task)) if task >= 0 else "-", str(moves.source[index]),
             str(moves.node[index]), size(size_bytes),
             duration(int(moves.start_ns[index] - moves.begin_ns[index])), duration(took), rate]
        )  # fmt: skip
    header = ["value of", "from node", "to node", "bytes", "until it came", "in all", "rate"]
    words = "from when they were wanted and there:"
    return [Section("Slowest transfers", [words], header, rows)] if rows else []


def _executors(summary: Summary, course: Course) -> Section:
    known = {(row["node"], row["id"]): row for row in summary.history.stats.get("executors", ())}
    rows = []
    for line in course.executors[:ROWS_MAX]:
        row = known.get((line.node, line.executor), {})
        rows.append(
            [
                f"executor {line.executor} of node {line.node}",
                f"{line.execution_count:,}",
                duration(line.busy_ns),
                _share(line.busy_ns, course.length_ns),
                size(row["read_bytes"]) if row else "-",
                size(row["written_bytes"]) if row else "-",
                size(row["rss_peak_bytes"]) if row else "-",
                str(row["restart_count"]) if row else "-",
            ]
        )
    more = len(course.executors) - len(rows)
    header = ["executor", "tasks", "busy", "share", "read", "written", "memory at most", "restarts"]
    return Section("Executors", [f"and {more} more"] if more else [], header, rows)


def _troubles(summary: Summary) -> list[Section]:
    """What went wrong; no section if nothing did."""
    history = summary.history
    counts = {name: count for name, count in history.stats.get("run", {}).items() if count}
    events = [event for event in history.trace.events if event.kind != "placed"]
    if not counts and not events and not history.trace.repeats:
        return []
    lines = [f"{_COUNTS.get(name, name)}: {count:,}" for name, count in counts.items()]
    again = len(history.trace.repeats)
    if again:
        lines.append(f"{counted(again, 'execution')} of tasks that were executed again later")
    # Many tasks that were placed anew at once are one row.
    told = groupby(
        events, lambda event: (event.kind, event.task >= 0 and event, event.node, event.text)
    )
    groups = [list(group) for _, group in told]
    rows = [_event_row(history, group) for group in groups[:ROWS_MAX]]
    if len(groups) > ROWS_MAX:
        lines.append(f"the first {ROWS_MAX} of {counted(len(groups), 'event')}:")
    header = ["after", "what", "task", "node", "executor", "why"]
    return [Section("What happened beside", lines, header, rows)]


def _event_row(history: History, group: Sequence[TraceEvent]) -> list[str]:
    """A row for one event, or for several of the same kind that followed each other."""
    event = group[0]
    count = sum(one.item_count for one in group)
    if event.task >= 0:
        task = _short(history.names.key(event.task))
    else:
        task = counted(count, "task") if count and event.kind != "placed" else "-"
    return [
        duration(max(0, event.time_ns - max(history.submitted_ns, 0))),
        _EVENTS.get(event.kind, event.kind),
        task,
        str(event.node) if event.node > 0 else "-",
        str(event.executor) if event.executor > 0 else "-",
        event.text.partition("\n")[0][:120],
    ]


def _shape(summary: Summary) -> Section:
    shape, history = summary.shape, summary.history
    words = (
        f"{counted(history.task_count, 'task')}, {counted(len(history.deps), 'edge')}; "
        f"{shape.root_count:,} without dependencies, {shape.leaf_count:,} that nobody needs; "
        f"{counted(shape.depth, 'level')}, the widest of {counted(shape.widest, 'task')}"
    )
    return Section("Graph", [words])
