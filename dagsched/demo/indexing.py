"""What the demo computes: which identifiers a tree of Python files uses, and what it imports.

Plain functions on plain values, run as tasks in executors and, for the check, in one process one
after the other. Knows nothing of graphs or environments.
"""

import hashlib
import os
import tokenize
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from itertools import pairwise
from keyword import iskeyword
from pathlib import Path

SKIPPED_DIRECTORIES = frozenset(("__pycache__", "site-packages", "dist-packages", "node_modules"))

_STATEMENT_ENDS = frozenset(
    (tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.NL, tokenize.ENCODING)
)


@dataclass(slots=True)
class Index:
    """What was found in one file, or in many."""

    identifiers: Counter[str] = field(default_factory=Counter)  # how often each is used
    modules: Counter[str] = field(default_factory=Counter)  # how many files import each
    file_count: int = 0
    line_count: int = 0
    size_bytes: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)  # path and reason


@dataclass(frozen=True, slots=True)
class Summary:
    """The ranked end of it all; equal summaries are of equal indexes."""

    identifiers: Sequence[tuple[str, int]]
    modules: Sequence[tuple[str, int]]
    distinct_count: int
    use_count: int
    file_count: int
    line_count: int
    size_bytes: int
    skipped: Sequence[tuple[str, str]]
    checksum: str  # of the whole index


def find_sources(root: str | os.PathLike[str]) -> list[str]:
    """All ``.py`` files below a directory, sorted; hidden and installed packages' ones left out.

    Raises:
        NotADirectoryError: `root` is no directory.
    """
    if not os.path.isdir(root):
        raise NotADirectoryError(f"{os.fspath(root)} is not a directory")
    found: list[str] = []
    for directory, subdirectories, names in os.walk(root):
        subdirectories[:] = sorted(
            name
            for name in subdirectories
            if name not in SKIPPED_DIRECTORIES and not name.startswith(".")
        )
        found += [
            os.path.join(directory, name)
            for name in names
            if name.endswith(".py") and not name.startswith(".")
        ]
    return sorted(path for path in found if os.path.isfile(path))


def index_file(path: str) -> Index:
    """The index of one file; one that can't be read or tokenised is only noted as skipped.

    Args:
        path: of the file.
    """
    try:
        data = Path(path).read_bytes()
        identifiers, modules, line_count = _count(data)
    except (OSError, SyntaxError, UnicodeDecodeError, tokenize.TokenError) as error:
        return Index(skipped=[(path, f"{type(error).__name__}: {error}")])
    return Index(identifiers, Counter(modules), 1, line_count, len(data))


def _count(data: bytes) -> tuple[Counter[str], set[str], int]:
    """Identifiers with their uses, imported top-level modules, and lines of a source file."""
    names: list[str] = []
    modules: set[str] = set()
    statement: list[str] = []  # of an import: its tokens so far
    at_start, lines = True, data.splitlines(keepends=True)
    name_type, operator_type = tokenize.NAME, tokenize.OP
    for kind, text, _, _, _ in tokenize.tokenize(iter(lines).__next__):
        if kind == name_type:
            if at_start and text in ("import", "from"):
                statement = [text]
            elif statement:
                statement.append(text)
            if not iskeyword(text):
                names.append(text)
            at_start = False
        elif kind == operator_type:
            at_start = text == ";"
            if statement:
                if at_start:
                    modules.update(_imported(statement))
                    statement = []
                else:
                    statement.append(text)
        elif kind in _STATEMENT_ENDS:
            at_start = True
            if statement and kind == tokenize.NEWLINE:
                modules.update(_imported(statement))
                statement = []
        elif kind != tokenize.COMMENT:
            at_start = False
    return Counter(names), modules, len(lines)


def _imported(statement: Sequence[str]) -> list[str]:
    """The top-level modules that an import statement names; none for a relative one."""
    if statement[0] == "from":
        return [statement[1]] if len(statement) > 1 and statement[1].isidentifier() else []
    return [text for before, text in pairwise(statement) if before in ("import", ",")]


def merge(*indexes: Index) -> Index:
    """One index of several; those given are left as they are."""
    result = Index()
    for index in indexes:
        result.identifiers.update(index.identifiers)
        result.modules.update(index.modules)
        result.file_count += index.file_count
        result.line_count += index.line_count
        result.size_bytes += index.size_bytes
        result.skipped += index.skipped
    return result


def rank(index: Index, count: int = 10) -> Summary:
    """The most used of an index; equally used ones by name."""
    return Summary(
        _most_used(index.identifiers, count),
        _most_used(index.modules, count),
        len(index.identifiers),
        index.identifiers.total(),
        index.file_count,
        index.line_count,
        index.size_bytes,
        sorted(index.skipped),
        _checksum(index),
    )


def serial_summary(paths: Iterable[str], count: int = 10) -> Summary:
    """The same as the graph computes, in this process and without dagsched."""
    total = Index()
    for path in paths:
        index = index_file(path)
        total.identifiers.update(index.identifiers)
        total.modules.update(index.modules)
        total.file_count += index.file_count
        total.line_count += index.line_count
        total.size_bytes += index.size_bytes
        total.skipped += index.skipped
    return rank(total, count)


def _most_used(counter: Counter[str], count: int) -> list[tuple[str, int]]:
    return nsmallest(count, counter.items(), key=lambda item: (-item[1], item[0]))


def _checksum(index: Index) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for counter in (index.identifiers, index.modules):
        for name, uses in sorted(counter.items()):
            digest.update(f"{name} {uses}\n".encode())
        digest.update(b"\n")
    return digest.hexdigest()
