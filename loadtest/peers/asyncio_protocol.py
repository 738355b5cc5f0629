"""Callbacks per client, by asyncio's Protocol: the echo server of its documentation."""

import asyncio
import sys
from typing import cast


class EchoServerProtocol(asyncio.Protocol):
    """Serves one client."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport, to write to it."""
        self.transport = cast("asyncio.Transport", transport)  # for the type checker

    def data_received(self, data: bytes) -> None:
        """Echo the data."""
        self.transport.write(data)


async def main() -> None:
    """Serve forever."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        EchoServerProtocol, "127.0.0.1", int(sys.argv[1]), backlog=4096
    )
    async with server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
