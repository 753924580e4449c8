"""What is seen of events: runs, lanes, troubles, and the snapshot that is told of them."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from dagsched.master.events import (
    KeptMoved,
    RunEnded,
    RunHappened,
    RunProgressed,
    RunStalled,
    TracesArrived,
)
from dagsched.master.surveys import STATES, Standing
from dagsched.nodes import NodeEnv
from dagsched.protocol.messages import Doing, ExecutorStats, ExitInfo, Failure, NodeStats
from dagsched.viz.live.cells import BIN_S, BINS
from dagsched.viz.live.metrics import exposition
from dagsched.viz.live.scene import RUNS_MAX, Scene
from dagsched.viz.live.snapshot import Since, snapshot
from dagsched.viz.live.troubles import TEXT_CHARS_MAX, TRACEBACK_CHARS_MAX, TROUBLES_MAX
from tests.unit.viz.live.builders import facts, surroundings, traces

NOW = 1010.0


def seen(scene: Scene, now: float = NOW, **options: Any) -> dict[str, Any]:
    whole = snapshot(scene, surroundings(), now, **options)
    json.dumps(whole)  # nothing in it that JSON has not
    return whole


def a_scene(**options: Any) -> Scene:
    scene = Scene(900.0)
    scene.begin(facts(["f", "g"], [0, 0, 0, 1], **options))
    return scene


def standing(*rows: tuple[str, int, int, int], producer_of: list[int] | None = None) -> Standing:
    states = [state.name.lower() for state in STATES]
    columns = list(zip(*rows, strict=True))
    los, his = (np.array(columns[n], np.int32) for n in (2, 3))
    return Standing(
        np.array([states.index(word) for word in columns[0]], np.int8),
        np.array(columns[1], np.int32), los, his, his - los,
        None if producer_of is None else np.array(producer_of, np.int32),
    )  # fmt: skip


def test_a_run_from_its_beginning_to_its_end() -> None:
    scene = a_scene()
    scene.take(
        [(1002.0, RunProgressed(1, 2, 4)), (1002.0, traces([0, 1], [1001, 1001.5, 1002]))], NOW
    )
    shown = seen(scene)
    (row,) = shown["runs"]
    assert (row["state"], row["done_count"], row["task_count"]) == ("running", 2, 4)
    assert row["submitted_s"] == 6000.0
    assert row["left_s"] == pytest.approx(2 / (2 / 10))
    (f, g) = shown["functions"]
    assert (f["name"], f["task_count"], f["done_count"], f["busy_s"]) == ("f", 3, 2, 1.0)
    assert (g["name"], g["done_count"]) == ("g", 0)
    scene.take(
        [(1003.0, traces([2, -1, 3], [1002, 1002.2, 1002.5, 1003], executor=4)),
         (1004.0, RunEnded(1, "done", None, None, None, [], [2]))],
        NOW,
    )  # fmt: skip
    (row,) = seen(scene)["runs"]
    assert (row["state"], row["done_count"], row["left_s"]) == ("done", 4, None)
    assert row["duration_s"] == 4.0
    assert scene.counts.done == 4
    lanes = seen(scene)["stream"]["lanes"]
    assert [(lane["executor"], sum(lane["tasks"])) for lane in lanes] == [(3, 2), (4, 2)]
    # The gap between two bundles is nobody's time.
    assert sum(lanes[1]["busy"]) * BIN_S / 100 == pytest.approx(0.7, abs=0.02)


def test_more_executions_than_tasks_are_no_more_than_all_tasks() -> None:
    scene = a_scene()
    scene.take([(NOW, RunProgressed(1, 6, 4))], NOW)
    (row,) = seen(scene)["runs"]
    assert (row["done_count"], row["left_s"]) == (4, 0.0)
    scene.take([(NOW, RunEnded(1, "done", None, None, None, [], [2]))], NOW)
    assert seen(scene)["runs"][0]["done_count"] == 4


def test_tasks_that_run_twice_are_done_once_until_they_are_to_run_again() -> None:
    scene = a_scene()
    scene.take([(NOW, traces([0, 0], [1001, 1002, 1003]))], NOW)
    assert seen(scene)["functions"][0]["done_count"] == 1
    again = RunHappened(1, NOW, "recomputed", positions=np.array([0, 1], np.int32), subtree=5)
    scene.take([(NOW, again)], NOW)
    assert seen(scene)["functions"][0]["done_count"] == 0
    assert scene.counts.recomputed == 2
    scene.take([(NOW, traces([0], [1004, 1005]))], NOW)
    f = seen(scene)["functions"][0]
    assert (f["done_count"], f["mean_s"]) == (1, 1.0)


def test_nonsense_and_what_concerns_nobody_is_left_out() -> None:
    scene = a_scene()
    short = TracesArrived(
        1, 2, 3, 1, np.zeros(3, np.int32).tobytes(), np.zeros(1).tobytes(), b"", b""
    )
    scene.take(
        [(NOW, short), (NOW, traces([77, -5], [1, 2, 3])), (NOW, traces([0], [1, 2], run=9)),
         (NOW, RunProgressed(9, 1, 1)), (NOW, KeptMoved(1, 2, 3))],
        NOW,
    )  # fmt: skip
    assert sum(sum(lane["tasks"]) for lane in seen(scene)["stream"]["lanes"]) == 0


def test_the_stream_begins_with_the_first_bin_that_has_changed() -> None:
    scene = a_scene()
    scene.take([(NOW, traces([0], [1005, 1006]))], NOW)
    first = seen(scene)["stream"]
    assert first["bins"] == BINS
    newest = int(NOW / BIN_S)
    have = Since(scene.tick, newest)
    later = NOW + 1
    quiet = seen(scene, later, since=have)["stream"]
    assert quiet["first_bin"] + quiet["bins"] == first["first_bin"] + first["bins"] + 4
    assert quiet["bins"] == 7  # four are new, and those that may not have been complete
    scene.take([(later, traces([1], [1006, 1007]))], later)
    stream = seen(scene, later, since=have)["stream"]
    begun_s = stream["origin_s"] + stream["first_bin"] * BIN_S
    assert begun_s == 5000 + 1006
    assert {len(lane["busy"]) for lane in stream["lanes"]} == {stream["bins"]}


def test_what_executors_do_is_told_and_drawn() -> None:
    scene = a_scene()
    one = ExecutorStats(3, 33, task_count=5, rss_bytes=1 << 20, doing=Doing(1, 3, 1, 1008.0))
    some = ExecutorStats(4, 34, doing=Doing(1, 0, 3, 1009.0))
    node = NodeStats(2, "h", executors=[one, some], live_bytes=9, memory_total_bytes=8,
                     memory_used_bytes=4, cpu_load_1m=0.5, pid=22)  # fmt: skip
    scene.take_stats([node], {"node_losses": 1}, NOW)
    shown = seen(scene)
    (row,) = shown["nodes"]
    assert (row["pid"], row["cpu_load_1m"], row["live_bytes"]) == (22, 0.5, 9)
    first, second = row["executors"]
    assert first["doing"] == {
        "run_id": "00000000-1", "key": "g-100", "function": "g", "task_count": 1,
        "since_s": 6008.0,
    }  # fmt: skip
    assert (second["doing"]["key"], second["doing"]["function"]) == ("", "f")
    assert first["busy_share"] == pytest.approx(0.4)
    assert row["load_share"] == pytest.approx(0.3)
    young = dataclasses.replace(surroundings(), opened_s=NOW - 2)
    (row,) = snapshot(scene, young, NOW)["nodes"]
    assert row["executors"][0]["busy_share"] == pytest.approx(1.0)
    assert shown["environment"]["counters"] == {"node_losses": 1}
    lane = shown["stream"]["lanes"][0]
    assert lane["busy"][-9:] == [100] * 8 + [0]
    assert shown["stream"]["functions"][lane["function"][-2]] == "g"
    # Once the run is over nobody does anything of it.
    scene.take([(NOW, RunEnded(1, "cancelled", None, None, None, [], []))], NOW)
    assert [one["doing"] for one in seen(scene)["nodes"][0]["executors"]] == [None, None]


def test_states_of_nodes() -> None:
    scene = Scene(900.0)
    words = {2: "up", 4: "starting", 6: "lost", 8: "up", 10: "up"}
    nodes = [(NodeEnv(n, "127.0.0.1", [n + 1]), word) for n, word in words.items()]
    scene.take_stats([NodeStats(2, "h", executors=[ExecutorStats(3, 0, restart_count=2)])], {}, NOW)
    scene.silences = {2: (0.1, False), 8: (2.0, False), 10: (0.1, True)}
    rows = snapshot(scene, surroundings(*nodes), NOW)["nodes"]
    assert [row["state"] for row in rows] == ["up", "starting", "lost", "suspected", "drained"]
    assert [row["executors"][0]["state"] for row in rows] == [
        "lost", "starting", "lost", "starting", "starting",
    ]  # fmt: skip
    assert (rows[0]["cpu_load_1m"], rows[0]["memory_used_bytes"]) == (None, None)


def test_what_a_lost_node_had_done_is_still_counted() -> None:
    scene = Scene(900.0)
    busy = ExecutorStats(3, 33, task_count=7, rss_bytes=1 << 20, restart_count=1)
    node = NodeStats(2, "h", executors=[busy], live_bytes=9, live_object_count=1, pid=22,
                     in_bytes=50, out_bytes=60, spill_count=4)  # fmt: skip
    around = surroundings((NodeEnv(2, "h", [3]), "lost"))
    scene.take_stats([node], {}, NOW - 2)
    for _ in range(2):
        (row,) = snapshot(scene, around, NOW)["nodes"]
        assert (row["in_bytes"], row["out_bytes"], row["spill_count"]) == (50, 60, 4)
        assert (row["live_bytes"], row["live_object_count"], row["pid"]) == (0, 0, 0)
        (executor,) = row["executors"]
        assert (executor["task_count"], executor["restart_count"]) == (7, 1)
        assert (executor["state"], executor["rss_bytes"]) == ("lost", None)
        scene.take_stats([], {}, NOW - 1)
    assert 'dagsched_transfer_received_bytes_total{node="2"} 50.0' in exposition(scene, around, NOW)


@pytest.mark.parametrize(("state", "counts"), [("done", [2, 2]), ("cancelled", [1, 0])])
def test_functions_of_a_run_that_is_done_have_run_all_their_tasks(
    state: str, counts: list[int]
) -> None:
    scene = Scene(900.0)
    scene.begin(facts(["f", "g"], [0, 1, 0, 1]))
    scene.take([(NOW, traces([0], [1001, 1003]))], NOW)
    scene.take([(NOW, RunEnded(1, state, None, None, None, [], []))], NOW)
    told = {one["name"]: one["done_count"] for one in seen(scene)["functions"]}
    assert told == dict(zip(["f", "g"], counts, strict=True))
    assert seen(scene)["functions"][0]["mean_s"] == pytest.approx(2.0)  # of the one with a time


def test_how_a_task_ended_that_raised_nothing_is_told_in_words() -> None:
    scene = a_scene()
    failure = Failure(1, 1, "timeout", executor=3, exit=ExitInfo(None, 9))
    scene.take([(NOW, RunEnded(1, "failed", failure, None, 2, [], []))], NOW)
    (row,) = seen(scene)["failures"]
    assert (row["type"], row["text"]) == (
        "timeout", "it took longer than its timeout and was ended",
    )  # fmt: skip


def test_subtrees_have_the_states_of_their_tasks() -> None:
    scene = a_scene()
    run = scene.runs[1]
    assert seen(scene)["subtrees"]["cells"] == []
    run.take_standing(standing(("done", 2, 0, 1), ("placed", 2, 1, 3), ("waiting", -1, 3, 4)))
    cells = seen(scene)["subtrees"]["cells"]
    assert [(cell["state"], cell["done_count"]) for cell in cells] == [
        ("done", 1), ("placed", 0), ("waiting", 0),
    ]  # fmt: skip
    scene.take([(NOW, traces([1], [1001, 1002]))], NOW)
    cells = seen(scene)["subtrees"]["cells"]
    assert (cells[1]["state"], cells[1]["done_count"], cells[1]["task_count"]) == ("running", 1, 2)


def test_a_task_in_hand_makes_its_subtree_run() -> None:
    scene = a_scene()
    scene.runs[1].take_standing(standing(("placed", 2, 0, 2), ("placed", 2, 2, 4)))
    doing = ExecutorStats(3, 33, doing=Doing(1, 2, 1, 1008.0))
    scene.take_stats([NodeStats(2, "h", executors=[doing])], {}, NOW)
    assert [cell["state"] for cell in seen(scene)["subtrees"]["cells"]] == ["placed", "running"]


def test_what_pieces_have_taken_over_is_counted_once() -> None:
    scene = a_scene()
    scene.take([(NOW, traces([0], [1001, 1002]))], NOW)
    rows = (("gone", 9, 0, 4), ("placed", 2, 1, 3), ("gone", 9, 3, 4), ("ready", -1, 3, 4))
    scene.runs[1].take_standing(standing(*rows, producer_of=[0, 1, 1, 3]))
    subtrees = seen(scene)["subtrees"]
    names = ("first", "state", "task_count", "done_count")
    assert [tuple(cell[name] for name in names) for cell in subtrees["cells"]] == [
        (0, "lost", 1, 1), (1, "placed", 2, 0), (3, "ready", 1, 0),
    ]  # fmt: skip
    assert subtrees["task_count"] == 4


def test_subtrees_of_a_run_that_failed() -> None:
    scene = a_scene(starts=[0, 2, 3, 4])
    scene.take([(NOW, traces([0, 1], [1001, 1002, 1003]))], NOW)
    failure = Failure(2, 3, "raised", "E", "t", "tb", executor=4)
    scene.take([(NOW, RunEnded(1, "failed", failure, None, 2, [], [2, 2, 0]))], NOW)
    cells = seen(scene)["subtrees"]["cells"]
    assert [(c["state"], c["node"]) for c in cells] == [("done", 2), ("failed", 2), ("waiting", -1)]


def test_troubles_are_told_newest_first_and_bounded() -> None:
    scene = a_scene()
    retry = RunHappened(1, 1001.0, "retried", node=2, executor=3, position=3, attempt=1,
                        text="my.Error: it: broke")  # fmt: skip
    killed = RunHappened(1, 1002.0, "retried", position=0, text="it took longer: much")
    lost = RunHappened(1, 1003.0, "node_lost", node=5, text="signal 9")
    calm = RunHappened(1, 1003.0, "placed", placements=[(0, 2, 1)])
    stall = RunStalled(1, 1004.0, 1001.0, None)
    failure = Failure(0, 2, "raised", "E" * 9, "t" * 99_999, "b" * 99_999 + "end", executor=4)
    ended = RunEnded(1, "failed", failure, None, 2, [], [], tally={"exception_retries": 7})
    events = [retry, killed, lost, calm, stall, ended]
    scene.take([(1005.0, event) for event in events], NOW)
    rows = seen(scene)["failures"]
    assert [row["kind"] for row in rows] == ["failed", "stalled", "node_lost", "retried", "retried"]
    assert (rows[4]["type"], rows[4]["text"], rows[4]["key"]) == ("my.Error", "it: broke", "g-100")
    assert (rows[3]["type"], rows[3]["text"]) == ("", "it took longer: much")
    assert (rows[2]["node"], rows[2]["time_s"]) == (5, 6003.0)
    assert rows[1]["text"].startswith("nothing has moved for 3.0 s")
    assert (rows[0]["final"], rows[0]["attempt"], rows[0]["executor"]) == (True, 2, 4)
    assert len(rows[0]["text"]) == TEXT_CHARS_MAX
    assert len(rows[0]["traceback"]) <= TRACEBACK_CHARS_MAX + 6
    assert rows[0]["traceback"].endswith("end")
    (row,) = seen(scene)["runs"]
    assert (row["retry_count"], row["failed_count"]) == (7, 1)
    scene.begin(facts(["f"], [0], number=2))
    again = RunHappened(2, 1006.0, "retried", text="x")
    scene.take([(NOW, again)] * 500, NOW)
    assert len(seen(scene)["failures"]) == TROUBLES_MAX


def test_only_some_runs_are_remembered_and_the_newest_that_goes_on_is_shown() -> None:
    scene = Scene(900.0)
    for number in range(1, RUNS_MAX + 20):
        scene.begin(facts(["f"], [0], number=number))
        if number != 3:
            scene.take([(NOW, RunEnded(number, "done", None, None, None, [], []))], NOW)
    shown = seen(scene)
    assert len(shown["runs"]) == RUNS_MAX
    assert shown["runs"][0]["run_id"] == f"00000000-{RUNS_MAX + 19}"
    assert shown["shown"] == "00000000-3"
    assert seen(scene, run_id=f"00000000-{RUNS_MAX}")["shown"] == f"00000000-{RUNS_MAX}"
    assert seen(scene, run_id="00000000-999")["functions"] == []
