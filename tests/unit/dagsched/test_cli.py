"""Arguments, exit codes and messages of the command line; what it runs is replaced."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import dagsched.bench.short
import dagsched.bench.stages
import dagsched.demo.program
from dagsched import cli, hearsay
from dagsched.bench.measuring import Answer, BenchError, Spread
from dagsched.bench.short import BenchOptions
from dagsched.bench.stages import Breakdown, Stage
from dagsched.delayed import delayed
from dagsched.demo.indexing import serial_summary
from dagsched.demo.program import DemoOptions, DemoReport, ExecutorFigure
from dagsched.errors import NoNodesError
from dagsched.graph import build_graph
from dagsched.hearsay import TaskTale
from dagsched.history import History
from dagsched.historyfile import save_history
from dagsched.info import gather_info


def exit_code_of(*args: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(args)
    return stop.value.code


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    (tmp_path / "one.py").write_text("import os\nprint(os.name)\n")
    return tmp_path


@pytest.fixture
def pretended(monkeypatch) -> list[DemoOptions]:
    """The options that the demo was asked for, in place of running it."""
    asked: list[DemoOptions] = []

    def run_demo(options: DemoOptions, say: Callable[[str], None]) -> DemoReport:
        asked.append(options)
        say("running")
        summary = serial_summary(options.sources)
        figures = [ExecutorFigure(3, 2, 2, 0.25)]
        return DemoReport(
            summary, 2, 0.5, 0.5, 1.0, True, 2, figures, [Path("demo-out/schedule.svg")]
        )

    monkeypatch.setattr(dagsched.demo.program, "run_demo", run_demo)
    return asked


def test_no_command_shows_the_help_and_is_wrong_usage(capsys) -> None:
    assert exit_code_of() == 2
    assert "Usage: dagsched" in capsys.readouterr().err


@pytest.mark.parametrize(
    "args",
    [
        ["--help"],
        ["demo", "--help"],
        ["info", "-h"],
        ["bench", "-h"],
        ["explain", "-h"],
        ["viz", "-h"],
        ["story", "--help"],
    ],
)
def test_help_is_everywhere(args, capsys) -> None:
    assert exit_code_of(*args) == 0
    assert capsys.readouterr().out.startswith("Usage: dagsched")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["nothing"], "No such command 'nothing'"),
        (["demo", "--nodes", "0"], "0 is not in the range"),
        (["demo", "--executors-per-node", "x"], "not a valid integer"),
        (["info", "--wrong"], "No such option"),
        (["bench", "--rounds", "0"], "0 is not in the range"),
        (["bench", "stages"], "unexpected extra argument"),
        (["explain", "5f0c2a91-1"], "Missing argument 'KEY'"),
        (["story"], "Missing argument 'RUN'"),
        (["explain", "5f0c2a91-1", "f-1", "--rootpath", "D"], "rootpath 'D' is not valid"),
    ],
)
def test_wrong_usage_is_2_and_says_what(args, message, capsys) -> None:
    assert exit_code_of(*args) == 2
    assert message in capsys.readouterr().err


def test_version_is_told(capsys) -> None:
    assert exit_code_of("--version") == 0
    assert capsys.readouterr().out.startswith("dagsched, version ")


def test_info_tells_this_machine(capsys) -> None:
    assert exit_code_of("info") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("dagsched        ")
    assert lines[1].endswith(f"({sys.executable})")


def test_info_as_json_is_what_was_gathered(capsys) -> None:
    assert exit_code_of("info", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    gathered = gather_info()
    assert told["packages"] == gathered["packages"]
    assert told["cpus"] == gathered["cpus"]
    assert told["packages"]["numpy"] is not None


def test_demo_of_no_directory_is_wrong_usage(tmp_path: Path, capsys) -> None:
    assert exit_code_of("demo", str(tmp_path / "absent")) == 2
    assert "absent is not a directory" in capsys.readouterr().err


def test_demo_of_a_directory_without_sources_is_wrong_usage(tmp_path: Path, capsys) -> None:
    assert exit_code_of("demo", str(tmp_path)) == 2
    assert "has no Python files (*.py) to index" in capsys.readouterr().err


def test_demo_passes_its_options_and_prints_its_report(sources, pretended, capsys) -> None:
    code = exit_code_of(
        "demo", str(sources), "--nodes", "3", "--executors-per-node", "1", "-o", str(sources / "o")
    )
    assert code == 0
    assert pretended == [
        DemoOptions([str(sources / "one.py")], 3, 1, sources / "o", True, has_progress=False)
    ]
    out = capsys.readouterr().out
    assert out.startswith(f"1 Python files below {sources}\nrunning\n")
    assert "2 tasks on 1 executor in 0.50 s (and 0.50 s to start the cluster)" in out
    assert "executor 3 of node 2: 2 tasks, busy 0.25 s (50%)" in out
    assert "serial: 1.00 s; speed-up 2.00 (with 2 CPUs at most 1)" in out
    assert "the result equals that of the serial run" in out
    assert out.splitlines()[-1] == "schedule: demo-out/schedule.svg"


def test_demo_as_json_prints_nothing_else(sources, pretended, capsys) -> None:
    assert exit_code_of("demo", str(sources), "--json", "--no-check") == 0
    assert pretended[0].has_check is False
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert told["speed_up"] == 2.0
    assert told["summary"]["modules"] == [["os", 1]]
    assert captured.err == ""


def test_a_wrong_result_is_1(sources, monkeypatch, capsys) -> None:
    def run_demo(options: DemoOptions, say: Callable[[str], None]) -> DemoReport:
        return DemoReport(serial_summary(options.sources), 2, 0.5, 0.5, 1.0, False, 2, [], [])

    monkeypatch.setattr(dagsched.demo.program, "run_demo", run_demo)
    assert exit_code_of("demo", str(sources)) == 1
    assert "the result DIFFERS from that of the serial run" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (NoNodesError("no node joined"), "dagsched: NoNodesError: no node joined\n"),
        (PermissionError(13, "denied", "x"), "dagsched: PermissionError: [Errno 13] denied: 'x'\n"),
        (KeyboardInterrupt(), "\nstopped\n"),
    ],
)
def test_errors_are_1_and_a_line_without_traceback(
    error, message, sources, monkeypatch, capsys
) -> None:
    def run_demo(options: DemoOptions, say: Callable[[str], None]) -> DemoReport:
        raise error

    monkeypatch.setattr(dagsched.demo.program, "run_demo", run_demo)
    assert exit_code_of("demo", str(sources)) == 1
    error_text = capsys.readouterr().err
    assert error_text == message


def test_the_package_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dagsched", "--version"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("dagsched, version ")


@pytest.mark.parametrize("command", ["explain", "story"])
@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("seven", "'seven' is no id of a run"),
        ("00000000-7", "nothing is left of the environment of run 00000000-7"),
    ],
)
def test_unknown_runs_are_errors_without_a_traceback(command, run, message, capsys) -> None:
    assert exit_code_of(command, run, "f-1") == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("dagsched: ")
    assert message in said.err


def test_what_the_journal_tells_is_printed_as_text_lines_or_json(capsys, monkeypatch) -> None:
    tale = TaskTale("5f0c2a91-1", "f-1", "placed", 2, 0, "f-1 was placed.", ["submitted", "placed"])
    asked = []

    def found(*args):
        asked.append(args)
        return "known"

    monkeypatch.setattr(hearsay, "find_journalled", found)
    monkeypatch.setattr(hearsay, "tell", lambda known, key: tale)
    url = "redis://localhost:1/0"
    options = ("--metastore", url, "--rootpath", "/E")
    assert exit_code_of("explain", "5f0c2a91-1", "f-1", *options) == 0
    assert capsys.readouterr().out == "f-1 was placed.\n"
    run, _, rootpath, metastore = asked[0]
    assert (run, rootpath, metastore) == ("5f0c2a91-1", "/E", url)
    assert exit_code_of("story", "5f0c2a91-1", "f-1") == 0
    assert capsys.readouterr().out == "submitted\nplaced\n"
    assert exit_code_of("story", "5f0c2a91-1", "f-1", "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "run": "5f0c2a91-1", "key": "f-1", "state": "placed", "node": 2, "subtree": 0,
        "text": "f-1 was placed.", "story": ["submitted", "placed"],
    }  # fmt: skip


@pytest.fixture
def benched(monkeypatch) -> list[object]:
    """What the suite was asked for, in place of measuring."""
    asked: list[object] = []
    one = Spread(6.0, 5.0, 7.0)

    def ask_all(options: BenchOptions, say: Callable[[str], None]) -> list[Answer]:
        asked.append(options)
        say("Tasks that do nothing")
        return [Answer("wide, 100,000", one, "us a task", 5.0)]

    def measure_stages(*, rounds: int) -> Breakdown:
        asked.append(rounds)
        lines = [Stage("client", one, 2.0, "all"), Stage("walk", one, None, "some", 1, "inline")]
        return Breakdown("wide", 10, rounds, lines, one, one)

    monkeypatch.setattr(dagsched.bench.short, "ask_all", ask_all)
    monkeypatch.setattr(dagsched.bench.stages, "measure_stages", measure_stages)
    return asked


def test_bench_prints_its_answers_and_a_missed_target_is_no_failure(benched, capsys) -> None:
    assert exit_code_of("bench", "--rounds", "4", "--no-arrays") == 0
    assert benched == [BenchOptions(4, has_arrays=False)]
    out = capsys.readouterr().out
    assert out.startswith("Tasks that do nothing\n")
    assert "wide, 100,000" in out
    assert "1 of 1 targets missed" in out


def test_bench_as_json_prints_nothing_else(benched, capsys) -> None:
    assert exit_code_of("bench", "--json") == 0
    assert benched == [BenchOptions(3, has_arrays=True)]
    captured = capsys.readouterr()
    told = json.loads(captured.out)
    assert captured.err == ""
    assert told["machine"]["cpus"] == gather_info()["cpus"]["usable"]
    (answer,) = told["answers"]
    assert answer["measured"] == {"median": 6.0, "least": 5.0, "most": 7.0}
    assert answer["is_met"] is False


def test_bench_prints_stages_or_tells_them_as_json(benched, capsys) -> None:
    assert exit_code_of("bench", "--stages") == 0
    out = capsys.readouterr().out
    assert out.startswith("100,000 tasks that do nothing, 3 times")
    assert "the run itself: 6.00 (5.00 .. 7.00) us a task" in out
    assert exit_code_of("bench", "--stages", "--rounds", "2", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert benched == [3, 2]
    assert [(stage["name"], stage["depth"]) for stage in told["stages"]] == [
        ("client", 0), ("walk", 1),
    ]  # fmt: skip
    assert told["stages"][0]["us"]["median"] == 6.0


def test_a_measurement_that_means_nothing_is_1_and_a_line(monkeypatch, capsys) -> None:
    def ask_all(options: BenchOptions, say: Callable[[str], None]) -> list[Answer]:
        raise BenchError("a graph gave 4 instead of 3")

    monkeypatch.setattr(dagsched.bench.short, "ask_all", ask_all)
    assert exit_code_of("bench", "--json") == 1
    captured = capsys.readouterr()
    assert captured.err == "dagsched: BenchError: a graph gave 4 instead of 3\n"
    assert captured.out == ""


def test_nothing_of_the_suite_is_imported_before_it_is_asked_for() -> None:
    probe = "import sys, dagsched.cli; print([m for m in sys.modules if 'dagsched.bench' in m])"
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "[]\n"


@pytest.fixture
def saved(tmp_path: Path) -> str:
    graph = build_graph(delayed(abs)(delayed(abs)(-1)))
    return str(save_history(History.of_graph(graph), tmp_path / "x.dagsched"))


def test_viz_draws_what_was_saved_and_prints_its_summary(
    saved: str, tmp_path: Path, capsys
) -> None:
    assert exit_code_of("viz", saved, "-o", str(tmp_path / "x.svg"), "--title", "mine") == 0
    assert "<title>mine</title>" in (tmp_path / "x.svg").read_text()
    assert capsys.readouterr().out == ""
    assert exit_code_of("viz", saved) == 0
    assert "2 tasks, 1 edge" in capsys.readouterr().out
    assert exit_code_of("viz", saved, "--json") == 0
    assert json.loads(capsys.readouterr().out)["task_count"] == 2


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["-o", "x.pdf"], 2, "pictures are written as .svg, .png"),
        (["-o", "x.dot", "--kind", "gantt"], 2, "'gantt' are written as .html, .svg, .png"),
        (["-o", "x.html", "--kind", "gantt"], 2, "this graph was not run"),
        (["--kind", "gantt"], 2, "needs -o PICTURE"),
        (["-o", "absent/x.svg"], 1, "the picture can't be written"),
    ],
)
def test_viz_says_what_is_wrong(
    saved: str, options: list[str], code: int, words: str, capsys
) -> None:
    assert exit_code_of("viz", saved, *options) == code
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", ["runs", "resume RUN", "explain RUN f-1", "story RUN f-1", "viz RUN"]
)
@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("foo://u:secret@h", "'foo://***@h' is not valid: it is None"),
        ("redis://u:secret@h:x/0", "'redis://***@h:x/0' is not valid: Port could not be cast"),
    ],
)
def test_what_is_no_url_of_a_store_is_wrong_usage(
    command: str, url: str, words: str, capsys
) -> None:
    assert exit_code_of(*command.replace("RUN", "cafe0123-1").split(), "--metastore", url) == 2
    told = capsys.readouterr().err
    assert words in told
    assert "secret" not in told


def test_viz_without_its_file_or_of_another_kind_says_so(tmp_path: Path, capsys) -> None:
    assert exit_code_of("viz", str(tmp_path / "x")) == 1
    assert "run.save(path) writes one" in capsys.readouterr().err
    (tmp_path / "x").write_text("no")
    assert exit_code_of("viz", str(tmp_path / "x")) == 1
    assert "is no run saved by dagsched" in capsys.readouterr().err


def test_viz_of_a_run_draws_the_graph_of_its_journal(monkeypatch, tmp_path: Path, capsys) -> None:
    graph = build_graph(delayed(abs)(delayed(abs)(-1)))
    known = hearsay.Journalled("5f0c2a91-1", [], graph, None, None, "")
    monkeypatch.setattr(hearsay, "find_journalled", lambda *_: known)
    assert exit_code_of("viz", "5f0c2a91-1", "-o", str(tmp_path / "x.svg")) == 0
    assert "<title>graph of run 5f0c2a91-1</title>" in (tmp_path / "x.svg").read_text()
    assert exit_code_of("viz", "5f0c2a91-1", "-o", "x.svg", "--kind", "gantt") == 2
    assert "has no times to draw a gantt of: have its client" in capsys.readouterr().err
