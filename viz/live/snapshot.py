"""The snapshot: what the page, `dagsched top` and tests read, as plain values for JSON. Pure.

`README.md` describes its fields. Texts of users are plain text of bounded length, never HTML.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from dagsched.ids import run_id_of
from dagsched.nodes import NodeEnv
from dagsched.protocol.messages import Doing, ExecutorStats, NodeStats
from dagsched.viz.live.cells import BIN_NS, BIN_S, BINS, Grid
from dagsched.viz.live.scene import RUNS_MAX, Scene
from dagsched.viz.live.seen import RATE_WINDOW_S, SeenRun
from dagsched.viz.live.troubles import TEXT_CHARS_MAX, shortened

VERSION = 1
INTERVAL_S = 0.5
FUNCTIONS_SHOWN_MAX = 200
SUSPECTED_AFTER_S = 1.2
"""A node that is asked twice a second and says nothing for so long is suspected."""

_LOAD_BINS = round(RATE_WINDOW_S / BIN_S)


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What is known of the environment beside its events."""

    token: str
    rootpath: str
    pid: int
    host: str
    dagsched: str
    opened_s: float  # monotonic
    store: Mapping[str, Any]
    nodes: Sequence[tuple[NodeEnv, str]]  # wanted ones, and whether starting, up or lost
    wall_offset_s: float  # from the monotonic clock to the wall's


class Since(NamedTuple):
    """Up to where a reader knows the stream."""

    tick: int
    newest_bin: int


def snapshot(
    scene: Scene,
    around: Surroundings,
    now: float,
    *,
    run_id: str | None = None,
    since: Since | None = None,
) -> dict[str, Any]:
    """The snapshot at `now` (monotonic seconds).

    Args:
        scene: what was seen.
        around: of the environment.
        now: monotonic seconds.
        run_id: the run to show; None: the newest.
        since: what the reader has: the stream then begins with the first bin that has changed.
    """
    offset_s = around.wall_offset_s
    shown = scene.shown(run_id)
    newest_bin = int(now * 1e9) // BIN_NS
    grid = _grid(scene, around, now)
    running = _running_positions(scene, shown)
    living = [node.brokerid for node, state in around.nodes if state == "up"]
    subtrees = shown.patches(running, living) if shown is not None else None
    return {
        "version": VERSION,
        "time_s": now + offset_s,
        "interval_s": INTERVAL_S,
        "environment": {
            "token": around.token,
            "rootpath": around.rootpath,
            "pid": around.pid,
            "host": around.host,
            "dagsched": around.dagsched,
            "uptime_s": now - around.opened_s,
            "store": dict(around.store),
            "counters": dict(scene.counters),
        },
        "rate": scene.rates.per_second(now, RATE_WINDOW_S),
        "rates": scene.rates.series(now),
        "runs": [run.row(now, offset_s) for run in list(scene.runs.values())[: -RUNS_MAX - 1 : -1]],
        "shown": None if shown is None else shown.run_id,
        "functions": [] if shown is None else shown.functions.rows(FUNCTIONS_SHOWN_MAX),
        "subtrees": {
            "count": subtrees.subtree_count if subtrees else 0,
            "task_count": subtrees.task_count if subtrees else 0,
            "cells": subtrees.cells if subtrees else [],
        },
        "failures": scene.troubles.rows(offset_s),
        "nodes": [_node(scene, around, *one, grid) for one in around.nodes],
        "stream": _stream(scene, around, grid, newest_bin, since),
    }


def _running_positions(scene: Scene, shown: SeenRun | None) -> list[int]:
    if shown is None:
        return []
    doing = [one.doing for node in scene.stats.values() for one in node.executors]
    return [one.position for one in doing if one is not None and one.run == shown.number]


# --- nodes ----------------------------------------------------------------------------------------


def node_rows(scene: Scene, around: Surroundings, now: float) -> list[dict[str, Any]]:
    """The nodes as the snapshot has them."""
    return [_node(scene, around, *one, _grid(scene, around, now)) for one in around.nodes]


def _grid(scene: Scene, around: Surroundings, now: float) -> Grid:
    """What all executors did in the last minute, with what they do now."""
    for node, _ in around.nodes:
        for executor in node.executorids:
            scene.lane(node.brokerid, executor)
    cells = scene.cells.with_open(scene.open_spans(), int(now * 1e9))
    return cells.grid(len(scene.lanes), int(now * 1e9) // BIN_NS - BINS + 1, BINS)


def _node(
    scene: Scene, around: Surroundings, node: NodeEnv, state: str, grid: Grid
) -> dict[str, Any]:
    stats = scene.stats.get(node.brokerid) if state == "up" else None
    silence_s, is_leaving = scene.silences.get(node.brokerid, (0.0, False))
    if state == "up":
        state = "suspected" if silence_s > SUSPECTED_AFTER_S else state
        state = "drained" if is_leaving else state
    past = scene.sums_of(node.brokerid, node.host) if state == "lost" else None
    known = stats or past or NodeStats(node.brokerid, node.host)
    by_id = {executor.id: executor for executor in known.executors}
    executors = [
        _executor(scene, around, node.brokerid, state,
                  by_id.get(number) or ExecutorStats(number, 0), grid)
        for number in node.executorids
    ]  # fmt: skip
    return {
        "id": node.brokerid,
        "host": node.host,
        "state": state,
        "pid": known.pid,
        "load_share": sum(one["busy_share"] for one in executors) / max(1, len(executors)),
        "cpu_load_1m": known.cpu_load_1m if known.cpu_load_1m >= 0 else None,
        "memory_used_bytes": known.memory_used_bytes if known.memory_used_bytes >= 0 else None,
        "memory_total_bytes": known.memory_total_bytes if known.memory_total_bytes >= 0 else None,
        "live_object_count": known.live_object_count,
        "live_bytes": known.live_bytes,
        "shared_bytes": known.shared_bytes,
        "shared_limit_bytes": known.shared_limit_bytes,
        "spilled_bytes": known.spilled_bytes,
        "spill_count": known.spill_count,
        "in_bytes": known.in_bytes,
        "out_bytes": known.out_bytes,
        "executors": executors,
    }


def _executor(
    scene: Scene, around: Surroundings, node: int, state: str, stats: ExecutorStats, grid: Grid
) -> dict[str, Any]:
    lane = scene.lane(node, stats.id)
    doing = stats.doing
    if doing is not None and scene.is_over(doing.run):
        doing = None
    share = 0.0
    if lane is not None and lane < len(grid.busy_share) and state != "lost":
        # The bin that is now has only begun, and none was before the environment's first.
        opened_bin = int(around.opened_s * 1e9) // BIN_NS
        bins = min(_LOAD_BINS, max(1, grid.first + BINS - 1 - opened_bin))
        share = float(grid.busy_share[lane, -bins - 1 : -1].mean())
    if state == "lost":
        word = "lost"
    elif not stats.pid:
        word = "lost" if stats.restart_count else "starting"
    else:
        word = "busy" if doing is not None else "idle"
    return {
        "id": stats.id,
        "pid": stats.pid,
        "state": word,
        "busy_share": share,
        "task_count": stats.task_count,
        "rss_bytes": stats.rss_bytes or None,
        "restart_count": stats.restart_count,
        "doing": None if doing is None else _doing(scene, around, doing),
    }


def _doing(scene: Scene, around: Surroundings, doing: Doing) -> dict[str, Any]:
    run = scene.runs.get(doing.run)
    facts = None if run is None else run.facts
    is_one = doing.task_count == 1
    key = facts.key(doing.position) if facts is not None and is_one else ""
    return {
        "run_id": run_id_of(doing.run) if run is not None else "",
        "key": shortened(key, TEXT_CHARS_MAX),
        "function": facts.function(doing.position) if facts is not None else "",
        "task_count": doing.task_count,
        "since_s": doing.since_s + around.wall_offset_s,
    }


# --- the stream -----------------------------------------------------------------------------------


def _stream(
    scene: Scene, around: Surroundings, grid: Grid, newest_bin: int, since: Since | None
) -> dict[str, Any]:
    first = grid.first
    if since is not None:
        # What ran then, and the bin that was not over, may have changed without anything ending.
        changed = scene.changed_since(since.tick)
        always = since.newest_bin - round(INTERVAL_S / BIN_S)
        first = max(first, always if changed is None else min(always, changed))
    first = max(first, scene.origin_bin)
    at = first - grid.first
    percent = np.rint(grid.busy_share[:, at:] * 100).astype(np.int64)
    failed = np.zeros_like(grid.ended)
    for a_bin, lane in scene.failed_cells:
        if a_bin >= grid.first and a_bin - grid.first < BINS:
            failed[lane, a_bin - grid.first] += 1
    rows = zip(
        scene.lanes, percent.tolist(), grid.function[:, at:].tolist(), grid.ended[:, at:].tolist(),
        failed[:, at:].tolist(), strict=True,
    )  # fmt: skip
    return {
        "bin_s": BIN_S,
        "first_bin": first - scene.origin_bin,
        "origin_s": scene.origin_bin * BIN_S + around.wall_offset_s,
        "bins": newest_bin - first + 1,
        "functions": scene.names.texts,
        "lanes": [
            {"node": node, "executor": executor, "busy": busy, "function": function,
             "tasks": tasks, "failed": failed_here}
            for (node, executor), busy, function, tasks, failed_here in rows
        ],
    }  # fmt: skip
