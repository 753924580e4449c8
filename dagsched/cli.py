"""The command line: `dagsched demo`, `dagsched info`.

Responsible for arguments, exit codes and error messages; what the commands do stands elsewhere.
Exit codes: 0 success, 1 the run failed or its result is wrong, 2 wrong usage.
"""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from dagsched._version import __version__
from dagsched.errors import DagschedError

FAILED, USAGE = 1, 2

# The control character keeps click from filling the paragraph that follows it.
_HELP = """Run graphs of tasks on all cores and nodes.

\b
In Python:
    from dagsched import delayed, RunEnv, rundag
    with RunEnv() as env:
        print(rundag(env, delayed(sum)([1, 2, 3])))
"""


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
        click.echo(f"dagsched: {type(error).__name__}: {error}", err=True)
        sys.exit(FAILED)
    sys.exit(code or 0)
