"""Metrics over HTTP, for any ASGI server or framework."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
"""Of the text format, in the version that every scraper reads."""


class MetricsApp:
    """An ASGI app that answers every GET with the metrics; where it is found is for those to say who mount it."""

    def __init__(self, render: Callable[[], str]) -> None:
        self._render = render

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        match scope["type"]:
            case "http":
                await self._answer(scope["method"], send)
            case "lifespan":
                await _live(receive, send)
            case _:  # a web socket
                await send({"type": "websocket.close"})

    async def _answer(self, method: str, send: Send) -> None:
        if method not in ("GET", "HEAD"):
            await _send(send, 405, [(b"allow", b"GET, HEAD")])
            return
        body = self._render().encode()
        headers = [(b"content-type", CONTENT_TYPE.encode()), (b"cache-control", b"no-store")]
        await _send(send, 200, headers, body, hide=method == "HEAD")


async def _send(
    send: Send, status: int, headers: list[tuple[bytes, bytes]], body: bytes = b"", *, hide: bool = False
) -> None:
    headers = [*headers, (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if hide else body})


async def _live(receive: Receive, send: Send) -> None:
    """Where it is the whole app, a server asks it to start and to stop; there is nothing to do."""
    while True:
        asked = (await receive())["type"]
        await send({"type": f"{asked}.complete"})
        if asked == "lifespan.shutdown":
            return
