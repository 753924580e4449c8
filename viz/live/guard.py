"""Who may read the page: whoever has the token, by a name that nobody else could have given us.

Responsible for refusing all others before anything of ours is executed, and for headers that keep
a browser from doing on this page what the page doesn't do itself. Plain ASGI, so that a stream of
events passes through unheld.
"""

import hmac
import ipaddress
import socket
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "object-src 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}

REFUSED = (
    "This page needs its token: open the whole URL that the program has printed, or that "
    "`dagsched dashboard` prints.\n"
)
MISNAMED = (
    "This page is served under an address of its machine, not under the name that was asked for.\n"
)


class Guard:
    """Lets through who has the token.

    Args:
        app: what is guarded.
        token: of this page.
        cookie: name of the cookie that keeps it: one for each port, as browsers don't tell ports
            of a host apart.
        host: that the page is served at, as the user gave it.
    """

    def __init__(self, app: ASGIApp, token: str, cookie: str, host: str) -> None:
        self._app = app
        self._token = token.encode()
        self._cookie = cookie
        self._names = {"localhost", host.lower(), socket.gethostname().lower()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            return
        headers = Headers(scope=scope)
        given = self._given_in_query(scope)
        is_new = given is not None and self._is_token(given)
        response: ASGIApp = self._app
        if not self._is_ours(headers.get("host", "")):
            response, is_new = PlainTextResponse(MISNAMED, 400), False
        elif not (is_new or self._has_token(headers)):
            response = PlainTextResponse(REFUSED, 403)
        elif scope["method"] not in ("GET", "HEAD"):
            response = PlainTextResponse("There is nothing here but to read.\n", 405)

        async def send_marked(message: Message) -> None:
            if message["type"] == "http.response.start":
                marked = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    marked.setdefault(name, value)
                if is_new:
                    marked.append("Set-Cookie", self._set_cookie())
            await send(message)

        await response(scope, receive, send_marked)

    def _set_cookie(self) -> str:
        return f"{self._cookie}={self._token.decode()}; Path=/; HttpOnly; SameSite=Strict"

    def _given_in_query(self, scope: Scope) -> str | None:
        """The token in the URL of the page itself; nowhere else, for URLs are remembered."""
        if scope["path"] != "/":
            return None
        query = parse_qs(scope["query_string"].decode("latin-1"))
        return query["token"][0] if "token" in query else None

    def _has_token(self, headers: Headers) -> bool:
        kind, _, bearer = headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._is_token(bearer.strip()):
            return True
        try:
            kept = SimpleCookie(headers.get("cookie", "")).get(self._cookie)
        except CookieError:
            return False
        return kept is not None and self._is_token(kept.value)

    def _is_token(self, text: str) -> bool:
        return hmac.compare_digest(text.encode("utf-8", "surrogateescape"), self._token)

    def _is_ours(self, host: str) -> bool:
        """Whether the name in the request is an address, or a name that is certainly ours.

        Any other name may have been pointed at us by a page of somebody else ("DNS rebinding").
        """
        name = host.rpartition("]")[0].removeprefix("[") if host.startswith("[") else ""
        name = name or host.partition(":")[0]
        if name.lower() in self._names:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return True
