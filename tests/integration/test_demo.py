"""The demo as a user runs it: real processes, real files, pictures, exit code."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dagsched.demo.indexing import serial_summary
from dagsched.demo.program import demo_sources

ROOT = Path(__file__).resolve().parents[2]
EMAIL = Path(os.__file__).parent / "email"


def demo(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dagsched", "demo", *args],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_the_demo_indexes_a_real_package_on_two_nodes(tmp_path: Path) -> None:
    done = demo(str(EMAIL), "--json", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    files = len(demo_sources(EMAIL))
    expected = serial_summary(demo_sources(EMAIL))
    assert report["is_equal"] is True
    assert report["summary"]["checksum"] == expected.checksum
    assert report["summary"]["file_count"] == files
    assert report["summary"]["identifiers"] == [list(pair) for pair in expected.identifiers]
    assert len(report["executors"]) == 4
    assert len({figure["node"] for figure in report["executors"]}) == 2
    assert sum(figure["task_count"] for figure in report["executors"]) == report["task_count"]
    assert sorted(path.name for path in (tmp_path / "demo-out").iterdir()) == [
        "schedule.png",
        "schedule.svg",
    ]


def test_the_schedule_shows_every_task_as_run(tmp_path: Path) -> None:
    done = demo(str(EMAIL), "--json", "--no-check", "-o", "made/here", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["is_equal"] is None
    svg = (tmp_path / "made" / "here" / "schedule.svg").read_text()
    assert svg.count('class="mark done"') == report["task_count"]
    assert svg.count('class="mark ') == report["task_count"]
    assert len(set(re.findall(r'stroke="(#\w{6})" stroke-width="4"', svg))) <= 3


def test_the_demo_tells_people_what_it_found(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    for number in range(30):
        (tmp_path / "src" / f"m{number:02}.py").write_text("import os\nprint(os.name)\n")
    (tmp_path / "src" / "bad.py").write_bytes(b"# coding: nonsense\n")
    done = demo("src", "--nodes", "1", "--executors-per-node", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "31 Python files below src"
    assert lines[1] == "Starting 1 node of 1 executor"
    assert "30 files, 60 lines, 0.0 MB" in lines
    assert "1 file is not valid Python and left out:" in lines
    assert any(line.startswith("37 tasks on 1 executor in ") for line in lines)
    assert "the result equals that of the serial run" in lines
    assert lines[-2:] == ["schedule: demo-out/schedule.svg", "schedule: demo-out/schedule.png"]


@pytest.mark.parametrize("name", ["absent", "empty"])
def test_a_directory_without_sources_is_wrong_usage(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    done = demo(name, cwd=tmp_path)
    assert done.returncode == 2
    assert name in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "demo-out").exists()
