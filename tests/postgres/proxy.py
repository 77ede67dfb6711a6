"""What lies between a store and its PostgreSQL, and may fail in all the ways in which networks do.

    async with Proxy(dsn) as proxy:
        store = PostgresStore(proxy.dsn)
        proxy.freeze()      # connections stay open, and nothing passes
        proxy.heal()

It runs in the event loop of the test, so nothing here may block.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from contextlib import suppress
from typing import Self
from urllib.parse import urlsplit, urlunsplit

CHUNK = 65_536


class Link:
    """One connection through the proxy: two pumps, and how many bytes have passed in both directions."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        self.number = number
        self.passed = 0
        self.said = bytearray()
        """What the client has sent so far."""
        self.flows = asyncio.Event()
        self.flows.set()
        self.cut_at: int | None = None
        self._is_half = False
        self._proxy = proxy
        self._reader, self._writer = reader, writer
        self._upstream: asyncio.StreamWriter | None = None

    async def run(self, host: str, port: int) -> None:
        try:
            back, self._upstream = await asyncio.open_connection(host, port)
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._pump(self._reader, self._upstream, heard=True))
                pumps.create_task(self._pump(back, self._writer, heard=False))
        except* (OSError, _CutError):
            pass
        finally:
            self.reset()

    def reset(self) -> None:
        """Both ends are told at once, as by a firewall that answers for the other."""
        for writer in (self._writer, self._upstream):
            if writer is not None and not writer.transport.is_closing():
                with suppress(OSError):
                    end = writer.get_extra_info("socket")
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()

    def half_close(self) -> None:
        """The store is told that no more will come; what it says is still taken."""
        if not self._is_half and not self._writer.is_closing():
            self._is_half = True
            self._writer.write_eof()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, heard: bool) -> None:
        while data := await reader.read(self._proxy.chunk):
            if heard:
                self.said += data
            if self._proxy.delay:
                await asyncio.sleep(self._proxy.delay)
            await self.flows.wait()
            await self._pass_on(data, writer)
        if not writer.is_closing():
            writer.write_eof()

    async def _pass_on(self, data: bytes, writer: asyncio.StreamWriter) -> None:
        cut = self.cut_at is not None and self.passed + len(data) >= self.cut_at
        if cut and self.cut_at is not None:
            data = data[: self.cut_at - self.passed]
        self.passed += len(data)
        if not (self._is_half and writer is self._writer):
            writer.write(data)
            await writer.drain()
        if cut:
            self._proxy.was_cut(self)
            raise _CutError


class _CutError(Exception):
    """This link was to be cut here."""


class Proxy:
    """Listens on a port of this machine and hands everything on to the server of `dsn`, or does not."""

    def __init__(self, dsn: str, host: str = "127.0.0.1") -> None:
        self._host = host
        self._target = urlsplit(dsn)
        self._tasks: set[asyncio.Task[None]] = set()
        self._frozen = False
        self._cut_at: int | None = None
        self._cuts_left = 0
        self.links: list[Link] = []
        """Those that are open."""
        self.made = 0
        """Connections that came in so far."""
        self.cuts = 0
        self.delay = 0.0
        """Seconds by which each piece of what passes is late, in each direction."""
        self.chunk = CHUNK
        """Bytes that pass at a time."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, self._host, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        user = f"{self._target.username}@" if self._target.username else ""
        self.dsn = urlunsplit(self._target._replace(netloc=f"{user}{self._host}:{self.port}"))
        return self

    async def __aexit__(self, *_exc: object) -> None:
        self._server.close()
        for link in list(self.links):
            link.reset()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        assert self._target.hostname
        self._tasks.add(task)
        self.made += 1
        link = Link(self, reader, writer, self.made)
        link.cut_at = self._cut_at
        if self._frozen:
            link.flows.clear()
        self.links.append(link)
        try:
            await link.run(self._target.hostname, self._target.port or 5432)
        except asyncio.CancelledError:
            pass  # the proxy is closed; a cancelled task of a server is complained about
        finally:
            self.links.remove(link)
            self._tasks.discard(task)

    # --- what can happen ---

    def reset(self) -> None:
        """Every connection breaks; new ones work."""
        for link in list(self.links):
            link.reset()

    def half_close(self) -> None:
        for link in list(self.links):
            link.half_close()

    def freeze(self) -> None:
        """Nothing passes, on old and new connections."""
        self._frozen = True
        self.swallow()

    def swallow(self, said: bytes = b"") -> None:
        """Nothing passes any longer on the connections that are open, or on those of whom something was heard."""
        for link in self.links:
            if said in link.said:
                link.flows.clear()

    def cut(self, at: int, times: int) -> None:
        """Each connection from now on breaks once so many bytes have passed, until so many have."""
        self._cut_at, self._cuts_left = at, times
        if times == 0:
            self._cut_at = None

    def was_cut(self, _link: Link) -> None:
        self.cuts += 1
        self._cuts_left -= 1
        if self._cuts_left <= 0:
            self.cut(0, 0)
            for link in self.links:
                link.cut_at = None

    def heal(self) -> None:
        """All is well from here on; what was held back passes now."""
        self._frozen, self.delay, self.chunk = False, 0.0, CHUNK
        self.cut(0, 0)
        for link in self.links:
            link.flows.set()
            link.cut_at = None
