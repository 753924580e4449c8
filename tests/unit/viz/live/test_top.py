"""The picture in the terminal: all that matters, also where there is little room."""

import io
import re

import pytest
from rich.console import Console

from dagsched.errors import DagschedError
from dagsched.master.events import RunEnded, RunHappened
from dagsched.protocol.messages import Doing, ExecutorStats, NodeStats
from dagsched.viz.live.scene import Scene
from dagsched.viz.live.snapshot import snapshot
from dagsched.viz.live.top import screen, show_on, show_once, sparkline
from tests.unit.viz.live.builders import facts, surroundings, traces

NOW = 1010.0


def shown(runs: int = 1) -> dict[str, object]:
    scene = Scene(900.0)
    for number in range(1, runs + 1):
        scene.begin(facts(["[red]f[/red]"], [0, 0], number=number))
    event = RunHappened(
        1, NOW, "retried", executor=3, position=0, text="ValueError: [bold]no[/bold]"
    )
    scene.take([(NOW, traces([0], [1001, 1003])), (NOW, event)], NOW)
    if runs > 1:
        scene.take([(NOW, RunEnded(1, "failed", None, None, None, [], []))], NOW)
    doing = ExecutorStats(3, 33, task_count=5, rss_bytes=1 << 20, doing=Doing(runs, 1, 1, 1008.0))
    scene.take_stats([NodeStats(2, "h", executors=[doing])], {}, NOW)
    return snapshot(scene, surroundings(), NOW)


def printed(width: int, height: int, runs: int = 1) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, height=height, color_system=None)
    console.print(screen(shown(runs), width, height))
    return out.getvalue()


def test_a_wide_terminal_has_everything() -> None:
    text = printed(120, 50)
    for word in (
        "cafe0001",
        "00000000-1",
        "running",
        "busy",
        "1.0 MiB",
        "2.0 s",
        "retries",
        "retried",
    ):
        assert word in text
    # What users have written is text, not markup.
    assert "[red]f[/red]" in text
    assert "[bold]no[/bold]" in text


@pytest.mark.parametrize(("width", "height"), [(40, 24), (60, 16), (100, 30)])
def test_it_fits(width: int, height: int) -> None:
    lines = printed(width, height, runs=40).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= height
    assert "00000000-40" in "\n".join(lines)


def test_a_long_text_leaves_room_for_all_else() -> None:
    runs = shown()
    failure = {
        **runs["failures"][0], "key": "task-1", "type": "ValueError",
        "text": "w" * 900 + "\x1b[31m", "node": 2, "executor": 3,
    }  # type: ignore[index]  # fmt: skip
    long_named = {**runs["functions"][0], "name": "two\n\x1b" + "f" * 300}  # type: ignore[index]
    odd = {**runs, "failures": [failure], "functions": [long_named]}
    for width in (60, 80, 160):
        out = io.StringIO()
        console = Console(file=out, width=width, height=24, color_system=None)
        console.print(screen(odd, width, 24))
        text = out.getvalue()
        assert re.search(r"\d\d:\d\d:\d\d  retried  task-1 .*ValueError: www+\u2026", text)
        assert re.search(r"two \ufffdf+\u2026 +1 ", text)
        assert "\x1b" not in text
        assert len(text.splitlines()) <= 24


def test_a_pipe_gets_all_runs() -> None:
    out = io.StringIO()
    show_once(lambda: shown(40), Console(file=out, width=160, height=10))
    assert out.getvalue().count("00000000-") >= 40


def test_it_ends_with_the_environment() -> None:
    readings = iter([shown(), shown(2)])

    def read() -> dict[str, object]:
        found = next(readings, None)
        if found is None:
            raise DagschedError("gone")
        return found

    out = io.StringIO()
    show_on(read, Console(file=out, width=100, height=30, force_terminal=True), 0.0)
    assert "00000000-2" in out.getvalue()
    with pytest.raises(DagschedError, match="gone"):
        show_on(read, Console(file=out), 0.0)


def test_a_pipe_gets_a_picture_an_interval_as_it_comes() -> None:
    out = io.StringIO()
    seen: list[int] = []

    def read() -> dict[str, object]:
        seen.append(out.getvalue().count("process 7"))
        if len(seen) > 3:
            raise DagschedError("gone")
        return shown(40)

    show_on(read, Console(file=out, width=160, height=10), 0.0)
    assert seen == [0, 1, 2, 3]
    assert out.getvalue().count("00000000-") >= 3 * 40
    assert "\x1b" not in out.getvalue()


def test_sparklines() -> None:
    assert sparkline([], 5) == ""
    assert sparkline([0.0] * 3, 5) == "   "
    assert sparkline([9.0, 1.0, 2.0], 2) == "▄█"
