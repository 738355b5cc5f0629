"""A task per client, by trio's serve_tcp: the echo server of its tutorial."""

import sys

import trio


async def handle(stream: trio.SocketStream) -> None:
    """Echo until the client ends the stream."""
    async for data in stream:
        await stream.send_all(data)


async def main() -> None:
    """Serve forever."""
    await trio.serve_tcp(handle, int(sys.argv[1]), host="127.0.0.1", backlog=4096)


if __name__ == "__main__":
    trio.run(main)
