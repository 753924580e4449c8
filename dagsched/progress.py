"""The progress bar of a run, and waiting for a run with one.

Responsible for showing tasks done, rate, failures, time left and what doesn't go as it should on a
terminal; it reads the run's counters and never delays the run.
"""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dagsched.run import Run

SHOWN_AFTER_S = 1.0
"""Without being asked for, a bar comes up for runs longer than this."""

_REFRESH_S = 0.1


def wait_for_run(run: "Run", progress: bool | None) -> None:
    """Wait until `run` is over, with a progress bar if it is wanted.

    Args:
        run: to be waited for.
        progress: True: with a bar; False: without; None: with one on a terminal, if the run takes
            longer than a second.
    """
    if progress is False or (progress is None and not _is_terminal()):
        run.wait(None)
        return
    if progress is None and run.wait(SHOWN_AFTER_S):
        return
    _wait_with_bar(run)


def _is_terminal() -> bool:
    # Under pythonw and in some services there is no standard error at all.
    return sys.stderr is not None and sys.stderr.isatty()


def _wait_with_bar(run: "Run") -> None:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("{task.fields[failures]}"),
        TextColumn("{task.fields[troubles]}", style="yellow"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=10) as bar:
        done, total = run.progress()
        shown = bar.add_task(f"run {run.run_id}", total=total, rate="", failures="", troubles="")
        over = False
        while not over:
            over = run.wait(_REFRESH_S)
            done, total = run.progress()
            elapsed_s = bar.tasks[0].elapsed or 0.0
            rate = f"{done / elapsed_s:,.0f} tasks/s" if elapsed_s > 0 else ""
            failures = f"{run.state}" if over and run.state != "done" else "0 failed"
            bar.update(
                shown,
                completed=done,
                total=total,
                rate=rate,
                failures=failures,
                troubles=run.troubles(),
            )
