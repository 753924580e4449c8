"""The demo's report for people (tables) and for programs (JSON)."""

from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.table import Table

from dagsched.demo.program import DemoReport

SKIPPED_SHOWN = 3


def show_report(report: DemoReport, console: Console) -> None:
    """Print what was found, how long it took, and where the pictures are."""
    summary = report.summary
    table = Table(title=f"{summary.use_count:,} uses of {summary.distinct_count:,} identifiers")
    for heading, numeric in (
        ("identifier", False), ("uses", True), ("module", False), ("imported by files", True),
    ):  # fmt: skip
        table.add_column(heading, justify="right" if numeric else "left")
    rows = max(len(summary.identifiers), len(summary.modules))
    for row in range(rows):
        identifier = summary.identifiers[row] if row < len(summary.identifiers) else ("", 0)
        module = summary.modules[row] if row < len(summary.modules) else ("", 0)
        cells = [(name, f"{count:,}" if name else "") for name, count in (identifier, module)]
        table.add_row(*cells[0], *cells[1])
    console.print(table)
    console.print(
        f"{_counted(summary.file_count, 'file')}, {_counted(summary.line_count, 'line')}, "
        f"{summary.size_bytes / 1e6:.1f} MB"
    )
    _show_skipped(report, console)
    _show_times(report, console)
    for path in report.pictures:
        console.print(f"schedule: {path}", soft_wrap=True)


def _show_skipped(report: DemoReport, console: Console) -> None:
    skipped = report.summary.skipped
    if not skipped:
        return
    noun = "file is" if len(skipped) == 1 else "files are"
    console.print(f"{len(skipped):,} {noun} not valid Python and left out:")
    for path, reason in skipped[:SKIPPED_SHOWN]:
        console.print(f"  {path}: {reason}", soft_wrap=True, markup=False)
    if len(skipped) > SKIPPED_SHOWN:
        console.print(f"  and {len(skipped) - SKIPPED_SHOWN:,} more")


def _show_times(report: DemoReport, console: Console) -> None:
    count = len(report.executors)
    work = f"{_counted(report.task_count, 'task')} on {_counted(count, 'executor')}"
    console.print(
        f"{work} in {report.run_s:.2f} s (and {report.start_s:.2f} s to start the cluster)"
    )
    for figure in report.executors:
        console.print(
            f"  executor {figure.id} of node {figure.node}: {_counted(figure.task_count, 'task')}, "
            f"busy {figure.busy_s:.2f} s ({figure.busy_s / report.run_s:.0%})"
        )
    if report.serial_s is None or report.speed_up is None:
        return
    most = min(count, report.cpu_count)
    console.print(
        f"serial: {report.serial_s:.2f} s; speed-up {report.speed_up:.2f} "
        f"(with {_counted(report.cpu_count, 'CPU')} at most {most})"
    )
    console.print(
        "the result equals that of the serial run"
        if report.is_equal
        else "[bold red]the result DIFFERS from that of the serial run[/]"
    )


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def report_as_dict(report: DemoReport) -> dict[str, Any]:
    """The report for a program to read."""
    result = asdict(report)
    result["pictures"] = [str(path) for path in report.pictures]
    result["speed_up"] = report.speed_up
    return result
