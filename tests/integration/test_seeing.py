"""What is seen of runs of real processes: tables, saved files, the command line, notebooks."""

import gc
import json
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest

import dagsched.viz
from dagsched import NodeEnv, RunEnv, addprocs, delayed, print_stats, rundag, submit, visualize
from tests import graphs
from tests.checkout import ROOT


def command(*args: str) -> subprocess.CompletedProcess[str]:
    """The command line in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "dagsched", *args],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        check=False,
    )


def test_a_run_on_two_nodes_is_saved_loaded_and_drawn_as_it_was(tmp_path: Path) -> None:
    ids = addprocs(6)
    nodes = [NodeEnv(ids[0], "127.0.0.1", ids[1:3]), NodeEnv(ids[3], "127.0.0.1", ids[4:6])]
    with RunEnv(nodes=nodes, metastore="memory://") as env:
        run = submit(env, graphs.straight([1] * 6**4)[0])
        assert run.result(100) == 1
        trace = run.trace()
        drawing = visualize(run)
        run.save(tmp_path / "x.dagsched")
        stats = run.stats()
    loaded = dagsched.viz.load(tmp_path / "x.dagsched")
    for name, column in trace.table(keys=True).items():
        assert column.tolist() == loaded.trace.table(keys=True)[name].tolist(), name
    assert trace.ran.all()
    # The picture of the file says of each task what the trace says.
    for task, mark in enumerate(visualize(loaded).picture.marks):
        assert mark == drawing.picture.marks[task]
        assert (mark.node, mark.executor) == (trace.node[task], trace.executor[task])
        assert (mark.start_ns, mark.duration_ns) == (trace.start_ns[task], trace.duration_ns[task])
    starts = [mark.start_ns for mark in drawing.picture.marks]
    ranks = [mark.rank for mark in drawing.picture.marks]
    assert np.argsort(starts, kind="stable").tolist() == np.argsort(ranks, kind="stable").tolist()
    summary = visualize(loaded, kind="summary").summary
    assert summary.course is not None
    assert summary.course.critical_ns / 1e9 == pytest.approx(stats["run"]["critical_path_s"])
    by_executor = {line.executor: line.execution_count for line in summary.course.executors}
    assert by_executor == {row["id"]: row["task_count"] for row in stats["executors"]}


def test_the_command_draws_a_file_and_prints_its_summary(env: RunEnv, tmp_path: Path) -> None:
    run = submit(env, graphs.cross()[0])
    assert run.result(60) == 84
    path = run.save(tmp_path / "x.dagsched")
    printed = command("viz", str(path))
    assert (printed.returncode, printed.stderr) == (0, "")
    assert printed.stdout.startswith(f"run {run.run_id}\n")
    assert "60 of 60 tasks run" in printed.stdout
    told = json.loads(command("viz", str(path), "--json").stdout)
    assert (told["task_count"], told["edge_count"]) == (60, 114)
    for name, kind, beginning in (
        ("a.svg", (), b"<svg "),
        ("b.html", ("--kind", "gantt"), b"<!DOCTYPE html>"),
        ("c.png", ("--kind", "gantt"), b"\x89PNG"),
        ("d.json.gz", (), b"\x1f\x8b"),
    ):
        done = command("viz", str(path), "-o", str(tmp_path / name), *kind)
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
        assert (tmp_path / name).read_bytes().startswith(beginning)


def test_the_size_of_what_left_its_bundle_is_known(env: RunEnv) -> None:
    run = submit(env, delayed(bytes)(delayed(abs)(100_000)))
    run.result(60)
    trace = run.trace()
    inner, output = trace.size_bytes.tolist()
    assert 100_000 <= output < 101_000
    first, second = trace.bundle.tolist()
    assert inner == -1 if first == second else 0 < inner < 100
    assert trace.in_bytes.tolist() == [0, inner]


def test_attempts_that_came_to_nothing_are_events(env: RunEnv, tmp_path: Path) -> None:
    marker = tmp_path / "once"

    def once() -> int:
        if not marker.exists():
            marker.touch()
            raise ValueError("not yet")
        return 1

    run = submit(env, delayed(once, retries=1)())
    assert run.result(60) == 1
    (event,) = [event for event in run.trace().events if event.kind == "retried"]
    assert event.task == 0
    assert event.executor in env.nodes[0].executorids
    assert "not yet" in event.text
    assert "not yet" in visualize(run, kind="summary").text


def test_handles_show_themselves(env: RunEnv) -> None:
    dag, _ = graphs.cross()
    assert "<svg " in dag._repr_html_()
    run = submit(env, dag)
    run.result(60)
    for thing, words in ((dag, "60 tasks"), (run, "60 of 60 tasks run"), (env, run.run_id)):
        bundle = thing._repr_mimebundle_(include=None, exclude=None)
        assert bundle["text/plain"] == repr(thing)
        assert words in bundle["text/html"]
    assert visualize(env, kind="gantt").history.run_id == run.run_id


class Large:
    """An argument that is not to live longer than its user thinks."""

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return (Large, ())


def test_an_environment_shows_its_last_run_without_holding_what_was_in_it(env: RunEnv) -> None:
    argument = Large()
    assert rundag(env, delayed(repr, name="kind")(delayed(type)(argument))) == repr(Large)
    is_gone = weakref.ref(argument)
    del argument
    gc.collect()
    assert is_gone() is None
    assert env.runs == []
    shown = visualize(env, kind="gantt").history
    assert (shown.state, sorted(shown.names.functions)) == ("done", ["repr", "type"])
    assert shown.names.key(1).startswith("kind-")
    assert shown.trace.ran.all()
    with pytest.raises(ValueError, match="four"):
        rundag(env, delayed(int, name="number")("four"))
    failed = visualize(env, kind="summary")
    assert failed.history.state == "failed"
    assert "number" in failed.text


def test_what_is_no_run_or_environment_is_refused(env: RunEnv) -> None:
    run = submit(env, delayed(abs)(-1))
    assert run.result(60) == 1
    with pytest.raises(TypeError, match="one run at a time"):
        visualize([run])
    with pytest.raises(TypeError, match="needs a RunEnv, not NoneType"):
        print_stats(None)  # type: ignore[arg-type]


def test_an_environment_without_a_run_says_so(env: RunEnv) -> None:
    with pytest.raises(ValueError, match=r"has had no run, .* keep what submit"):
        visualize(env)
