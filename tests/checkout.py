"""The checkout as git sees it: what a clone of the present tree would have."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]


def listed_files() -> list[str]:
    """Names, from the root, of all files that git knows or would take."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-z"]
    command += ["--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True).stdout.decode()
    return [name for name in listed.split("\0") if name]
