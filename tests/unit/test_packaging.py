"""What gets installed: each package once, under its own name, importable away from the checkout."""

import configparser
import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from dagsched import __version__
from tests.checkout import ROOT, listed_files

LINKS = ("brokers", "metastore", "viz")
PROBE = """
import dagsched, dagsched.brokers, dagsched.brokers.objects, dagsched.metastore, dagsched.viz
import dagsched.metastore.records, dagsched.protocol.messages, dagsched.master
from importlib.metadata import entry_points, version
from importlib.resources import files
(command,) = [e.value for e in entry_points(group="console_scripts") if e.name == "dagsched"]
assert all((files(p) / "py.typed").is_file() for p in ("dagsched", "dagsched.brokers"))
print(version("dagsched"), command, dagsched.__file__, sep="|")
for name in ("brokers", "metastore", "viz"):
    try:
        __import__(name)
    except ImportError:
        continue
    raise SystemExit(f"the top-level name {name} was taken")
"""


def configuration() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def packages_in_the_tree() -> set[str]:
    found = set()
    for top, folder in [("dagsched", "dagsched"), *((f"dagsched.{name}", name) for name in LINKS)]:
        for path in (ROOT / folder).rglob("__init__.py"):
            parts = path.parent.relative_to(ROOT / folder).parts
            if not (folder == "dagsched" and parts and parts[0] in LINKS):
                found.add(".".join((top, *parts)))
    return found


@pytest.mark.parametrize("name", LINKS)
def test_links_are_relative_and_agree_with_the_mapping(name: str) -> None:
    link = ROOT / "dagsched" / name
    assert link.is_symlink()
    assert link.readlink() == Path("..", name)
    mapping = dict(
        line.split(" = ") for line in configuration()["options"]["package_dir"].split("\n") if line
    )
    assert mapping[f"dagsched.{name}"] == name
    assert mapping["dagsched"] == "dagsched"
    assert set(mapping) == {"dagsched", *(f"dagsched.{name}" for name in LINKS)}


def test_all_packages_are_listed_once() -> None:
    listed = configuration()["options"]["packages"].split()
    assert sorted(listed) == sorted(packages_in_the_tree())


def test_data_of_packages_is_there() -> None:
    for package, patterns in configuration()["options.package_data"].items():
        folder = ROOT / package.replace(".", "/")
        for pattern in patterns.split(","):
            assert list(folder.glob(pattern.strip())), f"{package}: {pattern}"


def test_the_version_stands_in_one_place() -> None:
    assert configuration()["metadata"]["version"] == "attr: dagsched._version.__version__"
    assert __version__.count(".") == 2


def copy_of_checkout(target: Path) -> Path:
    """What a clone has, so that building leaves nothing in ours."""
    for name in listed_files():
        source, copy = ROOT / name, target / name
        if source.is_symlink():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.symlink_to(source.readlink())
        elif source.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_bytes(source.read_bytes())
    return target


def run(*command: str | Path, cwd: Path, **environ: str) -> str:
    """Output of a command away from the checkout, which must succeed."""
    environ = {
        name: value for name, value in os.environ.items() if not name.startswith("PYTHON")
    } | environ
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_of_checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A virtual environment with this one's dependencies, and no dagsched."""
    target = tmp_path / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", target, cwd=tmp_path)
    (site,) = (target / "lib").glob("python*/site-packages")
    # Behind what is installed there, and without the .pth of an editable dagsched here.
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return target / "bin" / "python"


@pytest.mark.parametrize("is_editable", [False, True], ids=["plain", "editable"])
def test_an_installation_works_away_from_the_checkout(
    is_editable: bool, checkout: Path, python: Path, tmp_path: Path
) -> None:
    run(
        sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check", "install",
        "--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--force-reinstall",
        *(["--editable"] if is_editable else []), checkout,
        cwd=tmp_path,
    )  # fmt: skip
    output = run(python, "-c", PROBE, cwd=tmp_path)
    version, command, file = output.strip().split("|")
    assert (version, command) == (__version__, "dagsched.cli:main")
    assert Path(file).is_relative_to(checkout if is_editable else tmp_path)
    assert (python.parent / "dagsched").is_file()
    if shutil.which("cc") is not None:
        run(python, "-c", "from dagsched.brokers.objects import _nursery", cwd=tmp_path)
        run(python, "-c", "from dagsched import _walking", cwd=tmp_path)


def test_a_wheel_has_each_file_once(checkout: Path, tmp_path: Path) -> None:
    run(
        sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps",
        "--no-build-isolation", "--no-index", "--wheel-dir", tmp_path, checkout,
        cwd=tmp_path,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    ours = {name for name in names if ".dist-info/" not in name}
    expected = {
        f"dagsched/{path.relative_to(ROOT / 'dagsched')}"
        for path in (ROOT / "dagsched").rglob("*.py")
        if path.relative_to(ROOT / "dagsched").parts[0] not in LINKS
    } | {
        f"dagsched/{path.relative_to(ROOT)}"
        for name in LINKS
        for path in (ROOT / name).rglob("*.py")
    }
    assert {name for name in ours if name.endswith(".py")} == expected
    assert len(names) == len(set(names))
    assert {name.partition("/")[0] for name in ours} == {"dagsched"}
    assert "dagsched/py.typed" in ours
    assert any(name.startswith("dagsched/viz/fonts/") for name in ours)
    assert "dagsched/viz/templates/gantt.html" in ours
    assert "dagsched/viz/live/page/index.html" in ours
    assert "dagsched/viz/live/page/live.js" in ours
    assert "dagsched/viz/live/page/index.html" in ours


@pytest.mark.parametrize("has_compiler", [True, False])
def test_the_compiled_parts_are_left_out_where_there_is_no_compiler(
    has_compiler: bool, checkout: Path, tmp_path: Path
) -> None:
    if has_compiler and shutil.which("cc") is None:
        pytest.skip("there is no compiler")
    environ = {} if has_compiler else {"CC": "/nowhere/cc", "LDSHARED": "/nowhere/cc"}
    run(
        sys.executable, "setup.py", "--quiet", "build", "--build-base", tmp_path,
        cwd=checkout, **environ,
    )  # fmt: skip
    for name, plain in (("nursery", "nursery"), ("walking", "walking"), ("scans", "arrays")):
        assert len(list(tmp_path.rglob(f"_{name}*.so"))) == has_compiler
        assert list(tmp_path.rglob(f"{plain}.py"))
