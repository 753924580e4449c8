"""What the demo computes, without a cluster."""

from collections import Counter
from pathlib import Path

import pytest

from dagsched.demo import indexing
from dagsched.demo.indexing import (
    Index,
    find_sources,
    index_file,
    merge,
    rank,
    serial_summary,
)
from dagsched.demo.program import DemoError, default_directory, demo_sources, index_graph
from dagsched.graph import build_graph


def written(path: Path, text: str | bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return str(path)


def test_sources_are_sorted_and_installed_or_hidden_ones_left_out(tmp_path: Path) -> None:
    kept = [written(tmp_path / name, "") for name in ("b/z.py", "a.py", "b/y.py")]
    for name in (".git/x.py", "site-packages/x.py", "b/__pycache__/x.py", ".x.py", "x.txt"):
        written(tmp_path / name, "")
    (tmp_path / "directory.py").mkdir()
    assert find_sources(tmp_path) == sorted(kept)


def test_links_that_lead_round_are_not_followed(tmp_path: Path) -> None:
    source = written(tmp_path / "a.py", "")
    (tmp_path / "round").symlink_to(tmp_path)
    (tmp_path / "dead.py").symlink_to(tmp_path / "absent")
    assert find_sources(tmp_path) == [source]


def test_identifiers_are_counted_and_keywords_are_not(tmp_path: Path) -> None:
    path = written(tmp_path / "a.py", "def f(x):\n    return x + match  # x\n\n\ny = 'x'\n")
    index = index_file(path)
    assert index.identifiers == Counter(x=2, f=1, match=1, y=1)
    assert (index.file_count, index.line_count, index.size_bytes) == (1, 5, 46)
    assert index.skipped == []


@pytest.mark.parametrize(
    ("source", "modules"),
    [
        ("import os", ["os"]),
        ("import os.path as p, re, sys as s", ["os", "re", "sys"]),
        ("from os.path import join, split as s", ["os"]),
        ("from . import a\nfrom .b import c\nfrom .. import d", []),
        ("if x: import os; import re", ["re"]),
        ("try:\n    import os\nexcept E:\n    import re; x = 1", ["os", "re"]),
        ("from a import (\n    b,\n    c)\nimport d", ["a", "d"]),
        ("raise E from error\nx = yield\n", []),
        ("import a\nimport a", ["a"]),
        ("'import os'\n# import re", []),
    ],
)
def test_imported_modules(tmp_path: Path, source: str, modules: list[str]) -> None:
    index = index_file(written(tmp_path / "a.py", source))
    assert sorted(index.modules) == modules
    assert set(index.modules.values()) <= {1}


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"# -*- coding: uft-8 -*-\n", "SyntaxError: unknown encoding: uft-8"),
        (b"x = '\xff\xfe'\n", "SyntaxError: invalid or missing encoding declaration"),
        (b"def f(\n", "TokenError: "),
        (b"if x:\n        a\n    b\n", "IndentationError: "),
    ],
)
def test_what_is_no_python_is_noted_and_not_fatal(tmp_path: Path, data: bytes, reason: str) -> None:
    path = written(tmp_path / "a.py", data)
    index = index_file(path)
    assert index.file_count == 0
    assert index.identifiers == Counter()
    ((skipped, text),) = index.skipped
    assert skipped == path
    assert text.startswith(reason)


def test_a_file_that_is_gone_is_noted(tmp_path: Path) -> None:
    ((_, reason),) = index_file(str(tmp_path / "absent.py")).skipped
    assert reason.startswith("FileNotFoundError")


def test_merging_adds_up_and_leaves_its_inputs_alone() -> None:
    one = Index(Counter(a=1, b=2), Counter(os=1), 1, 10, 100)
    two = Index(Counter(b=3), Counter(os=1, re=1), 1, 20, 200, [("x.py", "why")])
    both = merge(one, two)
    assert both == Index(Counter(a=1, b=5), Counter(os=2, re=1), 2, 30, 300, [("x.py", "why")])
    assert one == Index(Counter(a=1, b=2), Counter(os=1), 1, 10, 100)
    assert merge() == Index()


def test_ranking_is_by_use_then_by_name() -> None:
    summary = rank(Index(Counter(b=2, a=2, c=3), Counter(), 1, 1, 1), count=2)
    assert summary.identifiers == [("c", 3), ("a", 2)]
    assert (summary.distinct_count, summary.use_count) == (3, 7)


def test_the_checksum_is_of_all_not_only_of_what_is_ranked() -> None:
    one = rank(Index(Counter(a=5, b=1)), count=1)
    two = rank(Index(Counter(a=5, c=1)), count=1)
    assert one.identifiers == two.identifiers
    assert one.checksum != two.checksum
    assert rank(Index(Counter(b=1, a=5)), count=1) == one


@pytest.mark.parametrize(("files", "tasks"), [(1, 2), (8, 10), (9, 12), (64, 74), (65, 76)])
def test_the_graph_has_a_task_a_file_and_a_tree_of_merges(files: int, tasks: int) -> None:
    graph = build_graph(index_graph([f"{number}.py" for number in range(files)]))
    assert graph.task_count == tasks
    merges = [len(graph.dependencies(task)) for task in range(tasks) if graph.name(task) == "merge"]
    assert all(2 <= inputs <= 8 for inputs in merges)
    assert sum(merges) - len(merges) == files - 1


def test_the_serial_oracle_equals_the_functions_of_the_graph(tmp_path: Path) -> None:
    paths = [
        written(tmp_path / f"{number}.py", f"import os\nname_{number % 3} = os.name\n")
        for number in range(20)
    ]
    paths.append(written(tmp_path / "bad.py", b"\xff"))
    parts = [index_file(path) for path in paths]
    assert serial_summary(paths) == rank(merge(merge(*parts[:9]), merge(*parts[9:])))
    assert serial_summary(paths).identifiers[:2] == [("os", 40), ("name", 20)]


def test_directories_without_sources_say_so(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match=r"has no Python files \(\*\.py\) to index"):
        demo_sources(tmp_path)
    with pytest.raises(DemoError, match="is not a directory"):
        demo_sources(tmp_path / "absent")


def test_the_default_is_the_standard_library() -> None:
    assert any(path.endswith("/tokenize.py") for path in find_sources(default_directory()))
    assert indexing.__doc__ is not None
