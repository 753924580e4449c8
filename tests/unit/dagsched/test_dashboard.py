"""Addresses of a page; what an environment without one does."""

import pytest

from dagsched.dashboard import dashboard_address


def test_addresses():
    assert dashboard_address(False) is None
    assert dashboard_address(True) == ("127.0.0.1", 0)
    assert dashboard_address("0.0.0.0:80") == ("0.0.0.0", 80)
    assert dashboard_address("[::1]:8080") == ("::1", 8080)
    assert dashboard_address("host:0") == ("host", 0)


@pytest.mark.parametrize("wrong", ["", "host", "host:", ":1", "host:-1", "host:65536", "host:1x"])
def test_what_is_no_address(wrong):
    with pytest.raises(ValueError, match="is not valid: it is True, or 'HOST:PORT'"):
        dashboard_address(wrong)


def test_what_is_of_no_kind_for_it():
    with pytest.raises(TypeError, match="must be a bool or 'HOST:PORT', not 80"):
        dashboard_address(80)  # type: ignore[arg-type]
