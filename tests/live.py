"""A live page in tests: what a browser or a scraper would send, and waiting for what comes."""

import http.client
import json
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

from dagsched import RunEnv


class Answer(NamedTuple):
    """What came back."""

    status: int
    headers: Mapping[str, str]
    text: str


class Page:
    """The page of an environment; each question is a connection of its own."""

    def __init__(self, url: str) -> None:
        parts = urlsplit(url)
        assert parts.hostname is not None
        assert parts.port is not None
        self.host, self.port = parts.hostname, parts.port
        self.token = parts.query.partition("=")[2]

    @classmethod
    def of(cls, env: RunEnv) -> "Page":
        """The page that an environment has open."""
        assert env.dashboard_url is not None
        return cls(env.dashboard_url)

    def ask(self, path: str, headers: Mapping[str, str] | None = None, **query: object) -> Answer:
        """Ask with the token, or with other headers if they are given."""
        if headers is None:
            headers = {"Authorization": f"Bearer {self.token}"}
        if query:
            path += "?" + urlencode(query)
        connection = http.client.HTTPConnection(self.host, self.port, timeout=20)
        try:
            connection.request("GET", path, headers=dict(headers))
            response = connection.getresponse()
            return Answer(response.status, dict(response.headers), response.read().decode())
        finally:
            connection.close()

    def json(self, path: str, **query: object) -> Any:
        """A good answer's value."""
        answer = self.ask(path, **query)
        assert answer.status == 200, answer
        return json.loads(answer.text)

    def snapshot(self, **query: object) -> Any:
        """The snapshot, whole."""
        return self.json("/api/snapshot", **query)

    def wait_for(self, is_so: Callable[[Any], object], timeout_s: float = 20.0) -> Any:
        """The first snapshot of which something is so; it is made anew twice a second."""
        deadline = time.monotonic() + timeout_s
        while True:
            shown = self.snapshot()
            if is_so(shown):
                return shown
            assert time.monotonic() < deadline, f"never so: {json.dumps(shown, indent=1)[:6000]}"
            time.sleep(0.1)
