"""Every example runs as its README says, and says that its result is right."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "examples"

SAYS = {
    "quickstart.py": r"285\n",
    "sort.py": (
        r"100,000 floats made and sorted: [\d.]+ s; numpy alone: [\d.]+ s\n"
        r"the result equals numpy\.sort; sizes \[\d+(, \d+){7}\]\n"
    ),
    "arrays.py": (
        r"15 blocks of 1 MB written, 21 read\n"
        r"0\.04 GB in [\d.]+ s: [\d.]+ GB/s, in fresh memory\n"
        r"0\.04 GB in [\d.]+ s: [\d.]+ GB/s, in the same memory again\n"
        r"serial, all in one process: [\d.]+ s\n"
        r"\d of 7 inputs mapped from shared memory, none copied\n"
    ),
}


def run_example(name: str, *args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(EXAMPLES / name), *args],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(SAYS)


@pytest.mark.parametrize("name", sorted(SAYS))
def test_an_example_gives_the_right_result(name: str, tmp_path: Path) -> None:
    args = [] if name == "quickstart.py" else ["--small"]
    done = run_example(name, *args, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(SAYS[name], done.stdout), done.stdout


def test_the_quick_start_leaves_its_picture(tmp_path: Path) -> None:
    assert run_example("quickstart.py", cwd=tmp_path).returncode == 0
    svg = (tmp_path / "quickstart.svg").read_text()
    assert svg.count('class="mark done"') == 11
    assert [path.name for path in tmp_path.iterdir()] == ["quickstart.svg"]


@pytest.mark.parametrize("name", ["sort.py", "arrays.py"])
def test_examples_explain_themselves(name: str, tmp_path: Path) -> None:
    done = run_example(name, "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert "--small" in done.stdout
