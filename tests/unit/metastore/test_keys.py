"""Names of keys."""

import pytest

from dagsched.metastore.keys import environment_prefix, run_key, runs_key


def test_names() -> None:
    prefix = environment_prefix(1000, "/D/sub", "5f0c")
    assert prefix == "dagsched:1000/D/sub:5f0c"
    assert runs_key(prefix) == "dagsched:1000/D/sub:5f0c:runs"
    assert run_key(prefix, 7) == "dagsched:1000/D/sub:5f0c:run:7"


@pytest.mark.parametrize(
    ("rootpath", "token"), [("D", "a"), ("/D:x", "a"), ("/D", ""), ("/D", "a:b")]
)
def test_names_that_could_overlap_are_refused(rootpath: str, token: str) -> None:
    with pytest.raises(ValueError, match="must"):
        environment_prefix(0, rootpath, token)
