"""The rules that hold for every file: who may import whom, lengths, what is never written.

The table is that of the design: errors, ids <- protocol <- cores <- shells <- environment <-
command line.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.checkout import ROOT, listed_files

PACKAGES = {
    "dagsched": ROOT / "dagsched",
    "dagsched.brokers": ROOT / "brokers",
    "dagsched.metastore": ROOT / "metastore",
    "dagsched.viz": ROOT / "viz",
}
LINKS = {"brokers", "metastore", "viz"}

MODULE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70

IMPURE = {
    "asyncio", "ctypes", "fcntl", "logging", "mmap", "multiprocessing", "os", "pickle", "posix_ipc",
    "psutil", "random", "redis", "secrets", "select", "selectors", "shutil", "signal", "socket",
    "subprocess", "tempfile", "threading", "time", "zmq",
}  # fmt: skip
"""What a pure module never imports: clocks, chance, the system, and unpickling."""

PURE = [
    "dagsched.brokers.core",
    "dagsched.brokers.entering",
    "dagsched.brokers.routes",
    "dagsched.brokers.objects.layout",
    "dagsched.brokers.wants",
    "dagsched.config",
    "dagsched.containers",
    "dagsched.entries",
    "dagsched.errors",
    "dagsched.given",
    "dagsched.graph",
    "dagsched.ids",
    "dagsched.master.core",
    "dagsched.metastore.fold",
    "dagsched.metastore.keys",
    "dagsched.metastore.port",
    "dagsched.metastore.records",
    "dagsched.metastore.results",
    "dagsched.partition",
    "dagsched.plan",
    "dagsched.protocol",
    "dagsched.protocol.checks",
    "dagsched.protocol.codec",
    "dagsched.protocol.links",
    "dagsched.protocol.messages",
    "dagsched.protocol.plans",
    "dagsched.protocol.steps",
    "dagsched.protocol.session",
    "dagsched.viz.live.cells",
    "dagsched.viz.live.patches",
    "dagsched.viz.live.rates",
    "dagsched.viz.live.scene",
    "dagsched.viz.live.totals",
]
"""Pure, and so is whatever of ours they import."""

HANDLES = {"dagsched.delayed", "dagsched.ref"}
"""What users hold: a graph is read from them, and their methods lead to all the rest."""

SERIALIZERS = {"dagsched.pickling", "dagsched.serialize", "dagsched.unpicklable"}
"""They pickle for those who have values; cores have none."""

FORBIDDEN = [
    # who                     never imports             because
    ("dagsched.master", ("dagsched.brokers",)),  # the roles meet in messages only
    ("dagsched.brokers", ("dagsched.master",)),
    ("dagsched.brokers", ("dagsched.metastore",)),  # the journal is the master's
    ("dagsched.brokers", ("dagsched.runenv", "dagsched.cluster", "dagsched.cli")),
    ("dagsched.metastore", ("dagsched.master", "dagsched.brokers", "dagsched.runenv")),
    ("dagsched.protocol", ("dagsched.master", "dagsched.brokers", "dagsched.metastore")),
    ("dagsched.partition", ("dagsched.master", "dagsched.brokers", "dagsched.protocol")),
    ("dagsched.transport", ("dagsched.master", "dagsched.brokers", "dagsched.metastore")),
    ("dagsched.master", ("dagsched.runenv", "dagsched.cluster", "dagsched.cli")),
]

VIZ_USERS = {
    "dagsched", "dagsched.cli", "dagsched.dashboard", "dagsched.demo", "dagsched.notebook",
}  # fmt: skip
"""Pictures are for the command line and for notebooks (and the package itself offers them); the
live page is loaded by `dagsched.dashboard` when the first is opened."""

PURE_METASTORE = {
    "dagsched.metastore.records",
    "dagsched.metastore.fold",
    "dagsched.metastore.keys",
}
"""All that the master may know of the store; its I/O is wired up by who opens the environment."""


def tracked_files() -> list[Path]:
    """Files of the checkout that git knows or would take."""
    paths = [ROOT / name for name in listed_files()]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


@cache
def modules() -> dict[str, Path]:
    """All modules of the four packages, by name."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            if package == "dagsched" and parts[0] in LINKS:
                continue
            names = [package, *(part for part in parts if part != "__init__")]
            found[".".join(names)] = path
    return found


@cache
def tree(name: str) -> ast.Module:
    return ast.parse(modules()[name].read_text())


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) in {
        "TYPE_CHECKING",
        "typing.TYPE_CHECKING",
    }


def walk_running(top: ast.AST, *, into_functions: bool) -> Iterator[ast.AST]:
    """All nodes but those that only type checkers read."""
    waiting = [top]
    while waiting:
        node = waiting.pop()
        yield node
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and not into_functions:
            continue
        if is_type_checking(node):
            assert isinstance(node, ast.If)
            waiting.extend(node.orelse)
        else:
            waiting.extend(ast.iter_child_nodes(node))


@cache
def imported(name: str, *, later: bool = True) -> frozenset[str]:
    """Modules that a module imports when it is imported, or later, inside functions."""
    found = set()
    for node in walk_running(tree(name), into_functions=later):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if inner in modules() else node.module)
    return frozenset(found)


def is_within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def pure_closure() -> list[str]:
    """The pure modules, and all of ours that are imported with those."""
    seen = set(PURE)
    waiting = list(PURE)
    while waiting:
        for other in imported(waiting.pop(), later=False):
            if other in modules() and other not in seen | HANDLES:
                seen.add(other)
                waiting.append(other)
    return sorted(seen)


def test_the_modules_that_shall_be_pure_exist() -> None:
    assert [name for name in PURE if name not in modules()] == []


def test_pure_modules_import_nothing_impure() -> None:
    found = {
        name: sorted(other for other in imported(name) if other.partition(".")[0] in IMPURE)
        for name in pure_closure()
    }
    assert {name: others for name, others in found.items() if others} == {}


def test_cores_never_unpickle_not_even_by_others() -> None:
    assert sorted(set(pure_closure()) & SERIALIZERS) == []


@pytest.mark.parametrize(("who", "never"), FORBIDDEN, ids=str)
def test_imports_point_one_way(who: str, never: tuple[str, ...]) -> None:
    found = [
        f"{name} imports {other}"
        for name in modules()
        if is_within(name, who)
        for other in sorted(imported(name))
        if any(is_within(other, package) for package in never)
    ]
    assert found == []


def test_errors_and_ids_import_nothing_of_ours() -> None:
    for name in ("dagsched.errors", "dagsched.ids", "dagsched.config"):
        assert [other for other in imported(name) if is_within(other, "dagsched")] == []


def test_the_master_knows_only_the_pure_part_of_the_store() -> None:
    found = [
        f"{name} imports {other}"
        for name in modules()
        if is_within(name, "dagsched.master")
        for other in sorted(imported(name))
        if is_within(other, "dagsched.metastore")
        and other not in PURE_METASTORE | {"dagsched.metastore"}
    ]
    assert found == []


def test_pictures_are_imported_by_the_command_line_only() -> None:
    found = [
        f"{name} imports {other}"
        for name in modules()
        if not is_within(name, "dagsched.viz")
        and not any(
            name == user or name.startswith(user + ".") for user in VIZ_USERS - {"dagsched"}
        )
        and name != "dagsched"
        for other in sorted(imported(name))
        if is_within(other, "dagsched.viz")
    ]
    assert found == []


def test_imports_are_absolute_and_by_our_full_names() -> None:
    relative = [
        f"{name}:{node.lineno}"
        for name in modules()
        for node in ast.walk(tree(name))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    bare = [
        f"{name} imports {other}"
        for name in modules()
        for other in sorted(imported(name))
        if other.partition(".")[0] in LINKS
    ]
    assert (relative, bare) == ([], [])


def test_modules_are_short() -> None:
    long = {
        name: length
        for name, path in modules().items()
        if (length := len(path.read_text().splitlines())) > MODULE_LINES_MAX
    }
    assert long == {}


def test_functions_are_short() -> None:
    long = {}
    for name in modules():
        for node in ast.walk(tree(name)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno is not None
                length = node.end_lineno - node.lineno + 1
                if length > FUNCTION_LINES_MAX:
                    long[f"{name}.{node.name}"] = length
    assert long == {}


def test_every_module_says_what_it_is_for() -> None:
    assert [name for name in modules() if not ast.get_docstring(tree(name))] == []


def test_test_folders_are_packages() -> None:
    """Else two test modules of one name would clash, and tests/unit/dagsched would shadow ours."""
    tests = ROOT / "tests"
    folders = {path.parent for path in tests.rglob("*.py")}
    folders |= {
        parent for folder in folders for parent in folder.parents if tests in parent.parents
    }
    assert [
        str(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()
    ] == []


@pytest.mark.parametrize("name", sorted(LINKS))
def test_the_bare_names_are_refused(name: str) -> None:
    """A user's own module of that name must not meet ours."""
    source = (ROOT / name / "__init__.py").read_text()
    with pytest.raises(ImportError, match=f"import dagsched.{name}"):
        exec(compile(source, "bare", "exec"), {"__name__": name})


# Written in pieces, so that this file passes its own check.
_REGISTRIES = "|".join(["py" + r"pi\.org", "python" + r"hosted\.org", r"conda\." + "anaconda"])
_HOMES = "|".join(["/ro" + "ot/", "/ho" + r"me/\w", "/Us" + r"ers/\w", "/wo" + "rk/"])
NEVER_WRITTEN = re.compile(f"{_REGISTRIES}|(?<![\\w.])(?:{_HOMES})")


def test_no_machine_or_registry_is_named() -> None:
    found = []
    for path in tracked_files():
        try:
            lines = path.read_text().splitlines()
        except UnicodeDecodeError:
            continue  # a font, a picture
        found += [
            f"{path.relative_to(ROOT)}:{number}: {line.strip()[:80]}"
            for number, line in enumerate(lines, 1)
            if NEVER_WRITTEN.search(line)
        ]
    assert found == []


def test_there_is_no_work_left_in_comments() -> None:
    words = re.compile("#.*\\b(TO" + "DO|FIX" + "ME|X" + "XX)\\b")
    found = [
        f"{name}:{number}"
        for name, path in modules().items()
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if words.search(line)
    ]
    assert found == []
