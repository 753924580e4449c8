"""What the scripts share: their arguments, their tables, their pictures' place."""

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from dagsched.bench.display import HEADINGS, answer_cells, markdown
from dagsched.bench.measuring import Answer, machine_line

PLOTS = Path(__file__).resolve().parent / "plots"
README = PLOTS.parent / "README.md"


def positive(text: str) -> int:
    """A number of rounds or steps, from the command line."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {number}")
    return number


def arguments(doc: str | None, rounds: int = 5) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--rounds", type=positive, default=rounds, help="measures of each figure")
    return parser


def answers_table(answers: Sequence[Answer]) -> str:
    """The table, and below it the notes."""
    notes = [f"{answer.question}: {answer.note}." for answer in answers if answer.note]
    return "\n".join([markdown(HEADINGS, [answer_cells(answer) for answer in answers]), *(
        ["", *notes] if notes else []
    )])  # fmt: skip


def replaced(text: str, name: str, section: str) -> str:
    """README's text with another section between the marks of that name.

    Raises:
        SystemExit: the marks aren't there.
    """
    marks = re.compile(f"(<!-- {name} -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    if not marks.search(text):
        raise SystemExit(f"README.md has no <!-- {name} --> and <!-- /{name} -->")
    return marks.sub(lambda found: f"{found[1]}{section}\n{found[2]}", text)


def print_section(text: str) -> None:
    print(text)
    print(f"\non {machine_line()}")
