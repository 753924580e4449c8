"""Serves the live page and its numbers over HTTP, in a thread of its own.

Responsible for sockets, routes and the stream of events. What is told comes from `observer` and
`replies`; who may ask is `guard`'s affair.
"""

import asyncio
import secrets
import socket
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dagsched.errors import DagschedError
from dagsched.plugins.optional import require
from dagsched.viz.live.observer import Observer
from dagsched.viz.live.snapshot import INTERVAL_S

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response

    from dagsched.viz.live.watching import Watched

PAGE = Path(__file__).with_name("page")
READERS_MAX = 32
"""Streams at once."""

COMMENT_S = 10.0
"""A stream without news says so often that it is alive."""

_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ttf": "font/ttf",
    ".ico": "image/x-icon",
}


class LiveServer:
    """The page of one environment.

    Args:
        observer: of the environment.
        watched: the environment.
        address: host and port; port 0: any that is free.
    """

    def __init__(self, observer: Observer, watched: "Watched", address: tuple[str, int]) -> None:
        self._observer = observer
        self._watched = watched
        self._host, self._port = address
        self._token = secrets.token_urlsafe(24)
        self._socket: socket.socket | None = None
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._closing = threading.Event()
        self._reader_count = 0

    @property
    def url(self) -> str:
        """Of the page, with its token."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        host = socket.gethostname() if self._host in ("0.0.0.0", "::") else host
        return f"http://{host}:{self._port}/?token={self._token}"

    def open(self) -> None:
        """Bind the socket and start the thread.

        Raises:
            ImportError: a package is missing.
            OSError: the address can't be bound.
        """
        for package in ("starlette", "uvicorn", "prometheus_client"):
            require(package, "dashboard")
        import uvicorn

        from dagsched.viz.live.guard import Guard

        self._socket = self._bound()
        self._port = self._socket.getsockname()[1]
        app = Guard(self._app(), self._token, f"dagsched-{self._port}", self._host)
        config = uvicorn.Config(
            app, log_config=None, access_log=False, lifespan="off", ws="none", http="h11",
            loop="asyncio", timeout_graceful_shutdown=1, server_header=False,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._run, name="dagsched-live", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        """End the thread and all connections; safe twice."""
        self._closing.set()
        if self._server is not None:
            self._server.should_exit = True
        if self._thread is not None:
            self._thread.join(timeout_s)
        if self._socket is not None:
            self._socket.close()

    def forget_after_fork(self) -> None:
        """In a forked child: the thread isn't there, and the port is the parent's."""
        if self._socket is not None:
            self._socket.close()

    def _bound(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self._host else socket.AF_INET
        bound = socket.socket(family, socket.SOCK_STREAM)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind((self._host, self._port))
            bound.listen(64)
        except OSError as error:
            bound.close()
            raise OSError(
                error.errno,
                f"the live page can't be served at {self._host}:{self._port}: {error.strerror}; "
                "give another address, or True for any free port",
            ) from error
        return bound

    def _run(self) -> None:
        assert self._server is not None
        assert self._socket is not None
        self._server.run(sockets=[self._socket])

    # --- routes -----------------------------------------------------------------------------------

    def _app(self) -> "Starlette":
        from starlette.applications import Starlette
        from starlette.routing import Route

        from dagsched.viz.live.replies import Replies

        replies = Replies(self._observer, self._watched)
        answers = {
            "/metrics": replies.metrics,
            "/api/why": replies.why,
            "/api/keys": replies.keys,
            "/api/logs": replies.logs,
            "/api/snapshot": replies.snapshot,
        }
        routes = [Route(path, self._in_thread(answer)) for path, answer in answers.items()]
        routes += [
            Route("/", _page),
            Route("/static/{name}", _file),
            Route("/events", self._events),
        ]
        return Starlette(routes=routes)

    @staticmethod
    def _in_thread(
        answer: "Callable[[dict[str, str]], Response]",
    ) -> "Callable[[Request], Any]":
        """An endpoint that may wait for the environment's answer, and holds up no other."""

        async def endpoint(request: "Request") -> "Response":
            return await asyncio.to_thread(answer, dict(request.query_params))

        return endpoint

    async def _events(self, request: "Request") -> "Response":
        from starlette.responses import PlainTextResponse, StreamingResponse

        if self._reader_count >= READERS_MAX:
            return PlainTextResponse(f"{READERS_MAX} pages are open already.\n", 503)
        stream = self._stream(request.query_params.get("run"))
        return StreamingResponse(stream, media_type="text/event-stream")

    async def _stream(self, run_id: str | None) -> AsyncIterator[str]:
        """Snapshots as they change."""
        self._reader_count += 1
        try:
            since, mark, quiet_s = None, "", 0.0
            while not self._closing.is_set():
                try:
                    told = await asyncio.to_thread(self._observer.told, run_id, since)
                except DagschedError:
                    return  # the environment is being closed
                if told.mark != mark:
                    since, mark, quiet_s = told.since, told.mark, 0.0
                    yield f"event: snapshot\ndata: {told.text}\n\n"
                quiet_s += INTERVAL_S
                if quiet_s >= COMMENT_S:
                    quiet_s = 0.0
                    yield ": nothing new\n\n"
                await self._pause(INTERVAL_S)
            # So that a page can tell the end from a break of the line.
            yield "event: end\ndata: closed\n\n"
        finally:
            self._reader_count -= 1

    async def _pause(self, seconds: float) -> None:
        """Wait, but not beyond the end of the server."""
        for _ in range(5):
            if self._closing.is_set():
                return
            await asyncio.sleep(seconds / 5)


async def _page(_request: "Request") -> "Response":
    return _served("index.html")


async def _file(request: "Request") -> "Response":
    return _served(request.path_params["name"])


def _served(name: str) -> "Response":
    from starlette.responses import PlainTextResponse, Response

    path = PAGE / name
    # The names in the folder are all that there are: no path leads out of it.
    if path.parent != PAGE or path.suffix not in _TYPES or not path.is_file():
        return PlainTextResponse("There is no such file.\n", 404)
    return Response(path.read_bytes(), media_type=_TYPES[path.suffix])
