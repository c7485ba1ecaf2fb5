"""TCP relays on loopback that can be cut, stalled and slowed: what a network does on a bad day, below TLS."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Coroutine
from typing import Any

__all__ = ["Network", "Relay"]

_RESET = struct.pack("ii", 1, 0)


class Network:
    """The event loop that relays share, in a thread of its own until `close`."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name="relays", daemon=True)
        self._thread.start()

    def do(self, what: Coroutine[Any, Any, Any]) -> Any:
        """Have something done in the loop; what it returns."""
        return asyncio.run_coroutine_threadsafe(what, self.loop).result(10)

    def close(self) -> None:
        """End all relays."""
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(10)


class Relay:
    """One way from a free port of loopback to another port of it.

    Args:
        network: whose loop it runs in.
        port: where it leads.
    """

    def __init__(self, network: Network, port: int) -> None:
        self._network, self._to = network, port
        self._writers: set[asyncio.StreamWriter] = set()
        self._flows = asyncio.Event()
        self._flows.set()
        self._refuses, self._delay = False, 0.0
        self.passed = 0
        """Bytes that went through, both ways together."""
        self._server = network.do(asyncio.start_server(self._connected, "127.0.0.1", 0))
        self.port = int(self._server.sockets[0].getsockname()[1])

    def cut(self) -> None:
        """Reset every connection, and every new one, until `heal`."""
        self._network.do(self._set(refuses=True))

    def stall(self) -> None:
        """Let nothing through, in either direction, until `heal`; connections stay open, and are taken."""
        self._network.do(self._set(stalls=True))

    def slow(self, seconds: float) -> None:
        """Hold back whatever comes for so long, until `heal`."""
        self._network.do(self._set(delay=seconds))

    def heal(self) -> None:
        """Let everything through; what was held back too."""
        self._network.do(self._set())

    async def _set(self, *, refuses: bool = False, stalls: bool = False, delay: float = 0.0) -> None:
        self._refuses, self._delay = refuses, delay
        (self._flows.clear if stalls else self._flows.set)()
        if refuses:
            for writer in tuple(self._writers):
                _reset(writer)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refuses:
            _reset(writer)
            return
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:
            _reset(writer)
            return
        self._writers |= {writer, back}
        await asyncio.gather(self._pump(reader, back), self._pump(there, writer))
        self._writers -= {writer, back}

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                self.passed += len(data)
                if self._delay:
                    await asyncio.sleep(self._delay)
                await self._flows.wait()
                writer.write(data)
                await writer.drain()
        writer.close()


def _reset(writer: asyncio.StreamWriter) -> None:
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
