"""Each promise of the README names a test, and that test is there."""

import ast
import re

import pytest

from tests.checkout import ROOT

NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")


def promised() -> list[tuple[str, str]]:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return NAMED.findall(text)


def test_every_promise_names_a_test() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    section = text.split("## What is promised")[1].split("And what isn't")[0]
    rows = [line for line in section.splitlines() if line.startswith("| ")][2:]
    assert len(rows) >= 10
    assert [row for row in rows if not NAMED.search(row)] == []


@pytest.mark.parametrize(("path", "name"), promised())
def test_it_exists(path: str, name: str) -> None:
    module = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    functions = {node.name for node in module.body if isinstance(node, ast.FunctionDef)}
    assert name in functions
