"""What a picture says of a mark, a node and itself, in words.

Pure. The same words stand in every format.
"""

import re
from html import escape

from dagsched.viz.model import Mark, NodeLine, Picture, State

# What XML has no place for, what moves a cursor, and what turns the direction of letters.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
)


def plain(text: str) -> str:
    """Somebody's text, with a sign in place of what is no letter but does something.

    Example:
        >>> plain("red: " + chr(27) + "[31m")
        'red: �[31m'
    """
    return _UNSEEN.sub("\N{REPLACEMENT CHARACTER}", text)


def markup(text: str) -> str:
    """The same for XML and HTML.

    Example:
        >>> markup("a < b" + chr(0))
        'a &lt; b�'
    """
    return escape(plain(text))


def short_key(mark: Mark) -> str:
    """The part of a key that the function's name doesn't say.

    Example:
        >>> short_key(Mark("merge-17", "merge")), short_key(Mark("load:eu:0042", "load"))
        ('17', 'load:eu:0042')
    """
    if mark.key.startswith(f"{mark.function}-") and len(mark.key) > len(mark.function) + 1:
        return mark.key[len(mark.function) + 1 :]
    return mark.key


def label(mark: Mark) -> str:
    """What stands inside a mark.

    Example:
        >>> label(Mark("merge-17", "merge")), label(Mark("merge", "merge"))
        ('merge - 17', 'merge')
        >>> label(Mark("part 3", "merge", task_count=20, detail="merge x 16, load x 4"))
        '20 tasks: merge, ..'
    """
    if mark.is_box:
        several = ", " in mark.detail
        count = f"{mark.task_count:,}"
        return f"{count} tasks: {mark.function}, .." if several else f"{mark.function} x {count}"
    key = short_key(mark)
    return mark.function if key == mark.function else f"{mark.function} - {key}"


def tooltip(mark: Mark, first_ns: int) -> str:
    """All that is known of a mark, a fact a line.

    Args:
        mark: what is told of.
        first_ns: start of the picture's first task.
    """
    lines = [f"{mark.key}: {mark.detail}" if mark.is_box else f"{mark.function}, key {mark.key}"]
    if mark.is_box:
        lines.append(f"{mark.task_count:,} tasks")
    lines.append(mark.state.value)
    if mark.start_ns >= 0:
        lines.append(
            f"started {duration(mark.start_ns - first_ns)} after the first, "
            f"took {duration(mark.duration_ns)}"
        )
        place = f"node {mark.node}, executor {mark.executor}"
        lines.append(f"most of it on {place}" if mark.is_box else place)
    if mark.size_bytes >= 0:
        lines.append(f"result {size(mark.size_bytes)}")
    if mark.executions > 1:
        lines.append(f"{mark.executions} attempts")
    return "\n".join(lines)


def headline(picture: Picture) -> str:
    """The line under the title.

    Example:
        >>> headline(Picture("", [Mark("f-1", "f")], [], 1, 0))
        '1 task, 0 edges, not run'
    """
    parts = [counted(picture.task_count, "task"), counted(picture.edge_count, "edge")]
    if picture.is_folded:
        parts.append(f"drawn as {counted(len(picture.marks), 'box', 'boxes')}")
    if not picture.has_run:
        return ", ".join([*parts, "not run"] if picture.marks else parts)
    ran = [mark for mark in picture.marks if mark.start_ns >= 0]
    if ran and not picture.is_folded:
        first = min(mark.start_ns for mark in ran)
        last = max(mark.start_ns + mark.duration_ns for mark in ran)
        parts.append(f"{duration(last - first)} from first start to last end")
    failed = sum(mark.state is State.FAILED for mark in picture.marks)
    waiting = sum(mark.state is State.WAITING for mark in picture.marks)
    parts += [f"{failed:,} failed"] if failed else []
    parts += [f"{waiting:,} not run"] if waiting else []
    return ", ".join(parts)


def node_text(line: NodeLine) -> tuple[str, str, str, str]:
    """Node and host, executors, tasks, busy share: the columns of the legend."""
    ids = ", ".join(str(executor) for executor in line.executors[:8])
    more = f", .. {line.executors[-1]}" if len(line.executors) > 8 else ""
    return (
        f"node {line.id}" + (f" on {line.host}" if line.host else ""),
        f"{'executor' if len(line.executors) == 1 else 'executors'} {ids}{more}",
        counted(line.task_count, "task"),
        f"{line.busy_share:.0%} busy",
    )


def counted(count: int, one: str, many: str = "") -> str:
    """A number and its noun.

    Example:
        >>> counted(1, "task"), counted(1036, "task"), counted(2, "box", "boxes")
        ('1 task', '1,036 tasks', '2 boxes')
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def duration(nanoseconds: int) -> str:
    """A length of time with three digits.

    Example:
        >>> [duration(ns) for ns in (950, 12_345, 4_560_000, 2_345_678_901)]
        ['950 ns', '12.3 us', '4.56 ms', '2.35 s']
    """
    value = float(nanoseconds)
    for unit in ("ns", "us", "ms"):
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} s" if value < 999.5 else f"{value:,.0f} s"


def size(count: int) -> str:
    """A number of bytes.

    Example:
        >>> size(17), size(20_480), size(3 << 30)
        ('17 bytes', '20 KiB', '3 GiB')
    """
    value = float(count)
    if value < 1024:
        return counted(count, "byte")
    for unit in ("KiB", "MiB", "GiB"):
        value /= 1024
        if value < 999.5:
            return f"{value:.3g} {unit}"
    return f"{value / 1024:,.3g} TiB"
