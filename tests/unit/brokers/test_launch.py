"""What a broker is told at start: the settings' line, and the environment it finds."""

import os

import pytest

from dagsched.brokers import __main__ as program
from dagsched.brokers.launch import BrokerSettings, package_root, restore_python_path
from dagsched.config import Config


def _settings(**changes):
    values = {
        "broker": 2,
        "host": "hôst",
        "env_token": "t",
        "name_prefix": "p",
        "run_directory": "/r",
        "master_socket": "/r/m",
        "data_socket": "/r/d",
        "sys_path": ["/a", "/b\nc"],
        "cwd": "/c",
    }
    return BrokerSettings(**values | changes)


def test_settings_travel_as_one_line():
    settings = _settings(nodes=3, executors=9, config=Config(crash_limit=7), debug=True)
    line = settings.to_line()
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert BrokerSettings.from_line(line) == settings


def test_settings_are_checked():
    line = _settings().to_line()
    with pytest.raises(ValueError, match="crash_limit must be positive"):
        BrokerSettings.from_line(line.replace(b'"crash_limit": 3', b'"crash_limit": 0'))
    with pytest.raises(TypeError):
        BrokerSettings.from_line(line.replace(b'"host"', b'"most"'))


def test_only_the_line_is_read():
    read_fd, write_fd = os.pipe()
    os.write(write_fd, b"one line\nthe rest")
    assert program.read_line(read_fd) == b"one line"
    assert os.read(read_fd, 100) == b"the rest"
    os.write(write_fd, b"no end")
    os.close(write_fd)
    assert program.read_line(read_fd) == b""
    os.close(read_fd)


@pytest.mark.parametrize("given", [None, "/x", "/x:/y"])
def test_python_path_is_given_back(monkeypatch, given):
    root = str(package_root())
    monkeypatch.setenv("PYTHONPATH", root if given is None else f"{root}:{given}")
    restore_python_path()
    assert os.environ.get("PYTHONPATH") == given
