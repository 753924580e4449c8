"""The suite's own parts: graphs with the values they promise, medians, METG, tables."""

import doctest
import io
import json
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from dagsched.bench import arrays, display, measuring, metg, stages, startup
from dagsched.bench.graphs import PATTERNS, Measured, burn, chain, task_bench, tree, wide
from dagsched.bench.inline import InlineCluster
from dagsched.bench.measuring import Answer, BenchError, Spread, alternated, check_value, ratios
from dagsched.bench.metg import Point, crossing, long_answer, metg_answer
from dagsched.graph import TaskGraph, build_graph
from tests.checkout import ROOT


def serial_value(made: Measured) -> Any:
    """The value of a graph without containers among its arguments."""
    graph = build_graph(made[0])
    values: list[Any] = []
    for number, entry in enumerate(graph.entries):
        inputs = [values[other] for other in graph.dependencies(number)]
        function = graph.functions[graph.function_of[number]]
        if entry is None:
            values.append(function(*inputs))
        elif isinstance(entry, tuple):
            values.append(function(*entry))
        else:
            args = list(entry[0])
            for place, index in entry[1]:
                args[place] = inputs[index]
            values.append(function(*args))
    return graph.resolve_outputs([values[output] for output in graph.outputs])


@pytest.mark.parametrize(
    ("make", "task_count"),
    [
        (lambda: wide(7), 8),
        (lambda: chain(9), 9),
        (lambda: tree(16), 31),
        *((lambda name=name: task_bench(name, 8, 5, 0.0), 41) for name in PATTERNS),
    ],
)
def test_graphs_have_the_value_and_the_size_they_promise(
    make: Callable[[], Measured], task_count: int
) -> None:
    made = make()
    assert serial_value(made) == made[1]
    assert build_graph(made[0]).task_count == task_count


def needs(pattern: str, step: int) -> list[list[int]]:
    return [list(PATTERNS[pattern](step, at, 8)) for at in range(8)]


def test_patterns_are_those_of_task_bench() -> None:
    assert needs("stencil", 1)[:2] == [[0, 1], [0, 1, 2]]
    assert needs("stencil", 9)[7] == [6, 7]
    assert needs("nearest", 1)[0] == [0, 1, 2]
    assert needs("nearest", 1)[4] == [2, 3, 4, 5, 6]
    assert [needs("fft", step)[0] for step in (1, 2, 3, 4)] == [[0, 1], [0, 2], [0, 4], [0, 1]]
    rows = [needs("random", step) for step in range(4)]
    assert rows[0] == rows[3] != rows[1]
    for step in range(3):
        for at, chosen in enumerate(rows[step]):
            assert at in chosen
            assert set(chosen) <= set(needs("nearest", step)[at])


def test_burning_takes_cpu_time_of_its_thread() -> None:
    import time

    before_s = time.thread_time()
    assert burn(0.01, 3, 5, 4) == 6
    assert time.thread_time() - before_s >= 0.01
    assert burn(0.0) == 1


def test_a_spread_is_median_least_and_most() -> None:
    assert Spread.of([5.0, 1.0, 2.0]) == Spread(2.0, 1.0, 5.0)
    assert Spread(2.0, 1.0, 5.0).scaled(10) == Spread(20.0, 10.0, 50.0)
    assert ratios([4.0, 9.0], [2.0, 3.0]) == Spread(2.5, 2.0, 3.0)


def test_measures_take_turns_and_keep_their_order() -> None:
    asked = []

    def measure(name: str) -> Callable[[], float]:
        return lambda: float(len(asked)) if not asked.append(name) else 0.0

    taken = alternated(3, measure("a"), measure("b"))
    assert asked == ["b", "a", "a", "b", "b", "a"]
    assert taken == [[2.0, 3.0, 6.0], [1.0, 4.0, 5.0]]


@pytest.mark.parametrize(
    ("target", "at_least", "is_met"),
    [(None, False, None), (4.0, False, True), (3.9, False, False), (4.0, True, True),
     (4.1, True, False)],
)  # fmt: skip
def test_a_target_is_an_upper_or_a_lower_bound_of_the_median(target, at_least, is_met) -> None:
    answer = Answer("q", Spread(4.0, 1.0, 9.0), "us", target, at_least)
    assert answer.is_met is is_met


def test_a_ratio_is_to_what_was_measured_beside_it() -> None:
    one = Spread(4.0, 4.0, 4.0)
    assert Answer("q", one, "us").ratio is None
    assert Answer("q", one, "us", beside="loop", beside_value=Spread(0.5, 0.4, 0.6)).ratio == 8.0
    assert Answer("q", one, "us", beside="nothing", beside_value=Spread(0, 0, 0)).ratio is None


def test_a_wrong_value_is_an_error_that_shows_it() -> None:
    check_value(3, 3)
    with pytest.raises(BenchError, match="a graph gave 4 instead of 3"):
        check_value(4, 3)


def test_metg_is_exact_where_a_task_costs_a_constant_time() -> None:
    points = [(g * 1e-6, g / (g + 21.0)) for g in (2, 8, 32, 128)]
    assert crossing(points) == pytest.approx(21e-6)
    assert crossing(points, 0.8) == pytest.approx(84e-6)


@pytest.mark.parametrize("points", [[], [(1.0, 0.5), (2.0, 0.9)], [(1.0, 0.1), (2.0, 0.49)]])
def test_metg_outside_of_what_was_measured_is_not_made_up(points) -> None:
    assert crossing(points) is None


def test_answers_of_a_sweep() -> None:
    def points(cost_us: float) -> list[Point]:
        return [
            Point(g * 1e-6, g / (g + cost_us), g / (g + cost_us / 2)) for g in (2, 50, 200, 1_000)
        ]

    swept = [points(10.0), points(20.0), points(5_000.0)]
    smallest = metg_answer("fft", swept)
    assert smallest.measured == pytest.approx((20.0, 10.0, 1_000.0))
    assert smallest.beside_value == pytest.approx((10.0, 5.0, 1_000.0))
    assert smallest.note == "1 of 3 rounds beyond the grains measured"
    assert (smallest.bound, smallest.ratio) == ("", pytest.approx(2.0))
    long = long_answer("fft", swept[:1])
    assert long.measured.median == pytest.approx(100 / 1.01)
    assert long.is_met is True


@pytest.mark.parametrize(("cost_us", "bound", "median"), [(1.0, "<", 2.0), (5e3, ">", 1_000.0)])
def test_metg_of_mostly_unknown_rounds_is_told_as_a_bound(cost_us, bound, median) -> None:
    points = [Point(g * 1e-6, g / (g + cost_us), 0.5) for g in (2, 50, 1_000)]
    answer = metg_answer("fft", [points] * 3)
    assert (answer.bound, answer.ratio) == (bound, None)
    assert answer.measured.median == pytest.approx(median)
    assert display.answer_cells(answer)[1] == f"{bound} {display.figure(median)} us"


def test_where_no_cpu_time_is_told_an_answer_has_none() -> None:
    swept = [[Point(0.001, 0.9, None), Point(0.000_001, 0.1, None)]]
    for answer in (metg_answer("fft", swept), long_answer("fft", swept)):
        assert (answer.beside, answer.beside_value, answer.ratio) == ("", None, None)


def test_every_second_step_of_the_array_chain_has_a_task_beside_it() -> None:
    dag, steps, expected = arrays.alternating_chain(4, 1)
    graph: TaskGraph = build_graph(dag)
    assert (len(steps), expected) == (5, 5.0)
    assert sum(graph.name(task) == "take_place" for task in range(graph.task_count)) == 2
    keys = graph.keys()
    assert all(step.key in keys for step in steps)


def test_a_run_in_one_thread_books_every_stage() -> None:
    with InlineCluster() as cluster:
        for make in (lambda: wide(300), lambda: chain(300), lambda: tree(128)):
            told = cluster.run(make()).per_task_us()
            assert sorted(told) == sorted(
                ["walk", "cut", "encode", "master", "broker", "decode", "call", "reply"]
            )
            # What is left of planning without the cut is a difference of two measurements.
            assert told.pop("encode") + told["cut"] > 0
            assert all(us > 0 for us in told.values())


def test_a_run_in_one_thread_notices_a_wrong_value() -> None:
    with InlineCluster() as cluster, pytest.raises(BenchError, match="instead of 4"):
        cluster.run((wide(3)[0], 4))


def test_figures_have_three_digits_that_say_something() -> None:
    assert [display.figure(x) for x in (0.0412, 3.851, 41.26, 2163.4)] == [
        "0.041", "3.85", "41.3", "2163",
    ]  # fmt: skip


ANSWERS = [
    Answer("wide", Spread(6.0, 5.5, 7.0), "us a task", 5.0, beside="plain loop",
           beside_value=Spread(0.06, 0.06, 0.06), note="a [note]"),
    Answer("chain", Spread(2.0, 1.0, 3.0), "", 3.0, beside="loop: 1"),
    Answer("pool", Spread(2.0, 1.0, 3.0), "ms"),
]  # fmt: skip


def test_answers_as_a_table_for_people() -> None:
    console = Console(width=120, record=True, file=io.StringIO())
    display.show_answers(ANSWERS, console)
    lines = console.export_text().splitlines()
    (wide_row,) = [line for line in lines if "plain loop" in line]
    cells = [cell.strip() for cell in re.split("[│┃]", wide_row)[1:-1]]
    assert cells == [
        "wide", "6.00 us a task", "5.50 .. 7.00", "<= 5, missed", "plain loop: 0.060", "100.0",
    ]  # fmt: skip
    assert "wide: a [note]" in lines
    assert any(line.startswith("1 of 2 targets missed") for line in lines)


def test_answers_as_json_and_markdown() -> None:
    told = json.loads(json.dumps([display.answer_as_dict(answer) for answer in ANSWERS]))
    assert told[0]["measured"] == {"median": 6.0, "least": 5.5, "most": 7.0}
    assert (told[0]["is_met"], told[0]["ratio"]) == (False, pytest.approx(100.0))
    assert (told[2]["target"], told[2]["beside_value"]) == (None, None)
    text = display.markdown(display.HEADINGS, [display.answer_cells(ANSWERS[1])])
    assert text.splitlines()[2] == "| chain | 2.00 times | 1.00 .. 3.00 | <= 3, met | loop: 1 |  |"


def test_stages_need_a_kernel_that_tells_cpu_times(monkeypatch) -> None:
    monkeypatch.setattr(stages, "can_read_cpu", lambda: False)
    with pytest.raises(BenchError, match="the stages can't be told: this kernel has no"):
        stages.measure_stages(10, 1)


def test_cpu_time_of_a_process_that_is_gone_is_none() -> None:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    assert measuring.process_cpu_s(done.pid) == 0.0


@pytest.mark.parametrize(
    ("program", "message"),
    [("raise SystemExit('no {executors}')", "a program with one task failed: no 2"),
     ("while True: pass", "a program with one task was not over after 1 s")],
)  # fmt: skip
def test_a_program_that_fails_or_hangs_is_an_error(program, message, monkeypatch) -> None:
    monkeypatch.setattr(startup, "PROGRAM", program)
    monkeypatch.setattr(startup, "TIMEOUT_S", 1.0)
    with pytest.raises(BenchError, match=message):
        startup.startup_s()


@pytest.mark.parametrize("module", [display, measuring, metg], ids=str)
def test_examples_in_docstrings_are_true(module) -> None:
    found = doctest.testmod(module)
    assert found.attempted > 0
    assert found.failed == 0


def test_the_readme_has_a_place_for_each_table_of_the_report() -> None:
    source = (ROOT / "benchmarks" / "report.py").read_text()
    names = re.findall(r'^    "(\w+)": \(', source, re.MULTILINE)
    text = (ROOT / "benchmarks" / "README.md").read_text()
    assert len(names) >= 8
    for name in names:
        assert len(re.findall(f"<!-- {name} -->\n.*?<!-- /{name} -->", text, re.DOTALL)) == 1, name
