"""The command line: `dagsched demo`, `info`, `bench`, `runs`, `resume`, `dashboard`, `top`, ..

Responsible for arguments, exit codes and error messages; what the commands do stands elsewhere.
Exit codes: 0 success, 1 the run failed or its result is wrong, 2 wrong usage.
"""

import json
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from dagsched._version import __version__
from dagsched.errors import DagschedError

if TYPE_CHECKING:
    from dagsched.hearsay import TaskTale
    from dagsched.history import History
    from dagsched.listing import ListedRun

FAILED, USAGE = 1, 2

# The control character keeps click from filling the paragraph that follows it.
_HELP = """Run graphs of tasks on all cores and nodes.

\b
In Python:
    from dagsched import delayed, RunEnv, rundag
    with RunEnv() as env:
        print(rundag(env, delayed(sum)([1, 2, 3])))
"""


def _store_option(words: str) -> "Callable[[Callable[..., None]], Callable[..., None]]":
    """--metastore, whose URL is looked at before anything is done."""

    def check(_context: click.Context, _parameter: click.Parameter, url: str | None) -> str | None:
        from dagsched.metastore.opening import check_url

        try:
            if url is not None:
                check_url(url)
        except ValueError as error:
            raise click.UsageError(str(error)) from None
        return url

    return click.option("--metastore", metavar="URL", help=words, callback=check)


@click.group(context_settings={"help_option_names": ["-h", "--help"]}, help=_HELP)
@click.version_option(__version__, prog_name="dagsched")
def commands() -> None:
    """Group of all commands."""


@commands.command()
@click.argument("directory", required=False, type=click.Path(path_type=Path))
@click.option(
    "--nodes", type=click.IntRange(1, 64), default=2, show_default=True, help="Nodes to start."
)
@click.option(
    "--executors-per-node",
    type=click.IntRange(1, 256),
    default=2,
    show_default=True,
    help="Processes of each node that run tasks.",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("demo-out"),
    show_default=True,
    help="Directory of the pictures; made if it isn't there.",
)
@click.option("--no-check", is_flag=True, help="Leave out the serial run that checks the result.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def demo(
    directory: Path | None,
    nodes: int,
    executors_per_node: int,
    output: Path,
    no_check: bool,
    as_json: bool,
) -> None:
    """Index the Python files below DIRECTORY on a small cluster of this machine.

    Every file is a task that counts identifiers and imports; a tree of further tasks merges the
    counts. Prints the most used, the times, and the speed-up over a serial run whose result must
    be the same (exit code 1 if it isn't). The schedule is drawn as OUTPUT/schedule.svg and .png:
    one border colour a node, the darker the earlier.

    DIRECTORY is by default the standard library of this Python.
    """
    from rich.console import Console

    from dagsched.demo.display import report_as_dict, show_report
    from dagsched.demo.program import (
        DemoError,
        DemoOptions,
        default_directory,
        demo_sources,
        run_demo,
    )

    root = directory or Path(default_directory())
    try:
        sources = demo_sources(root)
    except DemoError as error:
        raise click.UsageError(str(error)) from None
    console = Console(highlight=False)

    def say(sentence: str) -> None:
        if not as_json:
            console.print(sentence, soft_wrap=True)

    options = DemoOptions(
        sources,
        nodes,
        executors_per_node,
        output,
        has_check=not no_check,
        has_progress=not as_json and sys.stderr.isatty(),
    )
    say(f"{len(sources):,} Python files below {root}")
    report = run_demo(options, say)
    if as_json:
        click.echo(json.dumps(report_as_dict(report)))
    else:
        show_report(report, console)
    if report.is_equal is False:
        raise click.exceptions.Exit(FAILED)


@commands.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def info(as_json: bool) -> None:
    """Tell versions, CPUs, shared memory, limits and the store's server of this machine."""
    from dagsched.info import gather_info, info_lines

    gathered: dict[str, Any] = gather_info()
    if as_json:
        click.echo(json.dumps(gathered))
    else:
        for line in info_lines(gathered):
            click.echo(line)


@commands.command()
@click.option("--stages", is_flag=True, help="Tell the CPU time of each stage of a task instead.")
@click.option(
    "--rounds",
    type=click.IntRange(1, 100),
    default=3,
    show_default=True,
    help="Measures of each figure, of which the median is told.",
)
@click.option("--no-arrays", is_flag=True, help="Leave out arrays, which take some memory.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def bench(stages: bool, rounds: int, no_arrays: bool, as_json: bool) -> None:
    """Measure what a task costs on this machine, beside targets and plain loops; a minute.

    Two executors, the embedded store. --stages runs 100,000 tasks that do nothing and tells how
    many microseconds of CPU a task each stage takes, from the walk over the graph to the journal.

    Figures of time suffer from whatever else the machine does: the ratios to what was measured in
    the same run suffer less, those of CPU time least. A target that isn't met is told, and is no
    failure; a wrong value is one (exit code 1).
    """
    from rich.console import Console

    from dagsched.bench import display
    from dagsched.bench.measuring import machine

    # A file or a pipe has no width: lines need no folding there.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)

    def say(sentence: str) -> None:
        if not as_json:
            console.print(sentence, soft_wrap=True)

    if stages:
        from dagsched.bench.stages import TASKS, measure_stages

        say(f"{TASKS:,} tasks that do nothing, {rounds} times on two executors and in one process")
        breakdown = measure_stages(rounds=rounds)
        if as_json:
            told = display.breakdown_as_dict(breakdown)
            click.echo(json.dumps({"machine": machine(), **told}))
        else:
            display.show_breakdown(breakdown, console)
        return
    from dagsched.bench.short import BenchOptions, ask_all

    answers = ask_all(BenchOptions(rounds, has_arrays=not no_arrays), say)
    if as_json:
        told = {"answers": [display.answer_as_dict(answer) for answer in answers]}
        click.echo(json.dumps({"machine": machine(), **told}))
    else:
        display.show_answers(answers, console)


@commands.command()
@_store_option("Look into this store as well.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
def runs(metastore: str | None, as_json: bool) -> None:
    """List runs: of clients that live, of those that died, and what is left of finished ones."""
    from dagsched.config import Config
    from dagsched.listing import list_runs

    found, problems = list_runs(metastore, Config())
    if as_json:
        click.echo(json.dumps([run._asdict() for run in found]))
    else:
        _show_runs(found)
    for problem in problems:
        click.echo(f"dagsched: {problem}", err=True)


def _show_runs(found: "Sequence[ListedRun]") -> None:
    """A line a run; nothing is cut, so that scripts and eyes see the same."""

    def clock(wall_s: float | None) -> str:
        return "" if wall_s is None else time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(wall_s))

    rows = [("run", "state", "tasks", "started", "where", "resumable until")]
    for run in found:
        tasks = f"{run.done}/{run.total}" if run.total else ""
        times = clock(run.started_wall_s), clock(run.until_wall_s)
        rows.append((run.run, run.state, tasks, times[0], run.where, times[1]))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


@commands.command()
@click.argument("run_id", metavar="RUN")
@click.option(
    "--executors",
    type=click.IntRange(1, 256),
    help="Processes of this machine that go on with the run.  [default: one a CPU]",
)
@_store_option("Store of the run, if its directory has gone.")
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File for the result, as a pickle.",
)
@click.option("--progress", is_flag=True, help="Show a progress bar.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else.")
def resume(
    run_id: str,
    executors: int | None,
    metastore: str | None,
    output: Path | None,
    progress: bool,
    as_json: bool,
) -> None:
    """Continue RUN, whose client has died, to its end, and print its result.

    Nothing is computed again whose value still lives. Exit code 1 if the run fails, or can't be
    continued; `dagsched runs` lists what can.
    """
    from dagsched.resumption import ResumeOptions, resume_to_end

    report = resume_to_end(ResumeOptions(run_id, executors, metastore, output, progress))
    if as_json:
        click.echo(json.dumps(report._asdict()))
    elif report.error is None:
        click.echo(report.result)
    if report.error is not None:
        click.echo(f"dagsched: run {run_id}: {report.error}", err=True)
        raise click.exceptions.Exit(FAILED)


@commands.command()
@click.argument("environment", metavar="[ENV]", required=False)
@click.option("--open", "opens", is_flag=True, help="Open it in a browser, too.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def dashboard(environment: str | None, opens: bool, as_json: bool) -> None:
    """Open the live page of a program that runs, and print its URL.

    ENV is the token of an environment or the process that has it open; needed if there are
    several. The page is served by that process, to this machine only and to whoever has the whole
    URL. Exit code 1 if there is no such environment, or it can't open a page.
    """
    from dagsched.viz.live.attaching import find_environment, page_url

    found = find_environment(environment)
    url = page_url(found)
    if as_json:
        click.echo(json.dumps({"environment": found.token, "pid": found.pid, "url": url}))
    else:
        click.echo(url)
    if opens:
        import webbrowser

        webbrowser.open(url)


@commands.command()
@click.argument("environment", metavar="[ENV]", required=False)
@click.option("--once", is_flag=True, help="Print one picture and end.")
@click.option("--json", "as_json", is_flag=True, help="Print one snapshot as JSON and end.")
@click.option(
    "--interval",
    type=click.FloatRange(0.5, 3600.0),
    default=1.0,
    show_default=True,
    help="Seconds from one picture to the next.",
)
def top(environment: str | None, once: bool, as_json: bool, interval: float) -> None:
    """Show in the terminal what a program that runs does: runs, nodes, functions, failures.

    ENV is the token of an environment or the process that has it open; needed if there are
    several. Ends with the environment, or by Ctrl-C. Exit code 1 if there is no such environment.
    """
    from rich.console import Console

    from dagsched.viz.live.attaching import Reader, find_environment, page_url
    from dagsched.viz.live.top import show_on, show_once

    read = Reader(page_url(find_environment(environment))).snapshot
    if as_json:
        click.echo(json.dumps(read()))
        return
    # A file or a pipe has no width: lines need no folding there.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    if once:
        show_once(read, console)
    else:
        show_on(read, console, interval)


def _of_a_task(command: "Callable[..., None]") -> "Callable[..., None]":
    """The arguments of commands that look into the journal of a run."""
    for decorate in (
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
        click.option("--rootpath", default="/D", show_default=True, help="Of the environment."),
        _store_option("Store, if the run's directory has gone."),
        click.argument("key"),
        click.argument("run_id", metavar="RUN"),
    ):
        command = decorate(command)
    return command


@commands.command()
@_of_a_task
def explain(run_id: str, key: str, metastore: str | None, rootpath: str, as_json: bool) -> None:
    """Tell why the task KEY of RUN is where it is.

    The run may be of any client of yours, alive or not; what is known is what its journal has,
    which is a record a subtree: the run's own client knows more (run.explain). KEY is that of a
    Delayed, as in messages; `dagsched runs` lists runs. Exit code 1 if there is no such run, or no
    such task in it.
    """
    tale = _tale(run_id, key, metastore, rootpath)
    click.echo(json.dumps(tale.as_dict()) if as_json else tale.text)


@commands.command()
@_of_a_task
def story(run_id: str, key: str, metastore: str | None, rootpath: str, as_json: bool) -> None:
    """Tell what happened to the task KEY of RUN, in order, as far as the run's journal knows.

    A journal has no times, and a record a subtree: the run's own client knows more (run.story).
    Exit code 1 if there is no such run or task.
    """
    tale = _tale(run_id, key, metastore, rootpath)
    if as_json:
        click.echo(json.dumps(tale.as_dict()))
    else:
        for line in tale.story:
            click.echo(line)


def _tale(run_id: str, key: str, metastore: str | None, rootpath: str) -> "TaskTale":
    from dagsched.config import Config
    from dagsched.hearsay import find_journalled, tell
    from dagsched.rundir import check_rootpath

    try:
        check_rootpath(rootpath)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    return tell(find_journalled(run_id, Config(), rootpath, metastore), key)


@commands.command()
@click.argument("run", metavar="FILE|RUN")
@click.option(
    "-o",
    "--output",
    metavar="PICTURE",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to draw; without it the summary is printed.",
)
@click.option(
    "--kind",
    type=click.Choice(["dag", "gantt", "trace", "summary"]),
    help="Of picture.  [default: the first of these that PICTURE's suffix belongs to]",
)
@click.option("--title", help="Stands at the top.  [default: the run's id]")
@_store_option("Store of RUN, if its directory has gone.")
@click.option("--rootpath", default="/D", show_default=True, help="Of RUN's environment.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
def viz(
    run: str,
    output: Path | None,
    kind: str | None,
    title: str | None,
    metastore: str | None,
    rootpath: str,
    as_json: bool,
) -> None:
    r"""Draw a run that was saved in a FILE (run.save), or the graph of a RUN that has a journal.

    \b
    dag      .svg .png .html .dot .json   the graph: where and in what order it was executed
    gantt    .html .svg .png              a lane an executor; the .html zooms to any task
    trace    .json .json.gz               for ui.perfetto.dev and chrome://tracing
    summary  .html .txt .json             critical path, parallelism, time, idle, bytes, memory

    A journal has no times, so that of a RUN there is no gantt and no trace. Exit code 1 if there
    is no such file or run, or the picture can't be written.
    """
    from dagsched.viz import visualize
    from dagsched.viz.drawing import kind_of
    from dagsched.viz.report import json_report

    history, words = _history(run, metastore, rootpath)
    if words is not None and kind in ("gantt", "trace"):
        raise click.UsageError(
            f"the journal of run {run} has no times to draw a {kind} of: have its client call "
            "run.save(path), and draw that file"
        )
    try:
        if output is not None:
            visualize(history, output, kind or kind_of(output), title=title or words)
            return
        if kind not in (None, "summary"):
            raise click.UsageError(f"a picture of kind {kind!r} needs -o PICTURE")
        summary = visualize(history, kind="summary", title=title or words)
    except ValueError as error:
        raise click.UsageError(str(error)) from None
    except ImportError as error:
        raise click.ClickException(str(error)) from None
    if as_json:
        click.echo(json_report(summary.summary, summary.title))
    else:
        click.echo(summary.text, nl=False)


def _history(run: str, metastore: str | None, rootpath: str) -> "tuple[History, str | None]":
    """What a file or a journal has, and what to call the latter."""
    from dagsched.viz import load

    if Path(run).is_file():
        return load(run), None
    if re.fullmatch("[0-9a-f]{8}-[0-9]+", run) is None:
        raise FileNotFoundError(f"there is no file {run}; run.save(path) writes one")
    from dagsched.config import Config
    from dagsched.hearsay import find_journalled
    from dagsched.history import History

    found = find_journalled(run, Config(), rootpath, metastore)
    return History.of_graph(found.graph), f"graph of run {run}"


def main(args: Sequence[str] | None = None) -> None:
    """Run the command line and exit with its code.

    Args:
        args: without the program's name; None: those of this process.
    """
    try:
        # Without its standalone mode click returns the code of Exit, and else what the command did.
        code = commands.main(args, prog_name="dagsched", standalone_mode=False)
    except click.UsageError as error:
        error.show()
        sys.exit(USAGE)
    except click.ClickException as error:
        error.show()
        sys.exit(FAILED)
    except (KeyboardInterrupt, click.Abort):
        click.echo("stopped", err=True)
        sys.exit(FAILED)
    except (DagschedError, OSError) as error:
        # Some errors are only of a kind that says nothing beside their text.
        kind = "" if type(error) is DagschedError else f"{type(error).__name__}: "
        click.echo(f"dagsched: {kind}{error}", err=True)
        sys.exit(FAILED)
    sys.exit(code or 0)
