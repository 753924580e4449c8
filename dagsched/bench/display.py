"""Answers and breakdowns for people (tables), for programs (JSON) and for README files."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.table import Table

from dagsched.bench.measuring import Answer, Spread, machine_line
from dagsched.bench.stages import Breakdown, Stage


def figure(value: float) -> str:
    """A number with three digits that say something.

    >>> [figure(x) for x in (0.0412, 3.851, 41.26, 2163.4)]
    ['0.041', '3.85', '41.3', '2163']
    """
    if abs(value) >= 1000:
        return f"{value:.0f}"
    if abs(value) >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if abs(value) >= 1 else f"{value:.3f}"


def spread_text(spread: Spread) -> str:
    """Median, least and most."""
    return f"{figure(spread.median)} ({figure(spread.least)} .. {figure(spread.most)})"


def _measured(answer: Answer) -> str:
    bound = f"{answer.bound} " if answer.bound else ""
    return f"{bound}{figure(answer.measured.median)} {answer.unit or 'times'}"


def _range(answer: Answer) -> str:
    return f"{figure(answer.measured.least)} .. {figure(answer.measured.most)}"


def _target(answer: Answer) -> str:
    if answer.target is None:
        return ""
    bound = ">=" if answer.at_least else "<="
    return f"{bound} {answer.target:g}, {'met' if answer.is_met else 'missed'}"


def _beside(answer: Answer) -> str:
    if answer.beside_value is None:
        return answer.beside
    return f"{answer.beside}: {figure(answer.beside_value.median)}"


def _ratio(answer: Answer) -> str:
    return "" if answer.ratio is None else figure(answer.ratio)


HEADINGS = ("question", "median", "least .. most", "target", "in the same run", "ratio")


def answer_cells(answer: Answer) -> list[str]:
    """A row under `HEADINGS`."""
    return [
        answer.question, _measured(answer), _range(answer), _target(answer), _beside(answer),
        _ratio(answer),
    ]  # fmt: skip


NARROW_COLUMNS = 120
"""On a narrower terminal what stages include stands below their table."""

STAGE_HEADINGS = ("stage", "us a task, CPU", "budget", "measured in", "includes")
SOURCES = {"run": "a real run", "inline": "one process", "sum": "a real run"}


def stage_cells(stage: Stage) -> list[str]:
    """A row under `STAGE_HEADINGS`."""
    budget = "" if stage.budget_us is None else f"{stage.budget_us:g}"
    name = "  " * stage.depth + stage.name
    return [name, spread_text(stage.us), budget, SOURCES[stage.source], stage.includes]


def markdown(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for a README."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(cell.strip() for cell in line) + " |" for line in lines)


def show_answers(answers: Sequence[Answer], console: Console) -> None:
    """Print what came of the questions."""
    table = Table(title="dagsched bench: the short version")
    for number, heading in enumerate(HEADINGS):
        justify: JustifyMethod = "right" if number in (1, 2, 5) else "left"
        table.add_column(heading, justify=justify, no_wrap=number < 2)
    for answer in answers:
        style = "bold red" if answer.is_met is False else None
        table.add_row(*map(escape, answer_cells(answer)), style=style)
    console.print(table)
    for answer in answers:
        if answer.note:
            console.print(f"{answer.question}: {answer.note}", soft_wrap=True, markup=False)
    console.print(f"on {machine_line()}", soft_wrap=True, markup=False)
    missed = sum(answer.is_met is False for answer in answers)
    if missed:
        console.print(
            f"{missed} of {sum(a.target is not None for a in answers)} targets missed; they are "
            "meant for two CPUs and an idle machine",
            soft_wrap=True,
        )


def show_breakdown(breakdown: Breakdown, console: Console) -> None:
    """Print where the time of a task goes."""
    table = Table(title=f"{breakdown.graph}: CPU of each stage, median of {breakdown.rounds}")
    is_narrow = console.width < NARROW_COLUMNS
    headings = STAGE_HEADINGS[:-1] if is_narrow else STAGE_HEADINGS
    for number, heading in enumerate(headings):
        justify: JustifyMethod = "right" if number in (1, 2) else "left"
        table.add_column(heading, justify=justify, no_wrap=number < 2)
    for stage in breakdown.stages:
        over = stage.budget_us is not None and stage.us.median > stage.budget_us
        style = "bold red" if over else "dim" if stage.depth else None
        table.add_row(*map(escape, stage_cells(stage)[: len(headings)]), style=style)
    console.print(table)
    for stage in breakdown.stages if is_narrow else ():
        console.print(f"{'  ' * stage.depth}{stage.name}: {stage.includes}", markup=False)
    console.print(
        f"the run itself: {spread_text(breakdown.wall_us)} us a task from call to value; a call in "
        f"a plain loop: {figure(breakdown.loop_us.median)} us",
        soft_wrap=True,
        markup=False,
    )
    console.print(f"on {machine_line()}", soft_wrap=True, markup=False)


def answer_as_dict(answer: Answer) -> dict[str, Any]:
    """An answer for a program to read."""
    told = asdict(answer)
    told["measured"] = answer.measured._asdict()
    told["beside_value"] = None if answer.beside_value is None else answer.beside_value._asdict()
    return {**told, "ratio": answer.ratio, "is_met": answer.is_met}


def breakdown_as_dict(breakdown: Breakdown) -> dict[str, Any]:
    """A breakdown for a program to read."""
    told = asdict(breakdown)
    for stage, known in zip(told["stages"], breakdown.stages, strict=True):
        stage["us"] = known.us._asdict()
    told["wall_us"] = breakdown.wall_us._asdict()
    told["loop_us"] = breakdown.loop_us._asdict()
    return told
