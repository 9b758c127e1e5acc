"""A guard in front of our servers: they answer their own pages and programs, and no other web page.

A browser lets any page send requests to 127.0.0.1, and a name that a stranger points there makes that page one of the
server's own. So a request must name the server by an address of its own (Host), and, where a page sends it, come from a
page of the server (Origin, Sec-Fetch-Site). A password decides who may ask at all. The server's pages in turn ask
nothing of other machines (Prefect's would tell a company that counts visits before it knows that it shall not).
"""

import base64
import hmac
from collections.abc import Awaitable, Callable, Collection, Mapping, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]


def own_addresses(port: int) -> set[str]:
    """Values of Host by which a server on loopback may be asked."""
    return {f"{host}:{port}" for host in ("127.0.0.1", "localhost", "[::1]")}


class Guard:
    """An ASGI application that hands on what may be asked of ``app``, and refuses the rest.

    Args:
        app: what is guarded.
        addresses: values of Host that are this server's, such as ``127.0.0.1:5000``.
        login: ``user:password`` that every request must bring (HTTP Basic); None where ``app`` asks for it itself.
        public: paths that need no password.
    """

    def __init__(
        self, app: App, addresses: Collection[str], login: str | None = None, public: Collection[str] = ()
    ) -> None:
        self._app = app
        self._addresses = frozenset(addresses)
        self._origins = frozenset(f"{scheme}://{address}" for scheme in ("http", "https") for address in addresses)
        self._authorization = None if login is None else b"Basic " + base64.b64encode(login.encode())
        self._public = frozenset(public)
        sockets = " ".join(f"ws://{address}" for address in sorted(addresses) if "[" not in address)
        self._policy = f"connect-src 'self' data: blob: {sockets}; frame-ancestors 'self'".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or one connection of a web socket."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            if name in headers and name in (b"host", b"origin"):
                value = b""  # two of them: what this reads may not be what the application reads
            headers[name] = value
        if (reason := self._is_foreign(scope, headers)) is not None:
            await _refuse(scope, send, 403, reason)
        elif not self._is_known(scope, headers):
            await _refuse(scope, send, 401, "a password is needed")
        else:
            await self._app(scope, receive, self._with_policy(send))

    def _with_policy(self, send: Send) -> Send:
        async def sending(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"content-security-policy", self._policy)]
            await send(message)

        return sending

    def _is_foreign(self, scope: Scope, headers: Mapping[bytes, bytes]) -> str | None:
        """Why this is not asked by one of the server's pages or by a program; None where it is."""
        if headers.get(b"host", b"").decode("latin-1").lower() not in self._addresses:
            return "this server has another address"
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1").lower() not in self._origins:
            return "this server answers no page of another origin"
        is_opened = (  # a link, or an address that was typed: a page of its own, not a part of somebody's
            scope.get("method") in ("GET", "HEAD")
            and headers.get(b"sec-fetch-mode") == b"navigate"
            and headers.get(b"sec-fetch-dest") == b"document"
        )
        if headers.get(b"sec-fetch-site") in (b"cross-site", b"same-site") and not is_opened:
            return "this server answers no page of another origin"
        return None

    def _is_known(self, scope: Scope, headers: Mapping[bytes, bytes]) -> bool:
        if self._authorization is None or scope["path"] in self._public:
            return True
        return hmac.compare_digest(headers.get(b"authorization", b""), self._authorization)


async def _refuse(scope: Scope, send: Send, status: int, reason: str) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": reason})  # before it is accepted: HTTP 403
        return
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    if status == 401:
        headers.append((b"www-authenticate", b'Basic realm="ssl-backdoor"'))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": f"Refused: {reason}.\n".encode()})
